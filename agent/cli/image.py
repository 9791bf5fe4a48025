"""`hearth image`: list, push, pull, check and remove images.

`list` queries the agent. The other commands work on the store in the data directory and need no agent; both take the
same locks. Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import typer

from agent.cli import options
from agent.cli.client import ApiClient
from agent.cli.documents import ImageList, ImageStatus
from agent.cli.endpoint import AgentNotRunningError, RemoteEndpoint
from agent.cli.output import print_json, print_line, print_note, quiet_logs
from agent.cli.progress import pull_bar, push_bar
from agent.config import Config, load_config
from agent.domain.errors import HearthError
from agent.images.errors import BadDiskError, ImageNotFoundError
from agent.images.inspect import Description, describe
from agent.images.manifest import MAX_NVRAM_BYTES
from agent.images.reference import is_digest
from agent.images.service import ImageService, open_images
from agent.images.vmconfig import Hardware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_MIB: Final = 1 << 20
_SHORT_DIGEST: Final = re.compile(r"(?:sha256:)?[0-9a-f]{1,64}")

_Result = TypeVar("_Result")

app = typer.Typer(
    help="List, push, pull, check and remove images.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Use the store in this data directory, not the configured one."),
]
RefArgument = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="[host[:port]/]name[:tag][@sha256:hex] or oci-layout:/path[:tag|@sha256:hex].",
        show_default=False,
    ),
]


@app.command("list", epilog="Example: hearth image list --json | jq '.images[] | .references'")
def list_images(
    config: options.Config = None,
    socket: options.Socket = None,
    data_dir: DataDirOption = None,
    as_json: options.Json = False,
) -> None:
    """List the images of a host and the progress of its pulls.

    The list comes from the agent. When no agent runs on this host, or with --data-dir, it comes from the local store.
    The JSON key `source` is "agent" or "store".
    """
    images = None if data_dir else _list_from_agent(config, socket)
    source = "store" if images is None else "agent"
    if images is None:
        images = _list_from_store(config, data_dir)
    if as_json:
        print_json({"source": source, "images": images})
    else:
        _print_images(images)


@app.command(epilog="Example: hearth image show registry.example:5000/ci/debian:v2 --json")
def show(
    ref: RefArgument, config: options.Config = None, data_dir: DataDirOption = None, as_json: options.Json = False
) -> None:
    """Show the image that a reference names now. Download only its manifest."""
    found = _run(lambda images: describe(images, ref), config, data_dir)
    _print(_document(found), _text(found), as_json=as_json)


@app.command(epilog="Example: hearth image pull oci-layout:/srv/images:v2")
def pull(
    ref: RefArgument, config: options.Config = None, data_dir: DataDirOption = None, as_json: options.Json = False
) -> None:
    """Pull an image into the store. Download only the chunks that are not present locally."""

    async def work(images: ImageService) -> str:
        digest = await images.resolve(ref)
        async with pull_bar(images.progress, enabled=not as_json):
            await images.pull(ref, digest)
        return digest

    digest = _run(work, config, data_dir)
    _print({"reference": ref, "digest": digest}, digest, as_json=as_json)


@app.command(epilog="Example: hearth image push disk.img registry.example:5000/ci/debian:v2 --memory 4096")
def push(  # noqa: PLR0913 - the options of a command are its arguments
    disk: Annotated[Path, typer.Argument(metavar="DISK", help="Raw disk image.", show_default=False)],
    ref: RefArgument,
    *,
    os: Annotated[Literal["linux", "darwin"], typer.Option(help="Operating system of the guest.")] = "linux",
    arch: Annotated[Literal["amd64", "arm64"], typer.Option(help="Architecture of the guest.")] = "amd64",
    cpus: Annotated[int, typer.Option(min=1, max=512, help="Processors of the guest.")] = 2,
    memory: Annotated[int, typer.Option(min=64, metavar="MIB", help="Memory of the guest.")] = 2048,
    nvram: Annotated[
        Path | None, typer.Option(metavar="FILE", help="UEFI variables. Without them the guest boots by BIOS.")
    ] = None,
    mount_from: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another repository of that registry, from which to reuse equal chunks."),
    ] = None,
    config: options.Config = None,
    data_dir: DataDirOption = None,
    as_json: options.Json = False,
) -> None:
    """Push a raw disk as an image, in the format that Tart pulls too."""
    hardware = Hardware(os, arch, cpus, memory)

    async def work(images: ImageService) -> str:
        variables = _read_nvram(nvram) if nvram else b""
        with push_bar(enabled=not as_json) as report:
            return await images.push(
                disk, ref, hardware=hardware, nvram=variables, mount_from=mount_from, progress=report
            )

    digest = _run(work, config, data_dir)
    _print({"reference": ref, "digest": digest}, digest, as_json=as_json)


@app.command(epilog="Example: hearth image rm registry.example:5000/ci/debian:v1")
def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="REF|DIGEST...", help="The images to remove; a digest may be shortened.", show_default=False
        ),
    ],
    config: options.Config = None,
    data_dir: DataDirOption = None,
    as_json: options.Json = False,
) -> None:
    """Remove images from this host. The registry keeps them; an agent that is assigned them pulls them again."""

    async def work(images: ImageService) -> list[str]:
        digests = [await _local_digest(images, name) for name in names]
        for digest in digests:
            await images.remove(digest)
        return digests

    digests = _run(work, config, data_dir)
    _print({"removed": digests}, "\n".join(digests), as_json=as_json)


@app.command(epilog="Example: hearth image fsck --repair")
def fsck(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Remove damaged images and rebuild the indexes.")] = False,
    config: options.Config = None,
    data_dir: DataDirOption = None,
    as_json: options.Json = False,
) -> None:
    """Check every image of this host byte for byte. Exit with 1 when there is damage that was not repaired."""
    findings = _run(lambda images: images.check(repair=repair), config, data_dir)
    documents = [{"image": f.image, "problem": f.problem, "repaired": f.repaired} for f in findings]
    lines = [f"{f.image}  {f.problem}{'; removed' if f.repaired else ''}" for f in findings]
    _print(documents, "\n".join(lines) or "all images are complete", as_json=as_json)
    if findings and not repair:
        raise typer.Exit(1)


def _list_from_agent(config: Path | None, socket: Path | None) -> list[ImageStatus] | None:
    """Return the agent's images, or None after a note on stderr when no agent runs on this host."""
    endpoint = options.select_endpoint(socket, config)
    try:
        with ApiClient(endpoint) as client:
            return client.get("/v1/images", ImageList).document["images"]
    except AgentNotRunningError as error:
        if isinstance(endpoint, RemoteEndpoint):
            raise
        print_note(f"{error.message}; these are the images in the local store")
        return None


