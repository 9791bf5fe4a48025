"""Fault switches: `$TART_HOME/.simulator/faults.json` maps commands to faults.

    {"clone": {"hang": true}, "exec": {"slow_s": 1, "times": 2}}

| fault | effect |
|---|---|
| `hang` | the command never ends |
| `hang_on_term` | it does not end on SIGTERM either |
| `slow_s` | the command takes so much longer |
| `garbage` | it prints meaningless bytes, and ends with code 0 without an effect |
| `noise` | it prints Tart's harmless warning on stderr before its work (T3) |
| `fail` | it ends with code 1 and this message |
| `die_at` | it is killed at this step of its work |
| `half_done` | `clone` fails and leaves a VM without a disk |
| `omit`, `invent` | `list` omits VMs, or lists VMs that do not exist |
| `leak` | `run` does not free its slot when it ends (T15) |
| `guest_error_s`, `network_loss_s` | `run` ends with code 0 after this time (T4) |
| `times` | how often the faults of this command occur; without it, always |

`{"host": {"arch": "arm64", "slots": 2, "free_bytes": null}}` describes the Mac.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.simulators.tartsim.errors import TartError

if TYPE_CHECKING:
    from pathlib import Path

Faults = dict[str, Any]


def faults_of(simulator: Path, command: str) -> Faults:
    """Return the faults of one run of a command, and decrement its `times`."""
    path = simulator / "faults.json"
    try:
        file = path.open("r+")
    except FileNotFoundError:
        return {}
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.read() or "{}"
        document = json.loads(before)
        faults: Faults = document.get(command, {})
        if "times" not in faults:
            return faults
        if faults["times"] < 1:
            return {}
        document[command] = faults | {"times": faults["times"] - 1}
        text = json.dumps(document)
        file.seek(0)
        file.write(text.ljust(len(before)))  # in place, because the disk may be full
        return faults


def host_setting(simulator: Path, key: str, default: Any) -> Any:
    """Return a property of the simulated Mac."""
    return faults_of(simulator, "host").get(key, default)


def begin(faults: Faults) -> None:
    """Fail before any work, if switched on. May never return."""
    if faults.get("hang_on_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if faults.get("hang") or faults.get("hang_on_term"):
        while True:
            time.sleep(3600)
    if slow_s := faults.get("slow_s"):
        time.sleep(slow_s)
    if faults.get("garbage"):
        for stream in (sys.stdout, sys.stderr):
            stream.buffer.write(b"\x00\xff{[ garbage \xfe\n" * 20)
            stream.flush()
        raise SystemExit(0)
    if faults.get("noise"):
        sys.stderr.write("Failed to perform garbage collection: The file could not be opened.\n")
    if message := faults.get("fail"):
        raise TartError(message)


def step(faults: Faults, name: str) -> None:
    """Mark a step of a command. Kills this process if `die_at` is this step."""
    if faults.get("die_at") == name:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
