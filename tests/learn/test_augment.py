"""Augmentation: sizes by hand and by Detectron2, orientations by numpy, stains by optics."""

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
    LightJitter,
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


# The crop of the default recipe: half of each side, resized to 608.
HALF = ShortestEdgeCrop("relative", (0.5, 0.5), (608,), "choice", 1333)


def half_crop(**changes):
    return replace(HALF, **changes)


def views(augmentation, size, n=400, centre=None):
    rng = rng_of()
    return [augmentation.sample_view(size, rng, centre) for _ in range(n)]


def window_size(view):
    left, top, right, bottom = view.window
    return bottom - top, right - left


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
def test_every_view_is_within_the_image_and_contains_the_centre(crop, size, seed, fraction):
    centre = fraction and (fraction[0] * size[1], fraction[1] * size[0])
    view = crop.sample_view(size, rng_of(seed), centre)
    left, top, right, bottom = view.window
    assert 0 <= left < right <= size[1]
    assert 0 <= top < bottom <= size[0]
    assert min(view.size) >= 1
    assert view == View(view.window, view.size)  # without flips and rotations
    assert view == crop.sample_view(size, rng_of(seed), centre)
    if centre:
        # Half a pixel may be lost to rounding in a window of one pixel.
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
def test_crops_and_scales_have_the_sizes_of_detectron2(size, crop_type, sides, shortest):
    from detectron2.data import transforms as T

    crop_size = sides if crop_type == "relative" else tuple(math.ceil(900 * side) for side in sides)
    crop = half_crop(crop_type=crop_type, crop_size=crop_size, short_sides=[shortest])
    view = crop.sample_view(size, rng_of())
    expected = np.maximum(T.RandomCrop(crop_type, crop_size).get_crop_size(size), 1).tolist()
    assert list(window_size(view)) == expected
    output_size = T.ResizeShortestEdge.get_output_shape(*expected, shortest, 1333)
    assert list(view.size) == np.maximum(output_size, 1).tolist()


def test_all_positions_of_a_crop_are_equally_likely():
    """A 3 x 2 crop of 4 x 4 pixels has 2 x 3 positions: each about 100 of 600 times."""
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
    assert drawn("choice", (0,)) == {20}  # not resized


def test_relative_range_is_from_the_fraction_to_the_whole():
    crop = half_crop(crop_type="relative_range", crop_size=(0.5, 0.9))
    drawn = np.array([window_size(view) for view in views(crop, (100, 200))])
    assert drawn.min(0) == pytest.approx([50, 180], abs=1)
    assert drawn.max(0) == pytest.approx([100, 200], abs=1)


def test_absolute_range_draws_each_side_up_to_the_image():
    crop = half_crop(crop_type="absolute_range", crop_size=(3, 5))
    drawn = {window_size(view) for view in views(crop, (4, 20))}
    assert drawn == set(itertools.product((3, 4), (3, 4, 5)))


def test_a_view_without_crop_is_the_whole_image():
    view = half_crop(crop_type=None).sample_view((20, 30), rng_of())
    assert view == View((0, 0, 30, 20), (608, 912))


# A window of 512 at scale 2 is 256 image pixels; 100 image pixels are 200 network pixels.
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


def test_fixed_scale_at_extremes():
    assert FixedScaleCrop(100.0, 0.0, 8).sample_view((5, 5), rng_of()).size == (8, 8)
    assert FixedScaleCrop(0.01, 0.0, 8).sample_view((5, 5), rng_of()).size == (1, 1)
    # 10 / 3 is rounded to 3 pixels, which become 10 network pixels and not 9.
    assert FixedScaleCrop(3.0, 0.0, 10).sample_view((3, 2), rng_of()).size == (10, 6)


