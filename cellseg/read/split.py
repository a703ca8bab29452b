"""Which training images are held out to score a run."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from cellseg.errors import InputError


def read_groups(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Read which group (patient, slide) each image belongs to.

    Parameters
    ----------
    path
        A JSON object `{image: group}`, or a CSV file with the columns `image,group`.
    names
        The images that need a group; others in the file are passed over.

    Raises
    ------
    InputError
        If the file can't be read, names an image twice, or leaves one of `names` out.
    """
    expected = "a JSON object {image: group} or a CSV file with the columns image,group is expected"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"--groups {path}: no such file; {expected}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--groups {path}: can't be read ({error}); {expected}") from None
    pairs: list[tuple[str, str]]
    if path.suffix.lower() == ".csv":
        try:
            rows = list(csv.DictReader(text.splitlines()))
        except csv.Error as error:
            raise InputError(f"--groups {path}: not CSV ({error}); {expected}") from None
        if not rows or not {"image", "group"} <= set(rows[0]):
            raise InputError(
                f"--groups {path}: no columns image,group in its first line; {expected}"
            )
        pairs = [(row["image"], row["group"]) for row in rows]
    else:
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError):
            raise InputError(f"--groups {path}: not JSON; {expected}") from None
        if not isinstance(pairs, list) or not all(isinstance(p, tuple) for p in pairs):
            raise InputError(f"--groups {path}: not a JSON object; {expected}")
    groups: dict[str, str] = {}
    for image, group in pairs:
        if not isinstance(group, str | int) or group == "" or image in groups:
            found = "is there twice" if image in groups else f"has the group {group!r}"
            raise InputError(f"--groups {path}: {image} {found}; one name or number is expected")
        groups[image] = str(group)
    missing = [name for name in names if name not in groups]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"--groups {path}: no group for {missing[0]}{more}; add a line for each image"
        )
    return {name: groups[name] for name in names}


def choose_validation(
    names: Sequence[str], fraction: float, seed: int, groups: Mapping[str, str] | None = None
) -> list[str]:
    """Choose the images to hold out: whole groups, drawn until the part is reached.

    Parameters
    ----------
    names
        The images.
    fraction
        The part to hold out, 0 to below 1. What is held out comes as near to it as
        whole groups, in the order drawn, allow; at least one group where it is not 0.
    seed
        The same seed, names and groups give the same choice.
    groups
        The group of each image; without it each image is a group of its own.

    Returns
    -------
    list
        The names held out, in the order of `names`.

    Raises
    ------
    InputError
        If nothing would be left to train on.
    """
    if fraction == 0:
        return []
    members = _shuffled_groups(names, seed, groups)
    order = list(members)
    wanted = fraction * len(names)
    validation: set[str] = set()
    for group in order[:-1]:
        if validation and abs(len(validation) + len(members[group]) - wanted) > abs(
            len(validation) - wanted
        ):
            break
        validation.update(members[group])
    if not validation:
        what = "group" if groups else "image"
        raise InputError(
            f"--val_fraction {fraction}: the data has one {what} alone, so none can be held out; "
            "train with --val_fraction 0"
        )
    return [name for name in names if name in validation]


def split_folds(
    names: Sequence[str], n_folds: int, seed: int, groups: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Split the images into folds of about the same number of images, groups kept whole.

    Without groups, folds differ by one image at most. With them, the largest groups are
    given out first, each to the fold that has the fewest images.

    Parameters
    ----------
    names, seed, groups
        As `choose_validation` takes them.
    n_folds
        How many folds, 2 or more.

    Returns
    -------
    The names in each fold, in the order of `names`. Each name is in one fold, and no
    fold is empty.

    Raises
    ------
    InputError
        If there are fewer groups than folds.
    """
    members = _shuffled_groups(names, seed, groups)
    if not 2 <= n_folds <= len(members):
        what = "groups" if groups else "images"
        raise InputError(
            f"--folds {n_folds}: 2 to {len(members)} are expected, as the data has "
            f"{len(members)} {what}"
        )
    folds: list[set[str]] = [set() for _ in range(n_folds)]
    for group in sorted(members.values(), key=len, reverse=True):
        min(folds, key=len).update(group)
    return [[name for name in names if name in fold] for fold in folds]


def _shuffled_groups(
    names: Sequence[str], seed: int, groups: Mapping[str, str] | None
) -> dict[str, list[str]]:
    """Return the members of each group, the groups in an order drawn by the seed."""
    members: dict[str, list[str]] = {}
    for name in sorted(names):
        members.setdefault(groups[name] if groups else name, []).append(name)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    return {group: members[group] for group in order}
