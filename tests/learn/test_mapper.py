"""Training samples: image and masks have the same view."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image

from cellseg import config
from cellseg.errors import InputError
from cellseg.learn.augment import Augmentations
from cellseg.learn.mapper import CellMapper, build_stream
from cellseg.learn.samples import TrainingData, load_training_data
from cellseg.predict.tiles import Tile
from cellseg.predict.views import plan_views
from cellseg.read.window import read_image
from cellseg.view import View
from tests.learn.cell_cases import image_of


def sample_of(tmp_path, image, masks):
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    rles = [pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    boxes = [pycocotools.mask.toBbox(rle).tolist() for rle in rles]
    return image_of(
        [(x, y, x + width, y + height) for x, y, width, height in boxes],
        range(len(rles)),
        [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles],
        size=image.shape[:2],
        path=path,
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mapper(*options, recipe="mask_rcnn_R_50_DC5_3x"):
    cfg = config.load_recipe(recipe, "torchvision")
    config.merge_options(cfg, options)
    return CellMapper(cfg)


PLAIN = ["INPUT.CROP.ENABLED", "False", "INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.RANDOM_FLIP"]
PLAIN += ["none", "INPUT.BRIGHTNESS", "(1.0, 1.0)"]


def slanted(height=12, width=16):
    """Return a diagonal of one pixel, whose visible part in a crop has a smaller box."""
    mask = np.zeros((height, width), bool)
    mask[range(1, 11), range(2, 12)] = True
    return mask


def test_by_hand(tmp_path, rng, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    corner = np.zeros((12, 16), bool)
    corner[10:12, 13:16] = True
    mapped = mapper(*PLAIN, "INPUT.FORMAT", "RGB")
    monkeypatch.setattr(Augmentations, "sample_view", lambda *_: View((4, 0, 12, 6), (6, 8)))
    result = mapped(sample_of(tmp_path, image, [slanted(), corner]), rng)
    assert result["name"] == "x"
    assert np.array_equal(result["image"].numpy(), image[0:6, 4:12].transpose(2, 0, 1))
    # The corner is outside. Rows 3 to 5 of the slanted cell are in the columns 4 to 6.
    assert result["classes"].tolist() == [0]
    assert result["masks"].size == (6, 8)
    assert result["boxes"].tolist() == [[0, 3, 3, 6]]
    assert np.array_equal(result["masks"].crop(0).numpy(), np.eye(3, dtype=bool))


def test_channels(tmp_path, rng):
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    sample = sample_of(tmp_path, image, [])
    for order, expected in (("RGB", [200, 0, 0]), ("BGR", [0, 0, 200])):
        tensor = mapper(*PLAIN, "INPUT.FORMAT", order)(sample, rng)["image"]
        assert tensor[:, 0, 0].tolist() == expected
        assert tensor.dtype == torch.uint8


def test_no_cells(tmp_path, rng):
    sample = sample_of(tmp_path, np.zeros((5, 6, 3), np.uint8), [])
    result = mapper(*PLAIN, "INPUT.CROP_ON_CLASS", "1.0")(sample, rng)
    assert len(result["masks"]) == 0
    assert result["masks"].size == (5, 6)
    assert result["boxes"].shape == (0, 4)
    assert result["classes"].shape == (0,)


@pytest.fixture
def data(cells):
    return load_training_data(str(cells), str(cells / "train__annot.json"))


@pytest.mark.parametrize("recipe", ["mask_rcnn_R_50_DC5_3x", "demo"])
def test_a_position_of_the_stream_is_always_the_same_sample(data, recipe):
    cfg = config.load_recipe(recipe, "torchvision")
    cfg.SEED = 5
    one, other = (build_stream(cfg, data)[11] for _ in range(2))
    assert torch.equal(one["image"], other["image"])
    assert torch.equal(one["boxes"], other["boxes"])
    cfg.SEED = 6
    assert not torch.equal(one["image"], build_stream(cfg, data)[11]["image"])


def test_images_without_cells_can_be_excluded(data):
    data = replace(data, train=[image_of(), *data.train[1:]])
    cfg = config.load_recipe("demo", "torchvision")
    assert len(build_stream(cfg, data).samples) == 5
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    assert len(build_stream(cfg, data).samples) == 4


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        # Windows are 192 px, at scale 1.5 128 image px: 4 x 4, 8 in a row, 1 at least.
        (["INPUT.ZOOM", "1.5"], [16, 8, 1]),
        (["INPUT.ZOOM", "1.5", "INPUT.WINDOW", "384"], [4, 4, 1]),
        (["INPUT.ZOOM", "1.5", "INPUT.WINDOWS_BY_AREA", "False"], [1, 1, 1]),
        (["INPUT.ZOOM", "0"], [1, 1, 1]),
    ],
)
def test_large_images_have_more_windows(options, counts):
    cfg = config.load_recipe("lite_fpn", "torchvision")
    config.merge_options(cfg, options)
    sizes = [(512, 512), (1024, 64), (30, 20)]
    data = TrainingData({}, [], [image_of([(1, 1, 9, 9)], size=size) for size in sizes], [])
    stream = build_stream(cfg, data)
    assert stream.epoch_length == sum(counts)
    for epoch in range(3):
        assert np.bincount(stream.order(epoch)).tolist() == counts


def test_images_of_two_resolutions_have_cells_of_one_size(tmp_path, rng):
    """Of the same field, 24 and 48 pixels wide, and a square cell of 3 and 6 µm."""
    cfg = config.load_recipe("lite_fpn", "torchvision")
    config.merge_options(
        cfg,
        ["INPUT.ZOOM", "2.0", "INPUT.ZOOM_JITTER", "0", "INPUT.WINDOW", "96", "DATA.MPP", "0.25"],
    )
    shapes = {}
    for mpp, factor in ((None, 1), (0.25, 1), (0.26, 1), (0.5, 2), (0.125, 0.5)):
        image = np.zeros((24, 24, 3), np.uint8)
        mask = np.zeros((24, 24), bool)
        mask[8:14, 10:16] = True
        sample = replace(sample_of(tmp_path, image, [mask]), mpp=mpp)
        result = CellMapper(cfg)(sample, rng)
        shapes[mpp] = CellMapper(cfg).shape(sample, rng)
        assert shapes[mpp] == result["masks"].size == (48 * factor,) * 2
        left, top, right, bottom = result["boxes"][0].tolist()
        assert (right - left, bottom - top) == (12 * factor, 12 * factor)


def test_a_sample_has_the_scale_of_prediction():
    cfg = config.load_recipe("lite_fpn", "torchvision")
    cfg.INPUT.ZOOM, cfg.INPUT.ZOOM_JITTER, cfg.DATA.MPP = 1.5, 0.0, 0.25
    for mpp in (None, 0.1, 0.25, 0.25001, 0.3, 0.5):
        sample = replace(image_of(size=(40, 60)), mpp=mpp)
        view = CellMapper(cfg)._draw_view(sample, np.random.default_rng(0))
        whole = Tile((0, 0, 60, 40), (False,) * 4)
        (predicted,) = plan_views(whole, (40, 60), cfg, mpp)
        assert (view.size, view.sharp) == (predicted.size, predicted.sharp)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")  # pycocotools
def test_masks_are_on_their_cells(data, rng):
    """Pixels in masks are darker than others, as in the whole images."""
    mapped = mapper("INPUT.MIN_SIZE_TRAIN", "(90,)", "INPUT.BRIGHTNESS", "(1.0, 1.0)")

    def contrast(pairs):
        values, masks = (np.concatenate([p[n].ravel() for p in pairs]) for n in (0, 1))
        return values[~masks].mean() - values[masks].mean()

    whole, views = [], []
    for sample in data.train:
        mask = np.zeros(sample.size, bool)
        for rle in sample.masks:
            mask |= np.asarray(pycocotools.mask.decode(rle)).astype(bool)
        whole.append((read_image(sample.path).mean(2), mask))
        for _ in range(4):
            result = mapped(sample, rng)
            mask = np.zeros(result["image"].shape[1:], bool)
            for n, (left, top, right, bottom) in enumerate(result["boxes"].int().tolist()):
                mask[top:bottom, left:right] |= result["masks"].crop(n).numpy()
            views.append((result["image"].float().mean(0).numpy(), mask))
    assert contrast(views) == pytest.approx(contrast(whole), rel=0.3)


def test_cells_of_other_images_are_pasted(data):
    cfg = config.load_recipe("demo", "torchvision")
    counts = []
    for probability in (0.0, 1.0):
        cfg.INPUT.COPY_PASTE = probability
        stream = build_stream(cfg, data)
        samples = [stream[n] for n in range(10)]
        assert all(len(s["boxes"]) == len(s["classes"]) == len(s["masks"]) for s in samples)
        counts.append(sum(len(s["masks"]) for s in samples))
    assert counts[1] > counts[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1)])
def test_strips_and_single_pixels(tmp_path, rng, shape):
    mask = np.ones(shape, bool)
    result = mapper()(sample_of(tmp_path, np.zeros((*shape, 3), np.uint8), [mask]), rng)
    assert min(result["image"].shape) >= 1
    assert result["masks"].crop(0).all()


def test_an_image_that_changed_its_size(tmp_path, rng):
    sample = replace(sample_of(tmp_path, np.zeros((5, 6, 3), np.uint8), []), size=(7, 6))
    with pytest.raises(InputError, match=r"image\.png: 5 x 6 pixels.* 7 x 6"):
        mapper(*PLAIN)(sample, rng)


@pytest.mark.parametrize("recipe", ["mask_rcnn_R_50_DC5_3x", "small_fpn"])
def test_the_shape_is_known_without_reading(tmp_path, recipe):
    image = np.full((40, 70, 3), 200, np.uint8)
    sample = sample_of(tmp_path, image, [slanted(40, 70)])
    scale = ["INPUT.ZOOM", "1.5"] if recipe == "small_fpn" else []
    mapped = mapper("INPUT.QUARTER_TURNS", "True", *scale, recipe=recipe)
    for seed in range(8):
        expected = mapped(sample, np.random.default_rng(seed))["image"].shape[1:]
        assert mapped.shape(sample, np.random.default_rng(seed)) == tuple(expected)


@pytest.mark.parametrize("room", [3 * 20 * 30, 3 * 20 * 30 - 1])
def test_images_are_kept_while_there_is_room(tmp_path, monkeypatch, room):
    monkeypatch.setattr("cellseg.learn.mapper._KEPT_IMAGES", room)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    sample = sample_of(tmp_path, image, [slanted(20, 30)])
    mapped = mapper()
    first = mapped(sample, np.random.default_rng(5))["image"]
    first.zero_()  # what a caller does with it changes nothing
    expected = mapped(sample, np.random.default_rng(5))["image"]
    assert expected.any()
    sample.path.unlink()
    if room < image.nbytes:
        with pytest.raises(InputError, match=r"image\.png"):
            mapped(sample, np.random.default_rng(5))
    else:
        assert torch.equal(mapped(sample, np.random.default_rng(5))["image"], expected)
