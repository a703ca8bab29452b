"""Which device is chosen, and what is said of one that is not there."""

from __future__ import annotations

import pytest

from cellseg.device import choose_device
from cellseg.errors import InputError


@pytest.mark.parametrize("cuda", [False, True])
def test_the_device_is_a_gpu_if_there_is_one(monkeypatch, capsys, cuda):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert choose_device(None) == ("cuda" if cuda else "cpu")
    assert ("no CUDA GPU here" in capsys.readouterr().out) is not cuda


def test_the_device_that_is_asked_for(capsys):
    assert choose_device("cpu") == "cpu"
    assert choose_device(None, ["SEED", "1", "MODEL.DEVICE", "cpu"]) == "cpu"
    assert choose_device(None, recipe="cpu") == "cpu"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "meta", "cpu:x", "hip hop"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(InputError, match=f"--device {name}: not to be had here .*--device cpu"):
        choose_device(name)
    with pytest.raises(InputError, match="not to be had"):
        choose_device(None, ["MODEL.DEVICE", name])
