"""Commands, keys, calls, conditions, events, metrics and files that README.md and docs/ name exist in the code.

Names are the words in back-ticks and in code blocks. Reference tables are checked for completeness in
test_reference_pages.py.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import pytest
import typer

from agent.api.application import OPERATIONS
from agent.cli import main
from agent.config import Assignment, Config
from agent.host.doctor.checks import LINUX, MAC
from tests.docs.pages import PAGES, ROOT, code_blocks, code_words, column, fields, metric_rows, names_in
from tests.docs.syntax_trees import parse_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# -- the command line


def shown_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words after `hearth` of every command line that a page shows, up to the first `--` or `…`."""
    lines = sorted(names_in(page, r"(sudo )?hearth .*"))
    for block in code_blocks(page, "sh", "console", ""):
        lines += [part for line in block.splitlines() for part in re.split(r"&&|\|", line.removeprefix("$ "))]
    for line in lines:
        words = shlex.split(line, comments=True) if re.match(r" *(sudo )?hearth ", line) else []
        if words:
            yield list(takewhile(lambda word: word not in {"--", "|", "&", "…"}, words[words.index("hearth") + 1 :]))


def command_errors(words: list[str]) -> list[str]:
    """Return the words of a command line that are neither commands, their options nor their arguments."""
    root = typer.main.get_command(main.app)
    command, options, errors = root, options_of(root) | {"--host"}, []
    for word in words:
        children = getattr(command, "commands", {})
        if word.startswith("-"):
            errors += [word] if word.partition("=")[0] not in options else []
            continue
        known = main.COMMANDS if command is root else children
        child = (load_command(word) if command is root else children[word]) if word in known else None
        if child is not None:
            command, options = child, options | options_of(child)
        elif command is root or children:
            errors.append(word)
    return errors


def load_command(name: str) -> Any:
    entry = main.COMMANDS[name]
    return typer.main.get_command(getattr(importlib.import_module(entry.module), entry.attribute))


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@PAGE
def test_commands_exist(page: Path) -> None:
    commands = list(shown_commands(page))
    assert {" ".join(words): errors for words in commands if (errors := command_errors(words))} == {}


def test_unknown_commands_are_found() -> None:
    assert command_errors(["assign", "pool"]) == ["assign", "pool"]
    assert command_errors(["status", "--no-such"]) == ["--no-such"]
    assert command_errors(["rollout", "retry", "POOL"]) == []


# -- configuration keys


def configuration_keys() -> set[str]:
    """Return every key of both files, and the tables that hold them."""
    keys = {key for model in (Config, Assignment) for key, _ in fields(model)}
    return keys | {table for key in keys for table in prefixes(key)}


def prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts)))


@PAGE
def test_configuration_keys_exist(page: Path) -> None:
    sections = "|".join(sorted(set(Config.model_fields) - {"agent"}))
    named = names_in(page, rf"({sections}|pools)\.[\w.\[\]]+( = .*)?")
    named |= {name for name in names_in(page, r"agent\.\w+") if name.partition(".")[2] in agent_keys()}
    assert {name.partition(" = ")[0] for name in named} - configuration_keys() - {"assignment.toml"} == set()


def agent_keys() -> set[str]:
    return set(type(Config().agent).model_fields)


@PAGE
def test_python_names_exist(page: Path) -> None:
    for name in names_in(page, r"agent(\.\w+)+"):
        module, _, attribute = name.rpartition(".")
        if attribute not in agent_keys() | {"sock"}:
            assert hasattr(importlib.import_module(module), attribute) or importlib.import_module(name)


# -- the API


@PAGE
def test_calls_exist(page: Path) -> None:
    known = {(operation.method, operation.path) for operation in OPERATIONS}
    known |= {("GET", path) for path in ("/", "/openapi.json", "/docs")}
    named = re.findall(r"\b(GET|PUT|POST|PATCH|DELETE) (/[\w/{}.-]*)", page.read_text(encoding="utf-8"))
    assert {(method, path) for method, path in named if path.startswith(("/v1", "/livez", "/readyz"))} - known == set()


