"""Scale and anchors from the sizes of cells, by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg import config
from cellseg.errors import InputError
from cellseg.learn.scale import (
    CellSizes,
    choose_anchors,
    choose_scale,
    measure_cells,
    measure_density,
    set_keys_from_data,
    warn_of_resolutions,
    warn_of_unsuitable_scale,
)
from tests.learn.cell_cases import image_of

PYRAMID = [4, 8, 16, 32, 64]
DILATED = [16]


def images(*sides):
    """Return an image with half of the cells, one without cells, one with the other half."""
    cells = [(7, 9, 7 + width, 9 + height) for width, height in sides]
    return [image_of(part) for part in (cells[::2], [], cells[1::2])]


def test_sizes_by_hand():
    """21 cells of area 1², 2² … 21²: the 5th percentile is the 2nd, the 95th the 20th."""
    sizes = measure_cells(images(*((n * n, 1) for n in range(1, 22))))
    assert (sizes.length, sizes.small, sizes.large) == (121.0, 2.0, 20.0)
    # Between the 20th side, 400, and the 21st, 441.
    assert sizes.longest == pytest.approx(441 - 0.02 * 41)


def test_the_longest_side_may_be_either():
    assert measure_cells(images((2, 18), (18, 2), (6, 6))) == CellSizes(18.0, 6.0, 6.0, 18.0)
    assert measure_cells(images((4, 9))) == CellSizes(9.0, 6.0, 6.0, 9.0)


def test_density_by_hand():
    """Areas of 100, 200, 300, 400 and 500 pixels: 200 for the 25th percentile."""
    boxes = [(0, 0, 10, 10 * n) for n in range(1, 6)]
    samples = [image_of(boxes[:2]), image_of(), image_of(boxes[2:])]
    assert measure_density(samples) == pytest.approx(5000)


@pytest.mark.parametrize("samples", [[], images()])
def test_no_cells(samples):
    with pytest.raises(InputError, match=f"no cells in {len(samples)} training images"):
        measure_cells(samples)


@pytest.mark.parametrize(
    ("length", "stride", "value"),
    [
        (26, 4, 1.15),  # NYCU HW3's cells
        (26, 8, 1.15),
        (26, 16, 2.15),
        (20, 4, 1.5),
        (60, 4, 0.5),
        (1000, 4, 0.5),
        (10, 4, 3.0),
        (1, 16, 4.0),
    ],
)
def test_scale_by_hand(length, stride, value):
    assert choose_scale(CellSizes(length, 1, 1, length), stride).value == value


def test_scale_has_a_reason():
    reason = choose_scale(CellSizes(26.0, 9, 40, 60), 4).reason
    assert re.fullmatch(r"scale 1\.15: .* 26 px .* 30 px .* stride 4", reason)
    reason = choose_scale(CellSizes(10.5, 9, 40, 60), 16).reason
    assert re.fullmatch(r"scale 4: .* 10\.5 px .* 56 px .* stride 16, .* 0\.5 to 4", reason)


@pytest.mark.parametrize(
    ("largest", "value"),
    [
        (9.0, 2.5),  # all cells fit anyway
        (2.5, 2.5),
        (2.4999, 2.49),
        (1.409, 1.4),  # rounded down, so that they fit
        (1.25, 1.25),  # 15 px
        (1.24, 2.5),  # the median cell would be too small
        (0.01, 2.5),
    ],
)
def test_a_lower_scale_for_large_cells(largest, value):
    scale = choose_scale(CellSizes(12.0, 9, 88, 300), 4, largest)
    assert scale.value == value
    assert scale.reason.startswith(f"scale {value:g}: ")
    assert ("INPUT.WINDOW" in scale.reason) == (value != 2.5)


def test_the_scale_is_not_lowered_below_its_range():
    assert choose_scale(CellSizes(60.0, 9, 88, 300), 4, 0.45).value == 0.5
    assert choose_scale(CellSizes(60.0, 9, 88, 300), 16, 0.45).value == 0.93
    assert choose_scale(CellSizes(60.0, 9, 88, 300), 16, 0.5).value == 0.5


@pytest.mark.parametrize(
    ("large", "zoom", "n"),
    [
        (100, 1.92, 0),  # 192 px, as large as the window
        (120, 1.6, 0),
        (200, 3.0, 2),  # 0.96 would be needed, where 10 px are 9.6 px
    ],
)
def test_cells_longer_than_the_window(large, zoom, n, caplog):
    cfg = config.load_recipe("lite_fpn", "torchvision")
    cells = images(*[(10, 8)] * 98, (large, 9), (7, large))
    set_keys_from_data(cfg, cells)
    assert cfg.INPUT.ZOOM == zoom
    warn_of_unsuitable_scale(cfg, cells)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (n > 0)
    for message in messages:
        assert "2 of 100 training cells (2 %)" in message
        assert "INPUT.WINDOW" in message
        assert "INPUT.ZOOM" in message


@pytest.mark.parametrize(
    ("side", "zoom", "warns"), [(16, 0.0, False), (15, 0.0, True), (15, 2.0, False)]
)
def test_cells_small_for_the_anchors(side, zoom, warns, caplog):
    """The smallest anchor has 32 px; images of 400 px stay as they are."""
    cfg = config.load_recipe("mask_rcnn_R_50_FPN_3x", "torchvision")
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.ZOOM = False, (400,), zoom
    for sizes in (cfg.MODEL.ANCHOR_GENERATOR.SIZES, [[64, 32, 512]], [64, 32, 512]):
        caplog.clear()
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
        warn_of_unsuitable_scale(cfg, images((side, side), (side, 2), (3, 3)))
        assert ("INPUT.ZOOM_FROM_DATA" in caplog.text) == warns


@pytest.mark.parametrize(
    ("small", "large", "scale", "strides", "expected"),
    [
        # Doubling covers 10 to 160, more than needed.
        (10, 40, 1, PYRAMID, [[10], [20], [40], [80], [160]]),
        (10, 40, 1.5, PYRAMID, [[15], [30], [60], [120], [240]]),
        # Doubling would end at 40, so the steps are 3 and 10.
        (10, 90, 1, PYRAMID[:3], [[10], [30], [90]]),
        (10, 1000, 1, PYRAMID[:3], [[10], [100], [1000]]),
        # A single level: four equal steps.
        (20, 320, 1, DILATED, [[20, 40, 80, 160, 320]]),
        (20, 320, 2, DILATED, [[40, 80, 160, 320, 640]]),
        # Cells of one size: steps of 1.2.
        (100, 100, 1, DILATED, [[100, 120, 144, 173, 207]]),
        (30, 30, 1, PYRAMID[:2], [[30], [60]]),
        # Small cells: no anchor smaller than the stride.
        (1, 2, 0.5, DILATED, [[16, 19, 23, 28, 33]]),
        (1, 2, 0.5, PYRAMID[:3], [[4], [8], [16]]),
    ],
)
def test_anchors_by_hand(small, large, scale, strides, expected):
    assert choose_anchors(CellSizes(50, small, large, 99), scale, strides).sizes == expected


def test_anchors_have_a_reason():
    reason = choose_anchors(CellSizes(26, 10, 40.26, 60), 1.5, [4, 8, 16]).reason
    assert re.fullmatch(r"anchors of 15, 30, 60 px: .* 10\.0 to 40\.3 px .* scale 1\.5", reason)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=40),
    st.sampled_from([DILATED, [4], [8, 16], PYRAMID[:3], PYRAMID]),
    st.randoms(use_true_random=False),
)
def test_any_cells(sides, strides, random):
    sizes = measure_cells(images(*sides))
    scale = choose_scale(sizes, strides[0])
    assert 0.5 <= scale.value <= 4
    anchors = choose_anchors(sizes, scale.value, strides)
    assert len(anchors.sizes) == len(strides)
    flat = np.concatenate(anchors.sizes)
    assert len(flat) == (len(strides) if len(strides) > 1 else 5)
    assert (np.diff(flat) > 0).all()
    assert all(type(side) is float for level in anchors.sizes for side in level)
    # They cover small and large cells, rounded to whole pixels.
    assert flat[0] <= max(sizes.small * scale.value, strides[0]) + 0.5
    assert flat[-1] >= sizes.large * scale.value - 0.5
    # The order of cells and images does not matter.
    random.shuffle(sides)
    again = measure_cells(images(*sides)[::-1])
    assert again.length == sizes.length
    assert again.small == pytest.approx(sizes.small)
    assert again.large == pytest.approx(sizes.large)


@pytest.mark.parametrize(
    ("mpps", "run", "n_warnings"),
    [
        ([None, None, None], 0.0, 0),
        ([0.25, 0.25, 0.25], 0.25, 0),
        ([0.25, 0.2505, 0.2498], 0.25, 0),
        ([0.25, 0.25, 0.5], 0.25, 1),
        ([0.25, 0.25, None], 0.25, 1),
        ([0.25, 0.25, 0.5, None], 0.25, 2),
    ],
)
def test_the_runs_resolution_is_that_of_its_images(mpps, run, n_warnings, caplog):
    samples = [
        replace(image_of([(0, 0, 9, 9)], name=f"image{n}"), mpp=mpp) for n, mpp in enumerate(mpps)
    ]
    cfg = config.default_config("torchvision")
    reasons = set_keys_from_data(cfg, samples)
    assert cfg.DATA.MPP == run
    assert [f"{run:g} µm" in reason for reason in reasons] == [True] * (run > 0)
    warn_of_resolutions(samples, cfg.DATA.MPP)
    assert len(caplog.records) == n_warnings
    for record, name in zip(caplog.records, ["image2", "image3"], strict=False):
        assert n_warnings == 0 or re.search(f"{name}|image2", record.getMessage())


def two_resolutions():
    """Return images of 0.25 and 0.5 µm, with cells of 20 and 10 px, and one of unknown resolution.

    Before, 0.26 µm is about the same as 0.25.
    """
    cells = {0.25: 20, 0.26: 20, 0.5: 10, None: 40}
    return [
        replace(image_of([(9, 9, 9 + side, 9 + side)], name=f"{mpp}"), mpp=mpp)
        for mpp, side in cells.items()
    ]


def test_two_resolutions(caplog):
    """Cells of 20, 20, 20 and 40 px at 0.25 µm: the first of the two middle ones is the run's."""
    cfg = config.load_recipe("small_fpn", "torchvision")
    cfg.INPUT.ZOOM = 0.0
    (first, *_) = set_keys_from_data(cfg, two_resolutions())
    assert cfg.DATA.MPP == 0.26
    assert "1 of 4" in first
    cfg.DATA.MPP = 0.25
    (first, *_) = set_keys_from_data(cfg, two_resolutions())
    assert cfg.DATA.MPP == 0.25
    assert cfg.INPUT.ZOOM == 1.5
    assert cfg.DATA.LONGEST_CELL == pytest.approx(40 - 0.003 * 20)
    assert cfg.DATA.CELLS_PER_MEGAPIXEL == pytest.approx(1e6 / 20**2)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0][0] == 30
    warn_of_resolutions(two_resolutions(), cfg.DATA.MPP, scaled=True)
    (record,) = caplog.records
    assert "1 of 4 images" in record.getMessage()


