"""The commands of the simulated `anka` that use registries. A pull downloads its layers over HTTP."""

from __future__ import annotations

import fcntl
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any, Final

from tests.simulators.anka.answer import Answer
from tests.simulators.anka.state import AnkaFailure, Document, Home, Vm

if TYPE_CHECKING:
    from tests.simulators.anka.arguments import Arguments
    from tests.simulators.anka.faults import Faults

TIMEOUT_S: Final = 10.0
CONCURRENT_PULL: Final = "concurrent-pull"
"""The file that marks two concurrent pulls."""
CHUNK: Final = 64 << 10
OCI_SINCE: Final = (3, 9)


class Remote:
    """One registry, as stored by `anka registry add`."""

    def __init__(self, settings: Document) -> None:
        self.url = str(settings["url"]).rstrip("/")
        self._settings = settings

    def open(self, path: str) -> Any:
        """Open a GET request and return the response. Raises `AnkaFailure`."""
        headers = {}
        if key := self._settings.get("api_key_id"):
            headers["Authorization"] = f"Sim-Key {key}"
        try:
            request = urllib.request.Request(self.url + path, headers=headers)
            return urllib.request.urlopen(request, timeout=TIMEOUT_S, context=self._trust())
        except urllib.error.HTTPError as error:
            body = error.read().decode(errors="replace")
            raise AnkaFailure(f"registry: {error.code} {body}", code=3 if error.code == 404 else 1) from error
        except OSError as error:
            raise AnkaFailure(f"registry: {error}") from error

    def get(self, path: str) -> Any:
        """Return the JSON document at a path."""
        with self.open(path) as answer:
            return json.load(answer)

    def _trust(self) -> ssl.SSLContext | None:
        if not self.url.startswith("https"):
            return None
        context = ssl.create_default_context(cafile=self._settings.get("cacert"))
        if cert := self._settings.get("cert"):
            context.load_cert_chain(cert, self._settings.get("key"))
        return context


class Version:
    """One tag of a template in a registry, with the path of each layer."""

    def __init__(self, uuid_: str, name: str, tag: str, layers: dict[str, str], size: int) -> None:
        self.uuid, self.name, self.tag, self.layers, self.size = uuid_, name, tag, layers, size


