"""The commands of the simulated `anka` for VMs of the host."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tests.simulators.anka.answer import Answer
from tests.simulators.anka.install import REPOSITORY
from tests.simulators.anka.machine import HYPERVISOR
from tests.simulators.anka.state import AnkaFailure, Document, Home, Vm, is_locked
from tests.simulators.tartsim.guest_commands import follow

if TYPE_CHECKING:
    from pathlib import Path

    from tests.simulators.anka.arguments import Arguments
    from tests.simulators.anka.faults import Faults

APPLE_LIMIT: Final = 2
COMMUNICATION_TIMEOUT_S: Final = 5.0
"""How long `anka run` waits for a guest that does not answer. The real value is not documented."""
DISCONNECTED: Final = 125
UP_S: Final = 20.0
LAUNCHER: Final = (
    "import sys; sys.path.insert(0, {repository!r}); from tests.simulators.anka.machine import main; main()"
)
LICENSE: Final = {"status": "valid", "license_type": "com.veertu.anka.entplus", "product": "Anka Build Enterprise Plus"}


def summary(home: Home, vm: Vm) -> Document:
    """Return a VM in the format of `list`. An untagged VM has no `version` (A4)."""
    status = home.status(vm)
    facts = home.run_facts(vm) if status == "running" else {}
    fields = {
        "name": vm.name, "uuid": vm.uuid, "creation_date": vm.creation_date, "status": status,
        "access_date": vm.creation_date, "ip": facts.get("ip", ""), "vnc_port": 5900 if facts else 0,
    }  # fmt: skip
    return fields | ({"version": vm.version} if vm.version else {})


def details(home: Home, vm: Vm) -> Document:
    """Return a VM in the format of `show`. Only a running VM has a pid, an address and ports."""
    size = sum(home.layer(name).stat().st_size for name in vm.layers if home.layer(name).exists())
    shown = summary(home, vm) | {
        "cpu_cores": vm.cpu_cores, "arch": 2, "ram": f"{vm.ram_size >> 30}G", "ram_size": vm.ram_size,
        "hard_drive": 137438953472, "image_size": size, "addons_version": "3.9.1.203", "encrypted": False,
    }  # fmt: skip
    facts = home.run_facts(vm) if shown["status"] == "running" else {}
    if facts:
        shown |= {
            "mac": "36:ab:1d:ff:fd:16", "hostif": "vmenet0", "vnc_password": "admin", "start_date": facts["start_date"],
            "vnc_connection_string": " vnc://127.0.0.1:5900",
        }  # fmt: skip
        if not (home.root / "no-pid").exists():  # A6: only older releases are known to report it
            shown["pid"] = facts["pid"]
    return shown


def list_vms(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`list [-r|-s|-a] [--field LIST] [VM]`."""
    chosen = [home.find(arguments.words[0])] if arguments.words else home.all()
    shown = [summary(home, vm) for vm in chosen]
    if arguments.has("-r", "--running"):
        shown = [vm for vm in shown if vm["status"] == "running"]
    if not is_accepted(home):
        return Answer({})  # A3: without accepted license terms, the body is an object
    fields = arguments.options.get("--field", "name,uuid,creation_date,version,status").split(",")
    body = [
        {key: vm[key] for key in fields if key in vm} for vm in shown if vm["name"] not in (faults.on("omit") or ())
    ]
    body += [{"name": name, "uuid": f"0-{name}", "status": "running"} for name in faults.on("invent") or ()]
    return Answer(body, "\n".join(f"| {vm['name']} | {vm['status']} |" for vm in shown))


