"""Label maps: exact pixels with strips of any height, and the rule for overlaps."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import cellseg.write.labels
from cellseg.rle import MaskRuns, decode, encode, label_map_to_runs
from cellseg.write.labels import paint_strips, write_labels
from tests.read.refusal import refusal


def masks_of(labels):
    values, mask_runs = label_map_to_runs(np.asarray(labels))
    return values, encode(mask_runs)


def rle_of(rows):
    return masks_of(rows)[1][0]


def painted(mask_runs, best_first, rows):
    return np.concatenate(list(paint_strips(mask_runs, np.asarray(best_first), rows)))


label_maps = arrays(
    np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4)
)


@given(label_maps, st.integers(1, 9))
def test_strips_of_any_height(labels, rows):
    values, mask_runs = label_map_to_runs(labels)
    strips = list(paint_strips(mask_runs, np.arange(len(mask_runs)), rows))
    assert all(strip.dtype == np.int32 and len(strip) <= rows for strip in strips)
    np.testing.assert_array_equal(np.append(0, values)[np.concatenate(strips)], labels)


@given(
    st.lists(arrays(bool, (5, 7)), max_size=5).flatmap(
        lambda masks: st.tuples(st.just(masks), st.permutations(range(len(masks))))
    ),
    st.integers(1, 5),
)
def test_overlaps_are_those_of_painting_one_by_one(masks_and_order, rows):
    masks, best_first = masks_and_order
    parts = [label_map_to_runs(mask)[1] for mask in masks]
    sizes = [len(part.starts) for part in parts]
    mask_runs = MaskRuns(
        (5, 7),
        np.concatenate([np.zeros(0, np.int64), *(part.starts for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.ends for part in parts)]),
        np.append(0, np.cumsum(sizes)).astype(np.int64),
    )
    expected = np.zeros((5, 7), np.int32)
    for index in reversed(best_first):
        expected[masks[index]] = index + 1
    np.testing.assert_array_equal(
        painted(mask_runs, np.array(best_first, np.int64), rows), expected
    )


def test_many_overlapping_masks_are_painted_in_portions(monkeypatch):
    monkeypatch.setattr(cellseg.write.labels, "_STRIP", 10)
    labels = np.ones((6, 6), np.int32)
    mask_runs = decode([rle_of(labels)] * 7, (6, 6))
    np.testing.assert_array_equal(painted(mask_runs, [3, 0, 1, 2, 4, 5, 6], 4), 4 * labels)


def test_files_are_in_the_layout_of_annotation(tmp_path):
    first = np.array([[1, 1, 0], [0, 0, 2]])
    third = np.array([[0, 0, 5], [0, 0, 0]])
    masks = [masks_of(third)[1][0], *masks_of(first)[1]]
    assert write_labels(tmp_path, (2, 3), masks, np.array([2, 0, 0])) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["class1.tif", "class3.tif"]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "class1.tif"), first)
    # Ids continue: class 1 has 1 and 2, class 3 has 3.
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "class3.tif"), third // 5 * 3)
    with tifffile.TiffFile(tmp_path / "class1.tif") as file:
        page = file.pages[0]
        assert page.dtype == np.int32
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert len(file.pages) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (33, 29)])
@pytest.mark.parametrize("strip", [1, 64, 1 << 20])
def test_sizes_and_strips(tmp_path, monkeypatch, size, strip):
    monkeypatch.setattr(cellseg.write.labels, "_STRIP", strip)
    labels = np.random.default_rng(0).integers(0, 4, size, dtype=np.int32)
    labels[-1, -1] = 4
    values, masks = masks_of(labels)
    write_labels(tmp_path, size, masks, np.zeros(len(masks), int))
    got = tifffile.imread(tmp_path / "class1.tif").reshape(size)
    np.testing.assert_array_equal(np.append(0, values)[got], labels)


def test_pixels_go_to_the_higher_score_and_ids_stay_in_order(tmp_path):
    left, right = rle_of([[1, 1, 0]]), rle_of([[0, 1, 1]])
    scores = np.array([0.2, 0.9], np.float32)
    write_labels(tmp_path, (1, 3), [left, right], np.array([0, 0]), scores)
    assert tifffile.imread(tmp_path / "class1.tif").reshape(-1).tolist() == [1, 2, 2]


def test_without_scores_and_at_equal_ones_pixels_go_to_the_earlier(tmp_path):
    left, right = rle_of([[1, 1, 0]]), rle_of([[0, 1, 1]])
    for scores in (None, np.array([0.5, 0.5])):
        write_labels(tmp_path, (1, 3), [left, right], np.array([0, 0]), scores)
        assert tifffile.imread(tmp_path / "class1.tif").reshape(-1).tolist() == [1, 1, 2]


def test_classes_may_overlap(tmp_path):
    one = rle_of([[1, 1]])
    assert write_labels(tmp_path, (1, 2), [one, one], np.array([0, 1])) == 0
    assert tifffile.imread(tmp_path / "class1.tif").reshape(-1).tolist() == [1, 1]
    assert tifffile.imread(tmp_path / "class2.tif").reshape(-1).tolist() == [2, 2]


def test_hidden_cells_are_counted(tmp_path):
    small, large = rle_of([[0, 1, 0]]), rle_of([[1, 1, 1]])
    scores = np.array([0.2, 0.9])
    assert write_labels(tmp_path, (1, 3), [small, large], np.array([0, 0]), scores) == 1
    assert write_labels(tmp_path, (1, 3), [small, large], np.array([0, 0]), 1 - scores) == 0


def test_class_files_of_an_earlier_export_are_removed(tmp_path):
    one = rle_of([[1, 1]])
    (tmp_path / "classes.txt").write_text("the user's")
    write_labels(tmp_path, (1, 2), [one, one], np.array([0, 1]))
    write_labels(tmp_path, (1, 2), [one], np.array([1]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["class2.tif", "classes.txt"]
    write_labels(tmp_path, (1, 2), [], np.zeros(0, int))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.txt"]


def test_an_image_without_cells_has_a_folder_without_class_files(tmp_path):
    assert write_labels(tmp_path / "made", (1, 2), [], np.zeros(0, int)) == 0
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize("name", ["image.tif", "image.tiff"])
def test_a_data_set_is_not_overwritten(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    message = refusal(write_labels, tmp_path, (1, 2), [rle_of([[1, 1]])], np.array([0]))
    assert message.startswith(f"{tmp_path}: holds {name}")
    assert "--output" in message
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for masks in ([], [rle_of([[1, 1]])]):
        classes = np.zeros(len(masks), int)
        message = refusal(write_labels, tmp_path / "file", (1, 2), masks, classes)
        assert "can't be written" in message


def test_only_own_class_files_are_replaced_or_removed(tmp_path):
    masks, classes = [rle_of([[1, 1]])], np.array([0])
    write_labels(tmp_path, (1, 2), masks * 2, np.array([0, 1]))
    write_labels(tmp_path, (1, 2), masks, classes)
    assert [path.name for path in tmp_path.iterdir()] == ["class1.tif"]
    (tmp_path / "class4.tif").touch()  # nothing is lost
    labels = np.ones((1, 2), np.int32)
    for name in ("class1.tif", "Class3.TIF"):
        for how in ({}, {"compression": "zlib"}, {"compression": "zlib", "software": "other"}):
            tifffile.imwrite(tmp_path / name, labels, **how)
            before = (tmp_path / name).read_bytes()
            assert f"{name}: exists, " in refusal(write_labels, tmp_path, (1, 2), masks, classes)
            assert (tmp_path / name).read_bytes() == before
        (tmp_path / name).unlink()
    # As earlier versions wrote them.
    tifffile.imwrite(
        tmp_path / "class3.tif", labels, compression="zlib", metadata=None, software=False
    )
    write_labels(tmp_path, (1, 2), masks, classes)
    assert [path.name for path in tmp_path.iterdir()] == ["class1.tif"]
    (tmp_path / "class9.tif").mkdir()
    assert "class9.tif: exists, " in refusal(write_labels, tmp_path, (1, 2), masks, classes)


def test_past_four_gigabytes_the_file_is_a_bigtiff(tmp_path, monkeypatch):
    # Painting 4 GB takes minutes: check the arguments of tifffile instead.
    passed = {}

    class Writer:
        def __init__(self, _file, bigtiff):
            passed["bigtiff"] = bigtiff

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, *_, **kwargs):
            passed.update(kwargs)

    monkeypatch.setattr(tifffile, "TiffWriter", Writer)
    for height, big in ((32_768, True), (32_767, False)):
        counts = encode(MaskRuns((height, 32_768), np.array([5]), np.array([9]), np.array([0, 1])))
        write_labels(tmp_path, (height, 32_768), counts, np.array([0]))
        assert passed["bigtiff"] is big
        assert passed["shape"] == (height, 32_768)
