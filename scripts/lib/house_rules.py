"""Checks that no linter has: one version everywhere, short files, plain words, no circle of imports.

Run as `python -m scripts.lib.house_rules` from the repository's root.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.lib.check_imports import import_errors
from scripts.lib.check_words import word_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY: Final = Path(__file__).resolve().parents[2]
MAX_LINES: Final = 400


def version_errors(repository: Path) -> Iterator[str]:
    """Yield where the package or the changelog's newest release differs from pyproject.toml's version."""
    version = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    found = re.search(r'^__version__ = (".*")$', (repository / "agent" / "__init__.py").read_text(), re.MULTILINE)
    package_version = ast.literal_eval(found.group(1)) if found else None
    if package_version != version:
        yield f"agent.__version__ is {package_version}, but pyproject.toml has {version}"
    headings = re.findall(r"^## \[(.+?)\]", (repository / "CHANGELOG.md").read_text(), re.MULTILINE)
    releases = [heading for heading in headings if heading != "Unreleased"]
    if not headings or (releases and releases[0] != version):
        yield f"CHANGELOG.md's newest release is {releases[:1]}, but pyproject.toml has {version}"


def length_errors(repository: Path) -> Iterator[str]:
    """Yield the agent's source files that are too long to read in one go."""
    for path in sorted((repository / "agent").rglob("*.py")):
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            yield f"{path.relative_to(repository)} has {lines} lines, more than {MAX_LINES}: split it by concern"


def main() -> int:
    """Print errors on stderr; return 1 when there is one."""
    errors = [
        *version_errors(REPOSITORY),
        *length_errors(REPOSITORY),
        *import_errors(REPOSITORY),
        *word_errors(REPOSITORY),
    ]
    sys.stderr.writelines(f"{error}\n" for error in errors)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
