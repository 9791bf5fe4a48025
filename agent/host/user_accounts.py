"""User accounts of this machine: of the running process, and of the user who called a command."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Account:
    """One user account."""

    name: str
    uid: int
    gid: int
    home: Path


def current_user() -> Account:
    """Return the user of this process."""
    return _account(os.geteuid())


def invoking_user() -> Account:
    """Return the user who called this command; under sudo, the user who called sudo."""
    uid = os.getuid()
    return _account(int(os.environ.get("SUDO_UID", "0")) if uid == 0 else uid)


def _account(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # containers can have users without a database entry
        return Account(str(uid), uid, os.getgid(), Path.home())
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
