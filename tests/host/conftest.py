"""Fixtures of the host's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.launchd import Launchd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def launchd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launchd]:
    """A launchd of this test's own; commands run by the test speak to it."""
    made = Launchd(tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()