def test_scales_are_drawn_uniformly_in_their_logarithm():
    """From 1/1.5 to 1.5 half of them are below 1 (5 sigma is 50 of 400)."""
    crop = FixedScaleCrop(1, 0.5, 512)
    drawn = np.array([512 / window_size(view)[0] for view in views(crop, (999, 999))])
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
    window = window_size(view)
    # Half a pixel of the image or of the network may be lost to rounding, in each direction.
    slack = 0.6 / min(window) + 0.6 / min(view.size)
    assert view.size[0] / window[0] == pytest.approx(view.size[1] / window[1], rel=2 * slack)


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
ORIENTATIONS = {
    (np.rot90(flipped, turns).shape, np.rot90(flipped, turns).tobytes()): (bool(flip), turns)
    for flip, flipped in enumerate((PATCH, PATCH[:, ::-1]))
    for turns in range(4)
}


def count_orientations(*augmentations, n=800):
    """Count the orientations, (flipped, quarter turns), of an image of six pixels."""
    rng = rng_of()
    counts: Counter[tuple[bool, int]] = Counter()
    for _ in range(n):
        view = WHOLE
        for augmentation in augmentations:
            view = augmentation.sample_view(view, rng)
        image = view.apply_image(PATCH)
        counts[ORIENTATIONS[image.shape, image.tobytes()]] += 1
    return counts


# A vertical flip is a horizontal flip, then half a turn.
@pytest.mark.parametrize(
    ("augmentations", "expected"),
    [
        ([Flip(True, False)], {(False, 0), (True, 0)}),
        ([Flip(False, True)], {(False, 0), (True, 2)}),
        ([Flip(True, True)], {(False, 0), (True, 0), (True, 2), (False, 2)}),
        ([QuarterTurn()], {(False, turns) for turns in range(4)}),
        ([Flip(True, True), QuarterTurn()], set(ORIENTATIONS.values())),
        ([Flip(False, True), QuarterTurn()], set(ORIENTATIONS.values())),
    ],
)
def test_the_possible_orientations_are_equally_likely(augmentations, expected):
    counts = count_orientations(*augmentations)
    assert set(counts) == expected
    mean = 800 / len(expected)
    assert all(abs(count - mean) < 5 * math.sqrt(mean) for count in counts.values())


def test_brightness_by_hand():
    image = np.array([[[0, 10, 255], [100, 101, 200]]], np.uint8)
    result = Brightness(1.5, 1.5).apply_colours(image, rng_of())
    assert result.tolist() == [[[0, 15, 255], [150, 151, 255]]]
    assert image[0, 0, 1] == 10


def test_contrast_by_hand():
    """The mean of 60, 100 and 200 is 120; halfway to it are 90, 110 and 160."""
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
    """Return an image of all colours with levels in `axis`."""
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
def test_factors_of_one_change_no_colour(image):
    np.testing.assert_array_equal(scale_stains(image, 1.0, 1.0), image)
    np.testing.assert_array_equal(StainJitter(0.0).apply_colours(image, rng_of()), image)


def tissue(haematoxylin, eosin, haematoxylin_colour=HAEMATOXYLIN, eosin_colour=EOSIN):
    """Return the light that passes through these densities, by the Beer-Lambert law."""
    density = np.multiply.outer(haematoxylin, haematoxylin_colour)
    density += np.multiply.outer(eosin, eosin_colour)
    return np.rint(256 * np.exp(-density) - 1).astype(np.uint8)


@given(st.floats(0, 1.5), st.floats(0, 1.5))
@settings(max_examples=60, deadline=None)
def test_stains_are_scaled_as_their_densities(haematoxylin, eosin):
    """To two levels, since the input image is rounded."""
    h, e = np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 9))
    result = scale_stains(tissue(h, e), haematoxylin, eosin).astype(int)
    assert np.abs(result - tissue(h * haematoxylin, e * eosin)).max() <= 2


FACTORS = st.tuples(*[st.floats(0, 1.4)] * 3)


