"""Fixtures for the tests of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.launchd import Launchd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def launchd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launchd]:
    """A simulated launchd for this test, used by the commands that the test runs."""
    made = Launchd(tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()
