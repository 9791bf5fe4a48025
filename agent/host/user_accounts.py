"""Users of this machine: whom the agent runs as, and who calls a command."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    home: Path


def current_user() -> Account:
    """Return the user this process runs as."""
    return _account(os.geteuid())


def invoking_user() -> Account:
    """Return the user who runs this command; behind sudo, the one who called it."""
    uid = os.getuid()
    return _account(int(os.environ.get("SUDO_UID", "0")) if uid == 0 else uid)


def _account(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # a user of no database, as containers have them
        return Account(str(uid), uid, os.getgid(), Path.home())
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
