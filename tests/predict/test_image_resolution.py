"""Images of any resolution: the scale, the pyramid level, and what is said about them."""

from __future__ import annotations

import bisect
import json
import re
from fractions import Fraction

import cv2
import numpy as np
import pytest
import scipy.ndimage
import tifffile
import torch

import inference
from cellseg import config, runs
from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.network import Detections
from cellseg.predict.predictor import Predictor
from cellseg.predict.resolution import set_resolution

RADIUS = 8  # of discs that the network knows, in its pixels
DISTANCE = 48


class DiscFinder(torch.nn.Module):
    """Detects dark discs on white of about one size, as a network trained at one resolution."""

    def detect(self, images, limits):  # noqa: ARG002
        return [self._detect(image.numpy().mean(axis=0) < 128) for image in images]

    def _detect(self, dark):
        labels, _ = scipy.ndimage.label(dark)
        boxes, masks = [], []
        for n, (y, x) in enumerate(scipy.ndimage.find_objects(labels), 1):
            sides = y.stop - y.start, x.stop - x.start
            if 0.8 < max(sides) / (2 * RADIUS) < 1.25 > 0.8 < min(sides) / (2 * RADIUS):
                boxes.append([x.start, y.start, x.stop, y.stop])
                masks.append(cv2.resize((labels[y, x] == n).astype(np.float32), (28, 28)))
        n = len(boxes)
        return Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
            torch.full((n,), 0.9),
            torch.zeros(n, dtype=torch.int64),
            torch.from_numpy(np.array(masks, np.float32).reshape(n, 28, 28)),
        )


def cfg_of(**options):
    """Return a config at 0.25 µm per pixel and scale 1, with `options`, INPUT__ZOOM for a key."""
    cfg = config.default_config("torchvision")
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.ZOOM = 1.0
    cfg.DATA.LONGEST_CELL = 20.0
    cfg.DATA.MPP = 0.25
    cfg.TEST.DETECTIONS_PER_IMAGE = 1000
    for key, value in options.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def discs(mpp, size=(480, 624)):
    """Draw discs of one size in micrometres, which at 0.25 µm have the known radius."""
    factor = 0.25 / mpp
    height, width = (round(side * factor) for side in size)
    y, x = np.mgrid[:height, :width] / factor % DISTANCE - DISTANCE / 2
    return np.where(np.hypot(x, y)[:, :, None] < RADIUS, 0, 255).astype(np.uint8).repeat(3, axis=2)


def write_tags(path, pixels, mpp):
    tifffile.imwrite(
        path, pixels, photometric="rgb", compression="zlib",
        resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER",
    )  # fmt: skip


def write_ome(path, pixels, mpp, levels=(), **options):
    physical = {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib"} | options
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(pixels, subifds=len(levels), metadata=physical, **options)
        for level in levels:
            tiff.write(level, subfiletype=1, **options)


def write_svs(path, pixels, mpp):
    text = f"Aperio Image Library v12\r\n|AppMag = 40|MPP = {mpp}"
    tifffile.imwrite(
        path, pixels, photometric="rgb", tile=(128, 128), description=text, metadata=None
    )


def record(path, size=None, mpp=None):
    return ImageRecord(1, path.name, path, size, mpp=mpp)


@pytest.mark.parametrize("write", [write_tags, write_ome, write_svs])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.37, 0.125])
def test_the_same_cells_at_every_resolution(tmp_path, write, mpp):
    path = tmp_path / "image.tif"
    pixels = discs(mpp)
    write(path, pixels, mpp)
    predictor = Predictor([DiscFinder()], [cfg_of()])
    cells = predictor.predict(path)
    assert len(cells) == 10 * 13
    assert cells.size == pixels.shape[:2]
    centres = np.sort((cells.boxes[:, :2] + cells.boxes[:, 2:]) / 2 * (mpp / 0.25), axis=0)
    assert np.abs((centres - DISTANCE / 2) / DISTANCE % 1 % 0.999).max() < 0.05
    # Of unknown resolution, and of a run that doesn't know its own.
    for other, keys in ((pixels, {}), (path, {"DATA__MPP": 0.0})):
        ignorant = Predictor([DiscFinder()], [cfg_of(**keys)])
        assert len(ignorant.predict(other)) == (130 if mpp == 0.25 else 0)
    assert len(predictor.predict(pixels, mpp=mpp)) == 130


def test_tiles_grow_with_finer_pixels():
    predictor = Predictor([DiscFinder()], [cfg_of()])

    def largest_tile(mpp=None):
        """Return the side of the largest image that is one tile."""
        sides = range(1, 9000)
        return bisect.bisect(sides, 1, key=lambda side: len(predictor.plan((side, side), mpp)))

    as_trained = largest_tile()
    assert predictor.plan((as_trained, 9000)).tile_size[0] == as_trained
    assert largest_tile(0.25) == as_trained
    assert largest_tile(0.125) == 2 * as_trained
    assert largest_tile(0.5) == as_trained / 2


