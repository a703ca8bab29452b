"""Results files: JSON, zip, run folder, and all that can be wrong with them."""

import contextlib
import json
import os
import zipfile

import pytest

from cellseg.errors import InputError
from cellseg.read.results import find_newest_results, read_results, select_annotated

ENTRIES = [{"image_id": 1, "category_id": 1, "score": 0.5}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test-results.json").write_text(json.dumps(ENTRIES))
    return tmp_path


def zipped(path, name="test-results.json", text=None, **how):
    with zipfile.ZipFile(path, "w", **how) as archive:
        archive.writestr(name, json.dumps(ENTRIES) if text is None else text)
    return path


def test_json_folder_and_zip(folder):
    assert read_results(folder / "test-results.json") == ENTRIES
    assert read_results(folder) == ENTRIES
    assert read_results(zipped(folder / "a.zip")) == ENTRIES
    assert read_results(zipped(folder / "b.zip", "deep/test-results.json")) == ENTRIES
    # Told by what is in them, not by their names.
    assert read_results(zipped(folder / "zip.json")) == ENTRIES
    assert read_results(zipped(folder / "c.zip", compression=zipfile.ZIP_DEFLATED)) == ENTRIES


def test_an_empty_list_is_a_result(tmp_path):
    (tmp_path / "none.json").write_text("[]")
    assert read_results(tmp_path / "none.json") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "holds a dict, expected a list"),
        ("3", "holds a int, expected a list"),
        ("[1, 2", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_not_a_list(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_results(tmp_path / "x.json")
    assert str(caught.value).startswith(f"{tmp_path / 'x.json'}: ")
    with pytest.raises(InputError, match=message):
        read_results(zipped(tmp_path / "x.zip", text=text))


def test_not_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00[]")
    with pytest.raises(InputError, match="not JSON"):
        read_results(tmp_path / "x.json")


def test_missing(tmp_path):
    with pytest.raises(InputError, match=r"no such file.*run inference.py"):
        read_results(tmp_path / "gone.json")
    with pytest.raises(InputError, match=r"test-results.json: no such file"):
        read_results(tmp_path)


def test_a_zip_without_results(tmp_path):
    with pytest.raises(InputError, match=r"the zip holds other.json, but no test-results.json"):
        read_results(zipped(tmp_path / "x.zip", "other.json"))
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(InputError, match="the zip holds nothing"):
        read_results(tmp_path / "empty.zip")


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_broken_anywhere(folder, how):
    path = zipped(folder / "whole.zip", compression=how)
    whole = path.read_bytes()
    broken = folder / "broken.zip"
    for length in range(len(whole)):
        broken.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"broken\.zip: a zip that can't be read"):
            read_results(broken)
    for place in range(len(whole)):
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            assert read_results(broken) == ENTRIES  # what was hit doesn't matter


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_right_to_read(folder):
    (folder / "test-results.json").chmod(0)
    with pytest.raises(InputError, match="can't be read"):
        read_results(folder)


def test_the_newest_run(tmp_path):
    with pytest.raises(InputError, match=r"no run has a test-results.json yet; run inference.py"):
        find_newest_results(tmp_path)
    for age, run in enumerate(["m/old", "n/newer", "m/newest"]):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "test-results.json").write_text("[]")
        os.utime(tmp_path / run / "test-results.json", (1000 + age, 1000 + age))
    (tmp_path / "m" / "unfinished").mkdir()
    assert find_newest_results(tmp_path) == tmp_path / "m" / "newest" / "test-results.json"


def test_only_annotated_leaves_the_broken_for_the_check():
    truth = {"images": [{"id": 1}]}
    odd = [None, {"image_id": [1]}, {}]
    assert select_annotated([{"image_id": 2}, *odd, {"image_id": 1}], truth) == [
        *odd,
        {"image_id": 1},
    ]
