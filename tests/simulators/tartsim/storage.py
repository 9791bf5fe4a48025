"""The commands that create and remove VMs and images."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from typing import TYPE_CHECKING

from tests.simulators.tartsim.commands import random_mac
from tests.simulators.tartsim.errors import SwiftError, TartError, UsageError, missing
from tests.simulators.tartsim.faults import host_setting, step
from tests.simulators.tartsim.home import REMOTE, Home, VmDir, held, touch_access
from tests.simulators.tartsim.parse import parse

if TYPE_CHECKING:
    from pathlib import Path

    from tests.simulators.tartsim.faults import Faults


def clone(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart clone`: from the cache without a request (T5). It replaces a VM of the new name (T10)."""
    parsed = parse(
        argv,
        flags="--insecure --deduplicate --stacked",
        options="--concurrency --prune-limit",
        names=2,
    )
    source_name, name = parsed.names
    if "/" in name:
        raise UsageError("<new-name> should be a local name")
    source = _source(home, source_name)
    touch_access(source.path)
    aside = home.tmp / str(uuid.uuid4()).upper()
    aside.mkdir()
    with held(aside), held(home.root):
        step(faults, "locked")
        config, suspended = source.config(), source.state_path.exists()
        taken = {vm.config()["macAddress"] for vm in home.local()}
        for file in ("config.json", "nvram.bin", "disk.img", *(["state.vzvmsave"] if suspended else [])):
            if faults.get("half_done") and file == "disk.img":
                break
            shutil.copyfile(source.path / file, aside / file)
            step(faults, f"copied {file}")
        if config["macAddress"] in taken and not suspended:
            VmDir(aside).write_config(config | {"macAddress": random_mac()})
        _replace(home.vms / name, aside)
    if faults.get("half_done"):
        raise SwiftError("The file disk.img couldn't be copied: No space left on device")
    step(faults, "moved")
    _auto_prune(home, source, parsed.number("--prune-limit", 100) * 2**30)


def _source(home: Home, name: str) -> VmDir:
    match = REMOTE.fullmatch(name)
    if match is None:
        return home.open(name)
    image = home.image(match)
    if image is None:
        raise SwiftError(f"Could not connect to the server: {match['host']}")
    return image


def _replace(target: Path, source: Path) -> None:
    """Replace a VM silently, even if it runs (T10)."""
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)


def _auto_prune(home: Home, source: VmDir, limit_bytes: int) -> None:
    """Delete images to free space for the growth of the clone, unless TART_NO_AUTO_PRUNE is set (T16)."""
    free = host_setting(home.simulator, "free_bytes", None)
    if free is None or "TART_NO_AUTO_PRUNE" in os.environ:
        return
    disk = (source.path / "disk.img").stat()
    needed = min(disk.st_size - disk.st_blocks * 512, limit_bytes)
    entries = {entry.path: entry for _, entry in home.entries() if not entry.path.is_symlink()}
    for path in sorted(entries, key=lambda path: path.stat().st_atime):
        if free >= needed:
            return
        if path != source.path:
            free += (path / "disk.img").stat().st_blocks * 512
            shutil.rmtree(path)


def pull(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart pull` of a cached image. This simulator has no registry, because the agent does not pull by Tart."""
    name = parse(argv, flags="--insecure --deduplicate", options="--concurrency", names=1).names[0]
    match = REMOTE.fullmatch(name)
    if match is None:
        sys.stdout.write(f'"{name}" is a local image, nothing to pull here!\n')
        return
    sys.stdout.write(f"pulling {name}...\n")
    if home.image(match) is None:
        raise SwiftError(f"Could not connect to the server: {match['host']}")
    sys.stdout.write(f"{name} image is already cached and linked!\n")


def delete(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart delete`: refuses a running VM, and does not find a VM that lacks a file (T12)."""
    for name in parse(argv, names=-1).names:
        match = REMOTE.fullmatch(name)
        entry = home.image(match) if match else None
        if match is not None and entry is None:
            raise missing(name)
        vm = entry or home.open(name)
        if not os.access(vm.config_path, os.W_OK):
            raise missing(name)
        if vm.lock_holder:
            raise TartError(f'VM "{name}" is running')
        step(faults, "found")
        shutil.rmtree(vm.path)


def rename(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart rename`: refuses a name that is taken."""
    old, new = parse(argv, names=2).names
    vm = home.open(old)
    if (home.vms / new).exists():
        raise UsageError(f'VM with name "{new}" already exists!')
    vm.path.rename(home.vms / new)


def fqn(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart fqn`: the full name of a cached image, without a request. Prints local names even if they do not exist."""
    name = parse(argv, names=1).names[0]
    match = REMOTE.fullmatch(name)
    image = home.image(match) if match else None
    if match is not None and image is None:
        raise TartError(f"OCI storage error: {name} is not a digest and doesn't point to a digest")
    sys.stdout.write(f"{match['host']}/{match['ns']}@{image.name}\n" if match and image else f"{name}\n")


def prune(home: Home, faults: Faults, argv: list[str]) -> None:
    """`tart prune --older-than 0`: all images, or all VMs that do not run, including suspended ones."""
    parsed = parse(argv, flags="--gc", options="--entries --older-than --space-budget", names=0)
    if not parsed.options.keys() & {"--older-than", "--space-budget"}:
        raise UsageError("at least one pruning criteria must be specified")
    if parsed.option("--entries", "caches") == "vms":
        victims = [vm for vm in home.local() if vm.state != "running"]
    else:
        victims = [entry for _, entry in home.entries() if not entry.path.is_symlink()]
    for vm in victims:
        shutil.rmtree(vm.path)
