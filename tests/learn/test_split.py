"""Validation sets and folds: of the requested size, never half of a group."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg.learn.split import choose_validation, read_groups, split_folds
from tests.read.refusal import refusal

NAMES = [f"image {n:02}" for n in range(20)]


@pytest.mark.parametrize(
    ("fraction", "count"), [(0, 0), (0.2, 4), (0.5, 10), (0.001, 1), (0.999, 19)]
)
def test_fraction(fraction, count):
    chosen = choose_validation(NAMES, fraction, 0)
    assert len(chosen) == count
    assert chosen == [name for name in NAMES if name in chosen]
    assert choose_validation([], 0, 1) == []


def test_seed_and_order():
    assert choose_validation(NAMES, 0.3, 5) == choose_validation(NAMES, 0.3, 5)
    assert len({tuple(choose_validation(NAMES, 0.3, seed)) for seed in range(20)}) > 10
    assert set(choose_validation(NAMES[::-1], 0.3, 5)) == set(choose_validation(NAMES, 0.3, 5))


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=40),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.integers(0, 2**40),
)
def test_groups_stay_together(group_numbers, fraction, seed):
    names = [f"i{n}" for n in range(len(group_numbers))]
    groups = {name: str(number) for name, number in zip(names, group_numbers, strict=True)}
    if len(set(group_numbers)) == 1:
        assert "only one group" in refusal(choose_validation, names, fraction, seed, groups)
        return
    chosen = set(choose_validation(names, fraction, seed, groups))
    assert 0 < len(chosen) < len(names)
    assert not {groups[name] for name in chosen} & {groups[name] for name in set(names) - chosen}
    # Off by less than the largest group, unless one group must be chosen or left.
    sizes = [group_numbers.count(number) for number in set(group_numbers)]
    assert abs(len(chosen) - fraction * len(names)) <= max(sizes)


def test_one_image_cannot_be_split():
    assert "only one image" in refusal(choose_validation, ["a"], 0.5, 0)


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=40), st.integers(2, 6), st.integers(0, 2**40)
)
def test_folds_have_each_image_once_and_split_no_group(group_numbers, n_folds, seed):
    names = [f"i{n}" for n in range(len(group_numbers))]
    groups = {name: str(number) for name, number in zip(names, group_numbers, strict=True)}
    if len(set(group_numbers)) < n_folds:
        assert f"--folds {n_folds}: " in refusal(split_folds, names, n_folds, seed, groups)
        return
    folds = split_folds(names, n_folds, seed, groups)
    assert len(folds) == n_folds
    assert all(folds)
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    of_folds = [{groups[name] for name in fold} for fold in folds]
    assert sum(map(len, of_folds)) == len(set(group_numbers))
    sizes = [group_numbers.count(number) for number in set(group_numbers)]
    assert max(map(len, folds)) - min(map(len, folds)) <= max(sizes)


def test_folds_of_single_images():
    folds = split_folds(NAMES[:11], 4, 3)
    assert sorted(map(len, folds)) == [2, 3, 3, 3]
    assert split_folds(NAMES[:11], 4, 3) == folds
    assert split_folds(NAMES[10::-1], 4, 3) == [fold[::-1] for fold in folds]
    assert split_folds(NAMES[:11], 4, 4) != folds
    assert "--folds 12: expected 2 to 11" in refusal(split_folds, NAMES[:11], 12, 3)


def test_groups_from_json_and_csv(tmp_path):
    as_json, as_csv = tmp_path / "g.json", tmp_path / "g.csv"
    as_json.write_text(json.dumps({"a": "p1", "b": 2, "other": "p3"}))
    # With a byte order mark and another column, as spreadsheets write them.
    as_csv.write_text("\ufeffimage,slide,group\r\na,x,p1\r\nb,y,2\r\n", encoding="utf-8")
    assert read_groups(as_json, ["b", "a"]) == {"b": "2", "a": "p1"}
    assert read_groups(as_csv, ["a", "b"]) == {"a": "p1", "b": "2"}
    for separator in (";", "\t"):
        as_csv.write_text(f"Group{separator}Image\np1{separator}a\n2{separator}b\n")
        assert read_groups(as_csv, ["a", "b"]) == {"a": "p1", "b": "2"}


def test_groups_of_files_of_images(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("image,group\na.png,1\ntrain/b/image.tif,2\nc.d,3\nx/e.tif,4\ny/e.tif,5\n")
    assert read_groups(path, ["a", "b", "c.d"]) == {"a": "1", "b": "2", "c.d": "3"}
    assert read_groups(path, ["x/e.tif", "y/e.tif"]) == {"x/e.tif": "4", "y/e.tif": "5"}
    for name in ("e", "c"):  # of two files, and no file
        assert f"no group for {name}" in refusal(read_groups, path, [name])
    path = tmp_path / "g.json"
    path.write_text('{"a": 1.0, "b": 2}')  # as pandas writes them
    assert read_groups(path, ["a", "b"]) == {"a": "1", "b": "2"}
    path.write_text('{"a": 1.5}')
    assert "a has the group 1.5" in refusal(read_groups, path, ["a"])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("g.json", None, "no such file"),
        ("g.json", b"\xff", "can't be read"),
        ("g.json", b"{", "not JSON"),
        ("g.json", b"[" * 100_000, "not JSON"),
        ("g.json", b"3", "not a JSON object"),
        ("g.json", b'[["a", 1], ["b", 1]]', "not a JSON object"),
        ("g.json", b'[{"a": 1, "b": 1}]', "not a JSON object"),
        ("g.json", b"{}", "no group for a and 1 more"),
        ("g.json", b'{"a": 1}', "no group for b; add a line"),
        ("g.json", b'{"a": 1, "b": null}', "b has the group None"),
        ("g.json", b'{"a": 1, "b": {"c": 1}}', "b has the group"),
        ("g.json", b'{"a": 1, "b": ""}', "b has the group ''"),
        ("g.json", b'{"a": 1, "b": 1, "a": 2}', "a occurs twice"),
        ("g.csv", b"", "no columns image,group"),
        ("g.csv", b"a,p1\nb,p2\n", "no columns image,group"),
        ("g.csv", b"image,group\n", "no group for a and 1 more"),
        ("g.csv", b"image,group\na\nb,2\n", "no group in line 2"),
        ("g.csv", b"image,group\na,1\na,1\n", "a occurs twice"),
        ("g.csv", b'image,group\n"' + b"x" * 200_000, "not CSV"),
    ],
)
def test_damaged_groups(tmp_path, name, content, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    message = refusal(read_groups, path, ["a", "b"])
    assert message.startswith(f"--groups {path}: ")
    assert expected in message
    assert "can't be read" in refusal(read_groups, tmp_path, ["a"])
