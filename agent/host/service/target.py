"""Where Hearth lives under launchd: a daemon of the system, or an agent of the user who is logged in. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from agent.host.user_accounts import Account

LABEL: Final = "dev.hearth.agent"
ROOT: Final = Path("/")
ROOT_HOME: Final = Path("/var/root")


class Kind(StrEnum):
    """Whose job it is."""

    DAEMON = "daemon"  # root's, from boot on
    USER = "user"  # of the user at the screen, from login on


@dataclass(frozen=True, slots=True)
class Target:
    """One place for the job: its domain in launchd, its files, and who owns them."""

    kind: Kind
    account: Account
    domain: str
    plist: Path
    logs: Path
    newsyslog: Path

    @property
    def service(self) -> str:
        """The service as launchctl names it."""
        return f"{self.domain}/{LABEL}"


def daemon(root: Path = ROOT) -> Target:
    """Return the place of the system's daemon."""
    return Target(
        kind=Kind.DAEMON,
        account=Account("root", 0, 0, ROOT_HOME),
        domain="system",
        plist=root / f"Library/LaunchDaemons/{LABEL}.plist",
        logs=root / "Library/Logs/Hearth",
        newsyslog=root / "etc/newsyslog.d/hearth.conf",
    )


def agent_of(account: Account, root: Path = ROOT) -> Target:
    """Return the place of a user's agent."""
    return Target(
        kind=Kind.USER,
        account=account,
        domain=f"gui/{account.uid}",
        plist=account.home / f"Library/LaunchAgents/{LABEL}.plist",
        logs=account.home / "Library/Logs/Hearth",
        newsyslog=root / "etc/newsyslog.d/hearth.conf",
    )
