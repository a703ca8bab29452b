"""The file to submit: what is written, and the check of any program's file."""

from __future__ import annotations

import json
import math
import os
import re
import zipfile

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg.predictions import Predictions
from cellseg.write import submission
from cellseg.write.submission import check_submission, write_submission, write_zip
from tests.read.refusal import refusal

IMAGES = [
    {"id": 3, "file_name": "a.tif", "height": 4, "width": 6},
    {"id": 8, "file_name": "b.tif", "height": 1, "width": 1},
]


def predictions(n=2, size=(4, 6)):
    mask = np.zeros(size, np.uint8, order="F")
    mask[0, 0] = 1
    rle = pycocotools.mask.encode(mask)
    return Predictions(
        size=size,
        boxes=np.tile(np.array([[0, 0, 1.23456, 1]], np.float32), (n, 1)),
        scores=np.linspace(0.9, 0.1, n, dtype=np.float32),
        classes=np.arange(n) % 2,
        masks=[{"size": list(size), "counts": rle["counts"].decode()}] * n,
    )


def test_written_entries(tmp_path):
    path = tmp_path / "new" / "test-results.json"
    with write_submission(path, [5, 9]) as writer:
        writer.add(3, predictions())
        writer.add(8, predictions(0))
        assert not path.exists()
    entries = json.loads(path.read_text())
    assert entries == [
        {
            "image_id": 3,
            "category_id": category,
            "segmentation": {"size": [4, 6], "counts": "01g0"},
            "score": score,
            "bbox": [0.0, 0.0, 1.23, 1.0],
        }
        for category, score in ((5, 0.9), (9, 0.1))
    ]
    assert check_submission(path, IMAGES, [5, 9]) == (2, [8])


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1, width=32),
            st.lists(st.floats(-(2**30), 2**30, width=32), min_size=4, max_size=4),
            st.text(st.characters(min_codepoint=48, max_codepoint=111)),  # of RLEs, with "\\"
        ),
        max_size=5,
    )
)
def test_text_is_that_of_json(tmp_path_factory, cells):
    path = tmp_path_factory.getbasetemp() / "text.json"
    found = Predictions(
        size=(4, 6),
        boxes=np.array([box for _, box, _ in cells], np.float32).reshape(-1, 4),
        scores=np.array([score for score, _, _ in cells], np.float32),
        classes=np.zeros(len(cells), np.int64),
        masks=[{"size": [4, 6], "counts": counts} for _, _, counts in cells],
    )
    with write_submission(path, [5]) as writer:
        writer.add(3, found)
    text = path.read_text()
    entries = json.loads(text)
    assert text == "[\n" + ",\n".join(map(json.dumps, entries)) + "\n" * bool(entries) + "]\n"
    assert [entry["segmentation"] for entry in entries] == found.masks
    assert [list(entry) for entry in entries] == [list(ENTRY)] * len(entries)


def test_no_detections(tmp_path):
    path = tmp_path / "a.json"
    with write_submission(path, [1]):
        pass
    assert json.loads(path.read_text()) == []
    assert check_submission(path, IMAGES, [1]) == (0, [3, 8])


def test_an_error_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("earlier")

    def fail():
        with write_submission(path, [1, 2]) as writer:
            writer.add(3, predictions())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "earlier"


@given(st.lists(st.floats(0, 1, width=32), max_size=20))
def test_scores_are_exact(tmp_path_factory, scores):
    path = tmp_path_factory.getbasetemp() / "scores.json"
    found = predictions(len(scores))
    found.scores[:] = scores
    with write_submission(path, [1, 2]) as writer:
        writer.add(3, found)
    read = [entry["score"] for entry in json.loads(path.read_text())]
    assert np.array_equal(np.array(read, np.float32), found.scores)


