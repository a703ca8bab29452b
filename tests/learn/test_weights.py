"""Initial weights, without network access: where they are, and which are trusted."""

from __future__ import annotations

import hashlib
import io
import pickle
import threading
from http.client import IncompleteRead, InvalidURL
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch

from cellseg import config
from cellseg.errors import InputError
from cellseg.learn import download
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
    """Replace the network; return the list of downloaded URLs."""
    urls = []

    def answer(request, timeout):
        assert timeout
        urls.append(request.full_url)
        return Response(request.full_url, DOWNLOADED)

    monkeypatch.setattr(download, "urlopen", answer)
    return urls


class Response(io.BytesIO):
    """What a server answers."""

    def __init__(self, url, content, length=None):
        super().__init__(content)
        self._url = url
        self.headers = {"Content-Length": str(len(content) if length is None else length)}

    def geturl(self):
        return self._url


def answering(content, address=""):
    """Return a server: it answers each request with the content, from another address if given."""

    def answer(request, timeout):
        assert timeout
        return Response(address or request.full_url, content)

    return answer


DOWNLOADED = b"weights"
KNOWN = hashlib.sha256(DOWNLOADED).hexdigest()


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
    assert chosen("mask_rcnn_R_50_DC5_3x", wanted) == R50
    assert len(downloads) == 1  # the second is cached


ZOO = [name for name in config.recipe_names() if name.startswith("mask_rcnn")]


@pytest.mark.detectron2
@pytest.mark.parametrize("recipe", ZOO)
def test_the_zoo_has_weights_for_every_recipe(downloads, recipe):
    imagenet, coco = chosen(recipe, "imagenet"), chosen(recipe, "coco")
    assert imagenet.startswith("detectron2://ImageNetPretrained/")
    assert f"/COCO-InstanceSegmentation/{recipe}/" in coco
    assert len(downloads) == 2


