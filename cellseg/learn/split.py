"""Split the training images for validation and cross-validation."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cellseg.errors import InputError
from cellseg.messages import listed
from cellseg.read.csv_table import read_columns
from cellseg.read.image_formats import SUFFIXES
from cellseg.read.names import image_name


def read_groups(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Read the group (patient, slide) of each image.

    Parameters
    ----------
    path
        A JSON object `{image: group}`, or a CSV file with the columns `image` and `group`. An image
        is its name, or its file's, with or without folders.
    names
        The images that need a group; others in the file are ignored.

    Raises
    ------
    InputError
        If the file can't be read, names an image twice, or lacks one of `names`.
    """
    pairs: Sequence[tuple[Any, ...]]
    if path.suffix.lower() in (".csv", ".tsv"):
        pairs = read_columns(path, ("image", "group"), where="--groups ")
    else:
        expected = "expected a JSON object {image: group} or a CSV file"
        try:
            pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
        except FileNotFoundError:
            raise InputError(f"--groups {path}: no such file; {expected}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--groups {path}: can't be read ({error}); {expected}") from None
        except (ValueError, RecursionError):
            raise InputError(f"--groups {path}: not JSON; {expected}") from None
        if not isinstance(pairs, list) or not all(isinstance(p, tuple) for p in pairs):
            raise InputError(f"--groups {path}: not a JSON object; {expected}")
    groups: dict[str, str] = {}
    for image, value in pairs:
        is_whole = isinstance(value, float) and value.is_integer()
        group = int(value) if is_whole else value
        if not isinstance(group, str | int) or group == "" or image in groups:
            found = "occurs twice" if image in groups else f"has the group {group!r}"
            raise InputError(f"--groups {path}: {image} {found}, expected one name or whole number")
        groups[image] = str(group)
    _add_names_of_files(groups)
    missing = [name for name in names if name not in groups]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        others = sorted(set(groups) - set(names))
        hint = f" (it has {listed(others)})" if others else ""
        raise InputError(
            f"--groups {path}: no group for {missing[0]}{more}{hint}; add a line for each image"
        )
    return {name: groups[name] for name in names}


def _add_names_of_files(groups: dict[str, str]) -> None:
    """Give the names of images the groups of their files, unless two files have one name."""
    by_name: dict[str, set[str]] = {}
    for image, group in groups.items():
        if PurePosixPath(image).suffix.lower() in SUFFIXES:
            by_name.setdefault(image_name(image), set()).add(group)
    for name, of_files in by_name.items():
        if len(of_files) == 1:
            groups.setdefault(name, *of_files)


def choose_validation(
    names: Sequence[str], fraction: float, seed: int, groups: Mapping[str, str] | None = None
) -> list[str]:
    """Choose the validation images: random whole groups, until the fraction is reached.

    Parameters
    ----------
    names
        The images.
    fraction
        Fraction of the images for validation, 0 to below 1, approximated as closely as the
        drawn groups allow; at least one group if it is not 0.
    seed
        The same seed, names and groups give the same choice.
    groups
        The group of each image; by default, each image is a group.

    Returns
    -------
    The names of the validation images, in the order of `names`.

    Raises
    ------
    InputError
        If no image would be left for training.
    """
    if fraction == 0:
        return []
    members = _shuffled_groups(names, seed, groups)
    target = fraction * len(names)
    validation: set[str] = set()
    for group in list(members)[:-1]:
        size = len(validation) + len(members[group])
        if validation and abs(size - target) > abs(len(validation) - target):
            break
        validation.update(members[group])
    if not validation:
        what = "group" if groups else "image"
        raise InputError(
            f"--val_fraction {fraction}: the data has only one {what}, so there can be no "
            "validation set; train with --val_fraction 0"
        )
    return [name for name in names if name in validation]


def split_folds(
    names: Sequence[str], n_folds: int, seed: int, groups: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Split the images into `n_folds` folds, 2 or more, of about the same size, groups kept whole.

    Without groups, sizes differ by at most one image. With them, the largest groups are
    assigned first, each to the smallest fold. `names`, `seed` and `groups` are as for
    `choose_validation`.

    Returns the names in each fold, in the order of `names`; no fold is empty. Raises
    InputError if there are fewer groups than folds.
    """
    members = _shuffled_groups(names, seed, groups)
    if not 2 <= n_folds <= len(members):
        what = "groups" if groups else "images"
        raise InputError(
            f"--folds {n_folds}: expected 2 to {len(members)}, as the data has "
            f"{len(members)} {what}"
        )
    folds: list[set[str]] = [set() for _ in range(n_folds)]
    for group in sorted(members.values(), key=len, reverse=True):
        min(folds, key=len).update(group)
    return [[name for name in names if name in fold] for fold in folds]


def _shuffled_groups(
    names: Sequence[str], seed: int, groups: Mapping[str, str] | None
) -> dict[str, list[str]]:
    """Return the members of each group, the groups in random order."""
    members: dict[str, list[str]] = {}
    for name in sorted(names):
        members.setdefault(groups[name] if groups else name, []).append(name)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    return {group: members[group] for group in order}
