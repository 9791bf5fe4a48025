"""Text of guests, registries, clients and other hosts in every output: it is shown, and never interpreted."""

from __future__ import annotations

import io
import json
import os
import re
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cli import documents, events, leases, tables, usage_documents, usage_tables, vm_timeline
from agent.cli.client import Answer
from agent.cli.console import PlainConsole
from agent.cli.exit_codes import ExitCode
from agent.cli.fitted_view import FittedView
from agent.cli.output import print_error, print_json, print_json_text, print_line, quiet_logs
from agent.domain.errors import HearthError
from agent.domain.health import Unhealthy
from agent.domain.model import Cause
from agent.telemetry.log_rendering import render_json_line
from tests.cli.conftest import Agent, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from tests.cli.conftest import Ended

NOW: Final = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
TIMES: Final = frozenset(
    {"at", "since", "created_at", "ready_at", "expires_at", "soak_until", "retry_at", "last_used_at", "modified"}
)
ATTACKS: Final = (
    "[bold]x[/bold]", "[/red]", "[/]", "[link=file:///etc/passwd]x[/link]", "[@click=run]x[/]", ":smile:", "\\[x]",
    "\x1b[2J", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\x", "\x9b31m", "\x90q\x9c", "\x07\x08\x0b\x0c\r", "a\nb\n",
    "\u202eabc\u2066", "\u200b\ufeff", "\ud800", "\udcff", "\x00", "日本語" * 30, "e\u0301" * 50,
    "👩‍👩‍👧", "x" * 400, "%s{0}",
    "\u2028", "\t", "", " ",
)  # fmt: skip
SGR: Final = re.compile(r"\x1b\[[0-9;]*m")
TEXT: Final = st.sampled_from(ATTACKS) | st.text(st.characters(categories=None), max_size=20)


def document(shape: Any, key: str = "") -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one for each kind of type
    """Return documents of a type of the command line's, with any text in every place that is no time."""
    if is_typeddict(shape):
        hints = get_type_hints(shape)
        return st.fixed_dictionaries({name: document(kind, name) for name, kind in hints.items()})
    origin, arguments = get_origin(shape), get_args(shape)
    if origin is NotRequired:
        return document(arguments[0], key)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(document(arguments[0], key), min_size=1, max_size=2)
    if origin is dict:
        return st.dictionaries(st.from_regex("[0-9]{1,4}", fullmatch=True), document(arguments[1]), max_size=2)
    if arguments:  # a union
        return st.one_of(*(document(kind, key) for kind in arguments))
    if shape is str:
        return st.just("2026-11-23T11:58:30Z") if key in TIMES else TEXT
    if shape is int:
        return st.integers(0, 100)
    return st.floats(0, 100) if shape is float else st.from_type(shape)


