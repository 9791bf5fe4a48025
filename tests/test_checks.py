"""The checks of scripts/lib that scripts/check runs, each on files made for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.lib import check_imports, check_words, house_rules


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def idioms_in(text: str, path: str = "docs/page.md") -> list[str]:
    return [hit.idiom for hit in check_words.find_hits(Path(path), [check_words.Text("prose", 1, text)])]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The driver is told whose VM stands there.", ["told", "stands", "told whose"]),
        ("It gives up, and a later pull takes it up anew.", ["gives up", "anew"]),
        ("Wait, for it may take a while.", ["for it"]),
        ("It waits, since\nthe lock is held.", ["since"]),
        ("A replica is no host.", ["is no host"]),
        ("One turn of the loop looks at every VM.", ["turn", "looks at"]),
    ],
)
def test_idiom_is_found(text: str, found: list[str]) -> None:
    assert sorted(idioms_in(text)) == sorted(found)


@pytest.mark.parametrize(
    "text",
    [
        "The task inspects a headroom, in turn, and turns the display off.",
        "There is no host, and it is no longer needed; it stands for nothing.",
        "Fault injection and page faults are field terms. Wait for it.",
        "Four leases at once, at most eight pulls at once; the code is well-formed.",
        "It has run since the last boot, on every host of a fleet of Macs.",
    ],
)
def test_field_term_is_allowed(text: str) -> None:
    assert idioms_in(text) == []


def test_idiom_is_allowed_in_files_where_it_is_a_field_term() -> None:
    assert idioms_in("Draw a fault.", "docs/chaos.md") == []
    assert idioms_in("Draw a fault.", "docs/api.md") == ["fault"]


def test_python_texts_are_read_with_their_lines() -> None:
    source = '"""One.\n\nTwo.\n"""\nX = 1  # three\n# four\n# five\ndef sixSeven_eight():\n    option(help="nine")\n'
    texts = list(check_words.read_python(source, "module_name"))
    assert {(text.kind, text.line, text.text.strip()) for text in texts} == {
        ("name", 1, "module name"),
        ("prose", 1, "One.\n\nTwo."),
        ("prose", 5, "three\nfour\nfive"),
        ("name", 8, "six Seven eight"),
        ("prose", 9, "nine"),
    }


def test_code_is_not_prose(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`ask` and ``told``\n```\nask\n```\nask\n")
    assert [
        (hit.line, hit.idiom) for hit in check_words.find_hits(Path("docs/page.md"), check_words.read_file(page))
    ] == [(5, "ask")]


def test_package_over_the_limit_fails(tmp_path: Path) -> None:
    write(
        tmp_path, agent__a__x="# ask\n# tell\n", agent__b__x="# ask\n", tests__c__test_x="def test_it_is_told(): ...\n"
    )
    errors = check_words.word_errors(tmp_path)
    assert [error.partition(":")[0] for error in errors] == ["agent/a", "tests/c"]


def test_import_circle_is_found(tmp_path: Path) -> None:
    write(
        tmp_path,
        agent____init__="",
        agent__one__a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from agent.one import b\n",
        agent__one__b="def f():\n    import agent.two.c\n",
        agent__two__c="from agent.one.a import X\nfrom .d import Y\n",
        agent__two__d="from agent import one\n",
    )
    errors = check_imports.import_errors(tmp_path)
    assert errors == ["files import each other: agent.one.a -> agent.one.b -> agent.two.c -> agent.one.a"]


def test_long_file_is_found(tmp_path: Path) -> None:
    write(tmp_path, agent__long="#\n" * (house_rules.MAX_LINES + 1), agent__short="#\n" * house_rules.MAX_LINES)
    assert [error.partition(" ")[0] for error in house_rules.length_errors(tmp_path)] == ["agent/long.py"]
