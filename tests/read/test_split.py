"""Which images are held out: the part asked for, never half of a group."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellseg.errors import InputError
from cellseg.read.split import choose_validation, read_groups, split_folds

NAMES = [f"image {n:02}" for n in range(20)]


def test_no_validation_images_by_default():
    assert choose_validation(NAMES, 0, 1) == []
    assert choose_validation([], 0, 1) == []


@pytest.mark.parametrize(("fraction", "count"), [(0.2, 4), (0.5, 10), (0.001, 1), (0.999, 19)])
def test_the_part_asked_for(fraction, count):
    held = choose_validation(NAMES, fraction, 0)
    assert len(held) == count
    assert held == [name for name in NAMES if name in held]


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
        with pytest.raises(InputError, match="one group alone"):
            choose_validation(names, fraction, seed, groups)
        return
    held = set(choose_validation(names, fraction, seed, groups))
    assert 0 < len(held) < len(names)
    assert not {groups[name] for name in held} & {groups[name] for name in set(names) - held}
    # Off by less than the largest group, unless one group must be held out or left.
    sizes = [group_numbers.count(number) for number in set(group_numbers)]
    assert abs(len(held) - fraction * len(names)) <= max(sizes)


def test_one_image_can_not_be_split():
    with pytest.raises(InputError, match="one image alone"):
        choose_validation(["a"], 0.5, 0)


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=40),
    st.integers(2, 6),
    st.integers(0, 2**40),
)
def test_folds_hold_each_image_once_and_split_no_group(group_numbers, n_folds, seed):
    names = [f"i{n}" for n in range(len(group_numbers))]
    groups = {name: str(number) for name, number in zip(names, group_numbers, strict=True)}
    if len(set(group_numbers)) < n_folds:
        with pytest.raises(InputError, match=f"--folds {n_folds}: 2 to "):
            split_folds(names, n_folds, seed, groups)
        return
    folds = split_folds(names, n_folds, seed, groups)
    assert len(folds) == n_folds
    assert all(folds)
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    of_folds = [{groups[name] for name in fold} for fold in folds]
    assert sum(map(len, of_folds)) == len(set(group_numbers))
    # Each group went to the smallest fold, so that none can be ahead by more than one.
    sizes = [group_numbers.count(number) for number in set(group_numbers)]
    assert max(map(len, folds)) - min(map(len, folds)) <= max(sizes)


def test_folds_of_single_images():
    folds = split_folds(NAMES[:11], 4, 3)
    assert sorted(map(len, folds)) == [2, 3, 3, 3]
    assert split_folds(NAMES[:11], 4, 3) == folds
    assert split_folds(NAMES[10::-1], 4, 3) == [fold[::-1] for fold in folds]
    assert split_folds(NAMES[:11], 4, 4) != folds
    with pytest.raises(InputError, match=r"--folds 12: 2 to 11 are expected, as .* 11 images"):
        split_folds(NAMES[:11], 12, 3)


def test_groups_from_json_and_csv(tmp_path):
    as_json, as_csv = tmp_path / "g.json", tmp_path / "g.csv"
    as_json.write_text(json.dumps({"a": "p1", "b": 2, "other": "p3"}))
    # With a byte order mark and another column, as spreadsheets write them.
    as_csv.write_text("\ufeffimage,slide,group\r\na,x,p1\r\nb,y,2\r\n", encoding="utf-8")
    assert read_groups(as_json, ["b", "a"]) == {"b": "2", "a": "p1"}
    assert read_groups(as_csv, ["a", "b"]) == {"a": "p1", "b": "2"}


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
        ("g.json", b'{"a": 1, "b": 1, "a": 2}', "a is there twice"),
        ("g.csv", b"", "no columns image,group"),
        ("g.csv", b"a,p1\nb,p2\n", "no columns image,group"),
        ("g.csv", b"image,group\n", "no columns image,group"),
        ("g.csv", b"image,group\na\nb,2\n", "a has the group None"),
        ("g.csv", b"image,group\na,1\na,1\n", "a is there twice"),
        ("g.csv", b'image,group\n"' + b"x" * 200_000, "not CSV"),
    ],
)
def test_damaged_groups(tmp_path, name, content, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_groups(path, ["a", "b"])
    assert f"--groups {path}: " in str(caught.value)
    assert expected in str(caught.value)


def test_a_folder_of_groups(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_groups(tmp_path, ["a"])
