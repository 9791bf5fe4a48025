"""`hearth support-bundle`: the state of a host in one archive, without secrets."""

from __future__ import annotations

import io
import os
import platform
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent import __version__
from agent.cli import options
from agent.cli.documents import EventPage
from agent.cli.log_reader import log_files
from agent.cli.output import print_json, print_line
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(add_completion=False)

API_FILES: Final = {
    "readyz.json": "/readyz",
    "host.json": "/v1/host",
    "vms.json": "/v1/vms",
    "usage.json": "/v1/usage",
    "images.json": "/v1/images",
    "rollouts.json": "/v1/rollouts",
    "assignment.json": "/v1/assignment",
    "metrics.txt": "/metrics",
}
MAX_LOG_BYTES: Final = 16 << 20
_EVENTS: Final = 1000


class BundleError(HearthError):
    """The archive cannot be written."""

    code = "bundle"


_Out = Annotated[Path | None, typer.Argument(help="The archive to write. Default: a name with host and time.")]


@app.command()
def bundle(
    out: _Out = None, config: options.Config = None, socket: options.Socket = None, as_json: options.Json = False
) -> None:
    """Write an archive with the agent's documents, its configuration and the end of its log.

    When the agent does not answer, write the rest; `missing.txt` in the archive lists the missing parts. A bundle of
    another host lacks its configuration and log. Passwords and tokens are removed; names of hosts, images, holders and
    VMs are not.

    \b
    hearth support-bundle
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = out or Path(f"hearth-{platform.node()}-{stamp}.tar.gz")
    files, missing = _gather(config, socket)
    files["missing.txt"] = "".join(f"{line}\n" for line in missing).encode()
    try:
        _write(target, f"hearth-{stamp}", files)
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error.strerror}", remedy="name another file") from error
    if as_json:
        print_json({"archive": str(target), "files": sorted(files), "missing": missing})
        return
    note = f", {len(missing)} missing (see missing.txt in the archive)" if missing else ""
    print_line(f"{target}: {len(files)} files{note}")


def _gather(config: Path | None, socket: Path | None) -> tuple[dict[str, bytes], list[str]]:
    """Return the redacted files by name, and the errors of the parts that are missing."""
    from agent.telemetry.redact import redact_text  # noqa: PLC0415 - pydantic is slow to import

    about = f"hearth {__version__}\npython {platform.python_version()}\n{platform.platform()}\n"
    files: dict[str, bytes] = {"about.txt": about.encode()}
    missing: list[str] = []
    sources = [_api_files(config, socket)]
    if remote := options.remote_host() if socket is None else "":
        missing.append(f"configuration and logs: they are on {remote}, run `hearth support-bundle` there")
    else:
        sources += [_configuration_files(config), _log_files(config)]
    for source in sources:
        try:
            for name, content in source:
                files[name] = redact_text(content.decode("utf-8", "replace")).encode()
        except (HearthError, OSError) as error:
            missing.append(redact_text(str(error)))
    return files, missing


def _api_files(config: Path | None, socket: Path | None) -> Iterator[tuple[str, bytes]]:
    with options.build_client(socket, config) as client:
        for name, path in API_FILES.items():
            yield name, client.read_raw(path)
        last = client.get("/v1/events?limit=1", EventPage).document["last"]
        yield "events.json", client.read_raw(f"/v1/events?after={max(0, last - _EVENTS)}&limit={_EVENTS}")


def _configuration_files(config: Path | None) -> Iterator[tuple[str, bytes]]:
    from agent.config import load_config  # noqa: PLC0415 - pydantic is slow to import

    yield "configuration.json", load_config(options.config_path(config)).model_dump_json(indent=1).encode()


def _log_files(config: Path | None) -> Iterator[tuple[str, bytes]]:
    from agent.config import load_config  # noqa: PLC0415 - pydantic is slow to import
    from agent.telemetry.log_file import log_path  # noqa: PLC0415

    remaining_bytes = MAX_LOG_BYTES
    for file in log_files(log_path(load_config(options.config_path(config)).data_dir)):
        content = file.read_bytes()[-remaining_bytes:]
        yield f"logs/{file.name}", content
        remaining_bytes -= len(content)
        if remaining_bytes <= 0:
            return


def _write(target: Path, folder: str, files: dict[str, bytes]) -> None:
    """Write the archive, readable only by its owner."""
    with (
        open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
        tarfile.open(fileobj=file, mode="w:gz") as archive,
    ):
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
