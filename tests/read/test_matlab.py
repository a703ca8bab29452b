"""Label maps in MATLAB files, with the classes of their cells."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cellseg.errors import InputError
from cellseg.limits import IMAGE_GB
from cellseg.read.annotate import annotate_image, find_class_names
from cellseg.read.layout import CLASS_NAMES, read_train_folder
from cellseg.read.matlab import read_instance_classes, read_instance_map
from cellseg.read.train_files import ImageFiles
from cellseg.rle import areas
from tests.read.refusal import refusal
from tests.read.test_label_maps import write_folder

# Three cells of 2, 6 and 1 pixels, with labels that are not 1, 2, 3.
LABELS = np.zeros((5, 8))
LABELS[0, :2], LABELS[2:4, 2:5], LABELS[4, 7] = 3, 5, 9


def write(folder, **variables):
    scipy.io.savemat(folder / "cells.mat", variables, do_compression=True)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "x", size=(5, 8))


def cells_of(folder, class_names=CLASS_NAMES, **how):
    """Return the areas of the cells of each class, and the warnings."""
    image = annotate_image(read_train_folder(folder, len(class_names)), class_names, **how)
    return {k: areas(runs).tolist() for k, runs in image.cells.items()}, image.warnings


@pytest.mark.parametrize(
    "variables",
    [
        {"inst_type": [[2], [1], [2]]},  # CoNSeP: in the order of the labels
        {"inst_type": [2.0, 1.0, 2.0], "inst_centroid": np.zeros((3, 2))},
        {"class": [[1], [2], [2]], "id": [[5], [9], [3]]},  # Lizard: in any order
        {"inst_type": [1, 2, 2], "inst_uid": [5, 9, 3]},  # HoVer-Net's predictions
        {"inst_type": [4, 4, 2, 4, 1, 4, 4, 4, 2]},  # of 1 to 9, of which some have no pixel
    ],
)
def test_classes_of_public_data_sets(folder, variables):
    cells, _ = cells_of(write(folder, inst_map=LABELS, type_map=LABELS, **variables))
    assert cells == {1: [6], 2: [2, 1]}


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16, np.float32, np.float64, bool])
def test_types_of_label_maps(folder, dtype):
    cells, _ = cells_of(write(folder, inst_map=LABELS.astype(dtype)), ["nucleus"])
    assert cells == {1: [9] if dtype is bool else [2, 6, 1]}


def test_an_id_that_occurs_twice(folder):
    write(folder, inst_map=LABELS, id=[3, 5, 9, 9], **{"class": [2, 1, 2, 2]})
    assert cells_of(folder)[0] == {1: [6], 2: [2, 1]}
    write(folder, inst_map=LABELS, id=[3, 5, 9, 9], **{"class": [2, 1, 2, 1]})
    assert "label 9 of id has two classes" in refusal(cells_of, folder)


def test_classes_that_are_missing_or_unknown(folder):
    write(folder, inst_map=LABELS)
    assert "classes.csv" in refusal(cells_of, folder)
    write(folder, inst_map=LABELS, inst_type=[2, 7, 0])
    line = refusal(cells_of, folder)
    assert "'7'" in line
    assert "'0'" in line
    assert find_class_names([ImageFiles(folder, "train/x")], 4) == {"class2", "7", "0"} - {
        "class2"
    } | {"2"}
    cells, warnings = cells_of(folder, skip_bad=True)
    assert cells == {2: [2]}
    assert sum(warnings[text] for text in warnings if "unknown class" in text) == 2
    write(folder, inst_map=LABELS, inst_type=[2, 1], id=[3, 5])
    assert "no class for 1 of 3 labels" in refusal(cells_of, folder)
    write(folder, inst_map=LABELS, inst_type=[2, 1])
    assert "2 classes in inst_type for 3 labels" in refusal(cells_of, folder)
    write(folder, inst_map=LABELS, inst_type=[2, 1, 1], id=[3, 5])
    assert "3 classes in inst_type for 2 ids" in refusal(cells_of, folder)
    for bad in ([1.5, 1, 1], [np.nan, 1, 1], ["a", "b", "c"], [1j, 1, 1]):
        write(folder, inst_map=LABELS, inst_type=bad)
        assert "inst_type has other values than integers" in refusal(cells_of, folder)


def test_an_image_without_cells(folder):
    assert cells_of(write(folder, inst_map=LABELS * 0, inst_type=np.zeros((0, 1))))[0] == {}
    assert cells_of(write(folder, inst_map=LABELS * 0, inst_type=[]))[0] == {}


def test_a_table_says_the_classes(folder):
    (folder / "classes.csv").write_text("label,class\n3,4\n5,4\n9,4\n")
    assert cells_of(write(folder, inst_map=LABELS, inst_type=[1, 1, 1]))[0] == {4: [2, 6, 1]}


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"labels": LABELS}, "has labels, expected the label map inst_map"),
        ({}, "empty, expected"),
        ({"inst_map": np.zeros((2, 5, 8))}, "(2, 5, 8)"),
        ({"inst_map": "text"}, "(char)"),
        ({"inst_map": np.array([[1, "a"]], object)}, "(cell)"),
        ({"inst_map": {"a": LABELS}}, "(struct)"),
        ({"inst_map": LABELS * 1j}, "(complex)"),
        ({"inst_map": LABELS[:, :7]}, "5 x 7"),
        ({"inst_map": -LABELS}, "label -"),
        ({"inst_map": LABELS / 2}, "label 1.5"),
    ],
)
def test_other_contents(folder, variables, text):
    line = refusal(cells_of, write(folder, **variables))
    assert line.startswith(f"{folder / 'cells.mat'}: ")
    assert text in line


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64" + bytes(500), "7.3"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "not a MATLAB file"),
        (b"", "not a MATLAB file"),
        (b"MATLAB 5.0 MAT-file", "damaged"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"\x0e" + bytes(50), "cells.mat"),
    ],
)
def test_other_files(folder, content, text):
    (folder / "cells.mat").write_bytes(content)
    assert text in refusal(cells_of, folder)


def test_a_small_file_that_asks_for_much_memory(folder):
    side = int((IMAGE_GB * 1e9 / 8) ** 0.5) + 1
    write(folder, inst_map=np.broadcast_to(np.uint8(0), (side, side)))
    assert (folder / "cells.mat").stat().st_size < 1e6
    assert "--max_image_gb" in refusal(cells_of, folder)
    write(folder, inst_map=LABELS, inst_type=np.broadcast_to(np.uint8(1), (20_000_000, 1)))
    assert "inst_type" in refusal(cells_of, folder)


@given(
    labels=arrays(
        st.sampled_from(["u1", "i2", "<u4", "<i8", "f4", "f8", "?"]),
        array_shapes(min_dims=2, max_dims=2, max_side=9),
    ),
    compressed=st.booleans(),
    others=st.lists(st.sampled_from(["before", "inst_maps", "z" * 31]), unique=True),
)
def test_label_maps_are_read_as_scipy_reads_them(tmp_path_factory, labels, compressed, others):
    path = tmp_path_factory.mktemp("mat") / "cells.mat"
    variables = {name: {"a": [1, "text"]} for name in others} | {"inst_map": labels, "last": "x"}
    scipy.io.savemat(path, variables, do_compression=compressed)
    found, expected = read_instance_map(path), scipy.io.loadmat(path)["inst_map"]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, labels)


def test_a_file_of_another_byte_order(tmp_path):
    """As written by MATLAB on a PowerPC: a 2 x 3 matrix of doubles that are stored as bytes."""
    elements = struct.pack(">IIII", 6, 8, 6, 0)  # type double
    elements += struct.pack(">IIii", 5, 8, 2, 3)
    elements += struct.pack(">II8s", 1, 8, b"inst_map")
    elements += struct.pack(">II6sxx", 2, 6, bytes([1, 4, 2, 5, 3, 6]))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    path = tmp_path / "cells.mat"
    path.write_bytes(header + struct.pack(">II", 14, len(elements)) + elements)
    assert read_instance_map(path).tolist() == [[1, 2, 3], [4, 5, 6]]


@given(data=st.data())
def test_damaged_files_are_refused_or_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("mat") / "cells.mat"
    compressed = data.draw(st.booleans())
    variables = {"inst_map": LABELS, "inst_type": np.array([[1], [2], [1]]), "id": [3, 5, 9]}
    scipy.io.savemat(path, variables, do_compression=compressed)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(InputError):  # and nothing else
        labels = read_instance_map(path)
        assert labels.ndim == 2
        classes = read_instance_classes(path, np.unique(labels)[1:])
        assert classes is None or all(isinstance(text, str) for text in classes.values())
