"""Prediction with Detectron2's results, and with an oracle network: tiles, views, memory."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
import tifffile
import torch
from scipy.ndimage import find_objects

from cellseg import config, runs
from cellseg.errors import InputError
from cellseg.network import Detections, build_network, enlarge_boxes
from cellseg.network.limits import choose_limits, count_detections
from cellseg.network.weights import load_weights
from cellseg.predict import predictor as predictor_module
from cellseg.predict.inputs import TileJob
from cellseg.predict.predictor import Predictor, load_network
from cellseg.predict.views import plan_views
from cellseg.read import window, windowed_image
from cellseg.read.window import read_image
from cellseg.rle import decode
from cellseg.view import resize_shortest_edge, to_tensor


@pytest.fixture(scope="module")
def cfg(run):
    cfg = config.load_config(run / runs.CONFIG)
    config.merge_options(cfg, ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"])
    config.merge_options(cfg, ["TEST.DETECTIONS_PER_IMAGE", "800"])  # Detectron2 needs a number
    return cfg


def loaded(cfg, run):
    return Predictor([load_network(cfg, run / runs.FINAL)], [cfg])


@pytest.fixture(scope="module")
def predictor(run, cfg):
    return loaded(cfg, run)


@pytest.mark.detectron2
def test_equals_detectron2s_own_steps(run, cfg, predictor, cells, engine):
    """Its resizing, network and pasting of masks into the whole image."""
    if engine != "detectron2":
        pytest.skip("needs Detectron2's network")
    from detectron2.modeling import build_model

    image = read_image(next(cells.glob("test_release/*.tif")))
    model = build_model(cfg).eval()
    load_weights(model, run / runs.FINAL)
    height, width = resize_shortest_edge((image.shape[0], image.shape[1]), 64, 100)
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    tensor = torch.as_tensor(resized[:, :, ::-1].astype("float32").transpose(2, 0, 1))
    inputs = {"image": tensor, "height": image.shape[0], "width": image.shape[1]}
    with torch.no_grad():
        expected = model([inputs])[0]["instances"]

    predictions = predictor.predict(image)
    assert len(predictions) == len(expected) > 0
    order = torch.argsort(expected.scores, descending=True, stable=True)
    assert np.allclose(predictions.boxes, expected.pred_boxes.tensor[order].numpy(), atol=1e-4)
    assert np.allclose(predictions.scores, expected.scores[order].numpy(), atol=1e-6)
    assert np.array_equal(predictions.classes, expected.pred_classes[order].numpy())
    for mask, pasted in zip(predictions.masks, expected.pred_masks[order].numpy(), strict=True):
        rle = pycocotools.mask.encode(np.asfortranarray(pasted.astype(np.uint8)))
        assert mask == {"size": rle["size"], "counts": rle["counts"].decode()}


def test_types_order_and_ranges(predictor, cells):
    image = read_image(next(cells.glob("test_release/*.tif")))
    predictions = predictor.predict(image)
    height, width = image.shape[:2]
    assert predictions.size == (height, width)
    assert predictions.boxes.dtype == np.float32
    assert predictions.scores.dtype == np.float32
    assert predictions.classes.dtype == np.int64
    assert (np.diff(predictions.scores) <= 0).all()
    assert (predictions.classes >= 0).all()
    assert (predictions.classes < 4).all()
    assert (predictions.boxes >= 0).all()
    assert (predictions.boxes <= [width, height, width, height]).all()
    assert (predictions.boxes[:, 2:] > predictions.boxes[:, :2]).all()
    assert all(mask["size"] == [height, width] for mask in predictions.masks)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 5000), (65, 64)])
def test_any_shape(predictor, shape):
    cells = predictor.predict(np.full((*shape, 3), 200, np.uint8))
    assert cells.size == shape
    assert len(cells.masks) == len(cells)


def test_no_fixed_scale(cfg, run, cells):
    image = read_image(next(cells.glob("test_release/*.tif")))
    own = cfg.clone()
    config.merge_options(own, ["INPUT.MIN_SIZE_TEST", "0"])
    assert loaded(own, run).predict(image).size == image.shape[:2]


def test_the_training_mode_is_restored(cfg):
    model = build_network(cfg).train()
    Predictor([model], [cfg]).predict(np.zeros((20, 20, 3), np.uint8))
    assert model.training


def test_weights_of_another_network(cfg, run):
    own = cfg.clone()
    config.merge_options(own, ["MODEL.ROI_BOX_HEAD.FC_DIM", "16"])
    with pytest.raises(InputError, match=r"model_final\.pth: .*shape"):
        loaded(own, run)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["MODEL.MASK_ON", "False"], "MODEL.MASK_ON False"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "GeneralizedRCNN"),
        (["MODEL.BACKBONE.NAME", "x"], "the run's config: |MODEL.BACKBONE.NAME 'x'"),
    ],
)
def test_a_config_of_another_network(cfg, run, options, expected):
    own = cfg.clone()
    config.merge_options(own, options)
    with pytest.raises(InputError, match=expected):
        loaded(own, run)


def out_of_gpu_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "detect",
    [
        out_of_gpu_memory,
        Mock(side_effect=RuntimeError("CUDA error: out of memory")),
        Mock(side_effect=RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …")),
        Mock(side_effect=RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
        Mock(
            side_effect=RuntimeError(
                "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
            )
        ),
        lambda *_: torch.empty(1 << 50, dtype=torch.uint8),
        lambda *_: np.empty(1 << 50, np.uint8),
        lambda *_: cv2.resize(np.zeros((3, 2, 3), np.uint8), (10**7, 10**7)),
    ],
    ids=["torch.cuda", "cuda", "cublas", "cudnn 8", "cudnn 9", "torch", "numpy", "opencv"],
)
def test_too_little_memory(predictor, monkeypatch, detect, device):
    monkeypatch.setattr(predictor.networks[0], "detect", detect)
    monkeypatch.setattr(predictor.cfg.MODEL, "DEVICE", device)
    memory = "the memory;" if device == "cpu" else "the GPU's memory; .*--device cpu"
    expected = f"96 x 64 .*{memory}"
    with pytest.raises(InputError, match=expected):
        predictor.predict(np.zeros((30, 20, 3), np.uint8))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        cv2.error("bad argument"),
    ],
)
def test_other_errors_are_raised(predictor, monkeypatch, error):
    error.code = -5
    monkeypatch.setattr(predictor.networks[0], "detect", Mock(side_effect=error))
    with pytest.raises(type(error)):
        predictor.predict(np.zeros((30, 20, 3), np.uint8))


# --- An oracle in place of a network, which identifies cells by their colours ---

# The light that each cell absorbs, 255 at most: all of it in one channel, which gives the
# coverage of a pixel; the fractions in the two others identify the cell.
INKS = np.array(
    [np.roll((255, a, b), turn) for turn in range(3) for a in range(0, 225, 32)
     for b in range(0, 225, 32)]
)  # fmt: skip


def own_score(ink):
    return 0.5 + 0.4 * ink / len(INKS)


def always(score):
    return lambda _ink: score


class Oracle(torch.nn.Module):
    """Detects ellipses of different inks on white, in any scale and orientation.

    The class of a cell is its ink's index modulo 4, and its score `score(ink)`.
    """

    def __init__(self, score=own_score):
        super().__init__()
        self.score = score
        self.shapes = []

    def detect(self, images, limits):  # noqa: ARG002
        self.shapes += [tuple(image.shape[1:]) for image in images]
        return [self._detect(255 - image.permute(1, 2, 0).numpy()) for image in images]

    def _detect(self, absorbed):
        cover = absorbed.max(2)
        n, labels, stats, _ = cv2.connectedComponentsWithStats(
            (cover >= 128).astype(np.uint8), connectivity=8
        )
        boxes, inks, grids = [], [], []
        for label in range(1, n):
            x, y, width, height, _ = stats[label]
            part = slice(y, y + height), slice(x, x + width)
            mine = np.where(labels[part] == label, cover[part], 0)
            ink = absorbed[part][np.unravel_index(mine.argmax(), mine.shape)]
            ink = ink / ink.max() * 255
            inks.append(int(np.abs(INKS - ink).sum(1).argmin()))
            boxes.append([x, y, x + width, y + height])
            grids.append(cv2.resize(mine / np.float32(255), (28, 28)))
        return Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor([self.score(ink) for ink in inks], dtype=torch.float32),
            torch.tensor(inks, dtype=torch.int64) % 4,
            torch.tensor(np.array(grids), dtype=torch.float32).reshape(-1, 28, 28),
        )


@dataclass(frozen=True)
class Drawing:
    image: np.ndarray
    labels: np.ndarray  # (H, W) int32, 0 or the ink's index + 1


def draw(size, step=60, seed=0):
    """Draw ellipses that don't touch, randomly rotated, one in each square of a grid."""
    rng = np.random.default_rng(seed)
    inks = rng.permutation(len(INKS))
    labels = np.zeros(size, np.int32)
    centres = [
        (x, y)
        for y in range(step // 2, size[0] + step // 4, step)
        for x in range(step // 2, size[1] + step // 4, step)
    ]
    for ink, centre in zip(inks, centres, strict=False):
        axes = rng.uniform(0.2, 0.42, 2) * step
        angle = rng.uniform(0, 180)
        cv2.ellipse(labels, centre, axes.astype(int).tolist(), angle, 0, 360, int(ink) + 1, -1)
    image = 255 - np.vstack([[[0, 0, 0]], INKS])[labels].astype(np.uint8)
    return Drawing(image, labels)


def oracle_cfg(**options):
    """Return a config without tiles and scale, with `options`, TEST__TILE for TEST.TILE."""
    cfg = config.default_config("torchvision")
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.DATA.LONGEST_CELL = 52.0
    for key, value in options.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def oracle(network=None, **options):
    return Predictor([network or Oracle()], [oracle_cfg(**options)])


def check_all_detected(cells, drawing, iou=0.85, score=own_score):
    """Check that each drawn cell is detected once, with its class, score, mask and box."""
    areas = np.bincount(drawing.labels.ravel(), minlength=len(INKS) + 1)
    drawn = find_objects(drawing.labels)
    left = set(np.flatnonzero(areas[1:]).tolist())
    assert cells.size == drawing.labels.shape
    assert len(cells) == len(left)
    line = drawing.labels.T.ravel()
    for n, (box, mask) in enumerate(zip(cells.boxes, cells.masks, strict=True)):
        runs = decode([mask], cells.size)
        pixels = np.concatenate([line[a:b] for a, b in zip(runs.starts, runs.ends, strict=True)])
        shared = np.bincount(pixels)
        shared[0] = 0
        label = int(shared.argmax())
        ink = label - 1
        left.remove(ink)
        assert shared[label] >= iou * (len(pixels) + areas[label] - shared[label])
        assert cells.classes[n] == ink % 4
        assert cells.scores[n] == pytest.approx(score(ink), abs=1e-6)
        y, x = drawn[ink]
        assert np.abs(box - [x.start, y.start, x.stop, y.stop]).max() <= 3


@pytest.mark.parametrize("scales", [(1.0,), (0.7, 1.0, 2.0)])
@pytest.mark.parametrize("symmetries", [1, 2, 4, 8])
@pytest.mark.parametrize("tiles", [{}, {"TEST__TILE": 150}], ids=["whole", "tiles"])
def test_the_same_cells_in_every_set_of_views(symmetries, scales, tiles):
    drawing = draw((200, 310))
    predictor = oracle(TEST__SYMMETRIES=symmetries, TEST__SCALES=scales, **tiles)
    check_all_detected(predictor.predict(drawing.image), drawing)
    n_tiles = len(predictor.plan((200, 310)))
    assert n_tiles == (8 if tiles else 1)
    assert len(predictor.networks[0].shapes) == n_tiles * symmetries * len(scales)


@pytest.mark.parametrize(
    "image",
    [
        None,
        [[0, 1]],
        torch.zeros((9, 9, 3), dtype=torch.uint8),
        PIL.Image.new("RGB", (9, 9)),
        b"image.tif",
    ],
    ids=["None", "list", "tensor", "PIL", "bytes"],
)
def test_neither_a_file_nor_an_array(image):
    with pytest.raises(TypeError, match=r"a file or an array \(H, W\)"):
        oracle().predict(image)


@pytest.mark.parametrize("level", [1, 3, -1])
def test_an_array_has_no_levels(level):
    with pytest.raises(InputError, match=f"level {level}"):
        oracle().predict(np.zeros((9, 9, 3), np.uint8), level=level)


class Narrow(Oracle):
    """Detects boxes whose sides are 0.8 of the cells', and masks of the whole cells."""

    def detect(self, images, limits):
        return [
            replace(cells, boxes=enlarge_boxes(cells.boxes, 0.8), mask_scale=1.25)
            for cells in super().detect(images, limits)
        ]


@pytest.mark.parametrize("symmetries", [1, 8])
@pytest.mark.parametrize("tiles", [{}, {"TEST__TILE": 150}], ids=["whole", "tiles"])
def test_masks_and_boxes_are_whole_if_the_networks_boxes_are_too_small(symmetries, tiles):
    drawing = draw((200, 310))
    predictor = oracle(Narrow(), TEST__SYMMETRIES=symmetries, **tiles)
    check_all_detected(predictor.predict(drawing.image), drawing)


@pytest.mark.parametrize("cell", [(110, 80, 200, 106), (10, 80, 214, 104)], ids=["cut", "long"])
def test_pieces_of_cells_join_if_the_networks_boxes_are_too_small(cell):
    """One cell is cut by a tile and whole in the next; one is longer than the overlap."""
    image = np.full((160, 260, 3), 255, np.uint8)
    left, top, right, bottom = cell
    image[top:bottom, left:right] = 255 - INKS[0]
    predictor = oracle(Narrow(), TEST__TILE=160, TEST__OVERLAP=60)
    found = predictor.predict(image)
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes[0], cell, atol=2)
    area = pycocotools.mask.area(found.masks[0])
    assert area == pytest.approx((right - left) * (bottom - top), rel=0.06)


def test_a_mask_beside_its_box_has_a_box_of_its_own():
    class Beside(Oracle):
        def detect(self, images, limits):  # noqa: ARG002
            grid = torch.zeros((1, 20, 20))
            grid[:, :, 0] = 1  # of a box of 40 px enlarged to 80: 4 px wide, 16 px to the left
            box = torch.tensor([[60.0, 40.0, 100.0, 80.0]])
            cells = Detections(box, torch.tensor([0.9]), torch.tensor([0]), grid, mask_scale=2.0)
            return [cells] * len(images)

    found = oracle(Beside()).predict(np.full((120, 160, 3), 255, np.uint8))
    np.testing.assert_allclose(found.boxes, [[40, 20, 44, 100]], atol=1)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(("left", "top"), [(60, 40), (0, 0)], ids=["inside", "at the edge"])
def test_a_mask_in_two_pieces(largest, left, top):
    """At the edge of the image, no other tile may have more of it."""

    class Two(Oracle):
        def detect(self, images, limits):  # noqa: ARG002
            grid = torch.zeros((1, 20, 20))
            grid[:, :, :12] = grid[:, 15:, 15:] = 1
            box = torch.tensor([[left, top, left + 40.0, top + 40.0]])
            return [Detections(box, torch.tensor([0.9]), torch.tensor([0]), grid)] * len(images)

    predictor = oracle(Two(), TEST__LARGEST_PIECE=largest)
    found = predictor.predict(np.full((120, 160, 3), 255, np.uint8))
    assert pycocotools.mask.area(found.masks[0]) == 24 * 40 + (0 if largest else 100)
    assert found.boxes.tolist() == [[left, top, left + (24 if largest else 40), top + 40]]


def test_a_mask_at_the_edge_of_a_tile_keeps_its_pieces():
    """A U of 120 x 40 px over two tiles: only the second one has the pixels that join its arms."""

    class Arms(Oracle):
        def detect(self, images, limits):  # noqa: ARG002
            is_left = bool((images[0][:, 60, 20] == 0).all())
            grid = torch.ones((1, 80, 80))
            grid[:, 20:60, : 80 if is_left else 60] = 0
            left = 20.0 if is_left else 0.0
            box = torch.tensor([[left, 40.0, left + 80, 80.0]])
            return [Detections(box, torch.tensor([0.9]), torch.tensor([0]), grid)] * len(images)

    image = np.full((100, 160, 3), 255, np.uint8)
    image[60, 20] = 0
    options = {"TEST__TILE": 100, "TEST__OVERLAP": 40, "TEST__BATCH": 1, "INPUT__ZOOM": 1.0}
    found = oracle(Arms(), TEST__LARGEST_PIECE=True, **options).predict(image)
    assert len(found) == 1
    assert pycocotools.mask.area(found.masks[0]) == 2 * 100 * 10 + 20 * 40


class Crowd(Oracle):
    """Detects a cell in every 5 x 5 pixels of the original, as far as the limits allow."""

    def detect(self, images, limits):
        return [self._cells(image.shape[1:], limits) for image in images]

    def _cells(self, size, limits):
        y, x = torch.meshgrid(*(torch.arange(0, n - 4, 5) for n in size), indexing="ij")
        corner = torch.stack([x, y], -1).view(-1, 2).float()
        n, keys = count_detections(torch.full((len(corner),), 0.9), limits)
        return Detections(
            torch.cat([corner, corner + 4], 1)[:n],
            torch.full((n,), 0.9),
            torch.zeros(n, dtype=torch.int64),
            torch.ones(n, 2, 2),
            limited_by=keys,
        )


@pytest.mark.parametrize(
    "options", [{}, {"TEST__SYMMETRIES": 8}, {"TEST__TILE": 200, "TEST__OVERLAP": 100}]
)
def test_no_cell_of_a_crowded_image_is_left_out(options):
    """Sixteen times as many as the least limit, in the area of few cells of the training.

    Tiles begin at whole cells, every 100 pixels.
    """
    keys = {"DATA__CELLS_PER_MEGAPIXEL": 22_000.0}  # with the reserve, 1 in 23 pixels
    keys["TEST__DETECTIONS_PER_IMAGE"] = 0
    image = np.zeros((400, 800, 3), np.uint8)
    cells = oracle(Crowd(), **keys, **options).predict(image)
    assert len(cells) == 80 * 160
    assert cells.limited_by == ()


@pytest.mark.parametrize("options", [{}, {"TEST__SYMMETRIES": 2}])
def test_a_limit_that_leaves_out_cells_is_named(options):
    image = np.zeros((100, 100, 3), np.uint8)
    cells = oracle(Crowd(), TEST__DETECTIONS_PER_IMAGE=300, **options).predict(image)
    assert len(cells) == 300
    assert cells.limited_by == ("TEST.DETECTIONS_PER_IMAGE",)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.33, 2.0])
