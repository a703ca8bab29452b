"""Checkpoints are written completely or not, loaded only if they fit, and never run as code."""

from __future__ import annotations

import collections
import io
import math
import pickle
import shutil
import zipfile
from typing import Any

import numpy as np
import pytest
import torch

from cellseg import runs
from cellseg.errors import InputError
from cellseg.learn.checkpoint import RunCheckpointer, take_number
from cellseg.learn.weights import load_initial_weights
from cellseg.network.weights import load_weights
from tests.read.refusal import refusal


class Counter:
    """State that is saved with the weights."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def net(value=0.0, width=3):
    model = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))
    torch.nn.init.constant_(model[0].weight, value)  # type: ignore[arg-type]
    return model


def test_round_trip(tmp_path):
    RunCheckpointer(net(3.0), tmp_path, counter=Counter(7)).save_last()
    assert [path.name for path in tmp_path.iterdir()] == [runs.LAST]
    model, counter = net(), Counter()
    checkpointer = RunCheckpointer(model, tmp_path, counter=counter)
    assert checkpointer.last.is_file()
    checkpointer.resume()
    assert counter.count == 7
    assert (model[0].weight == 3).all()


def test_a_run_folder_that_vanished_is_not_created_again(tmp_path):
    checkpointer = RunCheckpointer(net(), tmp_path / "run")
    for save in (checkpointer.save_last, lambda: checkpointer.save_weights(runs.FINAL, net())):
        with pytest.raises(InputError, match=r"run: the run folder was removed"):
            save()
    assert not (tmp_path / "run").exists()


def test_an_incomplete_checkpoint(tmp_path):
    RunCheckpointer(net(), tmp_path).save_last()
    with pytest.raises(InputError, match=r"last\.pth: .*without counter"):
        RunCheckpointer(net(), tmp_path, counter=Counter()).resume()


def test_weights_and_best_score(tmp_path):
    checkpointer = RunCheckpointer(net(), tmp_path)
    assert checkpointer.best_score() == -math.inf
    checkpointer.save_weights(runs.BEST, net(), AP50=12.5, iteration=3)
    assert checkpointer.best_score() == 0.125  # of an earlier version, in percent
    checkpointer.save_weights(runs.BEST, net(), AP50=0.25, full_score=1.0)
    assert checkpointer.best_score() == 0.25
    buffer = io.BytesIO()
    torch.save([1], buffer)
    cut = (tmp_path / runs.BEST).read_bytes()[:500]
    for damaged in (b"", b"hello", cut, buffer.getvalue()):
        (tmp_path / runs.BEST).write_bytes(damaged)
        with pytest.raises(InputError, match=r"model_best\.pth: damaged"):
            checkpointer.best_score()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["0.weight", "1.running_var"])
def test_weights_that_are_not_finite_leave_the_previous_file(tmp_path, bad, place):
    model = net(1.0)
    checkpointer = RunCheckpointer(model, tmp_path)
    checkpointer.save_last()
    previous = (tmp_path / runs.LAST).read_bytes()
    model.state_dict()[place].view(-1)[-1] = bad
    for save in (checkpointer.save_last, lambda: checkpointer.save_weights(runs.FINAL, model)):
        with pytest.raises(FloatingPointError, match=place):
            save()
    assert (tmp_path / runs.LAST).read_bytes() == previous
    assert len(list(tmp_path.iterdir())) == 1


def write(path, value):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(value, protocol=2))
    else:
        torch.save(value, path)
    return path


def test_initial_weights_that_fit_are_loaded(tmp_path):
    state = net(5.0).state_dict()
    del state["1.weight"]
    state["0.bias"] = torch.zeros(7)
    state["other"] = torch.zeros(1)
    path = write(tmp_path / "a.pth", {"model": state})
    model = net()
    summary, *reasons = load_initial_weights(model, str(path)).splitlines()
    assert summary == "4 of the network's 6 tensors from a.pth"
    for part in (": 0.bias (7, expected 3)", ": 1.weight", ": other"):
        assert sum(part in line for line in reasons) == 1
    assert (model[0].weight == 5).all()
    # The weights of a run must fit completely.
    with pytest.raises(InputError, match=r"a\.pth: .*2 of the network's 7 weights"):
        load_weights(net(), path)


def test_less_than_half_of_the_weights_fit(tmp_path):
    state = {"0.bias": torch.zeros(3), "other": torch.zeros(4)}
    path = write(tmp_path / "a.pth", {"model": state})
    with pytest.raises(InputError, match="only 3 of its 7 parameters"):
        load_initial_weights(net(), str(path))
    state["other"] = torch.zeros(3)
    load_initial_weights(net(), str(write(path, {"model": state})))


def test_no_weights_fit(tmp_path):
    path = write(tmp_path / "a.pth", {"model": {"x": torch.zeros(2)}})
    with pytest.raises(InputError, match="of the network's 7 weights"):
        load_initial_weights(net(), str(path))


DAMAGED: list[Any] = [b"", b"hello", b"PK\x03\x04", b"\x80\x02.", [1], 3]
DAMAGED += [{"model": 3}, {"model": {"0.weight": "x"}}]


@pytest.mark.parametrize("content", DAMAGED, ids=str)
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_damaged_weights(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content)
    for load in (load_weights, lambda network, name: load_initial_weights(network, str(name))):
        with pytest.raises(InputError) as caught:
            load(net(), path)
        assert str(caught.value).startswith(f"{path}: can't be loaded as weights (")


def test_truncated_weights(tmp_path):
    path = tmp_path / "a.pth"
    write(path, net().state_dict())
    whole = path.read_bytes()
    for fraction in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * fraction)])
        with pytest.raises(InputError, match="can't be loaded as weights"):
            load_initial_weights(net(), str(path))


def test_flipped_bits_are_noticed(tmp_path):
    """Every byte in turn: an error, or in the padding between the parts, the same weights."""
    path = tmp_path / "a.pth"
    write(path, {"model": net(2.0).state_dict()})
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        network = net()
        try:
            load_weights(network, path)
        except InputError as error:
            assert str(error).startswith(f"{path}: can't be loaded as weights (")  # noqa: PT017
            noticed += 1
        else:
            assert (network[0].weight == 2).all()
    assert noticed > 50


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in a weights file was run",))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_nothing_in_a_file_is_run(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pickle.dumps({"model": Bomb(), "__author__": "me"}, protocol=2))
    with pytest.raises(InputError, match="can't be loaded as weights"):
        load_initial_weights(net(), str(path))
    torch.save({"model": Bomb()}, tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"b\.pth: .*pickle that can run code") as caught:
        load_initial_weights(net(), str(tmp_path / "b.pth"))
    assert "weights_only" not in str(caught.value)  # torch advises to run it


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    state = collections.OrderedDict((k, v.numpy()) for k, v in net(2.0).state_dict().items())
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2"}, protocol))
    model = net()
    load_initial_weights(model, str(path))
    assert (model[0].weight == 2).all()


def test_safetensors(tmp_path):
    from safetensors.torch import save

    path = tmp_path / "a.safetensors"
    whole = save(net(4.0).state_dict())
    path.write_bytes(whole)
    model = net()
    load_initial_weights(model, str(path))
    assert (model[0].weight == 4).all()
    pickled = pickle.dumps({"0.weight": Bomb()})
    for damaged in (b"", b"hello", whole[:50], whole[:-1], pickled):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.safetensors: can't be loaded as weights \("):
            load_initial_weights(net(), str(path))


def test_a_pickle_with_another_suffix_is_not_read(tmp_path):
    arrays = {name: value.numpy() for name, value in net(2.0).state_dict().items()}
    for name in ("a.bin", "a.PKL", "a"):
        (tmp_path / name).write_bytes(pickle.dumps(arrays, protocol=2))
        with pytest.raises(InputError, match="can't be loaded as weights"):
            load_initial_weights(net(), str(tmp_path / name))


@pytest.mark.parametrize("score", [-1, math.nan, math.inf, 101, 10**400, "12", None, True, [3]])
def test_an_impossible_best_score(tmp_path, score):
    checkpointer = RunCheckpointer(net(), tmp_path)
    checkpointer.save_weights(runs.BEST, net(), AP50=score)
    with pytest.raises(InputError, match=r"model_best\.pth: damaged .*AP50"):
        checkpointer.best_score()


def resumed(run, tmp_path, change):
    """Resume a copy of a run with a changed checkpoint. Return the message that refuses it."""
    import train

    copy = tmp_path / "model" / "run"
    shutil.copytree(run, copy)
    state = torch.load(copy / runs.LAST, weights_only=True)
    change(state)
    torch.save(state, copy / runs.LAST)
    return refusal(train.main, ["--resume", str(copy), "--device", "cpu"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("iteration", -1), ("iteration", 10**30), ("last_epoch", math.nan), ("worse", "2")],
)
def test_impossible_progress(run, tmp_path, name, value):
    def change(state):
        trainer, step = state["trainer"], state["step"]
        parts = (trainer, step["schedule"], trainer["hooks"]["Validation"])
        next(part for part in parts if name in part)[name] = value

    assert f"last.pth: can't be loaded as weights (its {name} is" in resumed(run, tmp_path, change)


@pytest.mark.parametrize("value", [-1, 101, math.nan, -math.inf, 10**400, "2", None, True, [3]])
def test_numbers_of_a_checkpoint(value):
    with pytest.raises(ValueError, match="its score is"):
        take_number({"score": value}, "score", 0, 100)
    assert take_number({"score": 100}, "score", 0, 100, whole=True) == 100
    with pytest.raises(ValueError, match="a whole number"):
        take_number({"score": 1.5}, "score", 0, 100, whole=True)


def test_pickles_that_ask_for_terabytes(tmp_path):
    array = pickle.dumps(np.zeros(3, np.float32), protocol=2)
    huge = array.replace(b"K\x03", b"\x8a\x06\0\0\0\0\0\x40")  # 2^46 values
    assert huge != array
    for content in (
        huge,
        b"\x80\x02]r\xff\xff\xff\x7f.",  # an object with the number 2^31 - 1
        b"\x80\x04\x8e" + (1 << 45).to_bytes(8, "little") + b"abc.",  # that many bytes
    ):
        (tmp_path / "a.pkl").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.pkl: can't be loaded as weights"):
            load_initial_weights(net(), str(tmp_path / "a.pkl"))


def test_weights_that_unpack_to_much_more(tmp_path):
    path = tmp_path / "a.pth"
    write(path, net().state_dict())
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data/99", "w") as file,
    ):
        for _ in range(101):
            file.write(bytes(1_000_000))
    with pytest.raises(InputError, match="bytes that unpack to"):
        load_initial_weights(net(), str(path))
