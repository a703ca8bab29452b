"""What tiles gave is kept to the last bit, and forgotten when anything else was asked for."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg import config
from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.predict.journal import Journal, signature
from cellseg.predictions import Predictions
from cellseg.rle import encode, join_runs


def cells(n=2, size=(5, 7), seed=0):
    """Make n cells, each one column of the image, with numbers that no short decimal gives."""
    rng = np.random.default_rng(seed)
    starts = size[0] * np.arange(n)
    runs = join_runs(size, n, np.arange(n), starts, starts + 2)
    return Predictions(
        size,
        (rng.random((n, 4)) * 7).astype(np.float32),
        rng.random(n).astype(np.float32),
        rng.integers(0, 4, n),
        encode(runs),
    )


def check_same(found, expected):
    assert found.size == expected.size
    for name in ("boxes", "scores", "classes"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.array_equal(a, b)
    assert found.masks == expected.masks


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "parts", {"a": 1})


def keep(journal, entries, process=0):
    with journal.open(process) as file:
        for key, found in entries:
            journal.append(key, found, file)


def test_what_json_does_not_have_can_decide_too(tmp_path):
    wanted = {"norm": math.inf, "path": os.fsdecode(b"caf\xe9.png")}
    journal = Journal(tmp_path / "parts", wanted)
    keep(journal, [((0, 0), cells())])
    assert Journal(tmp_path / "parts", wanted).done() == {(0, 0)}
    assert Journal(tmp_path / "parts", {**wanted, "norm": 2.0}).done() == set()


def test_to_the_last_bit(journal):
    tiles = [((0, n), cells(n, seed=n)) for n in range(7)]
    keep(journal, tiles)
    for (key, found), (expected_key, expected) in zip(journal.entries(), tiles, strict=True):
        assert key == expected_key
        check_same(found, expected)


@given(score=st.floats(0, 1, width=32), edge=st.floats(0, 2**24, width=32))
@settings(max_examples=40, deadline=None)
def test_any_number(tmp_path_factory, score, edge):
    journal = Journal(tmp_path_factory.mktemp("any") / "parts", {})
    one = cells(1)
    one.scores[0], one.boxes[0] = score, [0, 0, edge, edge]
    keep(journal, [((0, 0), one)])
    ((_, found),) = journal.entries()
    check_same(found, one)


def test_nothing_kept_yet(journal):
    assert journal.done() == set()
    assert journal.faults() == {}
    assert list(journal.entries()) == []


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), unique=True, max_size=20).flatmap(
        lambda keys: st.tuples(
            st.just(sorted(keys)),
            st.lists(st.integers(0, 2), min_size=len(keys), max_size=len(keys)),
        )
    )
)
@settings(max_examples=25, deadline=None)
def test_files_of_several_processes_are_one_in_order(tmp_path_factory, shared):
    keys, processes = shared
    journal = Journal(tmp_path_factory.mktemp("several") / "parts", {})
    for process in range(3):
        its = [key for key, owner in zip(keys, processes, strict=True) if owner == process]
        keep(journal, [(key, cells(seed=10 * key[0] + key[1])) for key in its], process)
    assert [key for key, _ in journal.entries()] == keys
    assert journal.done() == set(keys)
    for key, found in journal.entries():
        check_same(found, cells(seed=10 * key[0] + key[1]))


def test_a_tile_done_twice_counts_once(journal):
    keep(journal, [((0, 0), cells()), ((0, 1), cells())])
    keep(journal, [((0, 1), cells())])
    assert [key for key, _ in journal.entries()] == [(0, 0), (0, 1)]


def test_tiles_that_can_not_be_had_are_not_done(journal):
    keep(journal, [((1, 0), cells()), ((1, 2), InputError("torn")), ((1, 3), InputError("x"))])
    keep(journal, [((2, 0), InputError("too large"))], process=1)
    assert journal.faults() == {(1, 2): "torn", (1, 3): "x", (2, 0): "too large"}
    assert journal.done() == {(1, 0)}
    faults = [str(found) for _, found in journal.entries() if isinstance(found, InputError)]
    assert faults == ["torn", "x", "too large"]


def test_a_tile_that_was_tried_again(journal):
    """It is done if it ever was; else the last fault is what is wrong."""
    keep(journal, [((0, 0), InputError("a")), ((0, 1), InputError("b")), ((0, 2), cells())])
    keep(journal, [((0, 0), InputError("c")), ((0, 1), cells(seed=1)), ((0, 2), InputError("d"))])
    assert journal.done() == {(0, 1), (0, 2)}
    assert journal.faults() == {(0, 0): "c"}
    first, second, third = journal.entries()
    assert (first[0], str(first[1])) == ((0, 0), "c")
    assert (second[0], third[0]) == ((0, 1), (0, 2))
    check_same(second[1], cells(seed=1))
    check_same(third[1], cells())


def test_wherever_a_line_is_torn_it_is_not_there(journal):
    keep(journal, [((0, 0), cells()), ((0, 1), cells())])
    (path,) = journal.folder.glob("*.jsonl")
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        expected = {(0, n) for n in range((length >= first) + (length == len(whole)))}
        assert journal.done() == expected
    path.write_bytes(whole[:-5])
    # What goes on writes a file of its own, not behind the torn line.
    keep(journal, [((0, 1), cells(seed=1))])
    check_same(list(journal.entries())[1][1], cells(seed=1))


@pytest.mark.parametrize("damage", [bytes(9), b"\xff\xfe", b"[", b"\n"])
def test_a_damaged_line_is_not_there(journal, damage):
    keep(journal, [((0, n), cells(seed=n)) for n in range(3)])
    (path,) = journal.folder.glob("*.jsonl")
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + second[len(damage) :] + third)
    assert journal.done() == {(0, 0), (0, 2)}
    keep(journal, [((0, 1), cells(seed=1))])
    for (_, found), seed in zip(journal.entries(), range(3), strict=True):
        check_same(found, cells(seed=seed))


def test_the_same_signature_finds_what_is_there(journal):
    keep(journal, [((0, 0), cells())])
    assert Journal(journal.folder, {"a": 1}).done() == {(0, 0)}
    # Tuples are lists in JSON.
    other = journal.folder.with_name("other")
    keep(Journal(other, {"a": (1, 2)}), [((0, 0), cells())])
    assert Journal(other, {"a": (1, 2)}).done() == {(0, 0)}


def test_another_signature_begins_anew(journal):
    keep(journal, [((0, 0), cells())])
    assert Journal(journal.folder, {"a": 2}).done() == set()


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_signature_begins_anew(journal, text):
    keep(journal, [((0, 0), cells())])
    (journal.folder / "made-from.json").write_text(text)
    assert Journal(journal.folder, {"a": 1}).done() == set()
    journal.check()  # made from the same again


def test_remove(journal):
    keep(journal, [((0, 0), cells())])
    (journal.folder / ".made-from.json.abcdefgh.part").touch()  # of a process that was killed
    journal.remove()
    assert not journal.folder.exists()


@pytest.mark.parametrize("name", ["slide.tif", "cells.jsonl", "more/0000-0.jsonl"])
def test_what_is_not_its_own_stays(tmp_path, name):
    """A folder that happens to be called so, or one that something was put into."""
    file = tmp_path / "parts" / name
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(InputError, match=rf"parts: holds {name.partition('/')[0]}, .* --output"):
        Journal(tmp_path / "parts", {})
    assert file.exists()
    journal = Journal(tmp_path / "other", {})
    (journal.folder / "notes.txt").touch()
    journal.remove()
    assert [path.name for path in journal.folder.iterdir()] == ["notes.txt"]


def test_another_machine_finds_what_the_first_began(tmp_path):
    folder = tmp_path / "parts"
    second = Journal(folder, {"a": (1,)}, begin=False)
    assert not folder.exists()
    with pytest.raises(InputError, match="parts: not what machine 0 began; all machines need"):
        second.check()
    keep(Journal(folder, {"a": (1,)}), [((0, 0), cells())])
    second.check()
    assert second.done() == {(0, 0)}
    with pytest.raises(InputError, match="not what machine 0 began"):
        Journal(folder, {"a": (2,)}, begin=False).check()
    assert second.done() == {(0, 0)}


def test_a_place_that_can_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"parts: can't be made .*; choose another --output"):
        Journal(tmp_path / "file" / "parts", {})


@pytest.fixture
def made_from(tmp_path):
    """What a prediction is made from: weights, configs, images."""
    weights, image = tmp_path / "model.pth", tmp_path / "image.tif"
    weights.write_bytes(b"w")
    image.write_bytes(b"i")
    cfg = config.default_config("torchvision")
    return [weights], [cfg], [ImageRecord(1, "image.tif", image, (3, 4))]


def test_the_signature_is_of_all_that_decides(made_from):
    weights, (cfg,), (image,) = made_from
    before = signature(*made_from)
    assert signature(*made_from) == before
    other = cfg.clone()
    other.TEST.SYMMETRIES = 4
    assert signature(weights, [other], [image]) != before
    assert signature(weights * 2, [cfg, cfg], [image]) != before
    for changed in (
        ImageRecord(1, "image.tif", image.path, (3, 4), level=1),
        ImageRecord(1, "image.tif", image.path, (3, 5)),
        ImageRecord(1, "image.tif", image.path.with_name("other.tif"), (3, 4)),
    ):
        assert signature(weights, [cfg], [changed]) != before
    assert signature(weights, [cfg], [image, image]) != before


@pytest.mark.parametrize("which", ["weights", "image"])
def test_a_file_written_anew_has_another_signature(made_from, which):
    path = made_from[0][0] if which == "weights" else made_from[2][0].path
    before = signature(*made_from)
    os.utime(path, ns=(1, 1))
    touched = signature(*made_from)
    assert touched != before
    path.write_bytes(b"longer")
    os.utime(path, ns=(1, 1))
    assert signature(*made_from) != touched
    path.unlink()
    assert signature(*made_from) != before


def test_another_file_of_the_same_size_and_time_has_another_signature(made_from):
    path = made_from[2][0].path
    before, times = signature(*made_from), path.stat()
    path.write_bytes(b"j")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert signature(*made_from) != before


def test_how_fast_does_not_matter(made_from):
    weights, (cfg,), images = made_from
    cfg.MODEL.DEVICE = "cuda"
    other = cfg.clone()
    other.MODEL.DEVICE, other.TEST.BATCH, other.OUTPUT_DIR = "cuda:1", 16, "elsewhere"
    assert signature(weights, [other], images) == signature(*made_from)
    other.MODEL.DEVICE = "cpu"
    assert signature(weights, [other], images) != signature(*made_from)