def show(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`show VM [tag|network|label]`."""
    vm = home.find(arguments.word(0, "vmid"))
    match arguments.words[1:2]:
        case ["tag"]:
            tags = [{"tag": tag, "number": number} for number, tag in enumerate(vm.tags)]
            return Answer([tag for tag in tags if tag["tag"] not in (faults.on("omit") or ())])
        case ["network"]:
            running = home.status(vm) == "running"
            ports = home.run_facts(vm).get("ports", {}) if running else {}
            rules = [rule | ({"host_port": ports[rule["name"]]} if ports else {}) for rule in vm.rules]
            return Answer({"mode": "shared", "controller": "virtio-net", "port_forwarding_rules": rules})
        case ["label"]:
            return Answer(vm.labels)
    return Answer(details(home, vm))


def clone(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`clone [-c] [-t TAG] VM NAME`. A clone has no tag of its own (A5)."""
    source, name = home.find(arguments.word(0, "vmid")), arguments.word(1, "name")
    tag = arguments.options.get("--tag")
    if tag is not None and tag not in source.tags:
        raise AnkaFailure(f"{source.name}:{tag}: not found", code=3)
    with home.lock():
        if any(vm.name == name for vm in home.all()):
            raise AnkaFailure(f"{name}: name already exists", code=18)
        if faults.on("lie"):
            return Answer({"uuid": source.uuid, "name": name})
        layers = source.tags[tag] if tag else source.layers
        made = home.add(name, layers=list(layers), whole=False)
    faults.step()
    if faults.on("half"):
        raise AnkaFailure(f"{name}: could not create disk image, status 74.")
    made.whole = True
    home.save(made)
    faults.step()
    return Answer({"uuid": made.uuid, "name": made.name}, made.uuid)


def modify(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`modify VM cpu N | ram NG | port [-d] NAME RULE | label NAME VALUE`; refused while the VM runs (A12)."""
    vm, what = home.find(arguments.word(0, "vmid")), arguments.word(1, "command")
    if home.status(vm) == "running":
        raise AnkaFailure(f"{vm.name}: VM is running")
    faults.step()
    if faults.on("lie"):
        return Answer({})
    match what:
        case "cpu":
            vm.cpu_cores = int(arguments.options.get("--cores") or arguments.word(2, "cores"))
        case "ram":
            text = arguments.word(2, "ram")
            vm.ram_size = int(text[:-1]) << (30 if text.endswith("G") else 20)
        case "port":
            name = arguments.word(2, "name")
            vm.rules = [rule for rule in vm.rules if rule["name"] != name]
            if not arguments.has("-d", "--delete"):
                guest, _, host = arguments.word(3, "rule").partition(":")
                rule: Document = {"name": name, "protocol": "tcp", "guest_port": int(guest)}
                vm.rules.append(rule | ({"host_port": int(host)} if host else {}))
        case "label":
            vm.labels[arguments.word(2, "name")] = arguments.word(3, "value")
        case _:
            raise AnkaFailure(f"modify {what}: unknown command", exit_code=2)
    home.save(vm)
    return Answer({})


def start(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`start VM`. Returns when the hypervisor runs, long before the guest is usable (A7)."""
    vm = home.find(arguments.word(0, "vmid"))
    if not faults.on("lie"):
        boot(home, vm, faults)
    return Answer(details(home, vm), f"| {vm.name} | running since now |")


def boot(home: Home, vm: Vm, faults: Faults) -> None:
    """Start a VM's hypervisor process and wait until it reports that it runs."""
    if home.document("license.json", LICENSE)["status"] != "valid":
        raise AnkaFailure("Wrong host for license (-4)")
    with home.lock():
        status = home.status(vm)
        if status == "running":
            return
        if status == "failed":  # A9
            raise AnkaFailure(f"{vm.name}: VM is in a failed state")
        if home.used_slots() >= int(home.document("slots.json", APPLE_LIMIT)):  # A8
            raise AnkaFailure("failed to start: maximum number of running instances exceeded")
        if not vm.whole or not all(whole(home, layer) for layer in vm.layers):  # A14
            vm.failed = True
            home.save(vm)
            raise AnkaFailure("failed to start: hypervisor failed with status 256")
        faults.step()
        folder = home.vms / vm.uuid
        (folder / "run.json").unlink(missing_ok=True)
        vm.suspended = False
        home.save(vm)
        launch(home, vm, folder)
    if faults.on("half"):
        raise AnkaFailure(f"{vm.name}: failed to start: No child processes")
    faults.step()


def launch(home: Home, vm: Vm, folder: Path) -> None:
    """Spawn the process, in a session of its own (A10), and wait until it reports that it runs."""
    code = LAUNCHER.format(repository=str(REPOSITORY))
    with (home.logs / f"{vm.uuid}.log").open("a") as log, (folder / "alive").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)  # the child keeps the lock when this process ends
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", code, HYPERVISOR, str(home.root), vm.uuid, vm.name],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=[alive.fileno()],
        )  # fmt: skip
    deadline_s = time.monotonic() + UP_S
    while not (folder / "run.json").exists():
        code_or_none = process.poll()
        if code_or_none is not None:
            raise AnkaFailure(f"failed to start: hypervisor failed with status {code_or_none}")
        if time.monotonic() > deadline_s:
            raise AnkaFailure("failed to start: timeout")
        time.sleep(0.005)


def whole(home: Home, layer: str) -> bool:
    """Whether a layer is complete and not truncated."""
    path = home.layer(layer)
    return path.exists() and not path.with_suffix(".broken").exists()