@pytest.mark.parametrize("size", [(33, 35), (97, 700), (1500, 2000)])
def test_every_size_at_every_scale(size, scale):
    """In tiles of 512 pixels that overlap by the longest cell."""
    drawing = draw(size, step=30 if min(size) < 60 else 60 if min(size) < 1000 else 160)
    predictor = oracle(INPUT__ZOOM=scale, TEST__TILE=512)
    check_all_detected(predictor.predict(drawing.image), drawing)
    assert len(predictor.plan(size)) == {33: 1, 97: 2, 1500: 20}[size[0]]
    for shape in predictor.networks[0].shapes:
        assert max(shape) <= 2 + 512 * scale


def test_any_position_of_the_seams():
    drawing = draw((240, 240))
    for tile in range(130, 242, 4):
        cells = oracle(TEST__TILE=tile, TEST__OVERLAP=58).predict(drawing.image)
        check_all_detected(cells, drawing, iou=0.8)


def test_cells_longer_than_tiles():
    """Each is joined from its pieces."""
    drawing = draw((300, 300), step=140)
    predictor = oracle(TEST__TILE=64)
    # The overlap for cells of 52 pixels would be 71.
    assert np.diff(predictor.plan((300, 300)).lefts).min() >= 29
    check_all_detected(predictor.predict(drawing.image), drawing, iou=0.8)


