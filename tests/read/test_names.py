"""Names of images."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg.read.names import name_images, name_outputs_uniquely, short_name


@pytest.mark.parametrize(
    ("file_names", "names"),
    [
        (["train/a/image.tif", "train/b/IMAGE.TIFF"], ["a", "b"]),
        (["x/one.png", "two.tif"], ["one", "two"]),
        (["image.tif"], ["image"]),
        (["a/x.png", "b/x.png"], ["a/x.png", "b/x.png"]),
        (["x.png", "x.tif", "y.png"], ["x.png", "x.tif", "y.png"]),
        ([], []),
    ],
)
def test_names(file_names, names):
    assert name_images(file_names) == names


@given(st.lists(st.text("ab/.", min_size=1), unique=True))
def test_names_are_unique(file_names):
    assert len(set(name_images(file_names))) == len(file_names)


def test_short_names():
    names = ["train/a/image.tif", "train/a.png", "a.tif", "corrected/a.png"]
    assert list(map(short_name, names)) == ["a", "train/a.png", "a.tif", "corrected/a.png"]
    names = [
        "train/Images/a.tif",
        "train/tissue images/b.png",
        "train/c/d.png",
        "train/e/f/Image.TIF",
    ]
    assert list(map(short_name, names)) == ["a.tif", "b.png", "train/c/d.png", "f"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([], []),
        (["/d/s.svs"], ["s"]),
        (["/d/s/image.tif"], ["s"]),
        (["/d/a.svs", "/e/b.svs"], ["a", "b"]),
        (["/d/s.svs", "/e/s.svs"], ["d/s", "e/s"]),
        (["/c/d/s.svs", "/c/e/s.svs", "/x/e/s.svs"], ["d/s", "c/e/s", "x/e/s"]),
        (["/d/s.svs", "/d/s.tif"], ["s.svs", "s.tif"]),
        (["/d/s.svs", "/d/s.tif", "/d/s.svs.tif"], ["s.svs", "s.tif", "s.svs.tif"]),
        (["/d/s.svs", "/d/s.tif", "/e/s.svs.tif"], ["d/s.svs", "s.tif", "e/s.svs"]),
        (
            ["/d/s/image.tif", "/d/s.tif", "/d/image.tif.png"],
            ["s/image.tif", "s.tif", "d/image.tif"],
        ),
        (["/d/s.svs", "/d/s.svs"], ["d/s.svs", "d/s.svs"]),  # the same file
    ],
)
def test_output_names(paths, names):
    assert name_outputs_uniquely("table", paths) == names


@pytest.mark.parametrize(
    "paths",
    [
        ["/d/a/s.tif", "/d/a\\s.tif"],
        ["/d/s.tif", "/d/S.TIF", "/d/s-043a7187.tif"],
        ["/d/con.tif", "/d/CON.tif", "/e/.tif", "/e/..tif"],
    ],
)
def test_output_names_that_need_a_hash(paths):
    names = name_outputs_uniquely("table", paths)
    assert len({name.casefold() for name in names}) == len(paths)


PARTS = ("a", "A", "a.b", "a.b.c", "image.b", "image", "con", ":", "..", " ", "ß", "ss")
ODD_PATHS = st.builds(
    lambda parts, separator: "/d/" + separator.join(parts),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=4),
    st.sampled_from(["/", "\\", "//"]),
)


@given(st.lists(ODD_PATHS, max_size=6, unique=True), st.data())
def test_output_names_differ_in_more_than_case(paths, data):
    names = name_outputs_uniquely("table", paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert all(part.strip(".") for name in names for part in name.split("/"))
    assert name_outputs_uniquely("table", paths) == names
    # A file that is listed again has the name of its first row.
    again = data.draw(st.permutations(paths)) if paths else []
    twice = name_outputs_uniquely("table", paths + again)
    assert len({name.casefold() for name in twice}) == len(paths)
    assert all(
        twice[paths.index(path)] == name
        for path, name in zip(again, twice[len(paths) :], strict=True)
    )
