"""Reads both files. What is wrong with one is told with its file and its line or key, and the way out."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from agent.config.api import ApiConfig, TlsConfig
from agent.config.assignment import Assignment
from agent.config.base import ConfigError, Section
from agent.config.config import Config

if TYPE_CHECKING:
    from agent.config.hypervisor import HypervisorConfig

_Document = TypeVar("_Document", bound=Section)


def load_config(path: Path) -> Config:
    """Read and validate the configuration file. Relative paths in it are relative to its folder."""
    config = _load(path, Config)
    here = path.resolve().parent
    assignment_file = here / (config.assignment.file or "assignment.toml")
    return config.model_copy(
        update={
            "data_dir": here / config.data_dir,
            "api": _api_in(config.api, here),
            "hypervisor": _hypervisor_in(config.hypervisor, here),
            "assignment": config.assignment.model_copy(update={"file": assignment_file}),
        }
    )


def _api_in(api: ApiConfig, here: Path) -> ApiConfig:
    """Return the section with its paths made absolute."""
    files = api.tls.model_dump(exclude_none=True) if api.tls else {}
    tls = TlsConfig(**{name: here / file for name, file in files.items()}) if files else None
    return api.model_copy(update={"socket": here / api.socket if api.socket else None, "tls": tls})


def _hypervisor_in(hypervisor: HypervisorConfig, here: Path) -> HypervisorConfig:
    """Return the section with its paths made absolute: relative, a Tart home would be another in every process."""
    tart, anka = hypervisor.tart, hypervisor.anka
    files = {name: here / path for name, path in anka if isinstance(path, Path)}
    tart = tart.model_copy(update={"home": here / tart.home if tart.home else None})
    return hypervisor.model_copy(update={"tart": tart, "anka": anka.model_copy(update=files)})


def load_assignment(path: Path) -> Assignment:
    """Read and validate an assignment file."""
    return _load(path, Assignment)


def parse_assignment(document: object, *, source: str) -> Assignment:
    """Validate an assignment that came as data. `source` names where from in the error."""
    return _validate(document, Assignment, source)


def _load(path: Path, kind: type[_Document]) -> _Document:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", remedy="create it or name another file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", remedy="check its permissions and encoding") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", remedy="mend that line") from error
    return _validate(document, kind, str(path))


def _validate(document: object, kind: type[_Document], source: str) -> _Document:
    try:
        # As JSON and strictly: `slots = true` and `warm = "2"` are mistakes and not numbers.
        return kind.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        lines = [f"{_key(item['loc'])}: {_reason(item)}" for item in error.errors(include_input=False)]
        raise ConfigError(f"{source}: " + "; ".join(lines), remedy="see docs/configuration.md for every key") from None


def _key(location: tuple[int | str, ...]) -> str:
    """Render a pydantic location the way TOML writes the key: `pools.small.probes[0].port`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "document"


def _reason(item: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails differs by version
    if item["type"] == "extra_forbidden":
        return "unknown key"
    return str(item["msg"]).removeprefix("Value error, ")
