"""A Tart home for a test: images in its cache, faults, recorded calls, and its processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from agent.domain.model import LocalImage
from agent.domain.names import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

SIMULATOR: Final = Path(__file__).parents[1] / "simulators" / "tart"
MACOS: Final[dict[str, Any]] = {
    "version": 1, "os": "darwin", "arch": "arm64", "ecid": "e30=", "hardwareModel": "e30=", "cpuCount": 4,
    "cpuCountMin": 1, "memorySize": 8 << 30, "memorySizeMin": 128 << 20, "macAddress": "5e:00:00:00:00:01",
}  # fmt: skip


@dataclass(frozen=True)
class TartHome:
    """`$TART_HOME`."""

    root: Path

    def add_image(self, version: str = "1.0", *, config: dict[str, Any] | None = None, **guest: Any) -> LocalImage:
        """Add a simulated guest to the cache, as a pull does."""
        about = MACOS | (config or {})
        manifest = json.dumps({"simulated": version, "guest": guest, "config": about}).encode()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        folder = self.root / "cache" / "OCIs" / "registry.example%3A5000" / "tests" / "small" / digest
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(manifest)
        (folder / "config.json").write_text(json.dumps(about))
        (folder / "disk.img").write_bytes(guest_disk(version, **guest))
        (folder / "nvram.bin").write_bytes(b"variables")
        (folder / ".explicitly-pulled").touch()
        return LocalImage(digest, folder, folder / "disk.img", folder / "nvram.bin", about["os"], about["arch"])

    def set_faults(self, **faults: Any) -> None:
        """Set faults by command; see `tests.simulators.tartsim.faults`."""
        path = self.root / ".simulator" / "faults.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(faults))

    def calls(self) -> list[dict[str, Any]]:
        """Return the recorded calls of `tart`."""
        path = self.root / ".simulator" / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def runs(self, name: str = "") -> list[psutil.Process]:
        """Return the `tart run` processes of a VM, or of all VMs."""
        return [one for one, command in self._found() if "run" in command and (not name or command[-1] == name)]

    def guests(self, name: str = "") -> list[psutil.Process]:
        """Return the guest processes of a VM, or of all VMs."""
        marker = str(self.root / ".simulator" / "guests" / name)
        return [one for one, command in self._found() if any(marker in argument for argument in command)]

    def leaked(self) -> list[psutil.Process]:
        """Return the processes that hold a slot although their VM has ended."""
        return [one for one, command in self._found() if str(self.root) in command]

    def clean_up(self) -> None:
        """Kill every VM of the tests, and in a simulated home all other processes too."""
        simulated = (self.root / ".simulator").exists()
        for process, command in self._found():
            if simulated or ("run" in command and PREFIX in command[-1]):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def _found(self) -> Iterator[tuple[psutil.Process, list[str]]]:
        """Yield every process of this home with its command line. It may end at any moment."""
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or [""]
            try:
                ours = str(self.root) in " ".join(command) or (
                    any(argument.endswith("/tart") for argument in command[:4])
                    and process.environ().get("TART_HOME") == str(self.root)
                )
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            if ours and process.pid != psutil.Process().pid:
                yield process, command


def guest_disk(version: str, **guest: object) -> bytes:
    """Return a disk from which the simulated guest boots; see `tests.simulators.tartsim.guest`."""
    header = json.dumps({"version": version, "boot_s": 0.1} | guest).encode() + b"\n"
    return header.ljust(1 << 20, b"\0")