def test_runs_of_two_resolutions_are_fused(tmp_path):
    """Each sees the image at its own."""
    path = tmp_path / "image.tif"
    write_tags(path, discs(0.25), 0.25)
    runs_ = [cfg_of(), cfg_of(DATA__MPP=0.5, INPUT__ZOOM=2.0)]
    assert len(Predictor([DiscFinder()] * 2, runs_).predict(path)) == 130


@pytest.mark.parametrize("size", [0, 300])
def test_a_run_that_resizes_whole_images(tmp_path, size):
    """Short sides of one length are the same at every resolution; unchanged sizes are not."""
    for mpp in (0.25, 0.5):
        path = tmp_path / f"{mpp}.tif"
        write_tags(path, discs(mpp), mpp)
    cfg = cfg_of(INPUT__ZOOM=0.0, INPUT__MIN_SIZE_TEST=size or 0)
    shapes: list[tuple[int, ...]] = []

    class Watching(DiscFinder):
        def detect(self, images, limits):
            shapes.extend(image.shape[1:] for image in images)
            return super().detect(images, limits)

    for mpp in (0.25, 0.5):
        Predictor([Watching()], [cfg]).predict(tmp_path / f"{mpp}.tif")
    assert shapes[0] == shapes[1] == ((300, 390) if size else (480, 624))


@pytest.mark.parametrize(
    ("run", "level"), [(0.25, 0), (0.3, 0), (0.49, 1), (0.5, 1), (0.8, 1), (1.0, 2), (4.0, 2)]
)
def test_the_level_is_the_coarsest_that_is_fine_enough(tmp_path, run, level):
    path = tmp_path / "slide.ome.tif"
    levels = [np.full((side, side, 3), 255, np.uint8) for side in (400, 200, 100)]
    write_ome(path, levels[0], 0.25, levels[1:])
    (image,), line = set_resolution([record(path)], [cfg_of(DATA__MPP=run)])
    side = 400 >> level
    assert (image.level, image.size) == (level, (side, side))
    assert image.mpp == pytest.approx(0.25 * 2**level)
    assert f"level {level}" in line
    assert f"run {run:g} µm" in line
    # An image of an annotation file or a test list has the size that is listed.
    (image,), _ = set_resolution([record(path, (400, 400))], [cfg_of(DATA__MPP=run)])
    assert (image.level, image.size, image.mpp) == (0, (400, 400), 0.25)


def test_a_level_and_a_resolution_that_are_stated(tmp_path):
    path = tmp_path / "slide.ome.tif"
    levels = [np.full((side, side, 3), 255, np.uint8) for side in (400, 200)]
    write_ome(path, levels[0], 2.0, levels[1:])
    (image,), line = set_resolution([record(path)], [cfg_of()], mpp=0.25, level=1)
    assert (image.level, image.size) == (1, (200, 200))
    assert image.mpp == pytest.approx(0.5)
    assert "stated" in line
    # What the annotations say comes before what the file says.
    (image,), _ = set_resolution([record(path, (400, 400), 0.5)], [cfg_of()])
    assert image.mpp == 0.5


def test_unknown_resolutions(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), discs(0.25))
    for cfg in (cfg_of(), cfg_of(DATA__MPP=0.0)):
        (image,), line = set_resolution([record(path)], [cfg])
        assert (image.level, image.size, image.mpp) == (0, (480, 624), None)
        assert "unknown" in line
        assert "assumed" in line
    _, line = set_resolution([record(path)], [cfg_of(INPUT__ZOOM=0.0)])
    assert "not used" in line


@pytest.mark.parametrize("key", ["DATA__MPP", "INPUT__ZOOM"])
def test_a_stated_resolution_that_changes_nothing(tmp_path, caplog, key):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), discs(0.25))
    set_resolution([record(path)], [cfg_of(), cfg_of(**{key: 0.0})], mpp=0.5)
    assert not caplog.records
    set_resolution([record(path)], [cfg_of(**{key: 0.0})], mpp=0.5)
    (message,) = caplog.messages
    assert message.startswith("--mpp 0.5 changes no scale: the run")


