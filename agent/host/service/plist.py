"""The job as launchd reads it: the templates of launchd/ with this host's paths filled in, and proven to parse."""

from __future__ import annotations

import plistlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.parsers.expat import ExpatError

import agent
from agent.host.service.errors import ServiceError, ServiceRefusedError
from agent.host.service.target import LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.host.service.target import Target

_SECRET_NAME: Final = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|PRIVATE|API_?KEY", re.IGNORECASE)
_SECRET_VALUE: Final = re.compile(r"://[^/@\s]+@|^-----BEGIN ")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def templates() -> Path:
    """Return the folder of the templates: beside the package in a checkout, in it when installed."""
    package = Path(agent.__file__).parent
    return next((folder for folder in (package / "launchd", package.parent / "launchd") if folder.is_dir()), package)


def render(target: Target, *, program: Path, config: Path, environment: Mapping[str, str]) -> bytes:
    """Return the plist of a job. `environment` is added to the template's, and may hold no secret.

    Raises `ServiceRefusedError`, and `ServiceError` when the template cannot be used.
    """
    for name, value in environment.items():
        refuse_secret(name, value)
    values = {
        "@PROGRAM@": str(program), "@CONFIG@": str(config), "@HOME@": str(target.account.home),
        "@LOGS@": str(target.logs),
    }  # fmt: skip
    path = templates() / f"{target.kind}.plist"
    try:
        job = _filled(plistlib.loads(path.read_bytes()), values)
    except (OSError, plistlib.InvalidFileException, ExpatError, ValueError) as error:
        raise ServiceError(f"the template {path} cannot be used: {error}", remedy="install Hearth anew") from error
    job["EnvironmentVariables"] = {**job["EnvironmentVariables"], **environment}
    written = plistlib.dumps(job)
    if plistlib.loads(written) != job or job["Label"] != LABEL:
        raise ServiceError(f"the template {path} makes a plist that reads back as another one")
    return written


def refuse_secret(name: str, value: str) -> None:
    """Raise `ServiceRefusedError` for a variable that cannot be set, or that every user could read a secret from."""
    if not _NAME.fullmatch(name):
        raise ServiceRefusedError(f"`{name}` is no name of a variable", remedy="write it as NAME=VALUE")
    if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
        raise ServiceRefusedError(
            f"{name} looks like a secret, and every user of this Mac can read a plist",
            remedy="keep secrets in the configuration file, mode 0600",
        )


def newsyslog(target: Target) -> str:
    """Return the rule by which macOS rotates what launchd writes of the job."""
    template = (templates() / "newsyslog.conf").read_text(encoding="utf-8")
    owner = f"{target.account.name}:{'wheel' if target.account.uid == 0 else 'staff'}"
    return template.replace("@LOGS@", str(target.logs)).replace("@OWNER@", owner)


def _filled(value: Any, values: Mapping[str, str]) -> Any:  # noqa: ANN401 - a plist holds anything
    match value:
        case str():
            for name, put in values.items():
                value = value.replace(name, put)
            return value
        case list():
            return [_filled(item, values) for item in value]
        case dict():
            return {key: _filled(item, values) for key, item in value.items()}
    return value
