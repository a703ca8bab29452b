"""Jobs: shards of equal area, resuming, failures, and merging the store image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg import config
from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.predict.job import PredictionJob, choose_results, shard
from cellseg.predict.predictor import Predictor, TileJob, join_predictions
from cellseg.predict.tiles import Tile, plan_tiles
from cellseg.predictions import Predictions
from cellseg.rle import encode, join_runs

SIZES = [(50, 90), (10, 10), (64, 40)]
IMAGES = [ImageRecord(n + 7, f"{n}.png", Path(f"{n}.png"), size) for n, size in enumerate(SIZES)]
PLANS = [plan_tiles(size, 40, 12) for size in SIZES]


class FakePredictor(Predictor):
    """Detects one cell of one pixel in each tile, whose score identifies image and tile."""

    def __init__(self):
        cfg = config.default_config("torchvision")
        cfg.TEST.TILE, cfg.TEST.OVERLAP = 40, 12
        super().__init__([], [cfg])
        self.predicted = []

    def predict_tiles(self, jobs):
        for job in jobs:
            self.predicted.append(job)
            x, y, _, _ = job.tile.window
            yield one_cell(job.tile.size, (int(job.image.stem) * 100 + x + y) / 1000)


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


def tiles_of(areas):
    tiles = [Tile((0, 0, area, 1), (False,) * 4) for area in areas]
    return [((0, n), TileJob(Path("x"), 0, (1, 99), tile)) for n, tile in enumerate(tiles)]


@pytest.fixture
def begin(tmp_path):
    """Start or resume a job."""
    results = tmp_path / "x.json"
    return lambda images=IMAGES: PredictionJob.begin(FakePredictor(), [], images, results)


@given(st.lists(st.integers(1, 90), max_size=60), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_shards_are_a_partition_in_order_and_even(areas, n):
    tiles = tiles_of(areas)
    shards = [shard(tiles, rank, n) for rank in range(n)]
    assert [pair for part in shards for pair in part] == tiles
    for part in shards:
        # Equal up to half a tile at either end.
        area = sum(job.tile.size[1] for _, job in part)
        assert abs(area - sum(areas) / n) <= max(areas, default=0)


def test_shards_by_hand():
    """Of tiles of 3, 1, 1, 1 pixels each of two processes gets 3."""
    tiles = tiles_of([3, 1, 1, 1])
    assert shard(tiles, 0, 2) == tiles[:1]
    assert shard(tiles, 1, 2) == tiles[1:]
    assert shard(tiles[:1], 0, 2) + shard(tiles[:1], 1, 2) == tiles[:1]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_tiles_of_several_processes_are_merged_image_by_image(begin, n):
    job = begin()
    tiles = job.pending()
    assert len(tiles) == sum(map(len, PLANS))
    for rank in range(n):
        job.predict(FakePredictor(), tiles, rank, n)
    assert job.pending() == []
    job.collect_failures()
    assert job.usable == IMAGES

    parts: dict[int, list[Predictions]] = {}
    order = []
    for image, cells in job.merge(FakePredictor()):
        parts.setdefault(image.id, []).append(cells)
        order.append(image.id)
    assert order == sorted(order)
    for number, (image, plan) in enumerate(zip(IMAGES, PLANS, strict=True)):
        cells = join_predictions(plan.size, parts[image.id])
        assert cells.size == plan.size
        expected = sorted((number * 100 + t.window[0] + t.window[1]) / 1000 for t in plan)
        assert np.allclose(sorted(cells.scores.tolist()), expected)
    job.close()
    assert not job.store.folder.exists()


def test_resuming_predicts_only_pending_tiles(begin, capsys):
    job = begin()
    tiles = job.pending()
    job.predict(FakePredictor(), tiles[2:5])
    with pytest.raises(InputError, match=rf"not predicted: {len(tiles) - 3} tiles"):
        job.collect_failures()
    job = begin()
    pending = job.pending()
    assert pending == tiles[:2] + tiles[5:]
    predictor = FakePredictor()
    job.run(predictor, print)
    assert predictor.predicted == [tile_job for _, tile_job in pending]
    assert "resuming: 3 tiles" in capsys.readouterr().out
    job.collect_failures()


def test_damaged_tiles_are_predicted_again(begin, caplog):
    job = begin()
    job.predict(FakePredictor(), job.pending())
    expected = [cells.scores.tolist() for _, cells in job.merge(FakePredictor())]
    (path,) = job.store.folder.glob("*.jsonl")
    content = bytearray(path.read_bytes())
    content[20] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match="not predicted: 1 tile"):
        job.collect_failures()
    job = begin()
    predictor = FakePredictor()
    job.run(predictor, print)
    assert len(predictor.predicted) == 1
    (warning,) = caplog.messages
    assert "1 damaged line" in warning
    assert str(job.store.folder) in warning
    job.collect_failures()
    assert [cells.scores.tolist() for _, cells in job.merge(predictor)] == expected


def test_a_store_that_was_replaced_is_not_merged(begin):
    job = begin()
    job.predict(FakePredictor(), job.pending())
    (job.store.folder / "made-from.json").write_text('"of another"')
    with pytest.raises(InputError, match="not the tile store"):
        job.collect_failures()


def test_unusable_images_are_skipped(begin, tmp_path, capsys):
    missing = ImageRecord(9, "gone.png", tmp_path / "gone.png", None)
    images = [IMAGES[0], missing, IMAGES[2]]
    job = begin(images)
    tiles = job.pending()
    assert {number for (number, _), _ in tiles} == {0, 2}
    job.predict(FakePredictor(), tiles[:-1])
    with job.store.open(0) as file:
        job.store.append(tiles[-1][0], InputError("torn"), file)
    assert job.pending() == tiles[-1:]
    job.collect_failures()
    assert job.usable == IMAGES[:1]
    assert {image.id for image, _ in job.merge(FakePredictor())} == {IMAGES[0].id}
    with pytest.raises(InputError, match=r"^2 of 3 images"):
        job.close()
    first, second = capsys.readouterr().err.splitlines()
    assert f"{missing.path}: " in first
    assert second.endswith(": torn")
    # Only failed tiles are retried.
    assert begin(images).pending() == tiles[-1:]


def test_no_image_can_be_used(begin, tmp_path):
    job = begin([ImageRecord(9, "gone.png", tmp_path / "gone.png", None)])
    job.collect_failures()
    assert job.usable == []
    with pytest.raises(InputError, match=r"^none of 1 image .*gone\.png"):
        job.close()
    assert not job.store.folder.exists()


def test_results_file_or_folder(tmp_path):
    assert choose_results(tmp_path, "x.json") == tmp_path / "x.json"
    assert choose_results(tmp_path / "new", "x.json") == tmp_path / "new" / "x.json"
    assert choose_results(tmp_path / "y.json", "x.json") == tmp_path / "y.json"
    assert choose_results(tmp_path / "y.JSON", "x.json") == tmp_path / "y.JSON"
    for name in ("y.txt", "y.zip", "y.geojson"):
        with pytest.raises(InputError, match=rf"--output .*{name}: .*\.json file or a folder"):
            choose_results(tmp_path / name, "x.json")
    (tmp_path / "v.two").mkdir()
    for folder in ("v.two", "v1.2"):
        assert choose_results(tmp_path / folder, "x.json") == tmp_path / folder / "x.json"
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"--output .*folder\.json: .*folder"):
        choose_results(tmp_path / "folder.json", "x.json")
