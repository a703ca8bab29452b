"""The tiles of many images: shared out over processes, kept as they are done, joined."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.predict.journal import Journal, Key
from cellseg.predict.predictor import Look, Predictor
from cellseg.predict.tiles import TilePlan
from cellseg.predictions import Predictions

Plans = Mapping[int, TilePlan]  # by the number of the image in the list


def missing_looks(
    images: Sequence[ImageRecord], plans: Plans, journal: Journal
) -> list[tuple[Key, Look]]:
    """List the tiles that are not done yet, by image and tile."""
    done = journal.done()
    return [
        ((number, index), Look(images[number].path, images[number].level, plan.size, tile))
        for number, plan in plans.items()
        for index, tile in enumerate(plan)
        if (number, index) not in done
    ]


def share_out(looks: Sequence[tuple[Key, Look]], rank: int, n: int) -> list[tuple[Key, Look]]:
    """Give the part of the tiles that process `rank` of `n` does: in one piece, of equal area.

    Tiles that lie side by side share what is read for them.
    """
    areas = [look.tile.size[0] * look.tile.size[1] for _, look in looks]
    ends = itertools.accumulate(areas)
    total = sum(areas)
    return [
        pair
        for pair, end, area in zip(looks, ends, areas, strict=True)
        if rank * total <= (end - area / 2) * n < (rank + 1) * total
    ]


def predict_share(
    predictor: Predictor, journal: Journal, looks: Sequence[tuple[Key, Look]], rank: int, n: int
) -> None:
    """Do a process's part of the tiles, and keep what they give."""
    mine = share_out(looks, rank, n)
    keys = [key for key, _ in mine]
    found = predictor.look(look for _, look in mine)
    with (
        journal.open(rank) as file,
        tqdm(total=len(mine), desc="predicting", unit="tile", disable=rank or None) as bar,
    ):
        for key, cells in zip(keys, found, strict=True):
            journal.append(key, cells, file)
            bar.update()


def joined(
    predictor: Predictor, journal: Journal, plans: Plans, bad: Mapping[int, str]
) -> Iterator[tuple[int, Predictions]]:
    """Merge the tiles of each image but the bad ones.

    Yields
    ------
    The number of an image and some of its cells, image by image.
    """
    for number, entries in itertools.groupby(journal.entries(), key=lambda entry: entry[0][0]):
        if number in bad:
            continue
        tiles = (_cells(found) for _, found in entries)
        for cells in predictor.merge(plans[number], tiles):
            yield number, cells


def _cells(found: Predictions | InputError) -> Predictions:
    assert not isinstance(found, InputError)  # its image is bad
    return found
