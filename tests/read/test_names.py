"""Names of images."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg.read.names import name_images, short_name


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
