"""`tart run`: holds the VM's lock, runs its guest, and proxies its control socket, until one of them ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.simulators.tartsim import slots
from tests.simulators.tartsim.commands import random_mac
from tests.simulators.tartsim.errors import StateError, SwiftError, TartError, UsageError
from tests.simulators.tartsim.faults import host_setting, step
from tests.simulators.tartsim.home import held
from tests.simulators.tartsim.parse import parse

if TYPE_CHECKING:
    from tests.simulators.tartsim.faults import Faults
    from tests.simulators.tartsim.home import Home, VmDir

FLAGS: Final = (
    "--no-graphics --graphics --serial --no-audio --no-clipboard --recovery --vnc --vnc-experimental --nested "
    "--net-softnet --net-host --suspendable --capture-system-keys --no-trackpad --no-pointer --no-keyboard"
)
OPTIONS: Final = (
    "--serial-path --disk --rosetta --dir --net-bridged --net-softnet-allow --net-softnet-block --net-softnet-expose "
    "--root-disk-opts --provisioning-opts"
)
GUEST: Final = Path(__file__).with_name("guest.py")


def run(home: Home, faults: Faults, argv: list[str]) -> int:
    """Run a VM until it ends; return the exit code, which is 0 also for a guest that died (T4)."""
    parsed = parse(argv, flags=FLAGS, options=OPTIONS, names=1)
    try:
        vm = home.open(parsed.names[0])
    except StateError as error:
        raise SwiftError(*error.args) from error  # Tart opens the VM while it validates arguments (T2)
    suspendable = "--suspendable" in parsed.flags or vm.state == "suspended"
    if suspendable and vm.config().get("os", "darwin") != "darwin":
        raise UsageError("You can only suspend macOS VMs")
    with held(home.root):
        _settle_mac(home, vm)
        config = vm.config()
        if config.get("arch", "arm64") != host_setting(home.simulator, "arch", "arm64"):
            raise TartError(f"cannot run {config.get('arch')} VM on this host")
        lock = _lock(vm)
    step(faults, "locked")
    with lock:
        return _Runner(home, vm, config, faults, suspendable=suspendable).run()


def _settle_mac(home: Home, vm: VmDir) -> None:
    """If a running VM has the same address, assign another address, and delete the snapshot (T18)."""
    mac = vm.config()["macAddress"]
    if any(other.lock_holder and other.config()["macAddress"] == mac for other in home.local() if other != vm):
        sys.stdout.write("There is already a running VM with the same MAC address!\n")
        sys.stdout.write("Resetting VM to assign a new MAC address...\n")
        vm.write_config(vm.config() | {"macAddress": random_mac()})
        vm.state_path.unlink(missing_ok=True)


def _lock(vm: VmDir) -> Any:
    """Take the POSIX lock on `config.json`. Another open in this process would release it (T9)."""
    file = vm.config_path.open("r+b")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StateError(f'VM "{vm.name}" is already running!') from None
    return file


class _Runner:
    def __init__(self, home: Home, vm: VmDir, config: dict[str, Any], faults: Faults, *, suspendable: bool) -> None:
        self._home, self._vm, self._config, self._faults = home, vm, config, faults
        self._suspendable = suspendable
        self._folder = home.simulator / "guests" / f"{vm.name}-{os.getpid()}"
        self._guest: subprocess.Popen[bytes] | None = None
        self._code: int | None = None

    def run(self) -> int:
        wake_reader, wake_writer = socket.socketpair()
        wake_writer.setblocking(False)
        signal.set_wakeup_fd(wake_writer.fileno())
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        slot = None
        try:
            snapshot = self._restore()
            slot = self._take_slot(snapshot)
            step(self._faults, "slot taken")
            self._start(snapshot, slot)
            if snapshot is not None:
                self._vm.state_path.unlink()
                sys.stdout.write("resuming VM...\n")
            step(self._faults, "started")
            with self._listen() as listener:
                step(self._faults, "listening")
                return self._wait(wake_reader, listener)
        finally:
            self._end_guest()
            if slot is not None and self._faults.get("leak"):
                slots.leak(slot, self._home.root)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _restore(self) -> dict[str, Any] | None:
        if not self._vm.state_path.exists():
            return None
        sys.stdout.write("restoring VM state from a snapshot...\n")
        try:
            snapshot: dict[str, Any] = json.loads(self._vm.state_path.read_bytes())
        except ValueError:
            raise TartError('Error Domain=VZErrorDomain Code=12 "Failed to restore the machine state."') from None
        return snapshot

    def _take_slot(self, snapshot: object) -> int | None:
        if self._config.get("os", "darwin") != "darwin":
            return None
        slot = slots.take(self._home.simulator, host_setting(self._home.simulator, "slots", 2))
        if slot is not None:
            return slot
        if snapshot is not None:  # a resume prints the framework's message, a start Tart's
            text = "The maximum supported number of active virtual machines has been reached."
            raise TartError(f'Error Domain=VZErrorDomain Code=6 "{text}"')
        others = [vm.name for vm in self._home.local() if vm != self._vm and vm.lock_holder]
        hint = f" (other running VMs: {', '.join(others)})" if others else ""
        raise TartError(f"The number of VMs exceeds the system limit{hint}")

    def _start(self, snapshot: dict[str, Any] | None, slot: int | None) -> None:
        self._folder.mkdir(parents=True)
        about = {
            "mac": self._config["macAddress"],
            "leases": str(self._home.leases),
            "disk": str(self._vm.path / "disk.img"),
            "snapshot": snapshot,
            "parent": os.getpid(),
        }
        self._guest = subprocess.Popen(
            [slots.PROGRAM, "-S", "-E", str(GUEST), str(self._folder), json.dumps(about)],
            executable=sys.executable,
            stdin=subprocess.DEVNULL,
            pass_fds=() if slot is None else (slot,),
        )

    def _listen(self) -> socket.socket:
        self._vm.socket_path.unlink(missing_ok=True)
        os.chdir(self._vm.path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("control.sock")
        listener.listen()
        return listener

    def _wait(self, wake: socket.socket, listener: socket.socket) -> int:
        selector = selectors.DefaultSelector()
        selector.register(wake, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        began_s = time.monotonic()
        while self._code is None:
            ready = [key.fileobj for key, _ in selector.select(self._select_timeout(began_s))]
            if listener in ready:
                connection, _ = listener.accept()
                threading.Thread(target=self._proxy, args=(connection,), daemon=True).start()
            if wake in ready:
                for number in wake.recv(64):
                    self._handle_signal(signal.Signals(number))
            self._check_guest(began_s)
        return self._code

    def _select_timeout(self, began_s: float) -> float | None:
        ends = [self._faults[key] for key in ("guest_error_s", "network_loss_s") if key in self._faults]
        return max(0.0, began_s + min(ends) - time.monotonic()) if ends else None

    def _check_guest(self, began_s: float) -> None:
        """Check whether the guest has ended. The exit code is always 0; only the text shows the reason (T4)."""
        assert self._guest is not None
        age_s, ended = time.monotonic() - began_s, self._guest.poll()
        if ended == 0:
            sys.stdout.write("guest has stopped the virtual machine\n")
        elif ended is not None or age_s >= self._faults.get("guest_error_s", age_s + 1):
            error = 'Error Domain=VZErrorDomain Code=1 "The virtual machine stopped unexpectedly."'
            sys.stdout.write(f"guest has stopped the virtual machine due to error: {error}\n")
        elif age_s >= self._faults.get("network_loss_s", age_s + 1):
            device = "<VZVirtioNetworkDevice: 0x600000>"
            sys.stdout.write(f"virtual machine's network attachment {device} has been disconnected with error: lost\n")
        else:
            return
        self._code = 0

    def _handle_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGINT:
            self._code = 0
        elif number is signal.SIGUSR1:
            self._suspend()
        elif number is signal.SIGUSR2:
            sys.stdout.write("Requesting guest OS to stop...\n")  # a macOS guest only shows a dialog

    def _suspend(self) -> None:
        """Save the snapshot and end. A VM without --suspendable ends without a snapshot (T17)."""
        if not self._suspendable:
            sys.stdout.write("Failed to suspend the VM: The configuration does not support save/restore.\n")
            self._code = 1
            return
        sys.stdout.write("pausing VM to take a snapshot...\n")
        sys.stdout.write("creating a snapshot...\n")
        step(self._faults, "suspending")
        snapshot = b"{}"  # of a guest that is still booting
        with contextlib.suppress(OSError), self._vsock() as guest:
            guest.settimeout(5)
            guest.sendall(b'{"snapshot": true}\n')
            snapshot = guest.makefile("rb").readline() or snapshot
        self._vm.state_path.write_bytes(snapshot)
        sys.stdout.write("snapshot created successfully! shutting down the VM...\n")
        self._code = 0

    def _vsock(self) -> socket.socket:
        """Connect to the guest's port 8080 of its virtio socket."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(f"/proc/self/fd/{descriptor}/vsock")
        finally:
            os.close(descriptor)
        return connection

    def _proxy(self, client: socket.socket) -> None:
        """Pass bytes between a client of the control socket and the guest. Disconnects the client without an agent."""
        with client:
            try:
                guest = self._vsock()
            except OSError:
                return
            with guest:
                back = threading.Thread(target=_pump, args=(guest, client), daemon=True)
                back.start()
                _pump(client, guest)
                back.join()

    def _end_guest(self) -> None:
        if self._guest is not None:
            self._guest.kill()
            self._guest.wait()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(64 << 10):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