def registry(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`registry [options] --list | add NAME URL | remove NAME | list | show VM | pull VM`."""
    remotes: list[Document] = home.document("remotes.json", [])
    if arguments.has("--list"):
        return Answer([{"name": one["name"], "url": one["url"], "default": one["default"]} for one in remotes])
    match arguments.word(0, "command"):
        case "add":
            name, url = arguments.word(1, "name"), arguments.word(2, "url")
            if any(one["name"] == name for one in remotes):
                raise AnkaFailure(f"{name}: already exists", code=18)
            keep = {"cert", "key", "cacert", "api-key-id", "api-key", "prefix", "oci-version"}
            options = {
                flag[2:].replace("-", "_"): arguments.options[flag]
                for flag in arguments.options
                if flag[2:] in keep
            }  # fmt: skip
            home.write("remotes.json", [*remotes, {"name": name, "url": url, "default": not remotes, **options}])
            return Answer({})
        case "remove":
            home.write("remotes.json", [one for one in remotes if one["name"] != arguments.word(1, "name")])
            return Answer({})
        case "list":
            body = remote_of(home, arguments.options.get("--remote")).get("/registry/v2/vm")["body"]
            key = "uuid" if release(home) >= (3, 2) else "id"  # A17
            return Answer([{key: one["id"], "name": one["name"]} for one in body])
        case "pull":
            arguments.words.pop(0)
            return pull(home, arguments, faults)
        case other:
            raise AnkaFailure(f"registry {other}: unknown command", exit_code=2)


def release(home: Home) -> tuple[int, ...]:
    """Return the simulated release."""
    document = home.document("version.json", {"version": "3.9.1"})
    return tuple(int(part) for part in document["version"].split("."))


def remote_of(home: Home, named: str | None) -> Remote:
    """Return a registry by name or URL, or the default registry."""
    remotes: list[Document] = home.document("remotes.json", [])
    for one in remotes:
        if named in (one["name"], one["url"]) or (named is None and one["default"]):
            return Remote(one)
    if named and "://" in named:
        return Remote({"url": named})
    raise AnkaFailure(f"{named or 'default registry'}: not found", code=3)


def pull(home: Home, arguments: Arguments, faults: Faults) -> Answer:
    """`pull [-t TAG] [-l] [-s] [--fetch-only] [--check-download-size] VM [REMOTE]`."""
    name, tag = arguments.word(0, "vmid"), arguments.options.get("--tag")
    if arguments.has("-l", "--local"):
        return check_out(home, home.find(name), tag)
    remote, version = find_version(home, arguments, name, tag)
    known = next((vm for vm in home.all() if vm.uuid == version.uuid), None)
    if known and version.tag in known.tags:  # A18: also if that pull failed
        if not arguments.has("--fetch-only", "--check-download-size"):
            check_out(home, known, version.tag)
        shrink(home, arguments, known, version.tag)
        return Answer({}, "VM pulled successfully", message=f"{version.name}: available locally")
    missing = [layer for layer in version.layers if not home.layer(layer).exists()]
    if arguments.has("--check-download-size"):
        return size_of(home, version, missing)
    if faults.on("lie"):
        return Answer({}, message=f"VM pulled successfully with uuid: {version.uuid}")
    known = known or home.add(version.name, uuid=version.uuid)
    known.tags[version.tag] = list(version.layers)
    home.save(known)
    fetch_locked(home, remote, version, missing, faults, machine_readable=arguments.machine_readable)
    shrink(home, arguments, known, version.tag)
    if not arguments.has("--fetch-only"):
        check_out(home, known, version.tag)
    return Answer({}, f"VM pulled successfully with uuid: {version.uuid}", message=version.uuid)


def shrink(home: Home, arguments: Arguments, vm: Vm, tag: str) -> None:
    """Delete the other tags if --shrink is set (A23)."""
    if arguments.has("-s", "--shrink"):
        vm.tags = {tag: vm.tags[tag]}
        home.save(vm)


def find_version(home: Home, arguments: Arguments, name: str, tag: str | None) -> tuple[Remote, Version]:
    """Return the registry and the version that the arguments name."""
    oci = arguments.options.get("--oci-version")
    if oci and release(home) < OCI_SINCE:
        raise AnkaFailure("unknown option -o", exit_code=2)
    named = arguments.options.get("--remote") or (arguments.words[1] if len(arguments.words) > 1 else None)
    remote = remote_of(home, named)
    return remote, oci_version(remote, arguments, name, tag) if oci else registry_version(remote, name, tag)


def check_out(home: Home, vm: Vm, tag: str | None) -> Answer:
    """Make a local tag the current one. This also clears a failed template."""
    if tag not in vm.tags:
        raise AnkaFailure(f"{vm.name}:{tag}: not found", code=3)
    vm.version, vm.layers, vm.failed = str(tag), list(vm.tags[str(tag)]), False
    home.save(vm)
    return Answer({})


def size_of(home: Home, version: Version, missing: list[str]) -> Answer:
    """Answer --check-download-size."""
    cached = version.size * (len(version.layers) - len(missing)) // len(version.layers)
    volume = os.statvfs(home.root)
    available = home.document("available.json", volume.f_bavail * volume.f_frsize)
    for vm in home.all():  # as if each evicted tag freed that much
        available -= len(vm.tags) * int(home.document("tag-takes.json", 0))
    return Answer({"size": version.size, "cached": cached, "available": available})


def fetch_locked(
    home: Home, remote: Remote, version: Version, missing: list[str], faults: Faults, *, machine_readable: bool
) -> None:
    """Download layers. Two concurrent pulls on one host leave broken layers (A19)."""
    with (home.root / ".pulling").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (home.root / CONCURRENT_PULL).touch()
            for layer in missing:
                home.layer(layer).with_suffix(".broken").touch()
        fetch(home, remote, version, missing, faults, machine_readable=machine_readable)


def fetch(
    home: Home, remote: Remote, version: Version, missing: list[str], faults: Faults, *, machine_readable: bool
) -> None:
    """Download layers and print the progress. A failure leaves a seemingly complete layer (A18)."""
    for number, layer in enumerate(missing, 1):
        faults.step()
        partial, path = home.images / f".{layer}", home.layer(layer)
        broken = faults.on("break_at") == number
        with remote.open(version.layers[layer]) as answer, partial.open("wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                time.sleep(faults.on("drip_s") or 0)
        percent = 100 * number // len(missing)
        if broken or faults.on("stall"):
            path.with_suffix(".broken").touch()
            percent -= 1
        partial.replace(path)
        line = json.dumps({"status": "OK", "body": {}, "message": f"Downloading files {percent}%"})
        sys.stdout.write(f"{line}\n" if machine_readable else f"Downloading files  [####]  {percent}%\n")
        sys.stdout.flush()
        while faults.on("stall"):
            time.sleep(60)
        if broken:
            raise AnkaFailure("failed to checkout: Input/output error")


def registry_version(remote: Remote, name: str, tag: str | None) -> Version:
    """Return a template's tag in an Anka Registry."""
    listed = remote.get("/registry/v2/vm")["body"]
    found = next((one for one in listed if name in (one["id"], one["name"])), None)
    if found is None:
        raise AnkaFailure(f"{name}: not found", code=3)
    template = remote.get(f"/registry/v2/vm?id={found['id']}")["body"]
    versions = {one["tag"]: one for one in template["versions"]}
    found_version = versions.get(tag) if tag else max(template["versions"], key=lambda one: int(one["number"]))
    if found_version is None:
        raise AnkaFailure(f"{name}:{tag}: not found", code=3)
    layers = {image.removesuffix(".ank"): f"/files/{image}" for image in found_version["images"]}
    return Version(found["id"], template["name"], found_version["tag"], layers, found_version["size"])


def oci_version(remote: Remote, arguments: Arguments, name: str, tag: str | None) -> Version:
    """Return a tag in an OCI registry."""
    namespace = "/".join(part for part in (arguments.options.get("--prefix"), name) if part)
    path = f"/v2/{namespace}"
    manifest = remote.get(f"{path}/manifests/{tag or 'latest'}")
    layers = {one["digest"].split(":")[1]: f"{path}/blobs/{one['digest']}" for one in manifest["layers"]}
    size = sum(one["size"] for one in manifest["layers"])
    return Version(
        str(uuid.uuid5(uuid.NAMESPACE_URL, namespace)), name.rpartition("/")[2], tag or "latest", layers, size
    )


COMMANDS: Final = {"pull": pull, "registry": registry}
