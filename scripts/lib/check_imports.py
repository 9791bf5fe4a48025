"""Find circles among the imports between the agent's files.

Every import counts: those inside functions and those for type checking too, because a reader has to follow them.
`from agent.x import y` is an import of `agent/x/y.py` when that file exists, else of `agent/x.py` or its `__init__.py`.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Graph = dict[str, set[str]]


def import_graph(root: Path, package: str) -> Graph:
    """Return which modules of `package`, a folder of `root`, each of its modules imports."""
    paths = {_module_name(root, path): path for path in sorted((root / package).rglob("*.py"))}
    return {
        module: {name for name in _imports(module, path) if name in paths and name != module}
        | {
            name
            for base, names in _from_imports(module, path)
            for name in (f"{base}.{imported}" if f"{base}.{imported}" in paths else base for imported in names)
            if name in paths and name != module
        }
        for module, path in paths.items()
    }


def find_circles(graph: Graph) -> list[tuple[str, ...]]:
    """Return the groups of modules that import each other, each sorted: the graph's strongly connected components."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    circles: list[tuple[str, ...]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for imported in sorted(graph[module]):
            if imported not in order:
                visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in stack:
                lowest[module] = min(lowest[module], order[imported])
        if lowest[module] == order[module]:
            members = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(members) > 1:
                circles.append(tuple(sorted(members)))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return sorted(circles)


def import_errors(root: Path, package: str = "agent") -> list[str]:
    """Return an error for each circle."""
    graph = import_graph(root, package)
    return [f"files import each other: {' -> '.join(_one_path(graph, circle))}" for circle in find_circles(graph)]


def _one_path(graph: Graph, circle: tuple[str, ...]) -> list[str]:
    """Return one way round a circle, beginning and ending with the same module."""
    try:
        TopologicalSorter({module: graph[module] & set(circle) for module in circle}).prepare()
    except CycleError as error:
        path: list[str] = error.args[1]
        return list(reversed(path))  # CycleError lists each module after one that imports it
    raise AssertionError(circle)


def _module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: str, path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _from_imports(module: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the module that a `from` names, in full, and the names imported from it."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), module)):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module or ""
            yield base, [alias.name for alias in node.names]
