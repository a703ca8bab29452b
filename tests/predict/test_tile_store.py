"""The tile store keeps predictions bit for bit, and drops them when anything changes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg import config
from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.predict.tile_store import TileStore, results_fingerprint, tiles_fingerprint
from cellseg.predictions import Predictions
from cellseg.rle import encode, join_runs

HERE = Path(__file__).resolve().parents[2]


def cells(n=2, size=(5, 7), seed=0):
    """Return n cells, each one column of the image, with random float32 numbers."""
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


def assert_same(loaded, expected):
    assert loaded.size == expected.size
    for name in ("boxes", "scores", "classes"):
        a, b = getattr(loaded, name), getattr(expected, name)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.array_equal(a, b)
    assert loaded.masks == expected.masks


@pytest.fixture
def tile_store(tmp_path):
    return TileStore(tmp_path / "parts", {"a": 1})


def store(tile_store, results):
    for key, predictions in results:
        tile_store.append(key, predictions)


@pytest.fixture
def reopen(tile_store):
    """Function that opens the store as the next command does, which runs when this one ended."""

    def go(fingerprint=1):
        tile_store.close()
        return TileStore(tile_store.folder, {"a": fingerprint})

    return go


def test_fingerprints_that_json_can_not_hold(tmp_path):
    fingerprint = {"norm": math.inf, "path": os.fsdecode(b"caf\xe9.png")}
    tile_store = TileStore(tmp_path / "parts", fingerprint)
    store(tile_store, [((0, 0), cells())])
    assert TileStore(tmp_path / "parts", fingerprint).done() == {(0, 0)}
    assert TileStore(tmp_path / "parts", {**fingerprint, "norm": 2.0}).done() == set()


def test_predictions_are_stored_bit_for_bit(tile_store):
    tiles = [((0, n), cells(n, seed=n)) for n in range(7)]
    store(tile_store, tiles)
    for (key, loaded), (expected_key, expected) in zip(tile_store.entries(), tiles, strict=True):
        assert key == expected_key
        assert_same(loaded, expected)


@given(score=st.floats(0, 1, width=32), edge=st.floats(0, 2**24, width=32))
@settings(max_examples=40, deadline=None)
def test_any_number_is_stored_bit_for_bit(tmp_path_factory, score, edge):
    tile_store = TileStore(tmp_path_factory.mktemp("any") / "parts", {})
    one = cells(1)
    one.scores[0], one.boxes[0] = score, [0, 0, edge, edge]
    store(tile_store, [((0, 0), one)])
    ((_, loaded),) = tile_store.entries()
    assert_same(loaded, one)


def test_an_empty_store(tile_store):
    assert tile_store.done() == set()
    assert list(tile_store.entries()) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), unique=True, max_size=20))
@settings(max_examples=25, deadline=None)
def test_tiles_stored_in_any_order_are_read_in_theirs(tmp_path_factory, keys):
    """Also when the store is opened again."""
    tile_store = TileStore(tmp_path_factory.mktemp("several") / "parts", {})
    store(tile_store, [(key, cells(seed=10 * key[0] + key[1])) for key in keys])
    tile_store.close()
    opened = TileStore(tile_store.folder, {})
    assert [key for key, _ in opened.entries()] == sorted(keys)
    assert opened.done() == set(keys)
    for key, loaded in opened.entries():
        assert_same(loaded, cells(seed=10 * key[0] + key[1]))


def test_a_tile_predicted_twice_counts_once(tile_store, reopen):
    store(tile_store, [((0, 0), cells()), ((0, 1), cells())])
    store(tile_store, [((0, 1), cells(seed=1))])
    for open_ in (lambda: tile_store, reopen):
        first, second = open_().entries()
        assert (first[0], second[0]) == ((0, 0), (0, 1))
        assert_same(second[1], cells())


def test_truncated_lines_are_ignored(tile_store, reopen):
    store(tile_store, [((0, 0), cells()), ((0, 1), cells())])
    (path,) = tile_store.folder.glob("*.jsonl")
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        opened = reopen()
        expected = {(0, n) for n in range((length >= first) + (length == len(whole)))}
        assert opened.done() == expected
        assert opened.n_damaged == 0
        opened.close()
    path.write_bytes(whole[:-5])
    # A resumed job does not write after the truncated line.
    opened = reopen()
    store(opened, [((0, 1), cells(seed=1))])
    opened.close()
    assert_same(list(reopen().entries())[1][1], cells(seed=1))


@pytest.mark.parametrize("damage", [bytes(9), b"\xff\xfe", b"[", b"\n"])
def test_damaged_lines_are_ignored(tile_store, reopen, damage):
    store(tile_store, [((0, n), cells(seed=n)) for n in range(3)])
    (path,) = tile_store.folder.glob("*.jsonl")
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + second[len(damage) :] + third)
    opened = reopen()
    assert opened.done() == {(0, 0), (0, 2)}
    assert opened.n_damaged == 1 + (damage == b"\n")
    store(opened, [((0, 1), cells(seed=1))])
    assert_same(list(opened.entries())[1][1], cells(seed=1))


def test_a_line_damaged_at_any_byte_is_ignored(tile_store, reopen):
    store(tile_store, [((0, n), cells(seed=n)) for n in range(3)])
    (path,) = tile_store.folder.glob("*.jsonl")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for place in range(len(lines[0]), len(lines[0]) + len(lines[1]) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7
        path.write_bytes(damaged)
        opened = reopen()
        assert opened.done() == {(0, 0), (0, 2)}
        assert opened.n_damaged == 1 + (damaged[place] == ord("\n"))
        opened.close()
    path.write_bytes(lines[0] + b"{}\n3\n" + b"[]\n" + lines[2])
    opened = reopen()
    assert opened.done() == {(0, 0), (0, 2)}
    assert opened.n_damaged == 3


def test_a_line_that_is_damaged_while_the_store_is_open(tile_store):
    store(tile_store, [((0, n), cells(seed=n)) for n in range(3)])
    (path,) = tile_store.folder.glob("*.jsonl")
    damaged = bytearray(path.read_bytes())
    damaged[20] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"parts: damaged .* again"):
        list(tile_store.entries())


def test_tiles_of_an_earlier_version_are_removed(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "0000-0.jsonl").write_text("x\n")
    (folder / "made-from.json").write_text('"of another"')
    assert TileStore(folder, {"a": 1}).done() == set()
    assert not (folder / "0000-0.jsonl").exists()


HOLD = """\
import sys, time
from pathlib import Path
from cellseg.predict.tile_store import TileStore
store = TileStore(Path(sys.argv[1]), {"a": int(sys.argv[2])})
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold():
    """Function that starts a process which uses a store; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(folder, fingerprint):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD, folder, str(fingerprint)],
                    cwd=HERE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield start


@pytest.mark.parametrize("fingerprint", [1, 2])
def test_a_second_command_says_who_uses_the_store(tile_store, hold, fingerprint):
    store(tile_store, [((0, 0), cells())])
    tile_store.close()  # by the end of the process
    process = hold(tile_store.folder, 1)
    with pytest.raises(InputError, match=rf"parts: another .*process {process.pid} on .*--output"):
        TileStore(tile_store.folder, {"a": fingerprint})
    process.kill()
    process.wait()
    # A killed process holds nothing.
    expected = {(0, 0)} if fingerprint == 1 else set()
    assert TileStore(tile_store.folder, {"a": fingerprint}).done() == expected


def test_without_locks(tmp_path, monkeypatch):
    """As on some network disks."""

    def fail(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", fail)
    first = TileStore(tmp_path / "parts", {"a": 1})
    store(first, [((0, 0), cells())])
    assert TileStore(tmp_path / "parts", {"a": 1}).done() == {(0, 0)}


def test_the_same_fingerprint_keeps_the_tiles(tile_store, reopen):
    store(tile_store, [((0, 0), cells())])
    assert reopen().done() == {(0, 0)}
    # Tuples are lists in JSON.
    other = tile_store.folder.with_name("other")
    store(TileStore(other, {"a": (1, 2)}), [((0, 0), cells())])
    assert TileStore(other, {"a": (1, 2)}).done() == {(0, 0)}


def test_another_fingerprint_clears_the_store_with_a_warning(tile_store, reopen, caplog):
    store(tile_store, [((0, n), cells()) for n in range(3)])
    assert reopen(2).done() == set()
    (message,) = caplog.messages
    assert f"{tile_store.folder}: 3 predicted tiles" in message


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_fingerprint_clears_the_store(tile_store, reopen, text):
    store(tile_store, [((0, 0), cells())])
    (tile_store.folder / "made-from.json").write_text(text)
    opened = reopen()
    assert opened.done() == set()
    store(opened, [((0, 0), cells())])
    opened.close()
    assert reopen().done() == {(0, 0)}  # the fingerprint is restored


FULL = """
import resource, signal, sys
from pathlib import Path
from cellseg.predict.tile_store import TileStore
from cellseg.predictions import Predictions
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = TileStore(Path(sys.argv[1]), {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    for n in range(3):
        store.append(("a", n), Predictions.empty((5, 7)))
except OSError as error:
    print(type(error).__name__)
"""


def test_a_full_disk_is_said_once(tmp_path):
    folder = tmp_path / "parts"
    ended = subprocess.run(
        [sys.executable, "-c", FULL, folder], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "OSError\n", "")
    store = TileStore(folder, {})  # is not locked
    assert len(store.done()) <= 1


def test_remove(tile_store):
    store(tile_store, [((0, 0), cells())])
    (tile_store.folder / ".made-from.json.abcdefgh.part").touch()  # of a killed process
    tile_store.remove()
    assert not tile_store.folder.exists()


@pytest.mark.parametrize("name", ["slide.tif", "cells.jsonl", "more/0000-0.jsonl"])
def test_other_files_are_kept(tmp_path, name):
    """In a folder that exists with that name, and in a store."""
    file = tmp_path / "parts" / name
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(InputError, match=rf"parts: holds {name.partition('/')[0]}, .* --output"):
        TileStore(tmp_path / "parts", {})
    assert file.exists()
    tile_store = TileStore(tmp_path / "other", {})
    (tile_store.folder / "notes.txt").touch()
    tile_store.remove()
    assert [path.name for path in tile_store.folder.iterdir()] == ["notes.txt"]


def test_a_folder_that_can_not_be_created(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"parts: .*--output"):
        TileStore(tmp_path / "file" / "parts", {})


@pytest.fixture
def inputs(tmp_path):
    """Weights, configs and images of a prediction."""
    weights, image = tmp_path / "model.pth", tmp_path / "image.tif"
    weights.write_bytes(b"w")
    image.write_bytes(b"i")
    cfg = config.default_config("torchvision")
    return [weights], [cfg], [ImageRecord(1, "image.tif", image, (3, 4))], []


def test_the_fingerprint_depends_on_weights_config_and_images(inputs):
    weights, (cfg,), (image,), plans = inputs
    before = tiles_fingerprint(*inputs)
    assert tiles_fingerprint(*inputs) == before
    other = cfg.clone()
    other.TEST.SYMMETRIES = 4
    assert tiles_fingerprint(weights, [other], [image], plans) != before
    assert tiles_fingerprint(weights * 2, [cfg, cfg], [image], plans) != before
    for changed in (
        ImageRecord(1, "image.tif", image.path, (3, 4), level=1),
        ImageRecord(1, "image.tif", image.path, (3, 5)),
        ImageRecord(1, "image.tif", image.path.with_name("other.tif"), (3, 4)),
    ):
        assert tiles_fingerprint(weights, [cfg], [changed], plans) != before
    assert tiles_fingerprint(weights, [cfg], [image, image], plans) != before


@pytest.mark.parametrize("which", ["weights", "image"])
def test_a_rewritten_file_changes_the_fingerprint(inputs, which):
    path = inputs[0][0] if which == "weights" else inputs[2][0].path
    before = tiles_fingerprint(*inputs)
    os.utime(path, ns=(1, 1))
    touched = tiles_fingerprint(*inputs)
    assert touched != before
    path.write_bytes(b"longer")
    os.utime(path, ns=(1, 1))
    assert tiles_fingerprint(*inputs) != touched
    path.unlink()
    assert tiles_fingerprint(*inputs) != before


def test_another_file_of_the_same_size_and_time_changes_the_fingerprint(inputs):
    path = inputs[2][0].path
    before, times = tiles_fingerprint(*inputs), path.stat()
    path.write_bytes(b"j")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert tiles_fingerprint(*inputs) != before


def test_batch_gpu_and_folder_do_not_change_the_fingerprint(inputs):
    weights, (cfg,), images, plans = inputs
    cfg.MODEL.DEVICE = "cuda"
    other = cfg.clone()
    other.MODEL.DEVICE, other.TEST.BATCH, other.OUTPUT_DIR = "cuda:1", 16, "elsewhere"
    assert tiles_fingerprint(weights, [other], images, plans) == tiles_fingerprint(*inputs)
    other.TEST.MASK_IOU, other.TEST.ACROSS_CLASSES = 0.6, True  # of merging them
    assert tiles_fingerprint(weights, [other], images, plans) == tiles_fingerprint(*inputs)
    other.MODEL.DEVICE = "cpu"
    assert tiles_fingerprint(weights, [other], images, plans) != tiles_fingerprint(*inputs)


def test_results_depend_on_merging_but_not_on_the_device(inputs):
    weights, (cfg,), _, _ = inputs
    before = results_fingerprint(weights, [cfg])
    for device in ("auto", "cuda", "cpu"):
        cfg.MODEL.DEVICE = device
        assert results_fingerprint(weights, [cfg]) == before
    cfg.TEST.MASK_IOU = 0.6
    assert results_fingerprint(weights, [cfg]) != before