@pytest.mark.parametrize("given", [0.0, 0.5])
def test_one_resolution_changes_no_value(given):
    """Images of one known resolution have the values of those of an unknown one."""
    known = [replace(sample, mpp=0.5) for sample in two_resolutions()]
    unknown = [replace(sample, mpp=None) for sample in two_resolutions()]
    values = []
    for samples in (known, unknown):
        cfg = config.load_recipe("small_fpn", "torchvision")
        cfg.DATA.MPP = given
        set_keys_from_data(cfg, samples)
        cfg.DATA.MPP = 0.0
        values.append(cfg.dump())
    assert values[0] == values[1]


def test_a_given_resolution_is_kept():
    """At 0.5 µm, cells of 10, 10.4, 10 and, of unknown resolution, 40 px: 10.2 is the median."""
    cfg = config.load_recipe("small_fpn", "torchvision")
    config.merge_options(cfg, ["DATA.MPP", "0.5"])
    set_keys_from_data(cfg, two_resolutions())
    assert cfg.DATA.MPP == 0.5
    assert cfg.INPUT.ZOOM == 2.94


def test_without_a_scale_images_are_not_brought_to_one_resolution(caplog):
    """Anchors are of the cells as they are, limits and overlaps of cells at one resolution."""
    cfg = config.load_recipe("mask_rcnn_R_50_FPN_3x", "torchvision")
    cfg.MODEL.ANCHOR_GENERATOR.FROM_DATA, cfg.INPUT.CROP.ENABLED = True, False
    cfg.INPUT.MIN_SIZE_TRAIN = (400,)  # as large as the images are
    samples = [sample for sample in two_resolutions() if sample.mpp in (0.25, 0.5)]
    set_keys_from_data(cfg, samples)
    assert cfg.DATA.LONGEST_CELL == 20
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0] == [10]
    warn_of_resolutions(samples, cfg.DATA.MPP)
    (record,) = caplog.records
    assert "INPUT.ZOOM_FROM_DATA" in record.getMessage()


