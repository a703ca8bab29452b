"""Tiles are shared out whole, in order and evenly; what is kept joins to the image's cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg import config
from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.predict.journal import Journal
from cellseg.predict.predictor import Look, Predictor, join
from cellseg.predict.shares import joined, missing_looks, predict_share, share_out
from cellseg.predict.tiles import Tile, plan_tiles
from cellseg.predictions import Predictions
from cellseg.rle import encode, join_runs

SIZES = [(50, 90), (10, 10), (64, 40)]
IMAGES = [ImageRecord(n + 7, f"{n}.png", Path(f"{n}.png"), size) for n, size in enumerate(SIZES)]
PLANS = {n: plan_tiles(size, 40, 12) for n, size in enumerate(SIZES)}


class Named(Predictor):
    """Finds in each tile one cell, a pixel wide and high, whose score names the image and tile."""

    def __init__(self):
        super().__init__([], [config.default_config("torchvision")])
        self.looked = []

    def look(self, looks):
        for look in looks:
            self.looked.append(look)
            x, y, _, _ = look.tile.window
            yield one_cell(look.tile.size, (int(look.image.stem) * 100 + x + y) / 1000)


def one_cell(size, score):
    y, x = size[0] // 2, size[1] // 2
    start = np.array([x * size[0] + y])
    return Predictions(
        size,
        np.array([[x, y, x + 1, y + 1]], np.float32),
        np.array([score], np.float32),
        np.zeros(1, np.int64),
        encode(join_runs(size, 1, np.zeros(1, np.int64), start, start + 1)),
    )


def looks_of(areas):
    tiles = [Tile((0, 0, area, 1), (False,) * 4) for area in areas]
    return [((0, n), Look(Path("x"), 0, (1, 99), tile)) for n, tile in enumerate(tiles)]


@given(st.lists(st.integers(1, 90), max_size=60), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_shares_are_a_partition_in_order_and_even(areas, n):
    looks = looks_of(areas)
    shares = [share_out(looks, rank, n) for rank in range(n)]
    assert [pair for share in shares for pair in share] == looks
    for share in shares:
        # Even up to half a tile at either end.
        area = sum(look.tile.size[1] for _, look in share)
        assert abs(area - sum(areas) / n) <= max(areas, default=0)


def test_by_hand():
    """Of tiles of 3, 1, 1, 1 pixels each of two processes does 3."""
    looks = looks_of([3, 1, 1, 1])
    assert share_out(looks, 0, 2) == looks[:1]
    assert share_out(looks, 1, 2) == looks[1:]
    assert share_out(looks[:1], 0, 2) + share_out(looks[:1], 1, 2) == looks[:1]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_what_processes_did_is_joined_image_by_image(tmp_path, n):
    journal = Journal(tmp_path / "parts", {})
    looks = missing_looks(IMAGES, PLANS, journal)
    assert len(looks) == sum(map(len, PLANS.values()))
    for rank in range(n):
        predict_share(Named(), journal, looks, rank, n)
    assert missing_looks(IMAGES, PLANS, journal) == []

    parts: dict[int, list[Predictions]] = {}
    order = []
    for number, cells in joined(Named(), journal, PLANS, {}):
        parts.setdefault(number, []).append(cells)
        order.append(number)
    assert order == sorted(order)
    for number, size in enumerate(SIZES):
        cells = join(size, parts[number])
        assert cells.size == size
        tiles = list(PLANS[number])
        expected = sorted((number * 100 + t.window[0] + t.window[1]) / 1000 for t in tiles)
        assert np.allclose(sorted(cells.scores.tolist()), expected)


def test_only_the_missing_tiles(tmp_path):
    journal = Journal(tmp_path / "parts", {})
    looks = missing_looks(IMAGES, PLANS, journal)
    predict_share(Named(), journal, looks[2:5], 0, 1)
    left = missing_looks(IMAGES, PLANS, journal)
    assert left == looks[:2] + looks[5:]
    predictor = Named()
    predict_share(predictor, journal, left, 0, 1)
    assert predictor.looked == [look for _, look in left]
    assert journal.done() == {key for key, _ in looks}


def test_bad_images_are_left_out(tmp_path):
    journal = Journal(tmp_path / "parts", {})
    looks = missing_looks(IMAGES, {n: PLANS[n] for n in (0, 2)}, journal)
    assert {key[0] for key, _ in looks} == {0, 2}
    predict_share(Named(), journal, looks[:-1], 0, 1)
    with journal.open(0) as file:
        journal.append(looks[-1][0], InputError("torn"), file)
    assert journal.faults() == {looks[-1][0]: "torn"}
    assert missing_looks(IMAGES, {n: PLANS[n] for n in (0, 2)}, journal) == looks[-1:]
    bad = {1: "missing", 2: "torn"}
    assert {number for number, _ in joined(Named(), journal, PLANS, bad)} == {0}
