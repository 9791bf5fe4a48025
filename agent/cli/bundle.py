"""`hearth support-bundle`: what explains the state of a host, in one archive, without secrets."""

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
from agent.cli.follow import log_files
from agent.cli.output import say
from agent.domain.errors import HearthError

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(add_completion=False)

QUESTIONS: Final = {
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


_Out = Annotated[Path | None, typer.Argument(help="The archive to write; named by host and time unless given.")]


@app.command()
def bundle(out: _Out = None, config: options.Config = None, socket: options.Socket = None) -> None:
    """Write an archive with what the agent knows, its configuration and the end of its log.

    Works as far as it can when the agent does not answer: what is missing is told in `missing.txt`, as are the
    configuration and the log of another host. Passwords and tokens are cut out; names of hosts, images, holders and
    VMs are not.

    \b
    hearth support-bundle
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = out or Path(f"hearth-{platform.node()}-{stamp}.tar.gz")
    parts, missing = _gather(config, socket)
    parts["missing.txt"] = "".join(f"{line}\n" for line in missing).encode()
    try:
        _write(target, f"hearth-{stamp}", parts)
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error.strerror}", remedy="name another file") from error
    say(f"{target}: {len(parts)} files" + (f", {len(missing)} missing (see missing.txt in it)" if missing else ""))


def _gather(config: Path | None, socket: Path | None) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of the bundle by name, redacted, and what could not be had."""
    from agent.telemetry.redact import redact_text  # noqa: PLC0415 - pydantic is slow to import

    about = f"hearth {__version__}\npython {platform.python_version()}\n{platform.platform()}\n"
    parts: dict[str, bytes] = {"about.txt": about.encode()}
    missing: list[str] = []
    sources = [_asked(config, socket)]
    if elsewhere := options.remote_host() if socket is None else "":
        missing.append(f"configuration and logs: they are on {elsewhere}, run `hearth support-bundle` there")
    else:
        sources += [_configuration(config), _logs(config)]
    for source in sources:
        try:
            for name, content in source:
                parts[name] = redact_text(content.decode("utf-8", "replace")).encode()
        except (HearthError, OSError) as error:
            missing.append(redact_text(str(error)))
    return parts, missing


def _asked(config: Path | None, socket: Path | None) -> Iterator[tuple[str, bytes]]:
    with options.client(socket, config) as client:
        for name, path in QUESTIONS.items():
            yield name, client.raw(path)
        last: int = client.get("/v1/events?limit=1").document["last"]
        yield "events.json", client.raw(f"/v1/events?after={max(0, last - _EVENTS)}&limit={_EVENTS}")


def _configuration(config: Path | None) -> Iterator[tuple[str, bytes]]:
    from agent.config import load_config  # noqa: PLC0415 - pydantic is slow to import

    yield "configuration.json", load_config(options.config_path(config)).model_dump_json(indent=1).encode()


def _logs(config: Path | None) -> Iterator[tuple[str, bytes]]:
    from agent.config import load_config  # noqa: PLC0415 - pydantic is slow to import
    from agent.telemetry.log_file import log_path  # noqa: PLC0415

    left = MAX_LOG_BYTES
    for file in log_files(log_path(load_config(options.config_path(config)).data_dir)):
        content = file.read_bytes()[-left:]
        yield f"logs/{file.name}", content
        left -= len(content)
        if left <= 0:
            return


def _write(target: Path, folder: str, parts: dict[str, bytes]) -> None:
    """Write the archive, readable by its owner only."""
    with (
        open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
        tarfile.open(fileobj=file, mode="w:gz") as archive,
    ):
        for name, content in parts.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
