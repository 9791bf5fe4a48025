"""Fault switches: a file that describes which command fails, how, and how often.

`faults.json` maps a command (`list`, `clone`, `pull`, …; `*` for all) to switches:

    hang          sleep without end                     ignore_term   ignore SIGTERM
    slow_s        sleep so long first                   garbage       print text that is not JSON
    empty_body    answer OK with the body {}            fail          answer an error with this message
    half          fail after half of the work           die_at        be killed at that step (1, 2, …)
    omit, invent  names that a listing omits or adds    leak_slot     never free the slot of a stopped VM
    lie           answer OK and do nothing              times         how often; without it, always
    break_at      fail a pull in that layer             stall         print nothing after a layer of a pull
    drip_s        wait so long between chunks of a pull
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.simulators.anka.state import AnkaFailure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.simulators.anka.state import Home

Switches = dict[str, Any]


def set_faults(home: Path, **commands: Switches) -> None:
    """Switch faults on, replacing all others: `set_faults(home, start={"hang": True})`. No commands: no faults."""
    path = home / "faults.json"
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(commands))
    with _lock(home):
        aside.replace(path)


def read_faults(home: Path) -> dict[str, Switches]:
    """Return the switches by command, with the remaining `times`."""
    with _lock(home):
        found: dict[str, Switches] = json.loads((home / "faults.json").read_text())
    return found


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Lock the switches. Otherwise a call that decrements `times` would overwrite new switches."""
    with (home / ".faults").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Faults:
    """The faults of one call."""

    def __init__(self, home: Home, command: str) -> None:
        self._step = 0
        self.switches: Switches = {}
        path = home.root / "faults.json"
        if not path.exists():
            return
        with _lock(home.root):
            everything: dict[str, Switches] = json.loads(path.read_text())
            key = command if command in everything else "*"
            self.switches = everything.get(key, {})
            if "times" in self.switches:
                self.switches["times"] -= 1
                if self.switches["times"] < 0:
                    self.switches = {}
                else:
                    path.write_text(json.dumps(everything))

    def begin(self) -> None:
        """Fail before any work, if switched on. Raises `AnkaFailure`."""
        if self.switches.get("ignore_term"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(self.switches.get("slow_s", 0))
        while self.switches.get("hang"):
            time.sleep(60)
        if message := self.switches.get("fail"):
            raise AnkaFailure(message)
        if self.switches.get("garbage"):
            sys.stdout.write("Segmentation fault: 11 {]]\n\x00\xff")
            sys.stdout.flush()
            os._exit(0)

    def step(self) -> None:
        """Mark the end of a step. Kills this process if `die_at` is this step."""
        self._step += 1
        if self.switches.get("die_at") == self._step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on(self, switch: str) -> Any:
        """Return a switch's value, or None."""
        return self.switches.get(switch)
