"""Writes the simulated program `anka`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[3]

PROGRAM: Final = """#!{python} -IS
import sys
sys.path.insert(0, {repository!r})
from tests.simulators.anka.main import main
main({home!r}, sys.argv[1:])
"""


def install(home: Path, *, into: Path | None = None) -> Path:
    """Write the program `anka` for the simulated host at `home` into a folder; return its path."""
    home.mkdir(parents=True, exist_ok=True)
    program = (into or home / "bin") / "anka"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(PROGRAM.format(python=sys.executable, repository=str(REPOSITORY), home=str(home)))
    program.chmod(0o755)
    return program
