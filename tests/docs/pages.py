"""Reading of the docs and of the code that they describe, for the tests in this folder."""

from __future__ import annotations

import itertools
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from agent.config import PoolDocument, ProbeDocument, RegistryConfig, TlsConfig
from agent.telemetry.metrics import Metrics, RequestHistogram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted({ROOT / "README.md", *DOCS.rglob("*.md")})
SOURCES = ("agent", "scripts", "launchd", "tests", ".ci", "pyproject.toml")
TABLES = {
    TlsConfig: "api.tls",
    RegistryConfig: 'images.registries."HOST:PORT"',
    PoolDocument: "pools.NAME",
    ProbeDocument: "pools.NAME.probes[]",
}
"""Tables with a name of the user's, and how the docs write them."""


@cache
def code_words() -> frozenset[str]:
    """Return every identifier and every name with dashes in the source files, without the tests of the docs."""
    files = [path for name in SOURCES for path in [ROOT / name, *(ROOT / name).rglob("*")] if path.is_file()]
    kept = [path for path in files if "__pycache__" not in path.parts and path.parent.name != "docs"]
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in kept)
    return frozenset(word for text in texts for word in re.findall(r"\w+(?:-\w+)*", text))


def code_blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages; "" is a block without one."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def names_in(page: Path, pattern: str) -> set[str]:
    """Return the names in back-ticks, outside of code blocks, that match as a whole."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {name for name in re.findall(r"`([^`\n]+)`", text) if re.fullmatch(pattern, name)}


def column(name: str, heading: str, count: int = 1) -> list[tuple[str, ...]]:
    """Return the first `count` cells of each row of the table under that heading row, without back-ticks."""
    lines = (DOCS / name).read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [tuple(cell.strip().replace("`", "") for cell in row.split("|")[1 : count + 1]) for row in rows]


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key of a table with its field, tables within it too."""
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        inner = next((part for part in parts(field.annotation) if part in TABLES), None)
        if inner is not None and issubclass(inner, BaseModel):
            if inner is ProbeDocument:
                yield key, field
            yield from fields(inner, TABLES[inner])
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, key)
        else:
            yield key, field


def parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from parts(part)


def metric_rows() -> set[tuple[str, str, str]]:
    """Return name, type and labels of every metric, as the docs show them."""
    found = [value.histogram if isinstance(value, RequestHistogram) else value for value in vars(Metrics()).values()]
    return {
        (f"{item._name}_total" if item._type == "counter" else item._name, str(item._type), ", ".join(item._labelnames))
        for item in found
        if isinstance(item, MetricWrapperBase)
    }
