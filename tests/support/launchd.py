"""A simulated launchd (tests/simulators/launchctl) and its service targets, in a test's folder."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from agent.host.service.target import Target, daemon_target, user_target
from agent.host.user_accounts import Account

SIMULATORS = Path(__file__).parents[1] / "simulators"
ACCOUNT = Account("ci", os.getuid(), os.getgid(), Path("/Users/ci"))


class Launchd:
    """The launchd of one test: reads and sets its state. `environment` makes a command use it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "mac"
        self.state = folder / "launchd"
        self.state.mkdir()
        self.environment = {
            "LAUNCHCTL_SIM": str(self.state),
            "PATH": f"{SIMULATORS}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def daemon(self) -> Target:
        return daemon_target(self.root)

    def user(self) -> Target:
        account = Account(ACCOUNT.name, ACCOUNT.uid, ACCOUNT.gid, self.root / "Users/ci")
        return user_target(account, self.root)

    def log_in(self) -> None:
        """Open a GUI session."""
        self.set("sessions", str(ACCOUNT.uid))

    def set(self, name: str, value: str = "") -> None:
        (self.state / name).write_text(value)

    def unset(self, name: str) -> None:
        (self.state / name).unlink()

    def calls(self) -> list[list[str]]:
        """Return every call, failed or not, except `print`."""
        made = [json.loads(line) for line in (self.state / "calls").read_text().splitlines()]
        return [call for call in made if call[0] != "print"]

    def pids(self) -> list[int]:
        jobs = [json.loads(path.read_text()) for path in (self.state / "jobs").glob("*") if path.suffix != ".fresh"]
        return [job["pid"] for job in jobs if job["pid"]]

    def close(self) -> None:
        """Kill every job and the process that keeps it alive."""
        for path in (self.state / "jobs").glob("*"):
            with suppress(FileNotFoundError, ValueError):
                job = json.loads(path.read_text())
                path.write_text(json.dumps(job | {"leaving": True}))
                if job["pid"]:
                    with suppress(ProcessLookupError):
                        os.kill(job["pid"], signal.SIGKILL)