def test_without_a_fixed_scale_the_short_side_decides():
    """Also in tiles."""
    drawing = draw((165, 220))  # 2 x 3 tiles that overlap by half
    options = {"INPUT__MIN_SIZE_TEST": 330, "INPUT__MAX_SIZE_TEST": 1000}
    whole = oracle(**options)
    check_all_detected(whole.predict(drawing.image), drawing)
    assert whole.networks[0].shapes == [(330, 440)]
    tiles = oracle(**options, TEST__TILE=110)
    check_all_detected(tiles.predict(drawing.image), drawing)
    assert set(tiles.networks[0].shapes) == {(220, 220)}


def test_the_channel_order():
    drawing = draw((100, 100))
    cells = oracle(INPUT__FORMAT="BGR").predict(drawing.image[:, :, ::-1])
    check_all_detected(cells, drawing)


def test_grey_and_16_bit_pixels():
    drawing = draw((100, 100))
    deep = drawing.image.astype(np.uint16) * 257
    alpha = np.dstack([drawing.image, np.full((100, 100), 255, np.uint8)])
    for image in (deep, alpha):
        check_all_detected(oracle().predict(image), drawing)
    grey = np.where(drawing.labels > 0, 0, 255).astype(np.uint8)
    assert len(oracle().predict(grey)) == len(np.unique(drawing.labels)) - 1


