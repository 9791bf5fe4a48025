"""Plists of the service: the templates of launchd/ with the paths of this host, verified to parse."""

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
    """Return the folder of the templates: next to the package in a checkout, in the package when installed."""
    package = Path(agent.__file__).parent
    return next((folder for folder in (package / "launchd", package.parent / "launchd") if folder.is_dir()), package)


def render(target: Target, *, program: Path, config: Path, environment: Mapping[str, str]) -> bytes:
    """Return the plist of a job. `environment` is added to the variables of the template.

    Raises `ServiceRefusedError` if a variable looks like a secret, and `ServiceError` if the template is unusable.
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
        raise ServiceError(f"the template {path} cannot be used: {error}", remedy="install Hearth again") from error
    job["EnvironmentVariables"] = {**job["EnvironmentVariables"], **environment}
    written = plistlib.dumps(job)
    if plistlib.loads(written) != job or job["Label"] != LABEL:
        raise ServiceError(f"the template {path} gives a plist that does not read back unchanged")
    return written


def refuse_secret(name: str, value: str) -> None:
    """Raise `ServiceRefusedError` for an invalid name, and for a probable secret."""
    if not _NAME.fullmatch(name):
        raise ServiceRefusedError(f"`{name}` is not a valid name of a variable", remedy="write it as NAME=VALUE")
    if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
        raise ServiceRefusedError(
            f"{name} looks like a secret, and every user of this Mac can read a plist",
            remedy="keep secrets in the configuration file, mode 0600",
        )


def newsyslog(target: Target) -> str:
    """Return the newsyslog rule for the output files of the job."""
    template = (templates() / "newsyslog.conf").read_text(encoding="utf-8")
    owner = f"{target.account.name}:{'wheel' if target.account.uid == 0 else 'staff'}"
    return template.replace("@LOGS@", str(target.logs)).replace("@OWNER@", owner)


def _filled(value: Any, values: Mapping[str, str]) -> Any:  # noqa: ANN401 - values of a plist have any type
    match value:
        case str():
            for name, replacement in values.items():
                value = value.replace(name, replacement)
            return value
        case list():
            return [_filled(item, values) for item in value]
        case dict():
            return {key: _filled(item, values) for key, item in value.items()}
    return value
