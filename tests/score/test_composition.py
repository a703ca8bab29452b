"""Counts, densities and shares of classes, by image and in all, with intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg.score.composition import composition, composition_rows
from cellseg.score.tables import composition_as_text


def of_counts(counts, mpp=(1.0, 1.0), area_px=(1e6, 1e6)):
    """Return the composition of images with so many cells of each class."""
    n_classes = len(counts[0]) if len(counts) else 2
    mpp, area_px = mpp[: len(counts)], area_px[: len(counts)]
    classes = [np.repeat(np.arange(n_classes), row) for row in counts]
    return composition(classes, n_classes, area_px, mpp)


def test_two_images_by_hand():
    # 1000 x 1000 px of 0.5 µm are 0.25 mm², 2000 x 1000 px of 1 µm are 2 mm².
    found = of_counts([[3, 1], [0, 4]], area_px=[1e6, 2e6], mpp=[0.5, 1.0])
    np.testing.assert_array_equal(found.count.by_image, [[3, 1, 4], [0, 4, 4]])
    np.testing.assert_array_equal(found.count.total, [3, 5, 8])
    np.testing.assert_allclose(found.area_mm2, [0.25, 2])
    np.testing.assert_allclose(found.density_per_mm2.by_image, [[12, 4, 16], [0, 2, 2]])
    np.testing.assert_allclose(found.density_per_mm2.total, [3 / 2.25, 5 / 2.25, 8 / 2.25])
    expected = np.array([[0.75, 0.25, 1], [0, 1, 1]])
    np.testing.assert_allclose(found.share.by_image, expected)
    np.testing.assert_allclose(found.share.total, [3 / 8, 5 / 8, 1])
    assert np.isnan(found.mean_area_px.total).all()


def test_intervals_are_those_of_all_resamples_of_two_images():
    # Of two images, the 4 resamples are A A, A B, B A, B B: 2.5 % and 97.5 % are A A and B B.
    found = of_counts([[3, 1], [0, 4]], area_px=[1e6, 2e6])
    np.testing.assert_allclose(found.share.low, [0, 0.25, 1])
    np.testing.assert_allclose(found.share.high, [0.75, 1, 1])
    np.testing.assert_allclose(found.density_per_mm2.low, [0, 1, 2])
    np.testing.assert_allclose(found.density_per_mm2.high, [3, 2, 4])
    np.testing.assert_allclose(found.count.low, [0, 2, 8])


def test_unknown_resolution_leaves_only_densities_out():
    found = of_counts([[2, 2], [10, 0]], mpp=[1.0, None], area_px=[1e6, 5e6])
    assert np.isnan(found.density_per_mm2.by_image[1]).all()
    np.testing.assert_allclose(found.density_per_mm2.total, [2, 2, 4])  # of the first image
    assert np.isnan([found.density_per_mm2.low, found.density_per_mm2.high]).all()
    assert found.share.low.tolist() == [0.5, 0, 1]
    np.testing.assert_allclose(found.share.total, [12 / 14, 2 / 14, 1])
    found = of_counts([[2, 2], [10, 0]], mpp=[None, None], area_px=[1e6, 5e6])
    for values in (found.density_per_mm2.total, found.density_per_mm2.low, found.area_mm2):
        assert np.isnan(values).all()


def test_mean_areas():
    found = composition(
        [np.array([0, 1, 1]), np.array([1])], 2, [100, 100], [0.5, None],
        [np.array([10, 20, 40]), np.array([90])],
    )  # fmt: skip
    np.testing.assert_allclose(
        found.mean_area_px.by_image, np.array([[10, 30, 70 / 3], [np.nan, 90, 90]])
    )
    np.testing.assert_allclose(found.mean_area_px.total, [10, 50, 40])
    np.testing.assert_allclose(found.mean_area_um2.total, [2.5, 7.5, 70 / 12])
    # The first class is in one image, whose cells all resamples with it have.
    np.testing.assert_allclose(found.mean_area_px.low, [np.nan, 30, 70 / 3])
    np.testing.assert_allclose(found.mean_area_px.high, [np.nan, 90, 90])
    assert np.isnan([found.mean_area_um2.low, found.mean_area_um2.high]).all()


@pytest.mark.parametrize("counts", [[], [[0, 0]], [[0, 0], [0, 0]]])
def test_no_cells(counts):
    found = of_counts(np.array(counts, int).reshape(-1, 2))
    np.testing.assert_array_equal(found.count.total, [0, 0, 0])
    assert np.isnan(found.share.total).all()
    assert np.isnan(found.mean_area_px.low).all()


def test_one_image_has_no_interval():
    found = of_counts([[3, 1]])
    np.testing.assert_allclose(found.share.total, [0.75, 0.25, 1])
    assert np.isnan([found.share.low, found.count.high, found.density_per_mm2.low]).all()


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=5))
def test_totals_do_not_depend_on_the_order_and_are_within_the_interval(counts):
    every = {"mpp": [1.0] * len(counts), "area_px": [1e6] * len(counts)}
    found, turned = of_counts(counts, **every), of_counts(counts[::-1], **every)
    for name in ("count", "share", "density_per_mm2"):
        one, other = getattr(found, name), getattr(turned, name)
        np.testing.assert_allclose(one.total, other.total)
        known = ~np.isnan(one.low)
        assert (one.low[known] <= one.high[known]).all()
    shares = found.share.by_image[found.count.by_image[:, -1] > 0]
    np.testing.assert_allclose(shares[:, :-1].sum(axis=1), 1)


def test_rows_of_a_table():
    found = of_counts([[3, 1], [0, 0]], mpp=[1.0, None])
    rows = composition_rows(found, ["a", "b"], ["x", "y"])
    assert [(row["image"], row["class"]) for row in rows] == [
        (image, class_) for image in ("a", "b", "all") for class_ in ("x", "y", "all")
    ]
    by_name = {(row["image"], row["class"]): row for row in rows}
    assert by_name["a", "x"]["density_per_mm2"] == 3
    assert by_name["b", "x"]["density_per_mm2"] is by_name["b", "x"]["share"] is None
    assert by_name["a", "x"]["share_low"] is None
    assert by_name["all", "all"]["count"] == 4
    assert by_name["all", "all"]["area_px"] == 2e6
    assert by_name["all", "all"]["area_mm2"] == 1
    assert type(by_name["a", "x"]["count"]) is int


def test_an_image_and_a_class_with_the_name_of_the_totals():
    found = of_counts([[3, 1], [0, 2]])
    for images, classes in ((["all", "b"], ["x", "all"]), (["all", "all (total)"], ["all", "x"])):
        rows = composition_rows(found, images, classes)
        counts = {(row["image"], row["class"]): row["count"] for row in rows}
        assert len(counts) == len(rows) == 9
        assert [counts["all", name] for name in classes] == [3, 1]
        assert rows[-1]["count"] == 6
        assert {row["class"] for row in rows} == {*classes, "all (total)"}
    text = composition_as_text(found, ["all", "b"], ["x", "all"])
    names = [line.split("  ")[0] for line in text.split("\n\n")[0].splitlines()[2:]]
    assert names == ["x", "all", "all (total)"]


def test_tables_of_text():
    found = of_counts([[3, 1], [0, 4]], area_px=[1e6, 2e6])
    text = composition_as_text(found, ["a", "b"], ["x", "y"])
    (row,) = (line.split() for line in text.splitlines() if line.startswith("x "))
    assert row[1:4] == ["3", "[0,", "6]"]
    assert "3 mm²" in text
    assert "too narrow" in text
    assert sum(line.startswith(("a ", "b ")) for line in text.splitlines()) == 2
    found = of_counts([[3, 1], [0, 4]], mpp=[1.0, None])
    assert "1 of them" in composition_as_text(found, ["a", "b"], ["x", "y"])
    found = of_counts([[3, 1]] * 2, mpp=[None, None])
    text = composition_as_text(found, ["a", "b"], ["x", "y"])
    assert "resolution unknown" in text
    assert "mm²" not in text.splitlines()[1]
    many = composition([np.array([0])] * 30, 1, [1e6] * 30, [0.5] * 30)
    text = composition_as_text(many, [f"i{n}" for n in range(30)], ["x"])
    assert "too narrow" not in text
    assert "i19 " in text
    assert "i20 " not in text
