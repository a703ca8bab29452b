"""Match the class names of outlines and class tables with the classes of a data set."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cellseg.errors import InputError
from cellseg.read.layout import CLASS_NAMES
from cellseg.read.names import comparable_name

MONUSAC = ("epithelial", "lymphocyte", "neutrophil", "macrophage")
"""MoNuSAC's names of NYCU HW3's classes (Verma et al. 2021, doi 10.1109/TMI.2021.3085712)."""


class UnknownClassError(InputError):
    """A file has cells of unknown classes, or without a class."""


def is_ignored(name: str) -> bool:
    """Return whether cells of a class are not used: MoNuSAC's Ambiguous, QuPath's Ignore*."""
    name = comparable_name(name)
    return name == "ambiguous" or name.endswith("*")


class ClassNames(tuple[str, ...]):
    """K class names, with other names that files may use.

    `aliases` are the class 1…K of each of these, as of `comparable_name`.
    """

    aliases: Mapping[str, int]

    def __new__(cls, names: Iterable[str], aliases: Mapping[str, int]) -> ClassNames:
        """Return the names with the aliases."""
        self = super().__new__(cls, names)
        self.aliases = aliases
        return self


def class_numbers(class_names: Sequence[str]) -> dict[str, int]:
    """Return the class 1…K of each name that outlines may use, without case and outer spaces.

    MoNuSAC's names stand for NYCU HW3's classes, and no name for a single class.
    """
    numbers = {comparable_name(name): n for n, name in enumerate(class_names, 1)}
    if isinstance(class_names, ClassNames):
        numbers = {**class_names.aliases, **numbers}
    if tuple(class_names) == CLASS_NAMES:
        numbers |= {name: n for n, name in enumerate(MONUSAC, 1)}
    if len(class_names) == 1:
        numbers[""] = 1
    return numbers


def match_classes(
    path: Path,
    cells: Sequence[tuple[str, str | None]],
    class_names: Sequence[str],
    skip_bad: bool = False,
) -> tuple[list[int], Counter[str]]:
    """Return the class 1…K of each cell, 0 if it is left out, and warnings about these.

    Names are compared ignoring case. MoNuSAC's are accepted for NYCU HW3's classes; a single
    class needs no name. Cells of ignored classes are left out, those of unknown ones only with
    `skip_bad`.

    Parameters
    ----------
    path
        The cells' file, for messages.
    cells
        Place in the file and class name of each cell.
    class_names
        The K classes.

    Raises UnknownClassError if a class is unknown or missing; with `skip_bad`, if all are.
    """
    numbers = class_numbers(class_names)
    matched = []
    unknown: Counter[str] = Counter()
    warnings: Counter[str] = Counter()
    for _, class_name in cells:
        name = (class_name or "").strip()
        number = numbers.get(comparable_name(name), 0)
        matched.append(number)
        if not number and is_ignored(name):
            warnings["cells of ambiguous or ignored classes"] += 1
        elif not number:
            unknown[name] += 1
    if unknown and not (skip_bad and any(matched)):
        found = [f"class {name!r}" if name else "no class" for name in unknown]
        first = next(where for where, name in cells if (name or "").strip() == next(iter(unknown)))
        others = f", others have {', '.join(found[1:])}" if found[1:] else ""
        raise UnknownClassError(
            f"{path}: {first} has {found[0]}{others}, expected one of {', '.join(class_names)}; "
            "fix it, or set the class names with --class_names"
        )
    for name, count in unknown.items():
        what = f"of the unknown class {name!r}" if name else "without a class"
        warnings[f"cells {what}, ignored"] += count
    return matched, warnings


def advise_class_names(given: Sequence[str] | None, found: Iterable[str]) -> str:
    """Return `--class_names` with the given names and those found, ready for a shell."""
    names = {comparable_name(name): name.strip() for name in given or ()}
    for name in sorted(name.strip() for name in found if name.strip() and not is_ignored(name)):
        names.setdefault(comparable_name(name), name)
    if not names:
        return "cells of a single class need no name: --class_names NAME"
    return f"all classes: --class_names {' '.join(map(shlex.quote, names.values()))}"
