"""Augmentation: sizes by hand and by Detectron2, symmetries by numpy, stains by optics."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from fvcore.common.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.config import default_config
from cellseg.learn.augment import (
    Blur,
    Brightness,
    Contrast,
    FixedScaleCrop,
    Flip,
    QuarterTurn,
    ShortestEdgeCrop,
    StainJitter,
    build_augmentations,
)
from cellseg.stains import EOSIN, HAEMATOXYLIN, scale_stains
from cellseg.view import View

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 900), st.integers(1, 900))


def rng_of(seed=0):
    return np.random.default_rng(seed)


# The crop of the mission: half of the image each way, resized to 608.
HALF = ShortestEdgeCrop("relative", (0.5, 0.5), (608,), "choice", 1333)


def half_crop(**changes):
    return replace(HALF, **changes)


def views(augmentation, size, n=400, centre=None):
    rng = rng_of()
    return [augmentation.sample_view(size, rng, centre) for _ in range(n)]


def window_size(view):
    left, top, right, bottom = view.window
    return bottom - top, right - left


def is_within(view, size):
    left, top, right, bottom = view.window
    return 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]


crops = st.one_of(
    st.builds(
        half_crop,
        crop_type=st.sampled_from(["relative", "relative_range"]),
        crop_size=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    ),
    st.builds(
        half_crop,
        crop_type=st.sampled_from(["absolute", "absolute_range"]),
        crop_size=st.tuples(st.integers(1, 300), st.integers(300, 1000)),
        short_sides=st.lists(st.integers(1, 900), min_size=1, max_size=3),
    ),
    st.builds(half_crop, crop_type=st.none()),
    st.builds(FixedScaleCrop, st.floats(0.05, 20), st.floats(0, 2), st.integers(1, 900)),
)


@given(crops, sizes, seeds, st.one_of(st.none(), st.tuples(st.floats(0, 1), st.floats(0, 1))))
@settings(max_examples=150, deadline=None)
def test_every_view_is_within_the_image_and_holds_its_centre(crop, size, seed, part):
    centre = part and (part[0] * size[1], part[1] * size[0])
    view = crop.sample_view(size, rng_of(seed), centre)
    assert is_within(view, size)
    assert min(view.size) >= 1
    assert view == View(view.window, view.size)  # neither flipped nor turned
    assert view == crop.sample_view(size, rng_of(seed), centre)
    if centre:
        left, top, right, bottom = view.window
        # To half a pixel, which a window of one pixel loses to rounding.
        assert left - 0.5 <= centre[0] <= right + 0.5
        assert top - 0.5 <= centre[1] <= bottom + 0.5


# 87 · 0.5 = 43.5 is rounded up. The other sizes: 608 / 100 · 150, and 1333 / 400 · 50 = 166.6.
@pytest.mark.parametrize(
    ("size", "window", "output_size"),
    [
        ((200, 300), (100, 150), (608, 912)),
        ((300, 200), (150, 100), (912, 608)),
        ((100, 800), (50, 400), (167, 1333)),
        ((87, 87), (44, 44), (608, 608)),
        ((1, 1), (1, 1), (608, 608)),
        ((1, 8000), (1, 4000), (1, 1333)),
    ],
)
def test_half_crop_by_hand(size, window, output_size):
    view = half_crop().sample_view(size, rng_of())
    assert window_size(view) == window
    assert view.size == output_size


@pytest.mark.detectron2
@given(
    sizes,
    st.sampled_from(["relative", "absolute"]),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    st.integers(1, 1500),
)
@settings(max_examples=150, deadline=None)
def test_crops_and_scales_have_the_sizes_of_detectron2(size, crop_type, part, shortest):
    from detectron2.data import transforms as T

    crop_size = part if crop_type == "relative" else tuple(math.ceil(900 * side) for side in part)
    crop = half_crop(crop_type=crop_type, crop_size=crop_size, short_sides=[shortest])
    view = crop.sample_view(size, rng_of())
    expected = np.maximum(T.RandomCrop(crop_type, crop_size).get_crop_size(size), 1).tolist()
    assert list(window_size(view)) == expected
    output_size = T.ResizeShortestEdge.get_output_shape(*expected, shortest, 1333)
    assert list(view.size) == np.maximum(output_size, 1).tolist()


def test_every_corner_of_a_crop_is_as_likely():
    """A 3 x 2 crop of 4 x 4 pixels has 2 x 3 places: each about 100 of 600 times."""
    crop = half_crop(crop_type="absolute", crop_size=(3, 2))
    corners = Counter(view.window[:2] for view in views(crop, (4, 4), 600))
    assert set(corners) == set(itertools.product(range(3), range(2)))
    assert all(54 < count < 146 for count in corners.values())  # 5 sigma


def test_short_sides_are_chosen_or_drawn_from_a_range():
    def drawn(sampling, short_sides):
        crop = half_crop(crop_type=None, short_sides=short_sides, sampling=sampling)
        return {view.size[0] for view in views(crop, (20, 30))}

    assert drawn("choice", (144, 176, 208)) == {144, 176, 208}
    assert drawn("range", (5, 9)) == {5, 6, 7, 8, 9}
    assert drawn("choice", (0,)) == {20}  # as it is


def test_relative_range_reaches_from_the_part_to_the_whole():
    crop = half_crop(crop_type="relative_range", crop_size=(0.5, 0.9))
    drawn = np.array([window_size(view) for view in views(crop, (100, 200))])
    assert drawn.min(0) == pytest.approx([50, 180], abs=1)
    assert drawn.max(0) == pytest.approx([100, 200], abs=1)


def test_absolute_range_draws_each_side_and_stops_at_the_image():
    crop = half_crop(crop_type="absolute_range", crop_size=(3, 5))
    drawn = {window_size(view) for view in views(crop, (4, 20))}
    assert drawn == set(itertools.product((3, 4), (3, 4, 5)))


def test_without_a_crop_the_whole_image_is_seen():
    view = half_crop(crop_type=None).sample_view((20, 30), rng_of())
    assert view == View((0, 0, 30, 20), (608, 912))


# A window of 512 at zoom 2 takes 256 pixels of the image. 100 pixels are seen as 200.
@pytest.mark.parametrize(
    ("size", "window", "output_size"),
    [
        ((1000, 700), (256, 256), (512, 512)),
        ((100, 700), (100, 256), (200, 512)),
        ((100, 90), (100, 90), (200, 180)),
        ((256, 255), (256, 255), (512, 510)),
        ((1, 1), (1, 1), (2, 2)),
    ],
)
def test_fixed_scale_by_hand(size, window, output_size):
    view = FixedScaleCrop(2.0, 0.0, 512).sample_view(size, rng_of())
    assert window_size(view) == window
    assert view.size == output_size


def test_an_image_that_just_fills_the_window_fills_all_of_it():
    """10 / 3 is rounded to 3 pixels, which are seen as 10 and not as 9."""
    assert FixedScaleCrop(3.0, 0.0, 10).sample_view((3, 2), rng_of()).size == (10, 6)


def test_fixed_scale_at_extreme_scales():
    assert FixedScaleCrop(100.0, 0.0, 8).sample_view((5, 5), rng_of()).size == (8, 8)
    assert FixedScaleCrop(0.01, 0.0, 8).sample_view((5, 5), rng_of()).size == (1, 1)


def test_scales_are_drawn_evenly_in_their_logarithm():
    """From 1/1.5 to 1.5 half of them are below 1 (5 sigma is 50 of 400)."""
    drawn = np.array(
        [512 / window_size(view)[0] for view in views(FixedScaleCrop(1, 0.5, 512), (999,) * 2)]
    )
    assert drawn.min() == pytest.approx(1 / 1.5, abs=0.02)
    assert drawn.max() == pytest.approx(1.5, abs=0.02)
    assert 150 < (drawn < 1).sum() < 250


@given(
    st.tuples(st.integers(300, 900), st.integers(300, 900)),
    st.floats(0.5, 3),
    st.floats(0, 1),
    seeds,
)
@settings(max_examples=60, deadline=None)
def test_fixed_scale_does_not_stretch(size, scale, jitter, seed):
    view = FixedScaleCrop(scale, jitter, 512).sample_view(size, rng_of(seed))
    (height, width), (seen_height, seen_width) = window_size(view), view.size
    # Half a pixel of the image or of the network may be lost to rounding, each way.
    slack = 0.6 / min(height, width) + 0.6 / min(seen_height, seen_width)
    assert seen_height / height == pytest.approx(seen_width / width, rel=2 * slack)


@pytest.mark.parametrize("crop", [FixedScaleCrop(1.0, 0.0, 40), half_crop(crop_size=(0.1, 0.1))])
def test_a_centre_is_anywhere_in_the_middle_half(crop):
    drawn = views(crop, (400, 400), centre=(200.5, 120.0))
    corners = np.array([view.window[:2] for view in drawn])
    inside = [200.5, 120.0] - corners
    assert inside.min(0) == pytest.approx([10, 10], abs=1)
    assert inside.max(0) == pytest.approx([30, 30], abs=1)


def test_a_centre_at_the_edge_leaves_the_window_within_the_image():
    drawn = views(FixedScaleCrop(1.0, 0.0, 40), (400, 300), centre=(299.5, 0.5))
    assert {view.window for view in drawn} == {(260, 0, 300, 40)}


PATCH = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
WHOLE = View((0, 0, 3, 2), (2, 3))
SYMMETRIES = {
    (np.rot90(flipped, turns).shape, np.rot90(flipped, turns).tobytes()): (bool(flip), turns)
    for flip, flipped in enumerate((PATCH, PATCH[:, ::-1]))
    for turns in range(4)
}


def seen_symmetries(*augmentations, n=800):
    """Count what an image of six pixels is seen as: whether it is mirrored, how it is turned."""
    rng = rng_of()
    output_size: Counter[tuple[bool, int]] = Counter()
    for _ in range(n):
        view = WHOLE
        for augmentation in augmentations:
            view = augmentation.sample_view(view, rng)
        image = view.apply_image(PATCH)
        output_size[SYMMETRIES[image.shape, image.tobytes()]] += 1
    return output_size


# A mirror from top to bottom is one from left to right, then half a turn.
@pytest.mark.parametrize(
    ("augmentations", "expected"),
    [
        ([Flip(True, False)], {(False, 0), (True, 0)}),
        ([Flip(False, True)], {(False, 0), (True, 2)}),
        ([Flip(True, True)], {(False, 0), (True, 0), (True, 2), (False, 2)}),
        ([QuarterTurn()], {(False, turns) for turns in range(4)}),
        ([Flip(True, True), QuarterTurn()], set(SYMMETRIES.values())),
        ([Flip(False, True), QuarterTurn()], set(SYMMETRIES.values())),
    ],
)
def test_the_orientations_that_can_occur_are_equally_likely(augmentations, expected):
    output_size = seen_symmetries(*augmentations)
    assert set(output_size) == expected
    share = 800 / len(expected)
    assert all(abs(count - share) < 5 * math.sqrt(share) for count in output_size.values())


def test_brightness_by_hand():
    image = np.array([[[0, 10, 255], [100, 101, 200]]], np.uint8)
    output_size = Brightness(1.5, 1.5).apply_colours(image, rng_of())
    assert output_size.tolist() == [[[0, 15, 255], [150, 151, 255]]]
    assert image[0, 0, 1] == 10


def test_contrast_by_hand():
    """The mean of 60, 100 and 200 is 120; half of the way to it is 90, 110 and 160."""
    image = np.array([[[60, 100, 200]]], np.uint8)
    assert Contrast(0.5, 0.5).apply_colours(image, rng_of()).tolist() == [[[90, 110, 160]]]
    assert Contrast(2.0, 2.0).apply_colours(image, rng_of()).tolist() == [[[0, 80, 255]]]


@pytest.mark.detectron2
@given(st.floats(0, 2), seeds)
@settings(max_examples=60, deadline=None)
def test_brightness_and_contrast_are_those_of_detectron2(weight, seed):
    from detectron2.data import transforms as T

    image = rng_of(seed).integers(0, 256, (7, 5, 3), np.uint8)
    for ours, theirs in ((Brightness, T.RandomBrightness), (Contrast, T.RandomContrast)):
        expected = theirs(weight, weight).get_transform(image).apply_image(image)
        np.testing.assert_array_equal(ours(weight, weight).apply_colours(image, rng_of()), expected)


def colours_in(axis):
    """Every colour whose levels are in `axis`, as an image."""
    return np.stack(np.meshgrid(axis, axis, axis), -1).reshape(len(axis), -1, 3).astype(np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        rng_of().integers(0, 256, (512, 512, 3), np.uint8),
        colours_in([0, 1, 2, 3, 5, 8, 13, 100, 200, 250, 253, 254, 255]),
        np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, -1, 3),
    ],
    ids=["random", "extreme", "greys"],
)
def test_factors_of_one_leave_every_colour_exactly(image):
    np.testing.assert_array_equal(scale_stains(image, 1.0, 1.0), image)
    np.testing.assert_array_equal(StainJitter(0.0).apply_colours(image, rng_of()), image)


def tissue(haematoxylin, eosin):
    """What light passes through these densities, by the law of Beer and Lambert."""
    density = np.multiply.outer(haematoxylin, HAEMATOXYLIN) + np.multiply.outer(eosin, EOSIN)
    return np.rint(256 * np.exp(-density) - 1).astype(np.uint8)


@given(st.floats(0, 1.5), st.floats(0, 1.5))
@settings(max_examples=60, deadline=None)
def test_stains_are_scaled_as_if_the_tissue_had_taken_up_more_or_less(haematoxylin, eosin):
    """To a level or two: the image that is changed has been rounded."""
    h, e = np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 9))
    output_size = scale_stains(tissue(h, e), haematoxylin, eosin).astype(int)
    assert np.abs(output_size - tissue(h * haematoxylin, e * eosin)).max() <= 2


def test_white_stays_white():
    white = np.full((2, 3, 3), 255, np.uint8)
    for _ in range(20):
        np.testing.assert_array_equal(StainJitter(0.9).apply_colours(white, rng_of()), white)


def test_stains_are_separated_as_by_an_exact_inverse():
    """Against the three steps in float64, one colour at a time."""
    image = colours_in([0, 3, 60, 128, 200, 255])
    stains = np.array([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
    for colour, output_size in zip(image[0], scale_stains(image, 1.3, 0.6)[0], strict=True):
        amounts = np.linalg.solve(stains.T, -np.log((colour + 1.0) / 256)) * [1.3, 0.6, 1]
        light = (256 * np.exp(-stains.T @ amounts) - 1).clip(0, 255)
        assert output_size == pytest.approx(light, abs=0.51)


def test_stains_are_drawn_each_for_itself():
    """Of two pixels, one is stained by haematoxylin alone and the other by eosin."""
    image = tissue(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    rng = rng_of()
    output_size = np.array([StainJitter(0.2).apply_colours(image, rng)[0] for _ in range(400)])
    density = -np.log((output_size[:, [0, 1], 1] + 1) / 256) / [HAEMATOXYLIN[1], EOSIN[1]]
    assert density.min(0) == pytest.approx([0.8, 0.8], abs=0.03)
    assert density.max(0) == pytest.approx([1.2, 1.2], abs=0.03)
    assert abs(np.corrcoef(density.T)[0, 1]) < 0.25  # 5 sigma


def blurred_dot(sigma_max, seed):
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    return Blur(sigma_max).apply_colours(image, rng_of(seed))[:, :, 1].astype(float)


def test_blur_spreads_a_dot_as_a_gaussian():
    """Of sigma up to 2, whose middle is 255 / (2 pi sigma²)."""
    middles = np.array([blurred_dot(2.0, seed)[20, 20] for seed in range(100)])
    sigmas = np.sqrt(255 / (2 * np.pi * middles[middles < 100]))
    assert middles.max() == 255  # hardly blurred at all
    assert sigmas.max() == pytest.approx(2, abs=0.1)
    output_size = blurred_dot(2.0, int(middles.argmin()))
    assert output_size.sum() == pytest.approx(255, rel=0.1)
    np.testing.assert_array_equal(output_size, output_size.T)
    np.testing.assert_array_equal(output_size, output_size[::-1])


def test_blur_of_the_least_that_can_be_drawn():
    rng = Mock(random=lambda: 0.0)
    assert Blur(2.0).apply_colours(np.zeros((9, 9, 3), np.uint8), rng).max() == 0


def test_blur_leaves_an_even_image_and_takes_one_of_one_pixel():
    for shape in ((30, 20, 3), (1, 1, 3), (1, 9, 3)):
        image = np.full(shape, 77, np.uint8)
        np.testing.assert_array_equal(Blur(5.0).apply_colours(image, rng_of()), image)


def config(**changes):
    """The default keys of INPUT, but for `changes`; CROP_TYPE stands for CROP.TYPE."""
    inputs = default_config("torchvision").INPUT
    inputs.RANDOM_FLIP = "none"
    for key, value in changes.items():
        node = inputs.CROP if key.startswith("CROP_") else inputs
        node[key.removeprefix("CROP_")] = value
    return CfgNode({"INPUT": inputs})


def test_what_changes_nothing_is_left_out():
    built = build_augmentations(config())
    assert built.crop == ShortestEdgeCrop(None, (0.9, 0.9), (800,), "choice", 1333)
    assert list(built.flips_and_rotations) == []
    assert list(built.colours) == []


def test_the_keys_name_the_augmentations():
    built = build_augmentations(
        config(
            RANDOM_FLIP="both",
            QUARTER_TURNS=True,
            BRIGHTNESS=(0.9, 1.1),
            CONTRAST=(0.8, 1.0),
            BLUR=0.5,
            STAIN_JITTER=0.2,
            CROP_ENABLED=True,
            CROP_TYPE="absolute",
            CROP_SIZE=[144, 100],
            MIN_SIZE_TRAIN=(100, 200),
            MIN_SIZE_TRAIN_SAMPLING="range",
            MAX_SIZE_TRAIN=500,
        )
    )
    assert built.crop == ShortestEdgeCrop("absolute", (144, 100), (100, 200), "range", 500)
    assert built.flips_and_rotations[0] == Flip(True, True)
    assert isinstance(built.flips_and_rotations[1], QuarterTurn)
    assert built.colours == [
        StainJitter(0.2),
        Blur(0.5),
        Brightness(0.9, 1.1),
        Contrast(0.8, 1.0),
    ]
    built = build_augmentations(
        config(ZOOM=2.0, ZOOM_JITTER=0.1, WINDOW=256, RANDOM_FLIP="vertical")
    )
    assert built.crop == FixedScaleCrop(2.0, 0.1, 256)
    assert built.flips_and_rotations == [Flip(False, True)]


def test_a_sample_depends_on_its_generator_alone():
    built = build_augmentations(config(RANDOM_FLIP="both", QUARTER_TURNS=True, CONTRAST=(0.5, 1.5)))
    image = rng_of().integers(0, 256, (40, 50, 3), np.uint8)

    def draw(seed):
        rng = rng_of(seed)
        view = built.sample_view((40, 50), rng, (20.0, 20.0))
        return view, built.apply_colours(view.apply_image(image), rng).tobytes()

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) == 4
