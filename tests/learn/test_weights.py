"""The weights to begin with, without a network: where they are, and which are trusted."""

from __future__ import annotations

import hashlib
import pickle
from http.client import IncompleteRead, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch

from cellseg import config
from cellseg.errors import InputError
from cellseg.learn.weights import (
    check_pickle,
    choose_initial_weights,
    load_initial_weights,
    local_weights,
)
from cellseg.network import build_network

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
        Path(path).write_bytes(DOWNLOADED)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


def sum_of(content):
    return hashlib.sha256(content).hexdigest()


DOWNLOADED = b"weights"
KNOWN = sum_of(DOWNLOADED)


def chosen(recipe, wanted, trusted=KNOWN):
    cfg = config.load_recipe(recipe)
    cfg.MODEL.TRUSTED_SHA256 = trusted
    choose_initial_weights(cfg, wanted)
    return cfg.MODEL.WEIGHTS


@pytest.mark.detectron2
@pytest.mark.parametrize("wanted", [None, "imagenet"])
def test_imagenet_is_the_default(downloads, cache, wanted):
    assert chosen("mask_rcnn_R_50_DC5_3x", wanted) == R50
    assert downloads == [R50_URL]
    assert (cache / "detectron2/ImageNetPretrained/MSRA/R-50.pkl").read_bytes() == DOWNLOADED
    # Once.
    assert chosen("mask_rcnn_R_50_DC5_3x", wanted) == R50
    assert len(downloads) == 1


ZOO = [name for name in config.recipe_names() if name.startswith("mask_rcnn")]


@pytest.mark.detectron2
@pytest.mark.parametrize("recipe", ZOO)
def test_the_zoo_has_weights_for_every_recipe(downloads, recipe):
    imagenet, coco = chosen(recipe, "imagenet"), chosen(recipe, "coco")
    assert imagenet.startswith("detectron2://ImageNetPretrained/")
    assert f"/COCO-InstanceSegmentation/{recipe}/" in coco
    assert len(downloads) == 2


@pytest.mark.detectron2
def test_timms_weights(downloads, cache):
    name = "convnextv2_base.fcmae_ft_in22k_in1k"
    for wanted in (None, "imagenet"):
        assert chosen("cascade_mask_rcnn_convnextv2_base_FPN", wanted, "") == f"timm://{name}"
    assert downloads == [f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"]
    assert local_weights(f"timm://{name}").is_relative_to(cache)


@pytest.mark.detectron2
def test_timm_has_the_weights_that_recipes_name():
    timm = pytest.importorskip("timm")
    for recipe in config.recipe_names():
        cfg = config.load_recipe(recipe, "detectron2")
        if cfg.MODEL.TIMM.NAME:
            # Those that small_fpn may begin with, if it is not to begin at random.
            weights = (cfg.MODEL.WEIGHTS or "timm://resnet10t.c3_in1k").removeprefix("timm://")
            assert weights.partition(".")[0] == cfg.MODEL.TIMM.NAME
            theirs = timm.get_pretrained_cfg(weights)
            assert theirs.hf_hub_id == f"timm/{weights}"
            # The sizes of pixels that they were trained with.
            assert cfg.INPUT.FORMAT == "RGB"
            assert cfg.MODEL.PIXEL_MEAN == pytest.approx([255 * m for m in theirs.mean])
            assert cfg.MODEL.PIXEL_STD == pytest.approx([255 * s for s in theirs.std])


def test_none_asks_for_nothing(downloads):
    assert chosen("mask_rcnn_R_50_DC5_3x", "none") == ""
    assert chosen("demo", None) == ""
    assert downloads == []


@pytest.mark.detectron2
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
    assert local_weights(url) == cache / "example.org" / "a" / "mine.pth"
    others = [f"https://example.com/{R50.partition('//')[2]}", f"{url}?v=1", f"{url}?v=2"]
    places = {local_weights(other) for other in [R50, url, *others]}
    assert len(places) == 5  # what one server gives never passes for what another does
    assert all(place.is_relative_to(cache) for place in places)


@pytest.mark.detectron2
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


@pytest.mark.detectron2
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
    cfg.MODEL.TRUSTED_SHA256 = sum_of(place.read_bytes())
    choose_initial_weights(cfg, None)
    model: Any = build_network(cfg)
    load_initial_weights(model, cfg.MODEL.WEIGHTS)
    stem = model.backbone.stem.conv1
    assert (stem.weight == 0.5).all()
    assert (stem.norm.weight == 2).all()
    assert (model.backbone.res2[0].conv1.weight == 0.25).all()


def test_a_pickle_is_trusted_by_its_sum(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"abc")
    # NIST's example for SHA-256, FIPS 180-2.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for trusted in (known, known.upper(), f"{'0' * 64}, {known}"):
        check_pickle(path, trusted)
    for trusted in ("", ",", known[:8], "0" * 64):
        with pytest.raises(InputError) as caught:
            check_pickle(path, trusted)
        message = str(caught.value)
        assert f"{path} is a pickle, which can hold code, and its SHA-256 {known}" in message
        assert f"MODEL.TRUSTED_SHA256 {known}" in message
    path.write_bytes(b"abcd")
    with pytest.raises(InputError, match="is a pickle"):
        check_pickle(path, known)


@pytest.mark.detectron2
def test_the_zoos_pickle_is_trusted_by_its_address(downloads):
    """But where sums are given, they count."""
    assert chosen("mask_rcnn_R_50_DC5_3x", None, trusted="") == R50
    assert downloads == [R50_URL]
    with pytest.raises(InputError, match=rf"R-50\.pkl is a pickle.* {KNOWN} "):
        chosen("mask_rcnn_R_50_DC5_3x", None, trusted="0" * 64)
    with pytest.raises(InputError, match=r"R-50\.pkl is a pickle"):
        chosen("demo", "https://elsewhere.org/detectron2/R-50.pkl", trusted="")


@pytest.mark.detectron2
def test_the_zoos_pickle_is_the_one_that_its_name_speaks_of(cache):
    # RFC 1321's example for MD5: that of "abc" is 900150983cd24fb0d6963f7d28e17f72.
    zoo = "detectron2://COCO-InstanceSegmentation/x/1/"
    folder = cache / "detectron2/COCO-InstanceSegmentation/x/1"
    folder.mkdir(parents=True)
    for name in ("model_final_900150.pkl", "model_final.pkl"):
        (folder / name).write_bytes(b"abc")
        assert chosen("demo", zoo + name, trusted="") == zoo + name
    (folder / "model_final_900150.pkl").write_bytes(b"ab")  # as a cut download leaves it
    with pytest.raises(InputError, match=r"cut off or .* 187ef44.* 900150… is .*delete it"):
        chosen("demo", zoo + "model_final_900150.pkl", trusted="")


def test_what_is_not_a_pickle_needs_no_trust(tmp_path):
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"abc")
        check_pickle(tmp_path / name, "")


@pytest.mark.detectron2
def test_the_sum_is_given_as_the_refusal_says(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"abc")
    cfg = config.load_recipe("demo")
    with pytest.raises(InputError) as caught:
        choose_initial_weights(cfg, str(path))
    said = str(caught.value).partition("end the command with ")[2].partition(",")[0]
    config.merge_options(cfg, said.split())
    choose_initial_weights(cfg, str(path))