def test_batches_have_images_of_one_shape():
    """In the order of the views, without padding."""
    batches = []

    class Recording(Oracle):
        def detect(self, images, limits):
            batches.append([tuple(image.shape[1:]) for image in images])
            return super().detect(images, limits)

    scales = {"TEST__SCALES": (1.0, 1.5), "TEST__SYMMETRIES": 4}
    drawing = draw((150, 150))
    check_all_detected(oracle(Recording(), TEST__BATCH=8, **scales).predict(drawing.image), drawing)
    assert batches == [[(150, 150)] * 4, [(225, 225)] * 4]


def test_two_networks():
    """A score is the mean over all networks' views, also of those without detections."""
    drawing = draw((150, 150))
    networks = [Oracle(always(0.9)), Oracle(always(0.5))]
    cfgs = [oracle_cfg(), oracle_cfg(INPUT__ZOOM=1.5)]
    cells = Predictor(networks, cfgs).predict(drawing.image)
    check_all_detected(cells, drawing, score=always(0.7))
    assert {shape for network in networks for shape in network.shapes} == {(150, 150), (225, 225)}

    cfgs = [oracle_cfg(TEST__SYMMETRIES=2), oracle_cfg(TEST__SYMMETRIES=1)]
    cells = Predictor(networks, cfgs).predict(drawing.image)
    check_all_detected(cells, drawing, score=always((0.9 + 0.9 + 0.5) / 3))

    class Blind(Oracle):
        def detect(self, images, limits):
            return super().detect([torch.full_like(image, 255) for image in images], limits)

    cells = Predictor([networks[0], Blind()], cfgs[1:] * 2).predict(drawing.image)
    check_all_detected(cells, drawing, score=always(0.45))


