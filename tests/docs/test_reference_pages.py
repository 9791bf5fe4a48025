"""The reference tables of docs/api.md, docs/configuration.md and docs/logs.md have a row for everything in the code."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, SecretStr

from agent.api.application import OPERATIONS
from agent.api.problems import STATUS_BY_CODE
from agent.cli import main
from agent.cli.exit_codes import ExitCode
from agent.cli.main import COMMANDS
from agent.config import Assignment, Config, PoolDocument, ProbeDocument
from agent.domain.events import EventKind
from tests.docs.pages import DOCS, column, fields, metric_rows, parts
from tests.docs.syntax_trees import parse_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

WORDED = {"pools.NAME.probes": "one probe of kind `agent`"}


def default(key: str, field: FieldInfo) -> str:
    if key in WORDED:
        return WORDED[key]
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "none"
    return f"`{json.dumps(str(value) if isinstance(value, Path | SecretStr) else value)}`"


def documented(page: str) -> dict[str, str]:
    """Return the default that a page gives for each key in its tables."""
    rows = re.findall(r"^\| `([^`|]+)` \| ([^|]+) \| [^|]+\|$", page, flags=re.MULTILINE)
    assert len(rows) == len({key for key, _ in rows}), "a key is documented twice"
    return dict(rows)


def blocks(page: str) -> list[str]:
    return re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)


def test_every_call_is_documented() -> None:
    calls = {(f"{operation.method} {operation.path}",) for operation in OPERATIONS}
    assert set(column("api.md", "call")) == calls | {("GET /openapi.json",), ("GET /docs",)}


def test_error_codes_are_documented_with_their_status() -> None:
    assert dict(column("api.md", "code", 2)) == {code: str(status) for code, status in STATUS_BY_CODE.items()}  # type: ignore[arg-type]


def test_metrics_are_documented_with_type_and_labels() -> None:
    assert set(column("api.md", "metric", 3)) == metric_rows()


def logged_events() -> set[str]:
    """Return the name of every event that the code logs by a literal name."""
    found = set()
    for file in (DOCS.parent / "agent").rglob("*.py"):
        for node in ast.walk(parse_source(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log")), args=[*_, ast.Constant(value=str() as name)]
                ):
                    found.add(name)
    return found


def test_every_event_of_the_log_is_documented() -> None:
    kinds = {str(kind) for kind in EventKind}
    assert {name for (name,) in column("logs.md", "event")} == kinds
    documented_events = {name for (name,) in column("logs.md", "event | level")}
    assert documented_events == logged_events() - kinds | {"log-lines-lost", "loop-stuck"}, (
        "docs/logs.md has a line for every event"
    )


def test_every_command_and_exit_code_is_documented() -> None:
    assert column("api.md", "command") == [(f"hearth {name}",) for name in COMMANDS]
    assert column("api.md", "exit code") == [(str(int(code)),) for code in ExitCode]


@pytest.fixture(scope="module")
def page() -> str:
    return (DOCS / "configuration.md").read_text(encoding="utf-8")


def test_keys_are_documented_with_their_defaults(page: str) -> None:
    expected = {key: default(key, field) for model in (Config, Assignment) for key, field in fields(model)}
    assert documented(page) == expected


def test_choices_of_a_key_are_documented(page: str) -> None:
    for key, field in (*fields(Config), *fields(Assignment)):
        choices = [part for part in parts(field.annotation) if isinstance(part, str)]
        row = next(line for line in page.splitlines() if line.startswith(f"| `{key}` | "))
        assert [choice for choice in choices if choice not in row] == []


def test_examples_are_valid(page: str) -> None:
    config, assignment = (tomllib.loads(block) for block in blocks(page)[:2])
    assert Config.model_validate(config).host.slots == 4
    assert [pool.name for pool in Assignment.model_validate(assignment).specs()] == ["lint", "xcode"]


def test_shown_output_of_config_check_is_printed(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, assignment = blocks(page)[:2]
    (tmp_path / "hearth.toml").write_text(config, encoding="utf-8")
    (tmp_path / "assignment.toml").write_text(assignment, encoding="utf-8")
    assert main.run(["config", "check", "--config", str(tmp_path / "hearth.toml")]) == ExitCode.OK
    shown = page.partition("$ hearth config check")[2].splitlines()[1]
    assert capsys.readouterr().out.strip() == shown.replace("/etc/hearth", str(tmp_path))


def full_listing(page: str, index: int, *, optional_keys: bool) -> dict[str, Any]:
    """Return a listing of all keys as a document, with the keys that are shown as comments if they are wanted."""
    text = blocks(page)[2 + index]
    return tomllib.loads(re.sub(r"^# (\w+ = |\[)", r"\1", text, flags=re.MULTILINE) if optional_keys else text)


def listed_keys(document: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in document.items():
        key = f'{prefix}."HOST:PORT"' if prefix == "images.registries" else f"{prefix}.{name}".lstrip(".")
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield key
            yield from listed_keys(value[0], f"{key}[]")
        elif isinstance(value, dict):
            yield from listed_keys(value, key)
        else:
            yield key


@pytest.mark.parametrize(("index", "model"), [(0, Config), (1, Assignment)])
def test_full_listing_has_every_key(page: str, index: int, model: type[BaseModel]) -> None:
    document = full_listing(page, index, optional_keys=True)
    assert sorted(listed_keys(document)) == sorted(key for key, _ in fields(model))


def test_full_listing_of_the_configuration_shows_the_defaults(page: str) -> None:
    Config.model_validate(full_listing(page, 0, optional_keys=True))
    shown = Config.model_validate(full_listing(page, 0, optional_keys=False))
    shown = shown.model_copy(update={"images": shown.images.model_copy(update={"registries": {}})})
    assert shown == Config()


def test_full_listing_of_the_assignment_shows_the_defaults(page: str) -> None:
    pool = full_listing(page, 1, optional_keys=False)["pools"]["NAME"]
    (probe,) = pool.pop("probes")
    assert PoolDocument.model_validate(pool) == PoolDocument(image=pool["image"])
    expected = ProbeDocument(kind="http", port=22)
    assert ProbeDocument.model_validate(probe).model_dump() == expected.model_dump()


def test_live_keys_are_listed(page: str) -> None:
    sources = [(DOCS.parent / "agent" / name).read_text(encoding="utf-8") for name in ("app.py", "daemon.py")]
    nodes = [node for source in sources for node in ast.walk(parse_source(source))]
    named = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    named.remove("api.port")  # the name of a file
    live = named & {key for key, _ in fields(Config)}
    assert len(live) > 5
    assert [key for (key,) in column("configuration.md", "key applied without a restart")] == sorted(live)
