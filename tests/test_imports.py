"""Packages import only those before them, and there are no circular imports."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The order of the data flow. Modules directly in cellseg/ except config come first; packages in
# one row don't import each other.
ORDER = ("", "config", "read", "network", "learn predict", "score", "write", "look", "commands")
FILES = [*ROOT.glob("*.py"), *ROOT.glob("cellseg/**/*.py")]
MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in FILES}
MODULES = {name.removesuffix(".__init__"): file for name, file in MODULES.items()}


def imported(file: Path) -> Iterator[str]:
    """Yield the project's modules that a file imports, also within functions."""
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
    package = inside[0] if inside else "commands"  # and cellseg itself
    return next((row for row, names in enumerate(ORDER) if package in names.split()), 0)


def in_one_package(name: str, other: str) -> bool:
    """Return whether two modules of one row may import each other."""
    return name.split(".")[:2] == other.split(".")[:2] or place(name) in (0, len(ORDER) - 1)


def test_packages_import_only_those_before_them():
    edges = {(name, other) for name in GRAPH for other in GRAPH[name]}
    backwards = [
        f"{name} imports {other}"
        for name, other in sorted(edges)
        if place(other) > place(name)
        or (place(other) == place(name) and not in_one_package(name, other))
    ]
    assert not backwards


def test_no_circular_imports():
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError with the modules
