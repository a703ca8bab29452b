"""What was changed in corrected windows: cells of two versions compared, counted and printed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from cellseg.messages import listed, plural, warn
from cellseg.read.corrected_store import SAME_CELL, Bools, Cell, iou_matrix
from cellseg.text import name_of_total

_SAME_OUTLINE = 0.95  # IoU of an outline that a program without ids only wrote in another way


@dataclass
class Change:
    """How many cells of a class were changed by a correction."""

    written: int = 0
    moved: int = 0  # the outline is another one
    renamed_from: int = 0
    renamed_to: int = 0
    added: int = 0
    deleted: int = 0

    @property
    def now(self) -> int:
        return self.written - self.renamed_from - self.deleted + self.renamed_to + self.added


@dataclass
class Tally:
    """What was found in the corrected windows of all folders."""

    changes: dict[str, Change] = field(default_factory=dict)  # by class
    counts: Counter[str] = field(default_factory=Counter)  # windows and cells, by what they are
    unknown: Counter[str] = field(default_factory=Counter)  # cells, by unknown class
    empty: list[str] = field(default_factory=list)  # windows without a cell
    deleted: list[str] = field(default_factory=list)  # windows of which most cells were deleted
    # Outlines, by the reason and then by window.
    ignored: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def compare(self, names: Sequence[str], written: Sequence[Cell], now: Sequence[Cell]) -> int:
        """Count the changes from the written cells to those that are there now, by class.

        Returns the number of deleted cells.
        """
        pairs, by_overlap = match_cells(written, now)
        self.counts["by overlap"] += by_overlap

        def change(number: int) -> Change:
            name = names[number] if number >= 0 else "other classes"
            return self.changes.setdefault(name, Change())

        for cell in written:
            change(cell.class_).written += 1
        for n in set(range(len(written))) - {a for a, _ in pairs}:
            change(written[n].class_).deleted += 1
        for n in set(range(len(now))) - {b for _, b in pairs}:
            change(now[n].class_).added += 1
        for a, b in pairs:
            before, after = written[a], now[b]
            if before.class_ != after.class_:
                change(before.class_).renamed_from += 1
                change(after.class_).renamed_to += 1
            change(after.class_).moved += _is_moved(before, after, by_overlap)
        return len(written) - len(pairs)


def _is_moved(before: Cell, after: Cell, by_overlap: int) -> bool:
    """Return whether a cell has another outline; `by_overlap` is that of `match_cells`."""
    least = _SAME_OUTLINE if by_overlap else 1.0
    return bool(iou_matrix([before.mask], [after.mask])[0, 0] < least)


def count_changes(
    written: Sequence[Cell], now: Sequence[Cell], some_written: Bools, some_now: Bools
) -> int:
    """Count the changes of some cells of two versions of a window.

    These are some of the cells now that are new or differ, and some of those that were deleted,
    if not all.
    """
    if not some_now.any():  # perhaps only the others were exported
        return 0
    pairs, by_overlap = match_cells(written, now)
    same = {
        b
        for a, b in pairs
        if written[a].class_ == now[b].class_ and not _is_moved(written[a], now[b], by_overlap)
    }
    n_now = sum(n not in same for n in np.flatnonzero(some_now).tolist())
    there = {a for a, _ in pairs}
    return n_now + sum(n not in there for n in np.flatnonzero(some_written).tolist())


def is_same(written: Sequence[Cell], now: Sequence[Cell]) -> bool:
    """Return whether two versions of a window have the same cells, whose ids were lost."""
    iou = iou_matrix([cell.mask for cell in written], [cell.mask for cell in now])
    pairs, _ = match_cells(written, now)
    return len(pairs) == len(written) == len(now) and all(
        written[a].class_ == now[b].class_ and iou[a, b] >= _SAME_OUTLINE for a, b in pairs
    )


def match_cells(written: Sequence[Cell], now: Sequence[Cell]) -> tuple[list[tuple[int, int]], int]:
    """Match the cells of two versions of a window.

    By their ids; of several cells with one id, the one that overlaps most with the former. Where no
    cell has a known id, a program has lost them: then by overlap, each pair with an IoU of at least
    0.5, the largest first.

    Returns
    -------
    The pairs of indices, and how many were matched by overlap.
    """
    iou = iou_matrix([cell.mask for cell in written], [cell.mask for cell in now])
    of_id = {cell.id: n for n, cell in enumerate(written)}
    by_id = [(of_id[cell.id], n) for n, cell in enumerate(now) if cell.id in of_id]
    candidates = by_id or [(a, b) for a, b in np.argwhere(iou >= SAME_CELL).tolist()]
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for a, b in sorted(candidates, key=lambda pair: (-iou[pair], pair)):
        if a not in pairs and b not in taken:
            pairs[a] = b
            taken.add(b)
    return sorted(pairs.items()), 0 if by_id else len(pairs)


def print_changes(names: Sequence[str], tally: Tally, n_windows: int) -> None:
    """Print what was changed, by class, and how the windows were used."""
    counts = tally.counts
    parts = [plural(n_windows, "corrected window")]
    if counts["whole"]:
        parts.append(f"{counts['whole']} of them without a region: looked through as a whole")
    if counts["unchanged"]:
        parts.append(f"{counts['unchanged']} unchanged: not looked through, so not used")
    print("; ".join(parts))
    _print_table(names, tally.changes)
    if counts["by overlap"]:
        n = plural(counts["by overlap"], "cell")
        print(
            f"{n} matched by overlap, as the ids were lost: moved is an IoU below {_SAME_OUTLINE}"
        )
    if counts["outside"]:
        print(f"{plural(counts['outside'], 'cell')} outside the regions, not used")
    if counts["held out"]:
        n = plural(counts["held out"], "window")
        print(f"{n} of validation images of the run, where they stay: nothing is learned from them")
    if counts["ignored"]:
        n = plural(counts["ignored"], "cell")
        print(f"{n} of ignored classes: neither cells nor background is learned there")
    for what, text in (
        ("missing", "windows without a .geojson file, or not in the COCO file, not used"),
        ("test", "windows of test images, whose scores will be too good after training on them"),
    ):
        if counts[what]:
            warn(f"{text}: {counts[what]}")
    for what, text in (
        ("corrections", "corrections outside the regions, not used (Region* is a region's class)"),
        ("twice", "cells with the class and outline of another, ignored"),
        ("empty", "outlines that contain no pixel of their window, ignored"),
        ("points", "points, lines and outlines of fewer than 3 points, ignored"),
    ):
        if files := [f"{name} ({n})" for name, n in tally.ignored[what].items() if n]:
            warn(f"{text}: {tally.ignored[what].total()}: {listed(files)}")
    for windows, text in (
        (tally.empty, "windows without a cell in what was looked through, used as background"),
        (
            tally.deleted,
            "windows of which most cells were deleted (export all objects, not selected)",
        ),
    ):
        if windows:
            warn(f"{text}: {len(windows)}: {listed(windows)}")


def _print_table(names: Sequence[str], changes: Mapping[str, Change]) -> None:
    """Print the changes of each class, the known ones first, and of all cells."""
    order = [*(name for name in names if name in changes), *sorted({*changes} - {*names})]
    rows = [(name, changes[name]) for name in order]
    total = Change(*(sum(getattr(c, key) for _, c in rows) for key in asdict(Change())))
    columns = ("written", "moved", "renamed from", "renamed to", "added", "deleted", "now")
    all_ = name_of_total("all", order)
    width = max(len(name) for name in (*order, "class", all_))
    print("  ".join([f"{'class':{width}}", *columns]))
    for name, change in [*rows, (all_, total)]:
        values = [*asdict(change).values(), change.now]
        cells = [f"{v:{len(c)}}" for v, c in zip(values, columns, strict=True)]
        print("  ".join([f"{name:{width}}", *cells]))
