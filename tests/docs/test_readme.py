"""What the README shows is true: its configuration in full names every key, with the default the code has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.config import Assignment, Config, PoolDocument, ProbeDocument, RegistryConfig

if TYPE_CHECKING:
    from pydantic import BaseModel

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(title: str) -> str:
    """Return the TOML block that begins with a comment."""
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    return str(next(text for text in blocks if text.startswith(title)))


def uncommented(text: str) -> dict[str, Any]:
    """Return the document with the keys that are shown as comments switched on."""
    return tomllib.loads(re.sub(r"^# (\w+ = |\[)", r"\1", text, flags=re.MULTILINE))


def keys(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def test_the_configuration_in_full_has_every_key_and_no_other() -> None:
    document = uncommented(block("# hearth.toml, every key"))
    assert set(document) == keys(Config)
    for name in ("host", "api", "assignment", "log"):
        assert set(document[name]) == keys(type(getattr(Config(), name))), name
    for name in ("qemu", "anka"):
        assert set(document["hypervisor"][name]) == keys(type(getattr(Config().hypervisor, name))), name
    (registry,) = document["images"]["registries"].values()
    assert set(registry) == keys(RegistryConfig)
    assert set(document["images"]) == keys(type(Config().images))
    Config.model_validate(document)


def test_the_configuration_in_full_shows_the_defaults() -> None:
    shown = Config.model_validate(tomllib.loads(block("# hearth.toml, every key")))
    shown = shown.model_copy(update={"images": shown.images.model_copy(update={"registries": {}})})
    assert shown == Config()


def test_the_assignment_in_full_has_every_key_and_no_other() -> None:
    pool = uncommented(block("# assignment.toml, every key"))["pools"]["NAME"]
    assert set(pool) == keys(PoolDocument)
    assert set(pool["probes"][0]) == keys(ProbeDocument)


def test_the_assignment_in_full_shows_the_defaults() -> None:
    pool = tomllib.loads(block("# assignment.toml, every key"))["pools"]["NAME"]
    probe = pool.pop("probes")[0]
    shown = PoolDocument.model_validate(pool)
    assert shown == PoolDocument(image=pool["image"])
    defaults = ProbeDocument.model_fields
    assert {name: value for name, value in probe.items() if name not in ("kind", "port")} == {
        name: list(field.default) if isinstance(field.default, tuple) else field.default
        for name, field in defaults.items()
        if name not in ("kind", "port")
    }


@pytest.mark.parametrize("title", ["# hearth.toml: this host", "# assignment.toml: what this host"])
def test_the_examples_are_valid(title: str) -> None:
    document = tomllib.loads(block(title))
    (Assignment if "pools" in document else Config).model_validate(document)


def test_every_page_it_names_exists() -> None:
    for page in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (Path(__file__).parents[2] / page).is_file(), page