@PAGE
def test_metrics_exist(page: Path) -> None:
    assert names_in(page, r"hearth_[a-z_]*[a-z]") - {name for name, _, _ in metric_rows()} == set()


def raised_conditions() -> set[str]:
    """Return the conditions that the agent's code raises, without those of the doctor."""
    found: set[str] = set()
    for file in (ROOT / "agent").rglob("*.py"):
        if "doctor" in file.parts:
            continue
        tree = parse_source(file.read_text(encoding="utf-8"))
        constants = {
            node.target.id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            and isinstance(node.value, ast.Constant)
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and called_name(node) in RAISING:
                values = [constants.get(arg.id) if isinstance(arg, ast.Name) else literal(arg) for arg in node.args[:2]]
                found |= {
                    name for name in values if isinstance(name, str) and re.fullmatch(r"[A-Z]\w+", name)
                } - REASONS
    return found


REASONS = {"LicenseInvalid", "LicenseUnfit", "LicenseExpiring"}
RAISING = {"Condition", "HealthFact", "post_problem", "_problem_if", "_condition", "_guard"}


def called_name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def literal(node: ast.expr) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def test_every_condition_is_documented() -> None:
    documented = {name for (name,) in column("api.md", "condition")}
    raised = raised_conditions()
    assert len(raised) > 15, "the functions that raise conditions are not found"
    assert documented == raised


@pytest.mark.parametrize(("section", "checks"), [("On a Mac", MAC), ("On Linux", LINUX)])
def test_every_check_of_the_doctor_is_documented(section: str, checks: tuple[Any, ...]) -> None:
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    part = text.partition(f"## {section}")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \|", part, re.MULTILINE)
    shared = {"clock", "disk-space", "open-files"} if section == "On Linux" else set()
    expected = [(check.name, check.condition) for check in checks if check.name not in shared]
    assert sorted(rows) == sorted(expected)
    assert all(f"`{name}`" in part for name in shared)


# -- everything else


@PAGE
def test_identifiers_occur_in_the_code(page: Path) -> None:
    """Conditions, reasons, classes, functions, events, causes, error codes, JSON keys, environment variables."""
    patterns = (r"[A-Z][a-z]+([A-Z][a-z]+)+", r"[a-z]+(_[a-z0-9]+)+", r"[a-z]+(-[a-z]+)+", r"HEARTH_[A-Z_]+")
    named = set().union(*(names_in(page, pattern) for pattern in patterns)) - FOREIGN
    named -= {name for name, _, _ in metric_rows()}
    assert sorted(named - code_words()) == []


FOREIGN = {
    "http_proxy", "https_proxy", "no_proxy", "pull_failback", "pull_resume", "puller_threads", "qemu-efi-aarch64",
}  # fmt: skip
"""Names of other programs."""


@PAGE
def test_files_exist(page: Path) -> None:
    named = names_in(page, r"(agent|scripts|tests|docs|launchd)/[\w/.*-]+")
    assert sorted(name for name in named if not list(ROOT.glob(name.rstrip("/")))) == []


def answer_rows() -> list[str]:
    """Return the rows of the questions in docs/contributing.md."""
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8").partition("## Eight questions")[2]
    return [line for line in text.splitlines() if line.startswith("| ") and line.endswith(". |")]


@pytest.mark.parametrize("row", answer_rows(), ids=lambda row: row.split(" | ")[0].strip("| "))
def test_questions_are_answered_in_two_files(row: str) -> None:
    links = re.findall(r"\]\(\.\./([\w/.]+)\)", row)
    names = re.findall(r"`(\w+)`", row)
    assert 1 <= len(links) <= 2
    assert names
    sources = "\n".join((ROOT / link).read_text(encoding="utf-8") for link in links)
    defined = re.findall(r"^(?:def (\w+)\(|([A-Z]\w+): Final)", sources, re.MULTILINE)
    assert set(names) - {name for pair in defined for name in pair} == set()


def test_eight_questions_are_answered() -> None:
    assert len(answer_rows()) == 8
