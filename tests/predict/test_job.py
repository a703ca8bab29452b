"""Jobs: resuming, failures, and merging the store image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cellseg import config
from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.predict.job import PredictionJob, predict_here
from cellseg.predict.predictor import Predictor, join_predictions
from cellseg.predict.tiles import plan_tiles
from cellseg.predictions import Predictions
from cellseg.rle import encode, join_runs
from cellseg.write.results import choose_results

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

    def predict_tiles(self, jobs, brightness=None):  # noqa: ARG002
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


def add_all(job, tiles):
    """Predict tiles and add them to the job."""
    for key, result in predict_here(FakePredictor())([tiles]):
        job.add(key, result)


@pytest.fixture
def begin(tmp_path):
    """Start or resume a job."""
    results = tmp_path / "x.json"
    jobs: list[PredictionJob] = []

    def go(images=IMAGES):
        if jobs:
            jobs[-1].store.close()  # as if the process had ended
        jobs.append(PredictionJob.begin(FakePredictor(), [], images, results))
        return jobs[-1]

    return go


@pytest.mark.parametrize("step", [1, -1, 5])
def test_tiles_predicted_in_any_order_are_merged_image_by_image(begin, step):
    job = begin()
    tiles = job.pending()
    assert len(tiles) == sum(map(len, PLANS))
    for start in range(abs(step)):
        add_all(job, tiles[start::step] if step > 0 else tiles[::step])
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
    add_all(job, tiles[2:5])
    with pytest.raises(InputError, match=rf"not predicted: {len(tiles) - 3} tiles"):
        job.collect_failures()
    job = begin()
    pending = job.pending()
    assert pending == tiles[:2] + tiles[5:]
    predictor = FakePredictor()
    job.run(predict_here(predictor))
    assert predictor.predicted == [tile_job for _, tile_job in pending]
    assert "resuming: 3 tiles" in capsys.readouterr().out
    job.collect_failures()


def test_damaged_tiles_are_predicted_again(begin, caplog):
    job = begin()
    add_all(job, job.pending())
    expected = [cells.scores.tolist() for _, cells in job.merge(FakePredictor())]
    (path,) = job.store.folder.glob("*.jsonl")
    content = bytearray(path.read_bytes())
    content[20] ^= 4
    path.write_bytes(content)
    job = begin()
    predictor = FakePredictor()
    job.run(predict_here(predictor))
    assert len(predictor.predicted) == 1
    (warning,) = caplog.messages
    assert "1 damaged line" in warning
    assert str(job.store.folder) in warning
    job.collect_failures()
    assert [cells.scores.tolist() for _, cells in job.merge(predictor)] == expected


def test_an_error_that_is_a_bug_is_raised(begin):
    class Broken(FakePredictor):
        def predict_tiles(self, jobs, brightness=None):  # noqa: ARG002
            yield next(super().predict_tiles(jobs))
            raise KeyError("a bug")

    job = begin()
    with pytest.raises(KeyError):
        job.run(predict_here(Broken()))
    assert len(job.store.done()) == 1


def test_unusable_images_are_skipped(begin, tmp_path, capsys):
    missing = ImageRecord(9, "gone.png", tmp_path / "gone.png", None)
    images = [IMAGES[0], missing, IMAGES[2]]
    job = begin(images)
    tiles = job.pending()
    assert {number for (number, _), _ in tiles} == {0, 2}
    add_all(job, tiles[:-1])
    job.add(tiles[-1][0], InputError("torn"))
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
