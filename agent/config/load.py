"""Reading and validation of both files. Errors name the file, the line or key, and the remedy."""

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
from agent.config.read_file import read_regular_file

if TYPE_CHECKING:
    from agent.config.hypervisor import HypervisorConfig

_Document = TypeVar("_Document", bound=Section)


def load_config(path: Path) -> Config:
    """Read and validate the configuration file. Relative paths are resolved against its folder.

    Blocks. Raises `ConfigError`.
    """
    config = _load(path, Config)
    folder = path.absolute().parent
    assignment_file = folder / (config.assignment.file or "assignment.toml")
    return config.model_copy(
        update={
            "data_dir": folder / config.data_dir,
            "api": _api_in(config.api, folder),
            "hypervisor": _hypervisor_in(config.hypervisor, folder),
            "assignment": config.assignment.model_copy(update={"file": assignment_file}),
        }
    )


def _api_in(api: ApiConfig, folder: Path) -> ApiConfig:
    """Return the section with absolute paths."""
    files = api.tls.model_dump(exclude_none=True) if api.tls else {}
    tls = TlsConfig(**{name: folder / file for name, file in files.items()}) if files else None
    return api.model_copy(update={"socket": folder / api.socket if api.socket else None, "tls": tls})


def _hypervisor_in(hypervisor: HypervisorConfig, folder: Path) -> HypervisorConfig:
    """Return the section with absolute paths: a relative Tart home would depend on the folder of each process."""
    tart, anka = hypervisor.tart, hypervisor.anka
    files = {name: folder / path for name, path in anka if isinstance(path, Path)}
    tart = tart.model_copy(update={"home": folder / tart.home if tart.home else None})
    return hypervisor.model_copy(update={"tart": tart, "anka": anka.model_copy(update=files)})


def load_assignment(path: Path) -> Assignment:
    """Read and validate an assignment file. Blocks. Raises `ConfigError`."""
    return _load(path, Assignment)


def parse_assignment(document: object, *, source: str) -> Assignment:
    """Validate an assignment from parsed data. `source` is its name in errors. Raises `ConfigError`."""
    return _validate(document, Assignment, source)


def _load(path: Path, kind: type[_Document]) -> _Document:
    try:
        text = read_regular_file(path).decode("utf-8-sig")  # editors on Windows write a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", remedy="create the file or name another one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", remedy="check the permissions and the encoding (UTF-8) of the file"
        ) from error
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path} nests its values too deeply", remedy="remove the nested brackets or dots") from None
    except ValueError as error:  # also a number of thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}", remedy="correct this line") from error
    return _validate(document, kind, str(path))


def _validate(document: object, kind: type[_Document], source: str) -> _Document:
    try:
        # Strict validation of JSON refuses `slots = true` and `warm = "2"`, which are mistakes and not numbers.
        return kind.model_validate_json(json.dumps(document, default=str), strict=True)
    except (RecursionError, ValueError) as error:
        if isinstance(error, ValidationError):
            raise _validation_error(error, source) from None
        reason = "it nests its values too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{source} cannot be read: {reason}", remedy="see docs/configuration.md") from None


def _validation_error(error: ValidationError, source: str) -> ConfigError:
    lines = [f"{_key(item['loc'])}: {_reason(item)}" for item in error.errors(include_input=False)]
    return ConfigError(f"{source}: " + "; ".join(lines), remedy="see docs/configuration.md for every key")


def _key(location: tuple[int | str, ...]) -> str:
    """Return a pydantic location in the form of a TOML key: `pools.small.probes[0].port`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "document"


def _reason(item: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails differs between versions
    if item["type"] == "extra_forbidden":
        return "unknown key"
    return str(item["msg"]).removeprefix("Value error, ")