def test_a_resolution_that_only_the_config_knows():
    cfg = config.default_config("torchvision")
    cfg.DATA.MPP = 0.25
    (reason,) = set_keys_from_data(cfg, [image_of([(0, 0, 9, 9)])])
    assert "DATA.MPP" in reason
    assert cfg.DATA.MPP == 0.25


@pytest.mark.parametrize(
    ("former", "kept"), [(1.5, True), (1.25, True), (3.0, False), (0.5, False), (0.0, False)]
)
def test_the_scale_of_a_run_with_the_initial_weights(tmp_path, former, kept):
    def configured(zoom):
        cfg = config.load_recipe("small_fpn", "torchvision")
        cfg.INPUT.ZOOM = zoom
        return cfg

    run = configured(former)
    run.MODEL.ANCHOR_GENERATOR.SIZES = [[11], [22], [44]]
    (tmp_path / "config.yaml").write_text(run.dump())
    cfg = configured(0.0)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    cells = images((20, 20), (20, 20))  # 30 network pixels at a scale of 1.5
    (reason, *_) = set_keys_from_data(cfg, cells)
    assert cfg.INPUT.ZOOM == (former if kept else 1.5)
    assert (cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[11], [22], [44]]) == kept
    assert (f"{former:g}" in reason) or not former
    # The same when the run is resumed, without the other one.
    own = tmp_path / "own.yaml"
    own.write_text(cfg.dump())
    resumed = config.load_config(own)
    resumed.MODEL.WEIGHTS = ""
    set_keys_from_data(resumed, cells)
    assert resumed.INPUT.ZOOM == cfg.INPUT.ZOOM
    assert resumed.MODEL.ANCHOR_GENERATOR.SIZES == cfg.MODEL.ANCHOR_GENERATOR.SIZES