def test_tiles_follow_the_largest_scale_and_the_longest_cell():
    """In any order of the networks."""
    cfgs = [
        oracle_cfg(),  # without a fixed scale
        oracle_cfg(INPUT__ZOOM=2.0),
        oracle_cfg(INPUT__ZOOM=1.0, DATA__LONGEST_CELL=100.0),
    ]
    size = 5 * 768 - 4 * 131, 3 * 768 - 2 * 131  # of tiles that overlap by 1.25 * 100 + 6 px
    expected = oracle(INPUT__ZOOM=2.0, DATA__LONGEST_CELL=100.0).plan(size)
    assert expected.tile_size == (768, 768)
    for turn in range(3):
        assert Predictor([], cfgs[turn:] + cfgs[:turn]).plan(size) == expected
    assert len(Predictor([], cfgs[:1] * 2).plan(size)) == 1


def test_small_images_are_neither_stretched_nor_cut():
    predictor = oracle(INPUT__ZOOM=1.5)
    assert len(predictor.predict(np.full((33, 35, 3), 255, np.uint8))) == 0
    assert predictor.networks[0].shapes == [(50, 52)]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((9, 9, 3)),
        np.zeros((9, 9), np.float32),
        np.zeros((9, 9), bool),
        np.zeros((9, 9, 3), np.int64),
        np.zeros((3, 9, 9), np.uint8),
        np.zeros((9, 9, 1), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
        np.zeros(9, np.uint8),
    ],
    ids=lambda image: f"{image.dtype} {image.shape}",
)
def test_arrays_that_are_not_images(image):
    with pytest.raises(ValueError, match=r"expected uint8 or uint16 \(H, W\), "):
        oracle().predict(image)