@given(FACTORS, FACTORS)
@settings(max_examples=60, deadline=None)
def test_stains_of_other_colours(haematoxylin, eosin):
    """The amounts of the stains stay, what they absorb of each colour does not."""
    h, e = np.meshgrid(np.linspace(0, 0.9, 7), np.linspace(0, 0.9, 7))
    result = scale_stains(tissue(h, e), haematoxylin, eosin).astype(int)
    colours = np.multiply(haematoxylin, HAEMATOXYLIN), np.multiply(eosin, EOSIN)
    assert np.abs(result - tissue(h, e, *colours)).max() <= 3


def test_white_stays_white():
    white = np.full((2, 3, 3), 255, np.uint8)
    for seed in range(20):
        result = StainJitter(0.9, 0.9).apply_colours(white, rng_of(seed))
        np.testing.assert_array_equal(result, white)


def test_stains_are_separated_as_by_an_exact_inverse():
    """The oracle computes the three steps in float64, one colour at a time."""
    image = colours_in([0, 3, 60, 128, 200, 255])
    stains = np.array([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
    for colour, result in zip(image[0], scale_stains(image, 1.3, 0.6)[0], strict=True):
        amounts = np.linalg.solve(stains.T, -np.log((colour + 1.0) / 256)) * [1.3, 0.6, 1]
        light = (256 * np.exp(-stains.T @ amounts) - 1).clip(0, 255)
        assert result == pytest.approx(light, abs=0.51)


def test_stains_are_drawn_independently():
    """One pixel is stained by haematoxylin only, the other by eosin only."""
    image = tissue(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    rng = rng_of()
    results = np.array([StainJitter(0.2).apply_colours(image, rng)[0] for _ in range(400)])
    density = -np.log((results[:, [0, 1], 1] + 1) / 256) / [HAEMATOXYLIN[1], EOSIN[1]]
    assert density.min(0) == pytest.approx([0.8, 0.8], abs=0.03)
    assert density.max(0) == pytest.approx([1.2, 1.2], abs=0.03)
    assert abs(np.asarray(np.corrcoef(density.T))[0, 1]) < 0.25  # 5 sigma


def test_the_colours_of_stains_are_drawn_independently():
    """One pixel is stained by haematoxylin only, the other by eosin only."""
    image = tissue(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    rng = rng_of()
    results = np.array([StainJitter(0.0, 0.3).apply_colours(image, rng)[0] for _ in range(400)])
    density = -np.log((results + 1) / 256) / [HAEMATOXYLIN, EOSIN]
    factors = density.reshape(400, 6)[:, [0, 1, 2, 4]]  # eosin is too pale in red and blue
    assert factors.min(0) == pytest.approx([0.7] * 4, abs=0.03)
    assert factors.max(0) == pytest.approx([1.3] * 4, abs=0.03)
    correlations = np.corrcoef(factors.T) - np.eye(4)
    assert np.abs(correlations).max() < 0.25  # 5 sigma


def test_light_dims_each_colour_by_a_factor_of_its_own():
    image = np.array([[[200, 200, 200], [100, 100, 100], [0, 0, 0]]], np.uint8)
    rng = rng_of()
    results = np.array([LightJitter(0.3).apply_colours(image, rng)[0] for _ in range(400)])
    factors = results[:, 0] / 200
    assert factors.min(0) == pytest.approx([0.7] * 3, abs=0.02)
    assert factors.max(0) == pytest.approx([1.0] * 3, abs=0.02)
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.25
    assert np.abs(results[:, 1] - 100 * factors).max() <= 0.8  # both are rounded
    assert not results[:, 2].any()
    np.testing.assert_array_equal(LightJitter(0.0).apply_colours(image, rng), image)


def blurred_dot(sigma_max, seed):
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    return Blur(sigma_max).apply_colours(image, rng_of(seed))[:, :, 1].astype(float)


def test_blur_spreads_a_dot_as_a_gaussian():
    """The maximum is 255 / (2 pi sigma²), with sigma up to 2."""
    maxima = np.array([blurred_dot(2.0, seed)[20, 20] for seed in range(100)])
    sigmas = np.sqrt(255 / (2 * np.pi * maxima[maxima < 100]))
    assert maxima.max() == 255  # hardly blurred
    assert sigmas.max() == pytest.approx(2, abs=0.1)
    result = blurred_dot(2.0, int(maxima.argmin()))
    assert result.sum() == pytest.approx(255, rel=0.1)
    np.testing.assert_array_equal(result, result.T)
    np.testing.assert_array_equal(result, result[::-1])


def test_blur_with_the_smallest_random_number():
    rng = Mock(random=lambda: 0.0)
    assert Blur(2.0).apply_colours(np.zeros((9, 9, 3), np.uint8), rng).max() == 0


def test_blur_leaves_uniform_images_of_any_size():
    for shape in ((30, 20, 3), (1, 1, 3), (1, 9, 3)):
        image = np.full(shape, 77, np.uint8)
        np.testing.assert_array_equal(Blur(5.0).apply_colours(image, rng_of()), image)


def config(**changes):
    """Return the default keys of INPUT with `changes`; CROP_TYPE is CROP.TYPE."""
    inputs = default_config("torchvision").INPUT
    inputs.RANDOM_FLIP = "none"
    for key, value in changes.items():
        node = inputs.CROP if key.startswith("CROP_") else inputs
        node[key.removeprefix("CROP_")] = value
    return CfgNode({"INPUT": inputs})


def test_augmentations_that_change_nothing_are_not_built():
    built = build_augmentations(config())
    assert built.crop == ShortestEdgeCrop(None, (0.9, 0.9), (800,), "choice", 1333)
    assert list(built.flips_and_rotations) == []
    assert list(built.colours) == []


def test_augmentations_are_built_from_the_config():
    crop = {"CROP_ENABLED": True, "CROP_TYPE": "absolute", "CROP_SIZE": [144, 100]}
    sizes = {"MIN_SIZE_TRAIN": (100, 200), "MIN_SIZE_TRAIN_SAMPLING": "range"}
    flips = {"RANDOM_FLIP": "both", "QUARTER_TURNS": True, "MAX_SIZE_TRAIN": 500}
    colours = {"BRIGHTNESS": (0.9, 1.1), "CONTRAST": (0.8, 1.0), "BLUR": 0.5, "STAIN_JITTER": 0.2}
    colours |= {"LIGHT_JITTER": 0.1}
    built = build_augmentations(config(**crop, **sizes, **flips, **colours))
    assert built.crop == ShortestEdgeCrop("absolute", (144, 100), (100, 200), "range", 500)
    assert built.flips_and_rotations[0] == Flip(True, True)
    assert isinstance(built.flips_and_rotations[1], QuarterTurn)
    stain, light, lens = StainJitter(0.2, 0.0), LightJitter(0.1), Blur(0.5)
    assert built.colours == [stain, light, lens, Brightness(0.9, 1.1), Contrast(0.8, 1.0)]
    built = build_augmentations(config(STAIN_COLOUR_JITTER=0.3))
    assert built.colours == [StainJitter(0.0, 0.3)]
    fixed = {"ZOOM": 2.0, "ZOOM_JITTER": 0.1, "WINDOW": 256}
    built = build_augmentations(config(**fixed, RANDOM_FLIP="vertical"))
    assert built.crop == FixedScaleCrop(2.0, 0.1, 256)
    assert built.flips_and_rotations == [Flip(False, True)]


def test_a_sample_depends_on_its_generator_only():
    built = build_augmentations(config(RANDOM_FLIP="both", QUARTER_TURNS=True, CONTRAST=(0.5, 1.5)))
    image = rng_of().integers(0, 256, (40, 50, 3), np.uint8)

    def draw(seed):
        rng = rng_of(seed)
        view = built.sample_view((40, 50), rng, (20.0, 20.0))
        return view, built.apply_colours(view.apply_image(image), rng).tobytes()

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) == 4
