"""`hearth image`: push, pull and look after images, straight in the store of the data directory.

Works with or without a running agent; both take the same locks. Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import typer

from agent.cli.options import DEFAULT_CONFIG
from agent.cli.options import Config as ConfigOption
from agent.cli.options import Json as JsonOption
from agent.cli.progress import pull_bar, push_bar
from agent.cli.quiet import quiet_logs
from agent.config import Config, load_config
from agent.images.errors import BadDiskError, ImageNotFoundError
from agent.images.inspect import Description, describe
from agent.images.manifest import MAX_NVRAM_BYTES
from agent.images.reference import is_digest
from agent.images.service import ImageService, open_images
from agent.images.vmconfig import Hardware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_MIB: Final = 1 << 20

_Result = TypeVar("_Result")

app = typer.Typer(
    help="Push, pull and look after images.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Data directory, instead of the configured one.")
]
RefArgument = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="host[:port]/name[:tag|@sha256:hex] or oci-layout:/path[:tag|@sha256:hex].",
        show_default=False,
    ),
]


@app.command(epilog="Example: hearth image push disk.img registry.example:5000/ci/debian:v2 --memory 4096")
def push(  # noqa: PLR0913 - the options of a command are its arguments
    disk: Annotated[Path, typer.Argument(metavar="DISK", help="Raw disk image.", show_default=False)],
    ref: RefArgument,
    *,
    os: Annotated[Literal["linux", "darwin"], typer.Option(help="Operating system of the guest.")] = "linux",
    arch: Annotated[Literal["amd64", "arm64"], typer.Option(help="Architecture of the guest.")] = "amd64",
    cpus: Annotated[int, typer.Option(min=1, max=512, help="Processors the guest wants.")] = 2,
    memory: Annotated[int, typer.Option(min=64, metavar="MIB", help="Memory the guest wants.")] = 2048,
    nvram: Annotated[
        Path | None, typer.Option(metavar="FILE", help="UEFI variables. Without it the guest boots by BIOS.")
    ] = None,
    mount_from: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another repository of that registry, to take equal chunks over from."),
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Push a raw disk as an image, in the format that Tart pulls too."""
    hardware = Hardware(os, arch, cpus, memory)

    async def work(images: ImageService) -> str:
        variables = _read_nvram(nvram) if nvram else b""
        with push_bar(enabled=not as_json) as show:
            return await images.push(
                disk, ref, hardware=hardware, nvram=variables, mount_from=mount_from, progress=show
            )

    digest = _run(work, config, data_dir)
    _print({"reference": ref, "digest": digest}, digest, as_json=as_json)


@app.command(epilog="Example: hearth image pull oci-layout:/srv/images:v2")
def pull(
    ref: RefArgument, config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Pull an image into the store. What is there already is not fetched again."""

    async def work(images: ImageService) -> str:
        digest = await images.resolve(ref)
        async with pull_bar(images.progress, enabled=not as_json):
            await images.pull(ref, digest)
        return digest

    digest = _run(work, config, data_dir)
    _print({"reference": ref, "digest": digest}, digest, as_json=as_json)


@app.command("list", epilog="Example: hearth image list --json")
def list_(config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the images that are whole on this host."""
    images = _run(lambda service: service.list(), config, data_dir)
    documents = [
        {
            "digest": image.digest,
            "references": list(image.references),
            "disk_bytes": image.disk_bytes,
            "allocated_bytes": image.allocated_bytes,
            "last_used_at_s": image.last_used_at_s,
        }
        for image in images
    ]
    lines = [
        f"{image.digest}  {image.allocated_bytes // _MIB:>7} MiB of {image.disk_bytes // _MIB:>7}  "
        f"{' '.join(image.references)}".rstrip()
        for image in images
    ]
    _print(documents, "\n".join(lines) or "no images", as_json=as_json)


@app.command(epilog="Example: hearth image rm registry.example:5000/ci/debian:v1")
def rm(
    names: Annotated[list[str], typer.Argument(metavar="REF|DIGEST...", help="What to remove.", show_default=False)],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove images from this host. The registry keeps them; an agent that is assigned them pulls them again."""

    async def work(images: ImageService) -> list[str]:
        digests = [await _local_digest(images, name) for name in names]
        for digest in digests:
            await images.remove(digest)
        return digests

    digests = _run(work, config, data_dir)
    _print({"removed": digests}, "\n".join(digests), as_json=as_json)


@app.command(epilog="Example: hearth image inspect registry.example:5000/ci/debian:v2 --json")
def inspect(
    ref: RefArgument, config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False
) -> None:
    """Show what a reference names now, without pulling it."""
    found = _run(lambda images: describe(images, ref), config, data_dir)
    _print(_document(found), _text(found), as_json=as_json)


@app.command(epilog="Example: hearth image fsck --repair")
def fsck(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Remove damaged images and make the indexes anew.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every image of this host byte for byte. Exit code 1 when something is wrong and was not repaired."""
    findings = _run(lambda images: images.check(repair=repair), config, data_dir)
    documents = [{"image": f.image, "problem": f.problem, "repaired": f.repaired} for f in findings]
    lines = [f"{f.image}  {f.problem}{'; removed' if f.repaired else ''}" for f in findings]
    _print(documents, "\n".join(lines) or "all images are whole", as_json=as_json)
    if findings and not repair:
        raise typer.Exit(1)


async def _local_digest(images: ImageService, name: str) -> str:
    digest = name if is_digest(name) else await images.find(name)
    if digest is None:
        raise ImageNotFoundError(f"{name} is not on this host", remedy="see `hearth image list`")
    await images.local(digest)
    return digest


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
        async with open_images(_load(config_path, data_dir)) as images:
            return await work(images)

    with quiet_logs():
        return asyncio.run(main())


def _load(path: Path | None, data_dir: Path | None) -> Config:
    config = Config() if path is None and not DEFAULT_CONFIG.exists() else load_config(path or DEFAULT_CONFIG)
    return config.model_copy(update={"data_dir": data_dir.absolute()}) if data_dir else config


def _print(document: object, text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(document) if as_json else text)
