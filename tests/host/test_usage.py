"""Resource usage of VMs, measured by the names of their processes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from agent.host.usage import measure_usage

BURN = "import sys; sum(range(5_000_000)); print('burnt', flush=True); sys.stdin.read()"
NAME = "hearth-small-01jx4c8h2m9v3k5n7p1q0r2s4t"


def test_usage_sums_vm_processes_without_those_on_terminals() -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", BURN, f"/vms/{NAME}/disk"]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
    vm = subprocess.Popen(command, **piped)  # type: ignore[call-overload]
    on_terminal = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {BURN}", NAME],
        stdin=follower, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert vm.stdout.readline() == on_terminal.stdout.readline() == b"burnt\n"  # type: ignore[union-attr]
        usage = measure_usage([NAME, NAME[:-1], "hearth-other"])
    finally:
        for process in (vm, on_terminal):
            process.kill()
            process.communicate()
        os.close(leader)
        os.close(follower)
    assert list(usage.vms) == [NAME]
    assert 0 < usage.vms[NAME].cpu_s < 60
    assert usage.vms[NAME].resident_bytes > 1 << 20
    assert 0 < usage.memory_available_bytes < usage.memory_total_bytes
    assert usage.cpu_busy_s > 0
