"""Merge classes of annotated cells, as `annotation.py --merge_classes` does.

The annotation file records it, so that other label maps of the data set can be read likewise.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.read.cell_checks import OVERLAP_TEXT, count_overlap_pixels, remove_copies
from cellseg.read.classes import ClassNames
from cellseg.read.coco import COCO_REMEDY, AnnotatedImage, class_names, load_coco
from cellseg.read.layout import ANNOTATIONS, CLASS_NAMES
from cellseg.read.names import check_class_names, comparable_name
from cellseg.rle import concatenate
from cellseg.text import show

FLAG = "--merge_classes"

RECORD = "merged_classes"
"""Key in the `info` of an annotation file."""


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

    file_names: ClassNames
    names: ClassNames
    numbers: dict[int, int]

    @classmethod
    def of(
        cls, file_names: Sequence[str], names: Sequence[str], numbers: Sequence[int]
    ) -> ClassMerge:
        """Return a merge of which files may use the names before and afterwards."""
        old = {comparable_name(name): k for name, k in zip(file_names, numbers, strict=True)}
        new = {comparable_name(name): numbers.index(k) + 1 for k, name in enumerate(names, 1)}
        if len(names) == 1:
            new[""] = 1  # cells of a single class need no name
        by_number = dict(enumerate(numbers, 1))
        return cls(ClassNames(file_names, new), ClassNames(names, old), by_number)

    @property
    def flags(self) -> str:
        """The flags that merge the classes, ready for a shell."""
        return " ".join(
            shlex.join([FLAG, name, *old])
            for n, name in enumerate(self.names, 1)
            if (old := self._old_names(n)) != [name]
        )

    def _old_names(self, number: int) -> list[str]:
        return [self.file_names[old - 1] for old, new in self.numbers.items() if new == number]

    def __str__(self) -> str:
        """Return the new classes, each with the classes of the files if it has other ones."""
        texts = []
        for n, name in enumerate(self.names, 1):
            old = self._old_names(n)
            texts.append(name if old == [name] else f"{name} ({', '.join(old)})")
        return ", ".join(texts)

    def record(self) -> dict[str, Any]:
        """Return the entry of an annotation file's `info`, which `read_merge` reads."""
        return {RECORD: {"file_names": [*self.file_names], "numbers": [*self.numbers.values()]}}

    def apply(self, image: AnnotatedImage) -> AnnotatedImage:
        """Return an image with merged classes; a cell that was in two of them is in it once."""
        cells, n_copies = {}, 0
        warnings = image.warnings.copy()
        for new in sorted({self.numbers[old] for old in image.cells}):
            parts = [image.cells[old] for old in image.cells if self.numbers[old] == new]
            joined = concatenate(image.size, parts)
            cells[new] = remove_copies(joined) if len(parts) > 1 else joined
            n_copies += len(joined) - len(cells[new])
        if n_copies:
            warnings["cells in two of the classes that were merged, used once"] = n_copies
            warnings[OVERLAP_TEXT] = count_overlap_pixels(list(cells.values()))
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
                    " fix it, or without --coco name the classes in the files with --class_names"
                )
            if n in group_of:
                raise InputError(
                    f"{FLAG} {new}: {file_names[n]} is named twice, and a class can be merged into "
                    "one only; name it once"
                )
            group_of[n] = group
    for group, (new, *_) in enumerate(groups):
        n = old_numbers.get(comparable_name(new))
        if n is not None and group_of.get(n) != group:
            # Files, as of corrected windows, may have names before and afterwards.
            raise InputError(
                f"{FLAG} {new}: {file_names[n]} is another class in the files; name it among those "
                "to merge, or choose another new name"
            )
    # A class is merged into the first one of its group.
    first = {group: n for n, group in sorted(group_of.items(), reverse=True)}
    targets = [first[group_of[n]] if n in group_of else n for n in range(len(file_names))]
    kept = sorted(set(targets))
    names = [groups[group_of[n]][0] if n in group_of else file_names[n] for n in kept]
    check_class_names(FLAG, names)
    return ClassMerge.of(file_names, names, [kept.index(target) + 1 for target in targets])


def read_merge(data: Path) -> ClassMerge:
    """Return the classes in a data folder's files, and what they became in its annotation file.

    Without that file, they are those of NYCU HW3. Raises InputError if it can't be read, or its
    record of a merge is not one of its classes.
    """
    path = data / ANNOTATIONS
    if not path.exists():
        return merge_classes(CLASS_NAMES, [])
    coco = load_coco(path)
    names = class_names(coco)
    info = coco.get("info")
    record = info.get(RECORD) if isinstance(info, dict) else None
    if record is None:
        return merge_classes(names, [])
    match record:
        case {"file_names": [*file_names], "numbers": [*numbers]} if (
            all(isinstance(name, str) for name in file_names)
            and all(type(number) is int for number in numbers)
            and len(file_names) == len(numbers)
            and {*numbers} == {*range(1, len(names) + 1)}
        ):
            return ClassMerge.of(file_names, names, numbers)
    raise InputError(
        f'{path}: "{RECORD}" of "info" is {show(record)}, expected the classes in the files and '
        f'the number of each in "categories"; {COCO_REMEDY}'
    )
