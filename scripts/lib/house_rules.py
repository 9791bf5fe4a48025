"""Checks what no linter knows: one version everywhere, and files that stay small enough to read."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY: Final = Path(__file__).resolve().parents[2]
MAX_LINES: Final = 400


def version_faults(repository: Path) -> Iterator[str]:
    """Yield where the package or the changelog's newest release differs from pyproject.toml's version."""
    version = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    found = re.search(r'^__version__ = (".*")$', (repository / "agent" / "__init__.py").read_text(), re.MULTILINE)
    package_version = ast.literal_eval(found.group(1)) if found else None
    if package_version != version:
        yield f"agent.__version__ is {package_version}, pyproject.toml says {version}"
    headings = re.findall(r"^## \[(.+?)\]", (repository / "CHANGELOG.md").read_text(), re.MULTILINE)
    releases = [heading for heading in headings if heading != "Unreleased"]
    if not headings or (releases and releases[0] != version):
        yield f"CHANGELOG.md's newest release is {releases[:1]}, pyproject.toml says {version}"


def length_faults(repository: Path) -> Iterator[str]:
    """Yield every source file of the agent that is longer than a person reads at a sitting."""
    for path in sorted((repository / "agent").rglob("*.py")):
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            yield f"{path.relative_to(repository)} has {lines} lines, more than {MAX_LINES}: split it by concern"


def main() -> int:
    """Tell every fault on stderr; returns 1 when there is one."""
    faults = [*version_faults(REPOSITORY), *length_faults(REPOSITORY)]
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