def test_the_threshold_applies_to_the_fused_score():
    drawing = draw((150, 150))
    networks = [Oracle(lambda ink: 0.9 if ink % 2 else 0.55), Oracle(always(0.5))]
    cfg = oracle_cfg(MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.6)
    cells = Predictor(networks, [cfg, cfg]).predict(drawing.image)
    inks = np.unique(drawing.labels)[1:] - 1
    assert 0 < len(cells) == (inks % 2 == 1).sum() < len(inks)
    assert np.allclose(cells.scores, 0.7)


def test_an_image_too_large_to_resize(monkeypatch):
    """This needs the CPU's memory on any device."""
    resize = cv2.resize
    monkeypatch.setattr(cv2, "resize", lambda image, *_, **__: resize(image, (10**7, 10**7)))
    with pytest.raises(InputError, match=r"60 x 40 .*the memory; .*TEST.TILE"):
        oracle(INPUT__ZOOM=2.0).predict(np.zeros((30, 20, 3), np.uint8))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_batches_are_halved_until_they_fit_into_memory(n, capsys):
    """The predictions stay the same."""
    drawing = draw((200, 310))
    options = {"TEST__SYMMETRIES": 8, "TEST__TILE": 150, "TEST__BATCH": 16}
    expected = oracle(**options).predict(drawing.image)

    class Short(Oracle):
        def detect(self, images, limits):
            if len(images) > n:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().detect(images, limits)

    predictor = oracle(Short(), **options)
    check_same(predictor.predict(drawing.image), expected)
    fits = {1: 1, 2: 2, 3: 2, 5: 4}[n]
    assert predictor.batch == fits
    lines = [line for line in capsys.readouterr().err.splitlines() if "the GPU's memory" in line]
    sizes = [[int(number) for number in re.findall(r"\d+", line)] for line in lines]
    assert sizes == [[2 * k, k] for k in (8, 4, 2, 1) if k >= fits]


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_errors_that_may_be_of_memory_halve_the_batch(words):
    """With a single image, they are what they are."""
    drawing = draw((200, 310))
    options = {"TEST__TILE": 150, "TEST__BATCH": 8}

    class Short(Oracle):
        most = 3

        def detect(self, images, limits):
            if len(images) > self.most:
                raise RuntimeError(words)
            return super().detect(images, limits)

    network = Short()
    predictor = oracle(network, **options)
    check_same(predictor.predict(drawing.image), oracle(**options).predict(drawing.image))
    assert predictor.batch == 2
    network.most = 0
    with pytest.raises(RuntimeError, match=re.escape(words)):
        predictor.predict(drawing.image)