@pytest.mark.detectron2
def test_timm_weights(downloads, cache):
    name = "convnextv2_base.fcmae_ft_in22k_in1k"
    for wanted in (None, "imagenet"):
        assert chosen("cascade_mask_rcnn_convnextv2_base_FPN", wanted, "") == f"timm://{name}"
    assert downloads == [f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"]
    assert local_weights(f"timm://{name}").is_relative_to(cache)


@pytest.mark.detectron2
def test_timm_has_the_weights_of_the_recipes():
    timm = pytest.importorskip("timm")
    for recipe in config.recipe_names():
        cfg = config.load_recipe(recipe, "detectron2")
        if cfg.MODEL.TIMM.NAME and not cfg.MODEL.WEIGHTS.startswith("pip://"):
            # small_fpn is trained from random weights by default.
            weights = (cfg.MODEL.WEIGHTS or "timm://resnet10t.c3_in1k").removeprefix("timm://")
            assert weights.partition(".")[0] == cfg.MODEL.TIMM.NAME
            theirs = timm.get_pretrained_cfg(weights)
            assert theirs.hf_hub_id == f"timm/{weights}"
            # The preprocessing that they were trained with.
            assert cfg.INPUT.FORMAT == "RGB"
            assert cfg.MODEL.PIXEL_MEAN == pytest.approx([255 * m for m in theirs.mean])
            assert cfg.MODEL.PIXEL_STD == pytest.approx([255 * s for s in theirs.std])


def test_none_downloads_nothing(downloads):
    assert chosen("mask_rcnn_R_50_DC5_3x", "none") == ""
    assert chosen("small_fpn", None) == ""
    assert downloads == []


@pytest.mark.detectron2
def test_recipes_without_weights(downloads):
    for wanted in ("imagenet", "coco"):
        with pytest.raises(InputError, match=rf"--weights {wanted}: .* small_fpn; .*none"):
            chosen("small_fpn", wanted)
    assert downloads == []


def test_a_path(tmp_path, downloads):
    path = tmp_path / "mine.pth"
    path.touch()
    assert chosen("demo", str(path)) == str(path)
    assert local_weights(str(path)) == path
    for bad in (tmp_path / "nowhere.pth", tmp_path, "ftp://x/y.pth", "imagnet"):
        with pytest.raises(
            InputError, match=r"--weights \S+: (not found|a folder, but not of a run); imagenet, "
        ):
            chosen("demo", str(bad))
    assert downloads == []


def test_a_url(downloads, cache):
    url = "https://example.org/a/mine.pth"
    assert chosen("demo", url) == url
    assert downloads == [url]
    assert local_weights(url) == cache / "example.org" / "a" / "mine.pth"
    others = [f"https://example.com/{R50.partition('//')[2]}", f"{url}?v=1", f"{url}?v=2"]
    paths = {local_weights(other) for other in [R50, url, *others]}
    assert len(paths) == 5  # files of different servers are kept apart
    assert all(path.is_relative_to(cache) for path in paths)


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        HTTPError(R50_URL, 404, "not found", None, None),  # type: ignore[arg-type]
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        IncompleteRead(b""),
        InvalidURL("URL can't contain control characters"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_network(monkeypatch, cache, error):
    def fail(_request, timeout):
        assert timeout
        raise error

    monkeypatch.setattr(download, "urlopen", fail)
    with pytest.raises(InputError) as caught:
        chosen("mask_rcnn_R_50_DC5_3x", None)
    message = str(caught.value)
    assert f"R-50.pkl can't be downloaded from {R50_URL} (" in message
    assert str(cache / "detectron2/ImageNetPretrained/MSRA/R-50.pkl") in message
    assert "--weights none" in message
    if isinstance(error, HTTPError):
        error.close()


def test_a_cache_that_can_not_be_written(tmp_path, downloads, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"R-50\.pkl: can't be written"):
        chosen("mask_rcnn_R_50_DC5_3x", None)
    assert downloads == []


@pytest.mark.detectron2
def test_cached_weights_are_loaded(cache, tiny, monkeypatch):
    """Saved by hand in the zoo's format, where Detectron2 caches them."""
    cfg = config.load_config(tiny)
    config.merge_options(cfg, ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "FrozenBN"])
    path = cache / "detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    path.parent.mkdir(parents=True)
    blobs = {
        "conv1_w": np.full((8, 3, 7, 7), 0.5, np.float32),
        "res_conv1_bn_s": np.full(8, 2, np.float32),
        "res_conv1_bn_b": np.full(8, 3, np.float32),
        "res2_0_branch2a_w": np.full((4, 8, 1, 1), 0.25, np.float32),
    }
    path.write_bytes(pickle.dumps(blobs, protocol=2))
    monkeypatch.setattr(download, "urlopen", None)
    cfg.MODEL.WEIGHTS = R50
    cfg.MODEL.TRUSTED_SHA256 = hashlib.sha256(path.read_bytes()).hexdigest()
    choose_initial_weights(cfg, None)
    model: Any = build_network(cfg)
    load_initial_weights(model, cfg.MODEL.WEIGHTS)
    stem = model.backbone.stem.conv1
    assert (stem.weight == 0.5).all()
    assert (stem.norm.weight == 2).all()
    assert (model.backbone.res2[0].conv1.weight == 0.25).all()


def test_a_pickle_is_trusted_by_its_sha256(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"abc")
    # NIST's example for SHA-256, FIPS 180-2.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for trusted in (known, known.upper(), f"{'0' * 64}, {known}"):
        check_pickle(path, trusted)
    for trusted in ("", ",", known[:8], "0" * 64):
        with pytest.raises(InputError, match=f"{path} is a pickle.*TRUSTED_SHA256 {known}"):
            check_pickle(path, trusted)
    path.write_bytes(b"abcd")
    with pytest.raises(InputError, match="is a pickle"):
        check_pickle(path, known)
    for name in ("a.pth", "a.safetensors"):  # not pickles
        (tmp_path / name).write_bytes(b"abc")
        check_pickle(tmp_path / name, "")


@pytest.mark.detectron2
def test_a_pickle_of_the_zoo_is_trusted_by_its_address(downloads):
    """Unless sums are given."""
    assert chosen("mask_rcnn_R_50_DC5_3x", None, trusted="") == R50
    assert downloads == [R50_URL]
    with pytest.raises(InputError, match=rf"R-50\.pkl is a pickle.* {KNOWN} "):
        chosen("mask_rcnn_R_50_DC5_3x", None, trusted="0" * 64)
    with pytest.raises(InputError, match=r"R-50\.pkl is a pickle"):
        chosen("demo", "https://elsewhere.org/detectron2/R-50.pkl", trusted="")


@pytest.mark.detectron2
def test_a_pickle_of_the_zoo_has_the_md5_in_its_name(cache, monkeypatch):
    # RFC 1321's example: the MD5 of "abc" is 900150983cd24fb0d6963f7d28e17f72.
    zoo = "detectron2://COCO-InstanceSegmentation/x/1/"
    monkeypatch.setattr(download, "urlopen", None)
    folder = cache / "detectron2/COCO-InstanceSegmentation/x/1"
    folder.mkdir(parents=True)
    for name in ("model_final_900150.pkl", "model_final.pkl"):
        (folder / name).write_bytes(b"abc")
        assert chosen("demo", zoo + name, trusted="") == zoo + name
    # A truncated one is downloaded again, and kept only if it is whole.
    path, name = folder / "model_final_900150.pkl", f"{zoo}model_final_900150.pkl"
    path.write_bytes(b"ab")
    monkeypatch.setattr(download, "urlopen", answering(b"ab"))
    with pytest.raises(InputError, match=r"model_final_900150\.pkl .* 187ef44.* 900150…"):
        chosen("demo", name, trusted="")
    assert path.read_bytes() == b"ab"
    monkeypatch.setattr(download, "urlopen", answering(b"abc"))
    assert chosen("demo", name, trusted="") == name
    assert path.read_bytes() == b"abc"
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


@pytest.mark.detectron2
def test_the_remedy_for_a_pickle_works(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"abc")
    cfg = config.load_recipe("demo")
    with pytest.raises(InputError) as caught:
        choose_initial_weights(cfg, str(path))
    remedy = str(caught.value).partition("end the command with ")[2].partition(",")[0]
    config.merge_options(cfg, remedy.split())
    choose_initial_weights(cfg, str(path))


OUTSIDE = [
    "https://example.org/a/../../../x.pth",
    "https://../x.pth",
    "https://example.org/a/..",
    "https://example.org/a/C:x.pth",
    "https://example.org/a\\..\\..\\x.pth",
    "https://example.org/",
    "https://example.org",
    "https:///x.pth",
    "detectron2://../../x.pth",
    "timm://../../../../x",
]


@pytest.mark.parametrize("url", OUTSIDE)
def test_nothing_is_downloaded_outside_the_cache(downloads, tmp_path, url):
    with pytest.raises(InputError, match=r"^--weights .*not the address of a file"):
        chosen("demo", url)
    with pytest.raises(InputError, match=r"^--weights .*not the address of a file"):
        load_initial_weights(torch.nn.Linear(1, 1), url)  # of a run that someone else began
    assert downloads == []
    assert list(tmp_path.iterdir()) == []


def test_http_needs_the_sum_of_the_file(downloads, cache):
    url = "http://example.org/mine.pth"
    with pytest.raises(InputError, match=rf"^--weights {url}: .*https.*TRUSTED_SHA256"):
        chosen("demo", url, trusted="")
    assert downloads == []
    assert chosen("demo", url, trusted=f"{'0' * 64}, {KNOWN.upper()}") == url
    assert (cache / "example.org" / "mine.pth").read_bytes() == DOWNLOADED


def test_a_download_with_another_sum_is_not_kept(downloads, cache):
    url = "https://example.org/mine.pth"
    with pytest.raises(InputError, match=rf"{url} has the SHA-256 {KNOWN}"):
        chosen("demo", url, trusted="0" * 64)
    assert downloads == [url]
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_redirection_to_http_is_refused(monkeypatch, cache):
    monkeypatch.setattr(download, "urlopen", answering(DOWNLOADED, "http://example.org/mine.pth"))
    with pytest.raises(InputError, match="not encrypted"):
        chosen("demo", "https://example.org/mine.pth", trusted="")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_cut_download_is_fetched_again(cache, monkeypatch):
    """From a real server, which closes the first connection in the middle."""
    monkeypatch.setenv("no_proxy", "*")
    whole = [False, True]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(DOWNLOADED)))
            self.end_headers()
            self.wfile.write(DOWNLOADED if whole.pop(0) else DOWNLOADED[:3])

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/mine.pth"
        with pytest.raises(InputError, match=rf"{url} \(3 of 7 bytes"):
            chosen("demo", url)
        assert not [path for path in cache.rglob("*") if path.is_file()]
        assert chosen("demo", url) == url
        server.shutdown()
    (path,) = [path for path in cache.rglob("*") if path.is_file()]
    assert path.read_bytes() == DOWNLOADED


