"""Merge classes of annotated cells, as `annotation.py --merge_classes` does."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cellseg.errors import InputError
from cellseg.read.cell_checks import remove_copies
from cellseg.read.coco import AnnotatedImage
from cellseg.read.names import check_class_names, comparable_name
from cellseg.rle import concatenate
from cellseg.text import show

FLAG = "--merge_classes"


@dataclass(frozen=True)
class ClassMerge:
    """What K classes of files become.

    Attributes
    ----------
    file_names
        The K class names in the files.
    names
        The class names afterwards, in the order of the first class of each.
    numbers
        The class afterwards, from 1, of each class 1…K.
    """

    file_names: list[str]
    names: list[str]
    numbers: dict[int, int]

    def apply(self, image: AnnotatedImage) -> AnnotatedImage:
        """Return an image with merged classes; a cell that was in two of them is in it once."""
        cells = {}
        warnings = image.warnings.copy()
        for new in sorted({self.numbers[old] for old in image.cells}):
            parts = [image.cells[old] for old in image.cells if self.numbers[old] == new]
            joined = concatenate(image.size, parts)
            cells[new] = remove_copies(joined)
            n_copies = len(joined) - len(cells[new])
            warnings["cells in two of the classes that were merged, used once"] += n_copies
        return replace(image, cells=cells, warnings=+warnings)


def merge_classes(file_names: Sequence[str], groups: Sequence[Sequence[str]]) -> ClassMerge:
    """Return what classes become if each group, a new name and old ones, is merged.

    Names are compared ignoring case and outer spaces. Raises InputError if a group has no old
    name, an old one is not in `file_names` or in two groups, or a new one is that of another class.
    """
    old_numbers = {comparable_name(name): n for n, name in enumerate(file_names)}
    group_of: dict[int, int] = {}
    for group, (new, *old_names) in enumerate(groups):
        if not old_names:
            raise InputError(
                f"{FLAG} {new}: no class to merge, expected the new name and then the old ones, "
                f"such as {FLAG} {new} {' '.join(map(shlex.quote, file_names[:2]))}"
            )
        for old in old_names:
            n = old_numbers.get(comparable_name(old))
            if n is None:
                raise InputError(
                    f"{FLAG} {new}: no class {show(old)}, expected some of {', '.join(file_names)};"
                    " fix it, or name the classes in the files with --class_names"
                )
            if n in group_of:
                raise InputError(
                    f"{FLAG} {new}: {file_names[n]} is named twice, and a class can be merged into "
                    "one only; name it once"
                )
            group_of[n] = group
    for new, *_ in groups:
        n = old_numbers.get(comparable_name(new))
        if n is not None and n not in group_of:
            raise InputError(
                f"{FLAG} {new}: {file_names[n]} is a class of its own; name it among those to "
                "merge, or choose another new name"
            )
    # A class is merged into the first one of its group.
    first = {group: n for n, group in sorted(group_of.items(), reverse=True)}
    targets = [first[group_of[n]] if n in group_of else n for n in range(len(file_names))]
    kept = sorted(set(targets))
    names = [groups[group_of[n]][0] if n in group_of else file_names[n] for n in kept]
    check_class_names(FLAG, names)
    numbers = {n: kept.index(target) + 1 for n, target in enumerate(targets, 1)}
    return ClassMerge(list(file_names), names, numbers)