def test_one_line_for_many_images(tmp_path):
    for n, mpp in enumerate([0.25, 0.2501, 0.5, 0.3, 0.7, 1.0]):
        write_tags(tmp_path / f"{n}.tif", discs(0.5), mpp)
    (tmp_path / "6.tif").write_text("not an image")
    images = [record(tmp_path / f"{n}.tif") for n in range(7)]
    listed, line = set_resolution(images, [cfg_of()])
    assert "\n" not in line
    assert "2 images of 0.25 µm (XResolution), scale 1, level 0" in line
    assert line.endswith("; 2 images of 2 other kinds")
    assert listed[6] == images[6]  # the prediction says why


def test_what_is_unusual_is_said(tmp_path, caplog):
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, discs(0.25).astype(np.uint16) * 16, photometric="rgb")
    set_resolution([record(path)], [cfg_of()])
    assert "12-bit" in caplog.text
    assert "deep" in caplog.text
    found = Predictor([DiscFinder()], [cfg_of()]).predict(path)
    assert len(found) == 130


@pytest.mark.parametrize(
    "mpp", [np.float64(0.5), np.float32(0.5), Fraction(1, 2), 1, np.int64(1), np.uint8(1)], ids=repr
)
def test_numbers_of_any_type(mpp):
    predictor = Predictor([DiscFinder()], [cfg_of()])
    cells = predictor.predict(discs(0.5), mpp=mpp)
    assert len(cells) == (130 if mpp == 0.5 else 0)
    assert predictor.plan((999, 999), mpp) == predictor.plan((999, 999), float(mpp))


@pytest.mark.parametrize("mpp", [0, -1, 250, np.nan, True, np.True_, "0.5", [0.5], np.array([0.5])])
def test_an_impossible_resolution(mpp):
    with pytest.raises(InputError, match=rf"mpp {re.escape(str(mpp))}: .*0.02 to 5"):
        Predictor([DiscFinder()], [cfg_of()]).predict(discs(0.25), mpp=mpp)


# The commands


@pytest.mark.parametrize("value", ["0", "-1", "abc", "250", "nan", "inf", ""])
def test_the_flag_in_all_commands(value):
    import annotation

    for main in (annotation.main, inference.main):
        with pytest.raises(InputError, match=r"--mpp: .*0.02 to 5") as caught:
            main(["--mpp", value])
        assert "\n" not in str(caught.value)


@pytest.fixture
def scaled_run(tmp_path, monkeypatch):
    """A run with a network that finds discs."""
    run = tmp_path / "run"
    run.mkdir()
    (run / runs.CONFIG).write_text(cfg_of(MODEL__ROI_HEADS__NUM_CLASSES=1).dump())
    (run / runs.FINAL).write_bytes(b"")
    record = {"annotations": {}, "categories": [{"id": 1, "name": "disc"}], "held_out": []}
    (run / runs.RECORD).write_text(json.dumps(record))
    monkeypatch.setattr(
        "cellseg.predict.predictor.load_network", lambda _cfg, _weights: DiscFinder()
    )

    def predict(*words):
        flags = ["--checkpoint", run, "--device", "cpu", "--output", tmp_path / "out"]
        assert inference.main([str(word) for word in (*flags, *words)]) == 0
        folder = tmp_path / "out"
        cells = json.loads((folder / "images-results.json").read_text())
        (listed,) = folder.glob("*list*.json")
        return cells, json.loads(listed.read_text())

    return predict


def test_a_folder_of_several_formats(scaled_run, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    write_tags(images / "a.tif", discs(0.37), 0.37)
    write_ome(images / "b.ome.tif", discs(0.125), 0.125, [discs(0.25)])
    write_svs(images / "c.svs", discs(0.5), 0.5)
    cv2.imwrite(str(images / "d.png"), discs(0.25))
    cells, listed = scaled_run("--images", images)
    assert len(cells) == 4 * 130
    assert [(entry.get("level", 0), entry.get("mpp")) for entry in listed] == [
        (0, pytest.approx(0.37, rel=1e-4)),
        (1, pytest.approx(0.25)),
        (0, 0.5),
        (0, None),
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if "resolution" in line]
    assert len(lines) == 1
    for part in (
        "run 0.25",
        "0.37 µm (XResolution), scale 1.48, level 0",
        "scale 1, level 1",
        "unknown resol",
    ):
        assert part in lines[0]


def test_flags_override_the_file(scaled_run, tmp_path, capsys):
    path = tmp_path / "image.ome.tif"
    write_ome(path, discs(0.125), 1.0, [discs(0.25)])
    cells, listed = scaled_run("--images", path, "--mpp", "0.125", "--level", "0")
    assert len(cells) == 130
    assert listed[0]["mpp"] == 0.125
    assert re.search(r"0.125 µm \(stated\), scale 0.5, level 0", capsys.readouterr().out)
    with pytest.raises(InputError, match=r"2 levels, 0 to 1, but level 7"):
        scaled_run("--images", path, "--level", "7")
