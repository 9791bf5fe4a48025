"""A simulated guest: boots, gets an address, serves its ports and an agent. Run as a program of its own by `run.py`.

Its disk may begin with one line of JSON that defines the guest; otherwise its version is `unknown`:

    {"version": "1.0", "boot_s": 0.1, "unhealthy": false, "panic_s": null}

`unhealthy`: its agent never answers. `panic_s`: it dies this long after its start. Commands of the agent find only the
programs in `guest_bin`, which work on the guest's own files.
"""

import base64
import contextlib
import ctypes
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).with_name("guest_bin")
PORTS = (22, 80, 5900, 8080)
RESUME_S = 0.02
HOST_PROGRAMS = ("/sbin/", "/bin/systemctl")  # they could end the machine that runs this simulator
REAPER = """
cat
for environ in /proc/[0-9]*/environ; do
    process=${environ%/environ}
    grep -qz "^GUEST_PID=$0\\$" "$environ" && kill -9 "${process#/proc/}"
done
"""


class Guest:
    """One guest, with its files in `folder`."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = about
        self.root = folder / "root"
        self.root.mkdir()
        self.traits: dict[str, Any] = {"version": "unknown", "boot_s": 0.1}
        with contextlib.suppress(ValueError, OSError), open(about["disk"], "rb") as disk:
            self.traits |= json.loads(disk.readline(4096))
        seed = hashlib.sha256(about["mac"].encode()).digest()
        self.reaper: subprocess.Popen[bytes] | None = None
        self.ip = f"127.{seed[0] % 254 + 1}.{seed[1]}.{seed[2] % 254 + 1}"

    def boot(self) -> None:
        """Boot: files, address, ports, agent, in this order."""
        snapshot = self.about["snapshot"]
        threading.Event().wait(self.traits["boot_s"] if snapshot is None else RESUME_S)
        for path, content in (snapshot or {}).get("files", {}).items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(content)
        for port in PORTS:
            with contextlib.suppress(OSError):  # low ports need root
                listener = socket.create_server((self.ip, port))
                threading.Thread(target=self._serve, args=(listener, port), daemon=True).start()
        with contextlib.suppress(OSError):  # on a Mac, leases are on another disk
            Path(self.about["leases"], self.about["mac"]).write_text(self.ip)
        if panic_s := self.traits.get("panic_s"):
            threading.Timer(panic_s, os._exit, (9,)).start()
        if not self.traits.get("unhealthy"):
            self._serve_agent()

    def _serve(self, listener: socket.socket, port: int) -> None:
        body = f"{self.traits['version']}\n".encode()
        page = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                if port in (80, 8080):
                    connection.recv(4096)
                connection.sendall(b"SSH-2.0-Simulated\r\n" if port == 22 else page)

    def _serve_agent(self) -> None:
        os.chdir(self.folder)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("vsock")
        listener.listen()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            reader = connection.makefile("rb")
            request = json.loads(reader.readline())
            if "argv" in request:
                env = {"GUEST_ROOT": str(self.root), "GUEST_PID": str(os.getpid())}
                execute(connection, reader, request, env)
            elif "snapshot" in request:
                files = {str(path.relative_to(self.root)): path.read_text() for path in self._files()}
                connection.sendall(json.dumps({"files": files}).encode() + b"\n")
            elif "resolve_ip" in request:
                connection.sendall(json.dumps({"ip": self.ip}).encode() + b"\n")

    def _files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]


_SENDING = threading.Lock()


def execute(connection: socket.socket, reader: Any, request: dict[str, Any], env: dict[str, str]) -> None:
    """Run a command and send its output as it is written. Kills it when the client disconnects."""
    argv = request["argv"]
    if any(part in word for word in argv for part in HOST_PROGRAMS):
        _send(connection, "err", b"refused: this guest has no such program\n")
        _send(connection, "exit", 126)
        return
    try:
        child = subprocess.Popen(
            argv, env={"PATH": str(PROGRAMS), "HOME": "/", **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.PIPE if request.get("stdin") else subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    except OSError:
        _send(connection, "err", f"{argv[0]}: command not found\n".encode())
        _send(connection, "exit", 127)
        return
    threading.Thread(target=_feed, args=(reader, child), daemon=True).start()
    pumps = [
        threading.Thread(target=_pump, args=(connection, name, pipe), daemon=True)
        for name, pipe in (("out", child.stdout), ("err", child.stderr))
    ]
    for pump in pumps:
        pump.start()
    for pump in pumps:
        pump.join()
    code = child.wait()
    _send(connection, "exit", code if code >= 0 else 128 - code)


def start_reaper() -> "subprocess.Popen[bytes]":
    """Start a process that kills the commands of this guest when the guest ends, which closes its pipe."""
    return subprocess.Popen(
        ["/bin/sh", "-c", REAPER, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _send(connection: socket.socket, name: str, what: Any) -> None:
    value = base64.b64encode(what).decode() if isinstance(what, bytes) else what
    with _SENDING:
        connection.sendall(json.dumps({name: value}).encode() + b"\n")


def _pump(connection: socket.socket, name: str, pipe: Any) -> None:
    with contextlib.suppress(OSError):
        while data := pipe.read1(48 << 10):
            _send(connection, name, data)


def _feed(reader: Any, child: Any) -> None:
    """Pass input to a command as it arrives, and kill it when the client disconnects."""
    with contextlib.suppress(OSError, ValueError):
        for line in reader:
            frame = json.loads(line)
            with contextlib.suppress(BrokenPipeError):
                if "in" in frame:
                    child.stdin.write(base64.b64decode(frame["in"]))
                    child.stdin.flush()
                else:
                    child.stdin.close()
    with contextlib.suppress(OSError):
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)


def reset_signals() -> None:
    """Restore the default disposition of ignored signals and an empty mask, for the commands this process will start.

    A real guest inherits neither from the agent. SIGPIPE and SIGXFSZ stay ignored: Python ignores them itself, and
    restores them in each child.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def main() -> None:
    """Boot, and run until shut down or killed. Dies with `tart run`, as Apple's helper does with its client."""
    reset_signals()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    about = json.loads(sys.argv[2])
    if os.getppid() != about["parent"]:
        return  # `tart run` ended before prctl
    guest = Guest(Path(sys.argv[1]), about)
    guest.reaper = start_reaper()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # sent by `shutdown` in guest_bin
    signal.signal(signal.SIGINT, lambda *_: None)  # a handler: its commands would inherit an ignored signal
    threading.Thread(target=guest.boot, daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