def test_damaged_weights_in_the_cache_are_downloaded_again(cache, monkeypatch):
    """Such as half a file that an earlier version left there."""
    network, saved = torch.nn.Linear(2, 2), io.BytesIO()
    torch.save({key: torch.full_like(v, 3) for key, v in network.state_dict().items()}, saved)
    path = cache / "example.org" / "mine.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(saved.getvalue()[:500])
    url = "https://example.org/mine.pth"

    def fail(_request, timeout):
        assert timeout
        raise URLError("no route to host")

    monkeypatch.setattr(download, "urlopen", fail)
    with pytest.raises(InputError, match="no route to host"):
        load_initial_weights(network, url)
    assert path.read_bytes() == saved.getvalue()[:500]
    monkeypatch.setattr(download, "urlopen", answering(saved.getvalue()))
    load_initial_weights(network, url)
    assert (network.weight == 3).all()
    assert path.read_bytes() == saved.getvalue()


def test_tensors_that_are_not_taken_are_listed(tmp_path):
    path = tmp_path / "former.pth"
    torch.manual_seed(0)
    former = torch.nn.Sequential(
        torch.nn.Linear(9, 9), torch.nn.Linear(9, 2), torch.nn.Linear(1, 1)
    )
    torch.save({"model": former.state_dict()}, path)
    network = torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.Linear(9, 3))
    network.add_module("head", torch.nn.BatchNorm1d(4))
    summary = load_initial_weights(network, str(path)).splitlines()
    assert summary[0].startswith("2 of the network's 8 tensors from former.pth")  # 8 = 2 + 2 + 4
    assert "2 tensors of another shape" in summary[1]
    assert "1.weight (2 x 9, expected 3 x 9)" in summary[1]
    assert "4 tensors not in the file" in summary[2]
    assert "2.weight" in summary[3]
    assert torch.equal(network.state_dict()["0.weight"], former.state_dict()["0.weight"])
