"""Tables of slides: columns, separators, places, and rows that can't be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellseg.errors import InputError
from cellseg.read.slide_table import is_slide_table, read_slide_table


@pytest.fixture
def read(tmp_path):
    """Function that writes a table beside some files and reads it."""
    for name in ("a.svs", "b.svs", "other/a.svs", "a.geojson"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def go(text, name="slides.csv"):
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return read_slide_table(tmp_path / name)

    return go


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_of_any_order_and_separator(read, tmp_path, separator, caplog):
    rows = [["MPP", " Path", "regions"], ["0.25", "a.svs", "a.geojson"], [], ["", "b.svs"]]
    first, second = read("\n".join(map(separator.join, rows)))
    assert (first.name, second.name) == ("a", "b")
    assert (first.problem, second.problem) == ("", "")
    assert first.image.path == tmp_path / "a.svs"
    assert (first.image.mpp, first.image.regions) == (0.25, tmp_path / "a.geojson")
    assert (second.image.mpp, second.image.regions) == (None, None)
    assert not caplog.messages


def test_paths_are_relative_to_the_table_or_absolute(read, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    slides = read(f"path\na.svs\nother/../b.svs\n{tmp_path}/other/a.svs\n")
    assert [slide.image.path for slide in slides] == [
        tmp_path / "a.svs", tmp_path / "b.svs", tmp_path / "other/a.svs"
    ]  # fmt: skip
    assert not any(slide.problem for slide in slides)
    names = [slide.name for slide in slides]
    assert len(set(names)) == 3
    assert names[1:] == ["b", "other/a"]


@pytest.mark.parametrize("mpp", ["0", "-1", "abc", "250", "nan", "inf"])
def test_a_row_with_a_wrong_mpp(read, mpp):
    bad, good = read(f"path,mpp\na.svs,{mpp}\nb.svs,0.5\n")
    assert f"slides.csv: line 2: mpp {mpp!r} is not " in bad.problem
    assert "0.02 to 5" in bad.problem
    assert (good.problem, good.image.mpp) == ("", 0.5)


@pytest.mark.parametrize(
    ("column", "name"),
    [("path", "c.svs"), ("path", "x" * 300), ("regions", "x" * 300), ("regions", "a\0b")],
)
def test_a_row_with_a_file_that_is_not_there(read, name, column):
    row = {"path": "a.svs", "regions": "", column: name}
    bad, good = read(f"path,regions\n{row['path']},{row['regions']}\nb.svs,a.geojson\n")
    assert f"{name}: no such file" in bad.problem
    assert good.problem == ""


def test_decimal_commas(read):
    (slide,) = read("path;mpp\na.svs;0,25\n")
    assert (slide.problem, slide.image.mpp) == ("", 0.25)


def test_rows_without_a_file(read):
    missing, empty, folder, good = read("path,mpp\nc.svs,\n,0.5\nother,\na.svs,\n")
    assert "line 2: " in missing.problem
    assert "c.svs: no such file" in missing.problem
    assert "line 3: no path" in empty.problem
    assert "other: is a folder" in folder.problem
    assert (good.name, good.problem) == ("a", "")


def test_a_slide_in_several_rows(read, caplog):
    (slide,) = read("path,mpp\na.svs,0.5\nother/../a.svs,0.5\na.svs,0.5\n")
    assert slide.problem == ""
    (warning,) = caplog.messages
    assert "2 lines" in warning
    assert "line 3, 4" in warning
    one, two = read("path,mpp\na.svs,0.5\na.svs,0.25\nb.svs,0.25\n")
    assert "line 3: a.svs has other values in line 2" in one.problem
    assert two.problem == ""


def test_unknown_columns_may_occur_twice(read):
    (slide,) = read("note,path,note,,\nx,a.svs,y,,\n")
    assert (slide.name, slide.problem) == ("a", "")


def test_unknown_columns_are_warned_of(read, caplog):
    assert len(read("stain,path,note\nHE,a.svs,\n")) == 1
    (warning,) = caplog.messages
    assert "slides.csv: 2 unknown columns ignored, stain, note;" in warning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no columns path"),
        ("a.svs\nb.svs\n", "no columns path"),
        ("path\n\n", "no slides"),
        (b"path\n\xff\xfe.svs\n", "not UTF-8"),
        ("path,mpp,mpp\na.svs,0.25,0.5\n", "the column mpp occurs twice"),
        ("Path;mpp; path\na.svs;;b.svs\n", "the column path occurs twice"),
        ("path\tregions\tREGIONS\na.svs\t\t\n", "the column regions occurs twice"),
        ("path,mpp,\na.svs,1,,\na.svs,1,5,x\n", "line 3 has 4 values"),
    ],
)
def test_a_table_that_can_not_be_used(read, text, expected):
    with pytest.raises(InputError, match=rf"--images .*slides\.csv: {expected}"):
        read(text)


def test_no_table(tmp_path):
    with pytest.raises(InputError, match=r"--images .*none\.csv: no such file"):
        read_slide_table(tmp_path / "none.csv")


def test_what_is_a_table(tmp_path):
    assert is_slide_table([Path("x.csv")])
    assert is_slide_table([Path("x.TSV")])
    assert not is_slide_table([])
    assert not is_slide_table([Path("x.tif"), Path("y")])
    (tmp_path / "folder.csv").mkdir()
    assert not is_slide_table([tmp_path / "folder.csv"])
    with pytest.raises(InputError, match=r"--images x\.csv: "):
        is_slide_table([Path("x.csv"), Path("y.tif")])
