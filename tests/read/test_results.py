"""Results files: JSON, zip, run folder, and errors in them."""

import contextlib
import json
import os
import zipfile

import pytest

from cellseg.errors import InputError
from cellseg.read.pairs import select_annotated
from cellseg.read.results import find_data_folder, find_newest_results, read_results
from tests.read.refusal import refusal

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
    # By content, not by name.
    assert read_results(zipped(folder / "zip.json")) == ENTRIES
    assert read_results(zipped(folder / "c.zip", compression=zipfile.ZIP_DEFLATED)) == ENTRIES


def test_an_empty_list_is_a_result(tmp_path):
    (tmp_path / "none.json").write_text("[]")
    assert read_results(tmp_path / "none.json") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "an object, expected a list"),
        ("3", "a number, expected a list"),
        ("[1, 2", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_not_a_list(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    line = refusal(read_results, tmp_path / "x.json")
    assert line.startswith(f"{tmp_path / 'x.json'}: ")
    assert message in line
    assert message in refusal(read_results, zipped(tmp_path / "x.zip", text=text))


def test_not_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00[]")
    assert "not JSON" in refusal(read_results, tmp_path / "x.json")


def test_missing(tmp_path):
    for path, name in ((tmp_path / "gone.json", "gone.json"), (tmp_path, "test-results.json")):
        message = refusal(read_results, path)
        assert f"{name}: no such file" in message
        assert "inference.py" in message


def test_a_zip_without_results(tmp_path):
    message = refusal(read_results, zipped(tmp_path / "x.zip", "other.json"))
    assert "holds other.json, expected test-results.json" in message
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    assert "holds nothing" in refusal(read_results, tmp_path / "empty.zip")


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_broken_anywhere(folder, how):
    path = zipped(folder / "whole.zip", compression=how)
    whole = path.read_bytes()
    broken = folder / "broken.zip"
    for length in range(len(whole)):
        broken.write_bytes(whole[:length])
        assert "broken.zip: a zip that can't be read" in refusal(read_results, broken)
    for place in range(len(whole)):
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            assert read_results(broken) == ENTRIES  # unless an error is raised


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_to_read(folder):
    (folder / "test-results.json").chmod(0)
    assert "can't be read" in refusal(read_results, folder)


def test_the_newest_run(tmp_path):
    assert refusal(find_newest_results, tmp_path).startswith(f"{tmp_path}: no results")
    for age, run in enumerate(["m/old", "n/newer", "m/newest"]):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "test-results.json").write_text("[]")
        os.utime(tmp_path / run / "test-results.json", (1000 + age, 1000 + age))
    (tmp_path / "m" / "unfinished").mkdir()
    assert find_newest_results(tmp_path) == tmp_path / "m" / "newest" / "test-results.json"


def test_only_annotated_keeps_invalid_entries_for_the_check():
    kept = [None, {"image_id": [1]}, {}, {"image_id": 1}]
    assert [*select_annotated([{"image_id": 2}, *kept], {"images": [{"id": 1}]})] == kept


def test_a_data_folder_that_is_not_there_any_more_gives_a_warning(folder, tmp_path, caplog):
    results, data = folder / "test-results.json", tmp_path / "data"
    (folder / "test-results-data.json").write_text(json.dumps({"data": str(data)}))
    assert find_data_folder(results) is None
    assert str(data) in caplog.text
    assert "--data" in caplog.text
    caplog.clear()
    data.mkdir()
    assert find_data_folder(results) == data
    assert not caplog.text