def test_an_image_that_fits_into_memory_once_it_is_free():
    drawing = draw((100, 120))

    class Once(Oracle):
        failed = False

        def detect(self, images, limits):
            if not self.failed:
                self.failed = True
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().detect(images, limits)

    check_same(oracle(Once()).predict(drawing.image), oracle().predict(drawing.image))


def test_the_tiles_of_a_file_open_it_once(tmp_path, monkeypatch):
    """Also if their paths are equal only, as those of a worker are."""
    drawing, path = draw((300, 400)), tmp_path / "image.png"
    PIL.Image.fromarray(drawing.image).save(path)
    opened = []

    def count(image, *args, **options):
        opened.append(image)
        return windowed_open(image, *args, **options)

    windowed_open = window.open_image
    monkeypatch.setattr(window, "open_image", count)
    predictor = oracle(TEST__TILE=150)
    plan = predictor.plan((300, 400))
    jobs = [TileJob(Path(str(path)), 0, plan.size, tile) for tile in plan]
    assert len(list(predictor.predict_tiles(jobs))) == len(plan) > 3
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("scales", "margin"), [([1.0], 3), ([2.0], 3), ([0.25], 12), ([1.0, 0.4], 8)]
)
def test_the_margin_of_tiles_is_that_of_the_coarsest_network(scales, margin):
    cfgs = [oracle_cfg(INPUT__ZOOM=scale) for scale in scales]
    assert Predictor([Oracle()] * len(scales), cfgs).plan((9000, 9000)).margin == margin
    halved = oracle_cfg(INPUT__ZOOM=scales[0], TEST__SCALES=(0.5, 1.0))
    assert Predictor([Oracle()], [halved]).plan((9000, 9000)).margin == {1: 6, 2: 3}.get(
        scales[0], 24
    )


def test_reading_and_encoding_run_parallel_to_the_network(monkeypatch):
    """It waits until the next tile is read and the masks of the last one are encoded."""
    drawing = draw((200, 310))
    expected = oracle(TEST__TILE=150).predict(drawing.image)
    n_tiles = 8
    was_read, was_encoded = (deque([threading.Event() for _ in range(n_tiles)]) for _ in range(2))
    read, encode = windowed_image.ArrayImage.read, predictor_module._encode_detections

    class Waiting(Oracle):
        def detect(self, images, limits):
            n = len(self.shapes)
            assert n + 1 == n_tiles or read_done[n + 1].wait(60)
            assert n == 0 or encoded[n - 1].wait(60)
            return super().detect(images, limits)

    def reading(*args):
        pixels = read(*args)
        was_read.popleft().set()
        return pixels

    def encoding(*args):
        cells = encode(*args)
        was_encoded.popleft().set()
        return cells

    read_done, encoded = list(was_read), list(was_encoded)
    monkeypatch.setattr(windowed_image.ArrayImage, "read", reading)
    monkeypatch.setattr(predictor_module, "_encode_detections", encoding)
    check_same(oracle(Waiting(), TEST__TILE=150).predict(drawing.image), expected)
    assert not was_read
    assert not was_encoded


def test_on_a_cpu_threads_take_tiles_of_their_own():
    drawing = draw((300, 400))
    expected = oracle(TEST__TILE=150).predict(drawing.image)
    together = threading.Barrier(2)

    class Waiting(Oracle):
        def detect(self, images, limits):
            assert torch.get_num_threads() == 1
            assert not self.training
            with contextlib.suppress(threading.BrokenBarrierError):  # the last one of an odd number
                together.wait(5)
                met.append(1)
            return super().detect(images, limits)

    met: list[int] = []
    former = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        predictor = oracle(Waiting(), MODEL__DEVICE="cpu", TEST__TILE=150)
        check_same(predictor.predict(drawing.image), expected)
        assert len(met) >= 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(former)