def stop(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`stop [-f] VM…`. Only --force ends a VM that ignores the request, or clears a failed VM."""
    force = arguments.has("-f", "--force")
    for name in arguments.words:
        vm = home.find(name)
        faults.step()
        status = home.status(vm)
        if status == "failed" and not force:
            raise AnkaFailure(f"{vm.name}: VM is in a failed state")
        if faults.on("lie"):
            continue
        if status == "running":
            end(home, vm, force=force)
        vm.failed = False
        (home.vms / vm.uuid / "run.json").unlink(missing_ok=True)
        home.save(vm)
        if faults.on("leak_slot"):
            with home.lock():
                home.write("leaked.json", int(home.document("leaked.json", 0)) + 1)
        faults.step()
    return Answer({})


def end(home: Home, vm: Vm, *, force: bool) -> None:
    """Request the hypervisor process to stop; with `force`, kill it if it does not."""
    alive = home.vms / vm.uuid / "alive"
    deadline_s = time.monotonic() + UP_S
    while not (facts := home.run_facts(vm)) and is_locked(alive) and time.monotonic() < deadline_s:
        time.sleep(0.005)  # it has just been spawned
    if not facts:
        return
    with suppress(OSError), socket.create_connection(("127.0.0.1", facts["channel"]), 0.5) as channel:
        channel.sendall(json.dumps({"do": "stop", "force": force}).encode() + b"\n")
    deadline_s = time.monotonic() + (0.5 if force else 30)
    while is_locked(alive) and time.monotonic() < deadline_s:
        time.sleep(0.005)
    if force and is_locked(alive):
        with suppress(ProcessLookupError):
            os.kill(facts["pid"], signal.SIGKILL)
        while is_locked(alive):
            time.sleep(0.005)
    if is_locked(alive):
        raise AnkaFailure(f"{vm.name}: operation timeout")


def suspend(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`suspend VM…`: on Apple silicon it stops the VM and marks it as suspended (A13)."""
    for name in arguments.words:
        vm = home.find(name)
        if home.status(vm) == "running":
            end(home, vm, force=False)
            (home.vms / vm.uuid / "run.json").unlink(missing_ok=True)
        vm.suspended = True
        faults.step()
        home.save(vm)
    return Answer({})


def delete(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`delete --yes [-t TAG] VM…` or `delete --cache`. Without --yes it waits for confirmation, and gets none."""
    if arguments.has("--cache"):
        drop_orphans(home, partial=True)
        return Answer({})
    if not arguments.has("--yes"):
        raise AnkaFailure("are you sure? [y/N]: aborted")
    tag = arguments.options.get("--tag")
    for name in arguments.words:
        vm = home.find(name)
        faults.step()
        if faults.on("lie"):
            continue
        if home.status(vm) == "running":
            raise AnkaFailure(f"{vm.name}: VM is running")
        if tag is None:
            shutil.rmtree(home.vms / vm.uuid)
            (home.logs / f"{vm.uuid}.log").unlink(missing_ok=True)
        elif tag not in vm.tags:
            raise AnkaFailure(f"{vm.name}:{tag}: not found", code=3)
        else:  # A15: the template stays, even without a tag
            del vm.tags[tag]
            if vm.version == tag:
                vm.version = ""
            home.save(vm)
        faults.step()
    drop_orphans(home)
    return Answer({})


def drop_orphans(home: Home, *, partial: bool = False) -> None:
    """Remove layers that no VM and no tag needs; with `partial`, also files of interrupted pulls."""
    with home.lock():
        vms = home.all()
        needed = {layer for vm in vms for layers in (vm.layers, *vm.tags.values()) for layer in layers}
        for path in home.images.iterdir():
            if path.name.split(".")[0] not in needed and (partial or not path.name.startswith(".")):
                path.unlink()


def run(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`run VM COMMAND…`. Starts the VM if it does not run (A16)."""
    vm, argv = home.find(arguments.word(0, "vmid")), arguments.words[1:]
    if home.status(vm) != "running":
        boot(home, vm, faults)
    code = None
    try:
        with socket.create_connection(("127.0.0.1", home.run_facts(vm)["channel"]), COMMUNICATION_TIMEOUT_S) as channel:
            channel.sendall(b'{"do": "run"}\n')
            if channel.recv(1):
                channel.settimeout(None)
                code = follow(channel, argv or ["true"], stdin=True)  # A30
    except TimeoutError:
        return Answer(guest=(1, "-anka: communication timeout\n"))
    except OSError:
        pass
    return Answer(guest=(DISCONNECTED, "-anka: disconnected\n") if code is None else (code, ""))


def license_state(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`license show | accept-eula`."""
    del faults
    match arguments.word(0, "command"):
        case "show":
            return Answer(home.document("license.json", LICENSE))
        case "accept-eula":
            (home.root / "eula-open").unlink(missing_ok=True)
            return Answer({})
        case other:
            raise AnkaFailure(f"license {other}: unknown command", exit_code=2)


def is_accepted(home: Home) -> bool:
    """Whether the license terms are accepted on this host."""
    return not (home.root / "eula-open").exists()


def version(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`version`."""
    del arguments, faults
    release = home.document(
        "version.json", {"product": "Anka Build Enterprise Plus", "version": "3.9.1", "build": "203"}
    )
    return Answer(release, f"{release['product']} version {release['version']} (build {release['build']})")


def config(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`config KEY`: the defaults of some keys."""
    del home, faults
    defaults = {"network_failure_action": 1, "puller_threads": 4, "portfwd_base": 10000}
    value = (defaults | {"pull_resume": 0, "pull_failback": 0}).get(arguments.word(0, "key"))
    return Answer({arguments.words[0]: value}, str(value))
