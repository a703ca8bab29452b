"""The packages import one way: each only those before it, and no two modules each other."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In the order of the data flow. Modules directly in cellseg/ but config are before them all;
# packages in one row don't import each other.
ORDER = ("", "config", "read", "network", "learn predict", "score", "write", "look", "commands")
FILES = [*ROOT.glob("*.py"), *ROOT.glob("cellseg/**/*.py")]
MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in FILES}
MODULES = {name.removesuffix(".__init__"): file for name, file in MODULES.items()}


def imported(file: Path) -> Iterator[str]:
    """List the project's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (name if name in MODULES else str(node.module) for name in names)


GRAPH = {name: set(imported(file)) & MODULES.keys() for name, file in MODULES.items()}


def place(module: str) -> int:
    """Return a module's row in `ORDER`."""
    _, *inside = module.split(".")
    package = inside[0] if inside else "commands"  # cellseg itself, the public names, too
    return next((row for row, names in enumerate(ORDER) if package in names.split()), 0)


def test_no_step_backwards():
    edges = {(name, other) for name in GRAPH for other in GRAPH[name]}
    same = lambda a, b: a.split(".")[:2] == b.split(".")[:2] or place(a) in (0, len(ORDER) - 1)  # noqa: E731
    backwards = [
        f"{name} imports {other}"
        for name, other in sorted(edges)
        if place(other) > place(name) or (place(other) == place(name) and not same(name, other))
    ]
    assert not backwards


def test_no_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names them