def _list_from_store(config: Path | None, data_dir: Path | None) -> list[ImageStatus]:
    return [
        {
            "digest": image.digest,
            "state": "present",
            "references": list(image.references),
            "pools": [],
            "disk_bytes": image.disk_bytes,
            "allocated_bytes": image.allocated_bytes,
            "last_used_at": f"{datetime.fromtimestamp(image.last_used_at_s, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "progress": None,
            "error": "",
            "retry_at": None,
        }
        for image in _run(lambda service: service.list(), config, data_dir)
    ]


def _print_images(images: list[ImageStatus]) -> None:
    if not images:
        print_line("no images")
        return
    from agent.cli.console import PlainConsole  # noqa: PLC0415 - rich is slow to import
    from agent.cli.tables import image_table  # noqa: PLC0415

    console = PlainConsole()
    console.print(image_table(images, datetime.now(UTC), console.width, with_references=True))


async def _local_digest(images: ImageService, name: str) -> str:
    """Return the digest of a local image by its reference or by the beginning of its digest."""
    if is_digest(name):
        digest: str | None = name
    else:
        is_short = _SHORT_DIGEST.fullmatch(name) is not None
        digest = await _digest_beginning_with(images, name) if is_short else await images.find(name)
    if digest is None:
        raise ImageNotFoundError(f"{name} is not on this host", remedy="see `hearth image list`")
    await images.local(digest)
    return digest


async def _digest_beginning_with(images: ImageService, short: str) -> str | None:
    prefix = f"sha256:{short.removeprefix('sha256:')}"
    found = [image.digest for image in await images.list() if image.digest.startswith(prefix)]
    if len(found) > 1:
        raise AmbiguousDigestError(f"{len(found)} images begin with {short}", remedy="write more of the digest")
    return found[0] if found else None


class AmbiguousDigestError(HearthError):
    """A shortened digest matches several images."""

    code = "digest-ambiguous"


def _read_nvram(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_NVRAM_BYTES + 1)
    except OSError as error:
        raise BadDiskError(f"the NVRAM {path} cannot be read: {error.strerror}", remedy="check its path") from error


def _document(found: Description) -> dict[str, Any]:
    return {
        "reference": found.reference,
        "digest": found.digest,
        "os": found.os,
        "arch": found.arch,
        "disk_bytes": found.disk_bytes,
        "compressed_bytes": found.compressed_bytes,
        "chunks": found.chunks,
        "local": found.local,
    }


def _text(found: Description) -> str:
    return "\n".join(
        [
            f"digest      {found.digest}",
            f"system      {found.os}/{found.arch}",
            f"disk        {found.disk_bytes // _MIB} MiB in {found.chunks} chunks",
            f"compressed  {found.compressed_bytes / _MIB:.1f} MiB",
            f"on host     {'yes' if found.local else 'no'}",
        ]
    )


def _run(
    work: Callable[[ImageService], Awaitable[_Result]], config_path: Path | None, data_dir: Path | None
) -> _Result:
    """Run `work` on the configured store."""

    async def main() -> _Result:
        async with open_images(_load_config(config_path, data_dir)) as images:
            return await work(images)

    with quiet_logs():
        return asyncio.run(main())


def _load_config(path: Path | None, data_dir: Path | None) -> Config:
    default = options.DEFAULT_CONFIG
    config = Config() if path is None and not default.exists() else load_config(path or default)
    return config.model_copy(update={"data_dir": data_dir.absolute()}) if data_dir else config


def _print(document: object, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        print_line(text)
