"""Predicting a part of an image: tissue and regions, from the tiles to the kept cells."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import scipy.ndimage
import tifffile
import torch

from cellseg import config
from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.network import Detections
from cellseg.predict.job import ImageClock, PredictionJob
from cellseg.predict.part import ImagePart, describe_parts, warn_of_empty_parts
from cellseg.predict.predictor import Predictor
from cellseg.predict.tile_store import tiles_fingerprint
from cellseg.rle import centroids, decode

GLASS, PINK, DARK = (243, 243, 243), (214, 170, 200), (90, 50, 110)
SIZE = (900, 1000)


class DiscFinder(torch.nn.Module):
    """Detects dark discs, and counts the pixels that it sees."""

    def __init__(self):
        super().__init__()
        self.pixels = 0

    def detect(self, images, limits):  # noqa: ARG002
        return [self._detect(image.numpy()) for image in images]

    def _detect(self, image):
        self.pixels += image[0].size
        labels, n = scipy.ndimage.label(image.mean(axis=0) < 140)
        boxes, masks = [], []
        for k, (y, x) in enumerate(scipy.ndimage.find_objects(labels), 1):
            boxes.append([x.start, y.start, x.stop, y.stop])
            masks.append(cv2.resize((labels[y, x] == k).astype(np.float32), (28, 28)))
        return Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
            torch.full((n,), 0.9),
            torch.zeros(n, dtype=torch.int64),
            torch.from_numpy(np.array(masks, np.float32).reshape(n, 28, 28)),
        )


def predictor(tile=200):
    cfg = config.default_config("torchvision")
    cfg.INPUT.FORMAT, cfg.INPUT.ZOOM = "RGB", 1.0
    cfg.DATA.LONGEST_CELL, cfg.TEST.TILE = 20.0, tile
    cfg.TEST.DETECTIONS_PER_IMAGE = 1000
    return Predictor([DiscFinder()], [cfg])


CENTRES = [(x, y) for x in range(330, 560, 30) for y in range(430, 700, 30)] + [(905, 105)]


def draw(size=SIZE):
    """Return two pieces of tissue with discs, the other one small and far away, on glass."""
    image = np.full((*size, 3), GLASS, np.uint8)
    image[400:720, 300:570] = PINK
    for centre in CENTRES:
        cv2.circle(image, centre, 8, DARK, -1)
    return image


def found(cells):
    centres = centroids(decode(cells.masks, cells.size)) - 0.5
    return sorted((round(x), round(y)) for x, y in centres.tolist())


def polygon(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def write_regions(path, *rings):
    geometry = {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}
    path.write_text(json.dumps({"type": "Feature", "geometry": geometry}))
    return path


def test_tiles_without_tissue_are_skipped_and_no_cell():
    image = draw()
    some, every = predictor(), predictor()
    cells = some.predict(image)
    assert found(cells) == found(every.predict(image, all_tiles=True)) == sorted(CENTRES)
    (network,), (other,) = some.networks, every.networks
    assert network.pixels < 0.4 * other.pixels
    part = some.choose_part(ImagePart(image, 0, None, some.plan(SIZE)))
    assert 300 * 270 < part.tissue_area() < 1.1 * (320 * 270 + 16 * 16)
    (line,) = describe_parts([part])
    assert "tissue: " in line
    assert "--all_tiles" in line


def test_images_of_few_tiles_and_without_background_are_predicted_as_a_whole():
    image = draw()
    for predict, pixels in ((predictor(600), image), (predictor(), 255 - image)):
        plan = predict.plan(SIZE)
        part = predict.choose_part(ImagePart(pixels, 0, None, plan))
        assert part.plan == plan
        assert "--all_tiles" not in " ".join(describe_parts([part]))


@pytest.mark.parametrize("tile", [200, 2000])
def test_cells_in_regions_are_those_with_their_centroid_there(tmp_path, tile):
    """Also regions that end within a cell, where there are few tiles, and apart from tissue."""
    path = write_regions(tmp_path / "r.geojson", polygon(300, 400, 391, 511), polygon(0, 0, 50, 50))
    predict = predictor(tile)
    cells = predict.predict(draw(), regions=str(path))
    expected = sorted(c for c in CENTRES if c[0] < 391 and c[1] < 511)
    assert found(cells) == expected
    assert len(expected) == 3 * 3
    (network,) = predict.networks
    assert network.pixels < 300**2
    part = predict.choose_part(ImagePart(draw(), 0, None, predict.plan(SIZE)), path)
    assert part.tissue_area() == 91 * 111  # the other region has none
    assert "regions: 1 outline" in describe_parts([part])[0]


def test_regions_are_of_full_resolution(tmp_path):
    path = tmp_path / "slide.tif"
    image = draw()
    with tifffile.TiffWriter(path) as tiff:
        options = {"photometric": "rgb", "tile": (128, 128)}
        tiff.write(np.kron(image, np.ones((2, 2, 1), np.uint8)), subifds=1, **options)
        tiff.write(image, subfiletype=1, **options)
    regions = write_regions(tmp_path / "r.geojson", polygon(600, 800, 782, 1022))
    expected = sorted(c for c in CENTRES if c[0] < 391 and c[1] < 511)
    assert found(predictor().predict(path, level=1, regions=regions)) == expected


def test_no_tissue(caplog):
    image = np.full((*SIZE, 3), GLASS, np.uint8)
    predict = predictor()
    assert len(predict.predict(image)) == 0
    part = predict.choose_part(ImagePart(image, 0, None, predict.plan(SIZE)))
    assert part.tissue_area() == len(part.plan) == 0
    warn_of_empty_parts([part])
    assert "no tissue" in caplog.text
    assert "--all_tiles" in caplog.text


def test_a_small_level_that_is_damaged_skips_nothing(tmp_path, caplog):
    path = tmp_path / "slide.tif"
    image = draw()
    with tifffile.TiffWriter(path) as tiff:
        options = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib"}
        tiff.write(image, subifds=1, **options)
        tiff.write(image[::4, ::4], subfiletype=1, **options)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].pages[0].dataoffsets[0]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 9)
    assert found(predictor().predict(path)) == sorted(CENTRES)
    assert str(path) in caplog.text
    assert "all tiles" in caplog.text


def test_another_part_is_another_job(tmp_path):
    """Tiles of one choice are not mistaken for those of another; the cells are the same."""
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, draw(), photometric="rgb")
    regions = write_regions(tmp_path / "r.geojson", polygon(300, 400, 391, 511))
    prints = set()
    for chosen, all_tiles in ((None, False), (None, True), (regions, False), (regions, True)):
        predict = predictor()
        image = ImageRecord(1, "image.tif", path, None, regions=chosen)
        results = tmp_path / "x.json"
        job = PredictionJob.begin(predict, [], [image], results, all_tiles=all_tiles)
        plans = [part.plan for part in job.parts.values()]
        prints.add(json.dumps(tiles_fingerprint([], predict.cfgs, [image], plans)))
        job.store.remove()
    assert len(prints) >= 3


def test_seconds_of_an_image():
    clock = ImageClock()
    assert clock.seconds(0, 100) is None
    assert clock.seconds(2, 100) is None
    clock.lap(0, 50)
    clock.lap(1, 10)
    clock.lap(0, 50)
    half = clock.seconds(0, 100) or 0
    assert half >= 0
    assert clock.seconds(0, 200) == pytest.approx(2 * half)


def test_tiles_predicted_at_once_share_their_time(monkeypatch):
    """Four tiles of four images are done at the same time; then two images one after the other."""
    now = 5.0
    monkeypatch.setattr("cellseg.predict.job.time.monotonic", lambda: now)
    clock = ImageClock()
    now = 100.0  # before the start
    clock.start()
    now = 108.0
    for number, pixels in enumerate((100, 100, 100, 500)):
        clock.lap(number, pixels)
    now = 500.0  # after the last tile
    assert [clock.seconds(n, p) for n, p in enumerate((100, 100, 200, 500))] == [1, 1, 2, 5]
    clock.start()
    for number, each in ((8, 1.0), (9, 3.0)):
        for _ in range(4 * ImageClock.SHARED):
            now += each
            clock.lap(number, 10)
    tiles = 4 * ImageClock.SHARED
    assert clock.seconds(8, 10 * tiles) == pytest.approx(tiles)
    assert clock.seconds(9, 10 * tiles) == pytest.approx(3 * tiles)


@pytest.mark.parametrize("ring", [polygon(2000, 0, 2100, 50), [[1, 1], [2, 2]]])
def test_bad_regions_are_an_error_of_the_image(tmp_path, ring):
    path = write_regions(tmp_path / "r.geojson", ring)
    with pytest.raises(InputError, match=str(path)):
        predictor().predict(draw(), regions=path)