class Stream(io.TextIOWrapper):
    """A standard stream in an encoding, as `guard_stdout` makes it."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="")

    def text(self) -> str:
        """Return what was written."""
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


def assert_harmless(text: str) -> None:
    """Assert that only line ends control the terminal."""
    plain = SGR.sub("", text)
    assert all(line.isprintable() for line in plain.split("\n")), repr(plain)


VIEWS: Final[dict[str, tuple[Any, Callable[[Any, int], RenderableType]]]] = {
    "status": (
        st.tuples(document(documents.HostDocument), st.lists(document(documents.VmStatus), max_size=2)),
        lambda of, width: tables.status_view(of[0], of[1], NOW, width),
    ),
    "fitted status": (
        st.tuples(document(documents.HostDocument), st.lists(document(documents.VmStatus), max_size=2)),
        lambda of, width: FittedView(tables.status_sections(of[0], of[1], NOW, width, one_line=True)),
    ),
    "vms": (
        st.lists(document(documents.VmStatus), min_size=1, max_size=3),
        lambda of, width: tables.vm_table(of, NOW, width),
    ),
    "vm": (document(documents.VmDetail), lambda of, _: tables.vm_view(of, NOW)),
    "images": (
        document(documents.ImageList),
        lambda of, width: tables.image_table(of["images"], NOW, width, with_references=True),
    ),
    "rollouts": (document(documents.RolloutList), lambda of, width: tables.rollout_table(of["rollouts"], NOW, width)),
    "usage": (
        document(usage_documents.UsageRates),
        lambda of, width: FittedView(usage_tables.usage_sections(of, width)),
    ),
    "timeline": (
        st.tuples(TEXT, document(documents.EventPage), document(documents.EvidenceList)),
        lambda of, _: vm_timeline.render_timeline(of[0], of[1]["events"], of[2]),
    ),
}


@pytest.mark.parametrize("view", VIEWS)
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(), width=st.integers(1, 200), encoding=st.sampled_from(["utf-8", "ascii", "latin-1"]),
    is_terminal=st.booleans(),
)  # fmt: skip
def test_view_is_harmless(view: str, data: st.DataObject, width: int, encoding: str, *, is_terminal: bool) -> None:
    strategy, draw = VIEWS[view]
    stream = Stream(encoding)
    console = PlainConsole(file=stream, width=width, height=30, force_terminal=is_terminal)
    console.print(draw(data.draw(strategy), width))
    assert_harmless(stream.text())


def _warn(text: str) -> None:
    with quiet_logs():
        log = structlog.get_logger()
        log.warning("transfer-retried", error=text)
        log.error("pull-failed", exc_info=HearthError(text))


LINES: Final[dict[str, tuple[Any, Callable[[Any], object]]]] = {
    "line": (TEXT, print_line),
    "error": (st.tuples(TEXT, TEXT), lambda of: print_error(HearthError(of[0], remedy=of[1]))),
    "lease": (
        document(documents.LeaseDocument),
        lambda of: leases._show(Answer(of, "", NOW), as_json=False),
    ),
    "warning": (TEXT, _warn),
    "event": (document(documents.StreamedEvent), lambda of: events._show(of, as_json=False)),
    "log": (
        st.dictionaries(TEXT, TEXT | st.floats() | st.lists(TEXT)).map(json.dumps) | TEXT,
        lambda of: print_line(render_json_line(of, colour=False)),
    ),
}


@pytest.mark.parametrize("line", LINES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), encoding=st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_lines_are_harmless(line: str, data: st.DataObject, encoding: str) -> None:
    strategy, show = LINES[line]
    stream = Stream(encoding)
    with redirect_stdout(stream), redirect_stderr(stream):
        show(data.draw(strategy))
    assert_harmless(stream.text())


@settings(deadline=None)
@given(st.dictionaries(TEXT, TEXT), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_json_is_harmless_and_the_same_document(found: dict[str, str], encoding: str) -> None:
    for show in (print_json, lambda of: print_json_text(json.dumps(of, ensure_ascii=False))):
        stream = Stream(encoding)
        with redirect_stdout(stream):
            show(found)
        assert_harmless(stream.text())
        assert json.loads(stream.text()) == found


@pytest.mark.parametrize("attack", ["[bold]x[/bold]", "[/red]", ":smile:", "[link=file:///x]y[/link]"])
def test_markup_is_shown_as_it_is(attack: str) -> None:
    stream = Stream("utf-8")
    probe = {"probe": f"exec:{attack}", "outcome": "pass", "detail": attack, "at": "2026-11-23T11:58:30Z"}
    shown = tables.build_table({"A": 0, "B": 0}, 120)
    tables.add_row(shown, {"A": probe["probe"], "B": probe["detail"]})
    PlainConsole(file=stream, width=120).print(shown)
    assert stream.text().count(attack) == 2


@pytest.mark.parametrize("command", [["vms", "show", "\udcff"], ["release", "\udcff"], ["vms", "why", "[/red]"]])
def test_odd_argument_ends_without_a_traceback(command: list[str], agent: Agent, hearth: Callable[..., Ended]) -> None:
    ended = hearth(*command, "--socket", agent.socket)
    assert ended.code in (ExitCode.USAGE, ExitCode.NOT_FOUND)
    assert ended.err.startswith("hearth: ")
    assert_harmless(ended.err)


def test_text_is_printed_in_a_locale_without_it(agent: Agent) -> None:
    """Names are shortened by an ellipsis, and the reason is in no encoding."""
    unhealthy = Unhealthy(Cause.PROBE_FAILED, "日本 \ud800 [/red] \x1b[2J")
    agent.call(lambda engine: engine.parts.updates.unhealthy("hearth-small-1", unhealthy))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "40"}
    for command in (["status"], ["vms"], ["vms", "--json"], ["vms", "why", "hearth-small-1"]):
        process = start(*command, "--socket", agent.socket, env=environment)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
        assert out.isascii()
        assert_harmless(out)
