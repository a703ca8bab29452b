"""The weights to begin with, without a network."""

from __future__ import annotations

import pickle
from http.client import IncompleteRead, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch

from cellseg.errors import InputError
from cellseg.learn import config
from cellseg.learn.checkpoint import load_initial_weights
from cellseg.learn.weights import choose_initial_weights, local_weights
from cellseg.network import build_network

pytestmark = pytest.mark.detectron2

R50 = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
R50_URL = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def downloads(monkeypatch):
    """Take the place of the network: what was asked for; an exception put there is raised."""
    asked = []

    def download(url, path):
        asked.append(url)
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


def chosen(recipe, wanted):
    cfg = config.load_recipe(recipe)
    choose_initial_weights(cfg, wanted)
    return cfg.MODEL.WEIGHTS


@pytest.mark.parametrize("wanted", [None, "imagenet"])
def test_imagenet_is_the_default(downloads, cache, wanted):
    assert chosen("mask_rcnn_R_50_DC5_3x", wanted) == R50
    assert downloads == [R50_URL]
    assert (cache / "detectron2/ImageNetPretrained/MSRA/R-50.pkl").read_bytes() == b"weights"
    # Once.
    assert chosen("mask_rcnn_R_50_DC5_3x", wanted) == R50
    assert len(downloads) == 1


@pytest.mark.parametrize("recipe", [name for name in config.recipe_names() if name != "demo"])
def test_the_zoo_has_weights_for_every_recipe(downloads, recipe):
    imagenet, coco = chosen(recipe, "imagenet"), chosen(recipe, "coco")
    assert imagenet.startswith("detectron2://ImageNetPretrained/")
    assert f"/COCO-InstanceSegmentation/{recipe}/" in coco
    assert len(downloads) == 2


def test_none_asks_for_nothing(downloads):
    assert chosen("mask_rcnn_R_50_DC5_3x", "none") == ""
    assert chosen("demo", None) == ""
    assert downloads == []


def test_there_are_none(downloads):
    with pytest.raises(InputError, match="there are none for demo; train it with --weights none"):
        chosen("demo", "imagenet")
    with pytest.raises(InputError, match="Detectron2's zoo has none for demo"):
        chosen("demo", "coco")
    assert downloads == []


def test_a_path(tmp_path, downloads):
    path = tmp_path / "mine.pth"
    path.touch()
    assert chosen("demo", str(path)) == str(path)
    assert local_weights(str(path)) == path
    for bad in (tmp_path / "nowhere.pth", tmp_path, "ftp://x/y.pth", "imagnet"):
        with pytest.raises(InputError, match=r"no such file; imagenet, coco, none, "):
            chosen("demo", str(bad))
    assert downloads == []


def test_a_url(downloads, cache):
    url = "https://example.org/a/mine.pth"
    assert chosen("demo", url) == url
    assert downloads == [url]
    assert local_weights(url) == cache / "a" / "mine.pth"


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        HTTPError(R50_URL, 404, "not found", None, None),  # type: ignore[arg-type]
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        RuntimeError("invalid hash value"),
        IncompleteRead(b""),
        InvalidURL("URL can't contain control characters"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_network(monkeypatch, cache, error):
    def download(_url, _path):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(InputError) as caught:
        chosen("mask_rcnn_R_50_DC5_3x", None)
    message = str(caught.value)
    assert f"R-50.pkl can't be downloaded from {R50_URL} (" in message
    assert f"put it at {cache / 'detectron2/ImageNetPretrained/MSRA/R-50.pkl'}" in message
    assert "--weights none" in message
    if isinstance(error, HTTPError):
        error.close()


def test_a_cache_that_can_not_be_written(tmp_path, downloads, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="can't be downloaded"):
        chosen("mask_rcnn_R_50_DC5_3x", None)
    assert downloads == []


def test_what_lies_in_the_cache_is_what_the_trainer_loads(cache, tiny, monkeypatch):
    """Put there by hand, in the zoo's form: Detectron2 must look at the same place."""
    cfg = config.load_config(tiny)
    config.merge_options(cfg, ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "FrozenBN"])
    place = cache / "detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    place.parent.mkdir(parents=True)
    blobs = {
        "conv1_w": np.full((8, 3, 7, 7), 0.5, np.float32),
        "res_conv1_bn_s": np.full(8, 2, np.float32),
        "res_conv1_bn_b": np.full(8, 3, np.float32),
        "res2_0_branch2a_w": np.full((4, 8, 1, 1), 0.25, np.float32),
    }
    place.write_bytes(pickle.dumps(blobs, protocol=2))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    cfg.MODEL.WEIGHTS = R50
    choose_initial_weights(cfg, None)
    model: Any = build_network(cfg)
    load_initial_weights(model, cfg.MODEL.WEIGHTS)
    stem = model.backbone.stem.conv1
    assert (stem.weight == 0.5).all()
    assert (stem.norm.weight == 2).all()
    assert (model.backbone.res2[0].conv1.weight == 0.25).all()