@pytest.mark.parametrize(("amp", "on_cpu"), [(False, False), (True, False), (False, True)])
def test_mixed_precision(monkeypatch, amp, on_cpu):
    """Boxes and scores are float32 with and without it."""
    drawing = draw((100, 100))
    calls = []

    def precision(device, mixed):
        calls.append((device, mixed))
        return torch.bfloat16 if mixed else None

    class HalfPrecision(Oracle):
        def detect(self, images, limits):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            assert product.dtype == (torch.bfloat16 if amp or on_cpu else torch.float32)
            (cells,) = super().detect(images, limits)
            scores = cells.scores.to(product.dtype)
            return [Detections(cells.boxes.to(product.dtype), scores, cells.classes, cells.masks)]

    monkeypatch.setattr(predictor_module, "autocast_dtype", precision)
    options = {"MODEL__DEVICE": "cpu", "TEST__AMP": amp, "TEST__BFLOAT16_ON_CPU": on_cpu}
    cells = oracle(HalfPrecision(always(0.75)), **options).predict(drawing.image)
    assert calls == [("cpu", amp or on_cpu)]
    assert cells.boxes.dtype == cells.scores.dtype == np.float32
    check_all_detected(cells, drawing, score=always(0.75))


def check_same(cells, expected):
    assert cells.size == expected.size
    assert np.array_equal(cells.boxes, expected.boxes)
    assert np.array_equal(cells.scores, expected.scores)
    assert np.array_equal(cells.classes, expected.classes)
    assert cells.masks == expected.masks


def test_one_view_is_what_the_network_detects(predictor, run, cfg, cells):
    """Bit for bit, without fusion."""
    own = cfg.clone()
    config.merge_options(own, ["TEST.SYMMETRIES", "1", "TEST.SCALES", "(1.0,)"])
    image = read_image(next(cells.glob("test_release/*.tif")))
    predictions = loaded(own, run).predict(image)
    check_same(predictions, predictor.predict(image))
    (tile,) = predictor.plan(predictions.size)
    (view,) = plan_views(tile, predictions.size, own)
    network = predictor.networks[0].eval()
    with torch.no_grad():
        limits = choose_limits(own, tile.size[0] * tile.size[1])
        (direct,) = network.detect([to_tensor(view.apply_image(image), own.INPUT.FORMAT)], limits)
    assert len(predictions) > 0
    assert np.array_equal(predictions.scores, direct.scores.sort(descending=True).values.numpy())


@pytest.mark.parametrize("options", [["TEST.SYMMETRIES", "4"], ["TEST.SCALES", "(0.8, 1.25)"]])
def test_more_views_change_the_detections(predictor, run, cfg, cells, options):
    own = cfg.clone()
    config.merge_options(own, options)
    image = read_image(next(cells.glob("test_release/*.tif")))
    predictions, plain = loaded(own, run).predict(image), predictor.predict(image)
    assert len(predictions) > 0
    assert sorted(predictions.scores.tolist()) != sorted(plain.scores.tolist())


def test_a_tiled_file_is_read_by_windows(monkeypatch, tmp_path):
    drawing = draw((200, 310))
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, drawing.image, tile=(64, 64), photometric="rgb", compression="zlib")

    fail = Mock(side_effect=AssertionError("whole image was read"))
    monkeypatch.setattr("cellseg.read.windowed_image.WindowedImage.read_all", fail)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    predictor = oracle(TEST__TILE=150)
    check_same(predictor.predict(path), predictor.predict(drawing.image))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("TEST__SYMMETRIES", 3, r"TEST.SYMMETRIES 3: .*1, 2"),
        ("TEST__SCALES", (), r"TEST.SCALES \(\): .*0.1 to 10"),
        ("TEST__SCALES", (0.0,), r"TEST.SCALES \(0.0,\)"),
    ],
)
def test_views_out_of_range(key, value, expected):
    with pytest.raises(InputError, match=expected):
        oracle(**{key: value})


def test_an_overlap_of_a_whole_tile():
    with pytest.raises(InputError, match=r"tiles of 20 px .*overlap of 20 px"):
        oracle(TEST__TILE=20, TEST__OVERLAP=20).plan((9, 9))
