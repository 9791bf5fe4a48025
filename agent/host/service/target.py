"""Targets of the service: a system daemon, or an agent of the logged-in user, with their domain and files. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from agent.host.user_accounts import Account

LABEL: Final = "dev.hearth.agent"
ROOT: Final = Path("/")
ROOT_HOME: Final = Path("/var/root")


class ServiceKind(StrEnum):
    """Kinds of launchd jobs."""

    DAEMON = "daemon"  # runs as root, from boot
    USER = "user"  # runs as the user at the screen, from login


@dataclass(frozen=True, slots=True)
class Target:
    """One target for the job: its domain in launchd, its files, and their owner."""

    kind: ServiceKind
    account: Account
    domain: str
    plist: Path
    logs: Path
    newsyslog: Path

    @property
    def service(self) -> str:
        """The service name of launchctl: domain and label."""
        return f"{self.domain}/{LABEL}"


def daemon_target(root: Path = ROOT) -> Target:
    """Return the target of the system daemon."""
    return Target(
        kind=ServiceKind.DAEMON,
        account=Account("root", 0, 0, ROOT_HOME),
        domain="system",
        plist=root / f"Library/LaunchDaemons/{LABEL}.plist",
        logs=root / "Library/Logs/Hearth",
        newsyslog=root / "etc/newsyslog.d/hearth.conf",
    )


def user_target(account: Account, root: Path = ROOT) -> Target:
    """Return the target of a user's agent."""
    return Target(
        kind=ServiceKind.USER,
        account=account,
        domain=f"gui/{account.uid}",
        plist=account.home / f"Library/LaunchAgents/{LABEL}.plist",
        logs=account.home / "Library/Logs/Hearth",
        newsyslog=root / "etc/newsyslog.d/hearth.conf",
    )
