"""The hypervisor process of one simulated VM: a real process with a child, real ports, and a channel for commands.

It inherits the lock on `alive` and holds it while it lives, writes its facts to `run.json`, and forwards a host port
for each port rule. The top layer of its image defines the guest: what it serves, how long it boots, whether it is
unhealthy. Its commands are those of the guests of the simulated `tart`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.simulators.anka.state import Document, Home
from tests.simulators.tartsim.guest import execute, reset_signals, start_reaper

if TYPE_CHECKING:
    from collections.abc import Callable

PORT_BASE: Final = 10000
HYPERVISOR: Final = "ankahv-arm64"
HELPER: Final = "com.apple.Virtualization.VirtualMachine"


class Guest:
    """The guest: it is up after its boot time, or never."""

    def __init__(self, traits: Document, log: Path) -> None:
        self.traits = traits
        self.up = threading.Event()
        self._log = log
        if not traits.get("unhealthy"):
            timer = threading.Timer(traits.get("boot_s", 0.1), self._booted)
            timer.daemon = True
            timer.start()

    def _booted(self) -> None:
        self.log("login window reached")
        self.up.set()

    def log(self, text: str) -> None:
        """Write a line to the VM's log."""
        with self._log.open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {text}\n")


class Machine:
    """One running VM."""

    def __init__(self, home: Home, uuid: str) -> None:
        self._home = home
        self._folder = home.vms / uuid
        self._uuid = uuid
        vm = home.find(uuid)
        traits = json.loads(home.layer(vm.layers[0]).read_text().rstrip("\0"))
        self._guest = Guest(traits, home.logs / f"{uuid}.log")
        self._root = self._folder / "root"
        self._root.mkdir(exist_ok=True)
        self._stopped = threading.Event()
        self._facts: Document = {}
        self._rules = vm.rules

    def run(self) -> None:
        """Run until the VM is stopped."""
        helper = subprocess.Popen([HELPER], executable="/bin/cat", stdin=subprocess.PIPE)
        self._reaper = start_reaper()
        signal.signal(signal.SIGTERM, lambda *_: self._stopped.set())
        ports = {rule["name"]: self._listen(rule) for rule in self._rules}
        self._facts = {
            "pid": os.getpid(),
            "channel": self._serve(_bind(0), self._command),
            "ports": ports,
            "ip": f"192.168.64.{2 + os.getpid() % 250}",
            "start_date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "over": False,
        }
        self._write_facts()
        self._guest.log(f"hypervisor started, pid {os.getpid()}")
        lives_s = self._guest.traits.get("dies_after_s")
        stopped = self._stopped.wait(lives_s)
        self._facts["over"] = stopped
        self._guest.log("stopped" if stopped else "guest panicked")
        self._write_facts()
        helper.kill()
        os._exit(0)

    def _write_facts(self) -> None:
        self._home.write(f"vm_lib/{self._uuid}/run.json", self._facts)

    def _listen(self, rule: Document) -> int:
        """Forward a rule's host port: its fixed port, otherwise the next free one from 10000 (A11)."""
        fixed = rule.get("host_port")
        return self._serve(_bind(fixed) if fixed else _bind_from(PORT_BASE), lambda at: self._answer(at, rule))

    def _serve(self, listening: socket.socket, answer: Callable[[socket.socket], None]) -> int:
        def accept() -> None:
            while True:
                with suppress(OSError):
                    connection, _ = listening.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        port: int = listening.getsockname()[1]
        return port

    def _answer(self, connection: socket.socket, rule: Document) -> None:
        """Answer like an SSH server, or one HTTP request, once the guest is up."""
        with connection, suppress(OSError):
            self._guest.up.wait()
            if rule["guest_port"] == 22:
                connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
                connection.recv(1)
                return
            request = b""
            while b"\r\n\r\n" not in request:
                received = connection.recv(4096)
                if not received:
                    return
                request += received
            body = f"{self._guest.traits.get('serves', '')}\n".encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)

    def _command(self, connection: socket.socket) -> None:
        """Serve a request of the program `anka` on the channel: a stop, or a command once the guest is up."""
        with connection, connection.makefile("rb") as reader, suppress(OSError, ValueError):
            request: dict[str, Any] = json.loads(reader.readline())
            if request["do"] == "stop":
                if request["force"] or not self._guest.traits.get("ignores_shutdown"):
                    time.sleep(0 if request["force"] else self._guest.traits.get("shutdown_s", 0.05))
                    self._stopped.set()
                return
            self._guest.up.wait()
            connection.sendall(b"\n")
            env = {"GUEST_ROOT": str(self._root), "GUEST_PID": str(os.getpid())}
            execute(connection, reader, json.loads(reader.readline()), env)


def _bind(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(16)
    return listening


def _bind_from(base: int) -> socket.socket:
    for port in range(base + os.getpid() % 20000, 65535):
        with suppress(OSError):
            return _bind(port)
    raise OSError("no host port is free")


def main() -> None:
    """Run the VM that the arguments name: home, UUID, name."""
    reset_signals()
    _, home, uuid, _ = sys.argv[1:]
    try:
        Machine(Home(Path(home)), uuid).run()
    except OSError as error:
        sys.stderr.write(f"port_fwd: failed to bind: {error}\n")
        os._exit(70)
