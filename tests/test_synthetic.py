"""The synthetic data set: images match their ground truth, files have NYCU HW3's formats."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellseg.synthetic import MARKER, MEDIAN_AREAS, SIZES, draw_tissue, write_dataset
from tests.read.refusal import refusal


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def megapixel():
    return draw_tissue(1000, 1000, rng(3), cells_per_megapixel=1500, scale=0.6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "data"
    write_dataset(folder, n_train=7, n_test=3, seed=5, n_empty=1)
    return folder


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------ draw_tissue


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    seed=st.integers(0, 10**6),
    density=st.sampled_from([0, 300, 1000, 20000]),
    scale=st.sampled_from([0.1, 0.4, 1.0, 2.5]),
)
@settings(max_examples=60, deadline=None)
def test_ground_truth_of_any_picture_is_valid(height, width, seed, density, scale):
    image, labels = draw_tissue(height, width, rng(seed), density, scale)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert len(labels) == 4
    assert all(m.shape == (height, width) and m.dtype == np.int32 for m in labels)
    # No pixel is in two cells; ids continue across the classes without gaps.
    assert np.sum([m > 0 for m in labels], axis=0).max() <= 1
    ids = [np.unique(m[m != 0]) for m in labels]
    assert np.concatenate(ids).tolist() == list(range(1, sum(map(len, ids)) + 1))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_smallest_and_thinnest(size):
    height, width = size
    image, labels = draw_tissue(height, width, rng(), cells_per_megapixel=50000)
    assert image.shape == (height, width, 3)
    assert all(m.shape == size for m in labels)


def test_same_seed_same_picture_other_seed_other_picture():
    image, labels = draw_tissue(80, 100, rng(1))
    again, labels_again = draw_tissue(80, 100, rng(1))
    other, other_labels = draw_tissue(80, 100, rng(2))
    assert np.array_equal(image, again)
    assert all(map(np.array_equal, labels, labels_again))
    assert not np.array_equal(image, other)
    assert not all(map(np.array_equal, labels, other_labels))


def test_number_of_cells(megapixel):
    _, labels = megapixel
    assert 1350 <= labels[3].max() <= 1501
    _, sparse = draw_tissue(1000, 1000, rng(3), cells_per_megapixel=200)
    assert sparse[3].max() in (200, 201)


def test_areas_are_those_of_nycu_hw3_times_the_scale_squared(megapixel):
    _, labels = megapixel
    for label_map, area in zip(labels, MEDIAN_AREAS, strict=True):
        inner = label_map[60:-60, 60:-60]
        areas = np.unique(inner[inner > 0], return_counts=True)[1]
        assert np.median(areas) == pytest.approx(area * 0.6**2, rel=0.15)


def test_classes_differ_in_stain(megapixel):
    image, labels = megapixel
    light = image.mean(axis=2)
    epithelial, lymphocyte, neutrophil, macrophage = (light[m > 0].mean() for m in labels)
    background = light[sum(labels) == 0].mean()
    assert lymphocyte < epithelial - 30
    assert neutrophil < epithelial - 30
    assert epithelial < macrophage - 15
    assert epithelial < background - 20
    # Neutrophils have more eosin than lymphocytes, which absorbs green.
    redness = [image[m > 0].mean(axis=0) @ [1, -1, 0] for m in (labels[1], labels[2])]
    assert redness[1] > redness[0] + 10


def test_tissue_looks_like_haematoxylin_and_eosin(megapixel):
    image, labels = megapixel
    red, green, blue = image[sum(labels) == 0].mean(axis=0)
    assert red > green + 20  # pink …
    assert blue > green + 20
    red, green, blue = image[labels[1] > 0].mean(axis=0)
    assert blue > red + 20 > green + 40  # … and blue-purple


def test_cells_touch_are_cut_are_in_pieces_and_have_holes(megapixel):
    _, labels = megapixel
    cells = sum(labels)
    touching = (cells[1:] != cells[:-1]) & (cells[1:] > 0) & (cells[:-1] > 0)
    assert touching.sum() > 200
    assert len(np.unique(np.concatenate([cells[0], cells[-1], cells[:, 0], cells[:, -1]]))) > 20
    eight = np.ones((3, 3))
    boxes = ndimage.find_objects(cells)
    pieces = [ndimage.label(cells[b] == i, eight)[1] for i, b in enumerate(boxes, 1)]
    first, last = labels[2][labels[2] > 0].min(), labels[2].max()
    assert np.mean([n > 1 for n in pieces[first - 1 : last]]) > 0.04  # lobes apart
    assert np.mean([n > 1 for n in pieces[: first - 1]]) < 0.03
    holes = sum(
        (ndimage.binary_fill_holes(cells[b] == i) != (cells[b] == i)).any()
        for i, b in enumerate(boxes, 1)
    )
    assert 1 <= holes < 0.1 * len(boxes)


def test_class_of_weight_zero_does_not_occur():
    _, labels = draw_tissue(200, 200, rng(), mix=(1, 0, 0, 2))
    assert [bool(m.any()) for m in labels] == [True, False, False, True]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("height", 0), ("width", -1), ("scale", 0)],
        *[("cells_per_megapixel", value) for value in (-1, float("nan"))],
        *[("mix", value) for value in ((1, 1, 1), (0, 0, 0, 0), (1, 1, 1, -1))],
    ],
)
def test_invalid_arguments(name, value):
    with pytest.raises(ValueError):
        draw_tissue(**{"height": 20, "width": 20, "rng": rng(), name: value})


# ------------------------------------------------------------------ write_dataset


def test_layout(dataset):
    folders = {"train", "test_release", "test_masks"}
    assert {p.name for p in dataset.iterdir()} == {*folders, "test_image_name_to_ids.json", MARKER}
    train = sorted((dataset / "train").iterdir())
    assert len(train) == 7
    for image in train:
        assert {p.name for p in image.iterdir()} <= {"image.tif"} | {
            f"class{k}.tif" for k in (1, 2, 3, 4)
        }
    test = json.loads((dataset / "test_image_name_to_ids.json").read_text())
    assert [entry["id"] for entry in test] == [1, 2, 3]
    names = [entry["file_name"] for entry in test]
    assert names == sorted(p.name for p in (dataset / "test_release").iterdir())
    assert [Path(n).stem for n in names] == sorted(
        p.name for p in (dataset / "test_masks").iterdir()
    )
    for entry in test:
        assert list(entry) == ["file_name", "id", "height", "width"]
        shape = tifffile.imread(dataset / "test_release" / entry["file_name"]).shape
        assert shape == (entry["height"], entry["width"], 4)
        for path in (dataset / "test_masks" / Path(entry["file_name"]).stem).iterdir():
            assert tifffile.imread(path).shape == shape[:2]


def test_format_of_images(dataset):
    paths = [*dataset.glob("train/*/image.tif"), *dataset.glob("test_release/*.tif")]
    assert len(paths) == 10
    for path in paths:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            assert len(file.pages) == 1
            assert page.compression == tifffile.COMPRESSION.LZW
            assert page.predictor == tifffile.PREDICTOR.HORIZONTAL
            assert page.samplesperpixel == 4
            assert page.extrasamples == (tifffile.EXTRASAMPLE.UNASSALPHA,)
            assert page.photometric == tifffile.PHOTOMETRIC.RGB
            rgba = page.asarray()
        assert rgba.dtype == np.uint8
        assert (rgba[..., 3] == 255).all()
    shapes = {tifffile.imread(p).shape[:2] for p in dataset.glob("train/*/image.tif")}
    assert shapes == set(SIZES)


def test_format_of_masks(dataset):
    images = [*dataset.glob("train/*"), *dataset.glob("test_masks/*")]
    lacking = 0
    for image in images:
        ids = []
        for path in sorted(image.glob("class*.tif")):
            with tifffile.TiffFile(path) as file:
                assert file.pages[0].compression == tifffile.COMPRESSION.NONE
                values = file.pages[0].asarray()
            assert values.dtype == np.float64
            assert values.any()  # a class that doesn't occur has no file
            ids += np.unique(values[values != 0]).tolist()
        assert ids == list(range(1, len(ids) + 1))
        lacking += 0 < len(list(image.glob("class*.tif"))) < 4
    assert lacking >= 2
    assert sum(not list(image.glob("class*.tif")) for image in images) == 1  # n_empty


def test_same_arguments_same_bytes(dataset, tmp_path):
    write_dataset(tmp_path / "again", n_train=7, n_test=3, seed=5, n_empty=1)
    assert bytes_of(tmp_path / "again") == bytes_of(dataset)
    write_dataset(tmp_path / "other", n_train=7, n_test=3, seed=6, n_empty=1)
    assert not set(bytes_of(tmp_path / "other").values()) & set(bytes_of(dataset).values())


def test_more_images_leave_the_first_ones_unchanged(tmp_path):
    write_dataset(tmp_path / "small", n_train=1, n_test=1, sizes=[(20, 30)])
    write_dataset(tmp_path / "large", n_train=2, n_test=3, sizes=[(20, 30)])
    small, large = bytes_of(tmp_path / "small"), bytes_of(tmp_path / "large")
    images = {name for name in small if name.endswith(".tif")}
    assert images
    assert all(large[name] == small[name] for name in images)


def test_scale_and_density(tmp_path):
    write_dataset(tmp_path, 1, 0, sizes=[(200, 200)], cells_per_megapixel=250, scale=0.3)
    masks = [tifffile.imread(p) for p in tmp_path.glob("train/*/class*.tif")]
    assert max(m.max() for m in masks) in (10, 11)
    assert sum((m > 0).sum() for m in masks) < 11 * 2356 * 0.3**2 * 2
    assert json.loads((tmp_path / "test_image_name_to_ids.json").read_text()) == []


def test_an_earlier_set_is_replaced(tmp_path):
    folder = tmp_path / "data"
    write_dataset(folder, 1, 1, seed=1, sizes=[(20, 20)])
    earlier = bytes_of(folder)
    write_dataset(folder, 1, 1, seed=2, sizes=[(20, 20)])
    assert len(list((folder / "train").iterdir())) == 1
    assert bytes_of(folder) != earlier
    assert [p.name for p in tmp_path.iterdir()] == ["data"]  # no temporary folder left


def test_other_files_are_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    message = refusal(write_dataset, tmp_path, 1, 1, sizes=[(20, 20)])
    assert message.startswith(f"{tmp_path}: ")
    assert MARKER in message
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_instead_of_the_folder(tmp_path):
    path = tmp_path / "data"
    path.write_text("")
    assert "a file, expected a folder" in refusal(write_dataset, path, 1, 1, sizes=[(20, 20)])
    assert "can't be written" in refusal(write_dataset, path / "below", 1, 1, sizes=[(20, 20)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_to_write(tmp_path):
    tmp_path.chmod(0o500)
    message = refusal(write_dataset, tmp_path / "data", 1, 1, sizes=[(20, 20)])
    assert "can't be written" in message


def test_a_failed_set_leaves_the_earlier_one(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    write_dataset(folder, 1, 1, sizes=[(20, 20)])
    earlier = bytes_of(folder)

    def full_disk(*_args, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full_disk)
    assert "No space left on device" in refusal(write_dataset, folder, 2, 2, sizes=[(20, 20)])
    assert bytes_of(folder) == earlier
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
