"""The commands that use the guest's agent, through the VM's control socket."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from tests.simulators.tartsim.errors import StateError, TartError, UsageError
from tests.simulators.tartsim.parse import parse

if TYPE_CHECKING:
    from tests.simulators.tartsim.faults import Faults
    from tests.simulators.tartsim.home import Home, VmDir


def execute(home: Home, faults: Faults, argv: list[str]) -> int:
    """`tart exec`: the exit code is that of the guest's command, which may be any (T19)."""
    parsed = parse(argv, flags="-i -t", names=2, passthrough=True)
    name, *command = parsed.names
    vm = home.open(name)
    if not vm.lock_holder:
        raise StateError(f'VM "{name}" is not running')
    try:
        with _connect(vm) as connection:
            code = follow(connection, command, stdin="-i" in parsed.flags)
            if code is not None:
                return code
    except OSError:
        pass
    what = "Failed to connect to the VM using its control socket: connection pool error"
    raise TartError(f"{what}, is the Tart Guest Agent running?")


def follow(connection: socket.socket, command: list[str], *, stdin: bool) -> int | None:
    """Run a command in a guest, print its output as it arrives, and return its code; None if the guest has ended."""
    connection.sendall(json.dumps({"argv": command, "stdin": stdin}).encode() + b"\n")
    if stdin:
        threading.Thread(target=_feed, args=(connection,), daemon=True).start()
    for line in connection.makefile("rb"):
        code = _show(json.loads(line))
        if code is not None:
            return code
    return None


def _feed(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, 48 << 10):
            connection.sendall(json.dumps({"in": base64.b64encode(data).decode()}).encode() + b"\n")
        connection.sendall(b'{"eof": true}\n')


def ip(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart ip`: queries once a second, and always sleeps a second before it fails, even with --wait 0 (T20)."""
    parsed = parse(argv, options="--wait --resolver", names=1)
    vm, resolver = home.open(parsed.names[0]), parsed.option("--resolver", "dhcp")
    if resolver not in ("dhcp", "arp", "agent"):
        raise UsageError(f"The value '{resolver}' is invalid for '--resolver <resolver>'")
    mac = vm.config()["macAddress"]
    deadline_s = time.monotonic() + parsed.number("--wait", 0)
    while True:
        found = _query_agent(vm) if resolver == "agent" else _lease(home, mac)
        if found and not faults.get("no_ip"):
            sys.stdout.write(f"{found}\n")
            return
        time.sleep(1)
        if time.monotonic() >= deadline_s:
            hint = "" if vm.lock_holder else ", is your VM running?"
            raise TartError(f"no IP address found{hint}")


def _connect(vm: VmDir) -> socket.socket:
    os.chdir(vm.path)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect("control.sock")
    return connection


def _show(frame: dict[str, str | int]) -> int | None:
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        if name in frame:
            stream.buffer.write(base64.b64decode(str(frame[name])))
            stream.flush()
    return int(frame["exit"]) if "exit" in frame else None


def _query_agent(vm: VmDir) -> str:
    try:
        with _connect(vm) as connection:
            connection.settimeout(1)
            connection.sendall(b'{"resolve_ip": true}\n')
            return str(json.loads(connection.makefile("rb").readline())["ip"])
    except (OSError, ValueError):
        return ""


def _lease(home: Home, mac: str) -> str:
    try:
        return (home.leases / mac).read_text()
    except FileNotFoundError:
        return ""
