"""Fault switches: a file that says how which command misbehaves, and how often.

`faults.json` maps a command (`list`, `clone`, `pull`, …; `*` for all) to switches:

    hang          sleep for ever                        ignore_term   and take no notice of SIGTERM
    slow_s        sleep so long first                   garbage       print what is no JSON
    empty_body    answer OK with the body {}            fail          answer an error with this message
    half          stop half-way, leaving what is there  die_at        be killed at that step (1, 2, …)
    omit, invent  names a listing leaves out or adds    leak_slot     the slot of what stops is never given back
    lie           say OK and do nothing                 times         how often; then it behaves again
    break_at      fail a pull in that layer             stall         say no more after a layer of a pull
    drip_s        wait so long in between of a pull
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
    """Switch faults on, replacing all others: `set_faults(home, start={"hang": True})`. None: behave."""
    path = home / "faults.json"
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(commands))
    with _alone(home):
        aside.replace(path)


def read_faults(home: Path) -> dict[str, Switches]:
    """Return the switches by command, with the `times` that are left."""
    with _alone(home):
        found: dict[str, Switches] = json.loads((home / "faults.json").read_text())
    return found


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the switches alone: a call that counts its `times` down would put back those it read."""
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
        with _alone(home.root):
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
        """Misbehave before anything is done. Raises `AnkaFailure`."""
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
        """Mark a step after which it may be that this process is killed."""
        self._step += 1
        if self.switches.get("die_at") == self._step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on(self, switch: str) -> Any:
        """Return a switch's value, or None."""
        return self.switches.get(switch)