@pytest.mark.parametrize("where", ["scores", "boxes"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_only_finite_numbers_are_written(tmp_path, where, value):
    found = predictions()
    getattr(found, where).reshape(2, -1)[1, -1] = value
    with pytest.raises(ValueError, match="JSON"), write_submission(tmp_path / "a", [1, 2]) as w:
        w.add(3, found)
    assert not list(tmp_path.iterdir())


def test_the_zip_has_the_name_that_the_server_expects(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("[]")
    archive = write_zip(path)
    assert archive == tmp_path / "mine.zip"
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == ["test-results.json"]
        assert opened.read("test-results.json") == b"[]"
        assert opened.testzip() is None
    assert check_submission(archive, IMAGES, [1]) == (0, [3, 8])
    before = archive.read_bytes()
    os.utime(path, (10**9, 10**9))
    assert write_zip(path).read_bytes() == before  # equal results, equal zips
    with zipfile.ZipFile(archive, "a") as opened:  # as macOS would
        opened.writestr("__MACOSX/._test-results.json", b"")
    assert check_submission(archive, IMAGES, [1]) == (0, [3, 8])


ENTRY = {
    "image_id": 3,
    "category_id": 1,
    "segmentation": {"size": [4, 6], "counts": "01g0"},
    "score": 0.5,
    "bbox": [0, 0, 1, 1],
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_id": 4}, "image_id 4"),
        ({"image_id": "3"}, 'image_id "3"'),
        ({"image_id": True}, "image_id true"),
        ({"category_id": 0}, "category_id 0"),
        ({"category_id": 5}, "category_id 5"),
        ({"score": math.nan}, "score NaN"),
        ({"score": math.inf}, "score Infinity"),
        ({"score": "0.5"}, 'score "0.5"'),
        ({"segmentation": None}, "segmentation is not"),
        ({"segmentation": [[0, 0, 1, 0, 1, 1]]}, "segmentation is not"),
        ({"segmentation": {"size": [6, 4], "counts": "01g0"}}, r"size [6, 4]"),
        ({"segmentation": {"size": [4, 6], "counts": "01"}}, "segmentation: "),
        ({"segmentation": {"size": [4, 6], "counts": "ä"}}, "segmentation: "),
        ({"segmentation": {"size": [4, 6], "counts": [0, 1, 23]}}, "segmentation is not"),
        ({"bbox": [0, 0, 1]}, "bbox [0, 0, 1]"),
        ({"bbox": [0, 0, -1, 1]}, "bbox [0, 0, -1, 1]"),
        ({"bbox": [0, 0, 1, math.nan]}, "bbox [0, 0, 1, NaN]"),
        ({"bbox": [0, 0, 1, 10**400]}, "bbox [0, 0, 1, 1000"),
        ({"bbox": [0, 0, True, 1]}, "bbox [0, 0, true, 1]"),
        ({"bbox": "0 0 1 1"}, 'bbox "0 0 1 1"'),
        ({"bbox": None}, "bbox null"),
    ],
)
def test_invalid_entries(tmp_path, change, expected):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([ENTRY, ENTRY | change]))
    message = refusal(check_submission, path, IMAGES, [1, 2])
    assert message.startswith(f"{path}: entry 1: ")
    assert expected in message


@pytest.mark.parametrize("block", [1, 2, 3, 99])
def test_a_file_is_checked_block_by_block(tmp_path, monkeypatch, block):
    """Entries are counted from the file's beginning, images without detections over all blocks."""
    monkeypatch.setattr(submission, "_BLOCK", block)
    path = tmp_path / "mine.json"
    other = ENTRY | {"image_id": 8, "segmentation": {"size": [1, 1], "counts": "01"}}
    for entries in ([ENTRY] * 5, [other, *[ENTRY] * 4], [*[ENTRY] * 4, other]):
        path.write_text(json.dumps(entries))
        assert check_submission(path, IMAGES, [1]) == (5, [] if other in entries else [8])
    changes: list[dict[str, object]] = [
        {"bbox": []},
        {"score": None},
        {"segmentation": {"size": [4, 6], "counts": "0"}},
    ]
    for change in changes:
        path.write_text(json.dumps([*[ENTRY] * 3, ENTRY | change, other]))
        message = refusal(check_submission, path, IMAGES, [1])
        assert message.startswith(f"{path}: entry 3: ")


def test_a_folder_with_results(tmp_path):
    (tmp_path / "test-results.json").write_text(json.dumps([ENTRY]))
    assert check_submission(tmp_path, IMAGES, [1]) == (1, [8])


@pytest.mark.parametrize("key", ["image_id", "category_id", "segmentation", "score"])
def test_missing_keys(tmp_path, key):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{k: v for k, v in ENTRY.items() if k != key}]))
    assert f"entry 0: {key} missing" in refusal(check_submission, path, IMAGES, [1])


H, W = 30, 44


