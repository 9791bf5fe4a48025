"""Faults on demand: `$TART_HOME/.simulator/faults.json` says what goes wrong in which command.

    {"clone": {"hang": true}, "exec": {"slow_s": 1, "times": 2}}

| fault | what happens |
|---|---|
| `hang` | the command never ends |
| `hang_on_term` | nor does it on SIGTERM |
| `slow_s` | it takes so much longer |
| `garbage` | it prints bytes that mean nothing, and ends with code 0 having done nothing |
| `noise` | it prints Tart's harmless complaint on stderr before it does its work (T3) |
| `fail` | it ends with code 1 and this message |
| `die_at` | it is killed at this step of its work |
| `half_done` | `clone` leaves a VM without a disk, and fails |
| `omit`, `invent` | `list` leaves VMs out, or tells of VMs that are not there |
| `leak` | `run` leaves its slot taken when it ends (T15) |
| `guest_error_s`, `network_loss_s` | `run` ends with code 0 after so long (T4) |
| `times` | how often the faults of this command happen; without it, always |

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
    """Return the faults of one run of a command, and count it."""
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
        file.write(text.ljust(len(before)))  # in place: the disk may be full
        return faults


def host_setting(simulator: Path, key: str, default: Any) -> Any:
    """Return what the Mac is like."""
    return faults_of(simulator, "host").get(key, default)


def begin(faults: Faults) -> None:
    """Let go wrong what goes wrong before any work. May never return."""
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
    """Mark a step of a command's work: it may be its last."""
    if faults.get("die_at") == name:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