def cell(x0, y0, x1, y1):
    mask = np.zeros((H, W), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    return mask


def encoded(mask):
    counts = pycocotools.mask.encode(np.asfortranarray(mask))["counts"].decode()
    return {"size": [H, W], "counts": counts}


def by_rows(mask):
    """Encode a mask row by row, with COCO's size: a usual mistake."""
    return encoded(mask.reshape(-1).reshape((H, W), order="F"))


PLACES = [(20, 10, 28, 18), (3, 12, 11, 17), (30, 22, 39, 29), (0, 0, 9, 9), (12, 4, 17, 15)]
LARGE = [{"id": 3, "file_name": "a.tif", "height": H, "width": W}]


def large(box_of, encode=encoded):
    """Return an entry for each of `PLACES`, with the box that `box_of` makes of it."""
    return [
        ENTRY | {"segmentation": encode(cell(*place)), "bbox": box_of(*place)} for place in PLACES
    ]


def xywh(x0, y0, x1, y1):
    return [x0, y0, x1 - x0, y1 - y0]


def with_box(n, box):
    """Return valid entries, and the nth of them again with another box."""
    return [*large(xywh), large(xywh)[n] | {"bbox": box}]


@pytest.mark.parametrize("block", [2, 99])
@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        (large(lambda x0, y0, x1, y1: [x0, y0, x1, y1]), "entry 0: .* x, y, right, bottom"),
        (large(lambda x0, y0, x1, y1: [y0, x0, y1 - y0, x1 - x0]), "entry 0: .* y, x, height, wid"),
        (large(lambda x0, y0, x1, y1: [y0, x0, y1, x1]), "entry 0: .* top, left, bottom, right"),
        (large(xywh, by_rows), "entry 0: .* mask row by row, .*mask.decode"),
        ([{k: v for k, v in e.items() if k != "bbox"} for e in large(xywh, by_rows)],
         "masks are scattered .*mask.decode"),
        (with_box(0, [1, 20, 5, 5]), "entry 5: .* not touch its mask"),
        (with_box(2, [30, 22, 16, 7]), f"entry 5: .*in an image of {H} x {W} "),
        (with_box(3, [-3, 0, 12, 9]), f"entry 5: .*in an image of {H} x {W} "),
    ],
)  # fmt: skip
def test_boxes_and_masks_in_another_encoding(tmp_path, monkeypatch, entries, rule, block):
    monkeypatch.setattr(submission, "_BLOCK", block)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(entries))
    message = refusal(check_submission, path, LARGE, [1])
    assert message.startswith(f"{path}: ")
    assert re.search(rule, message), message


def test_boxes_that_are_not_tight(tmp_path):
    """Boxes of a network are not those of its masks; some masks are poor or empty."""
    entries = large(lambda x0, y0, x1, y1: [x0 - 0.5, y0 - 1, x1 - x0 + 1.2, y1 - y0 + 2])
    poor = {"segmentation": encoded(cell(10, 10, 20, 20)), "bbox": [10, 10, 30, 20]}
    empty = {"segmentation": encoded(np.zeros((H, W), np.uint8))}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([*entries, ENTRY | poor, ENTRY | empty]))
    assert check_submission(path, LARGE, [1]) == (7, [])


@pytest.mark.parametrize("first", [0, 1])
def test_boxes_of_some_entries(tmp_path, first):
    entries = [ENTRY, {k: v for k, v in ENTRY.items() if k != "bbox"}]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([entries[first]] * 2 + [entries[1 - first]]))
    assert "entry 2 has" in refusal(check_submission, path, IMAGES, [1])
    assert "COCO.loadRes" in refusal(check_submission, path, IMAGES, [1])


def test_boxes_are_optional(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{k: v for k, v in ENTRY.items() if k != "bbox"}]))
    assert check_submission(path, IMAGES, [1]) == (1, [8])


@pytest.mark.parametrize("text", ["", "{}", '{"annotations": []}', "[3]", "[[]]", "[null]", "nope"])
def test_not_a_list_of_detections(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text)
    assert refusal(check_submission, path, IMAGES, [1]).startswith(f"{path}: ")


def test_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([ENTRY]), encoding="utf-8-sig")
    with pytest.raises(ValueError, match="BOM"), path.open(encoding="utf-8") as file:
        json.load(file)  # as COCO.loadRes does
    assert "byte order mark" in refusal(check_submission, path, IMAGES, [1])
    zipped = write_zip(path)
    assert f"{zipped}: begins with a byte order" in refusal(check_submission, zipped, IMAGES, [1])


def test_zips_that_the_server_cannot_read(tmp_path):
    path = tmp_path / "mine.zip"

    def refused(expected):
        message = refusal(check_submission, path, IMAGES, [1])
        assert message.startswith(f"{path}: ")
        assert expected in message

    refused("no such file")
    path.write_bytes(b"PK\x03\x04 and nothing more")
    refused("a zip that can't be read")
    for names, expected in (
        ([], "the zip holds nothing"),
        (["results.json"], "holds results.json, expected test-results.json"),
        (["folder/test-results.json"], "is in a folder of the zip, expected at its root"),
        (["test-results.json", "notes.txt"], "holds test-results.json, notes.txt, expected only"),
        (["test-results.json", "old/test-results.json"], "expected only"),
        (["test-results.json", "a", "b", "c"], "holds test-results.json, a, b, …, expected only"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "[]")
        refused(expected)
    # It depends on the program which of two files of one name is read.
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test-results.json", "[]")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("test-results.json", json.dumps([ENTRY]))
    refused("holds test-results.json, test-results.json, expected only")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test-results.json", "[" + json.dumps(ENTRY) * 100)
    refused("is not JSON")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("a zip that can't be read")
