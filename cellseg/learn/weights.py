"""The weights that a network begins with.

Weights are data. Files of torch and safetensors are read as such; a pickle (.pkl) can name
any code, so it must come from Detectron2's zoo or be trusted by its SHA-256, and is still
read without running any.

The zoo publishes no SHA-256 sums. Its trained models carry the beginning of their MD5 in
their names, "to check downloaded file integrity" (MODEL_ZOO.md of Detectron2); those of
ImageNet carry nothing.
"""

from __future__ import annotations

import hashlib
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
from cellseg.network.weights import read_weights, take_weights, weights_errors
from cellseg.runs import file_hash

_IMAGENET = f"{ZOO[0]}ImageNetPretrained/"  # for which other engines have their own
_MD5_IN_NAME = re.compile(r"_([0-9a-f]{6})\.pkl")
_TIMM = ("timm://", "https://huggingface.co/timm/")
_TIMM_FILE = "/resolve/main/model.safetensors"
_TIMEOUT = 30.0  # seconds without an answer, after which a server counts as out of reach


def choose_initial_weights(cfg: CfgNode, wanted: str | None) -> None:
    """Set `MODEL.WEIGHTS` to the weights that the user wants, and have them at hand.

    Parameters
    ----------
    cfg
        The config; its `MODEL.WEIGHTS` are the recipe's ImageNet weights, or empty.
    wanted
        "imagenet", "coco" (of Detectron2's zoo), "none", a path or a URL; None takes
        what the recipe says.

    Raises
    ------
    InputError
        If there are none of that kind for the engine, they can be neither found nor
        downloaded, or they are a pickle that is neither the zoo's nor named by
        `MODEL.TRUSTED_SHA256`, or not the one that the zoo has under this name.
    """
    if wanted is None:
        wanted = "imagenet" if cfg.MODEL.WEIGHTS.startswith(_IMAGENET) else cfg.MODEL.WEIGHTS
    if wanted in ("", "none"):
        cfg.MODEL.WEIGHTS = ""
        return
    cfg.MODEL.WEIGHTS = name = get_engine(cfg.ENGINE).initial_weights(cfg, wanted)
    path, trusted = local_weights(name), cfg.MODEL.TRUSTED_SHA256
    if trusted or not name.startswith(ZOO):
        check_pickle(path, trusted)
    else:
        _check_zoo_hash(path)


def check_pickle(path: Path, trusted: str) -> None:
    """Raise InputError for a pickle unless it is known by its SHA-256; other files pass.

    Parameters
    ----------
    path
        A file of weights.
    trusted
        The sums of trusted pickles, in hexadecimal, with commas between them.

    Raises
    ------
    InputError
        If the file is a pickle whose sum is not among them.
    """
    if path.suffix != ".pkl":
        return
    digest = file_hash(path)
    if digest not in trusted.lower().replace(" ", "").split(","):
        raise InputError(
            f"--weights: {path} is a pickle, which can hold code, and its SHA-256 {digest} is none "
            "of MODEL.TRUSTED_SHA256; compare it with one from a source that you trust and end "
            f"the command with MODEL.TRUSTED_SHA256 {digest}, or take weights that are data alone "
            "(.pth, .safetensors), or --weights none"
        )


def _check_zoo_hash(path: Path) -> None:
    """Raise InputError for a file of the zoo that is not the one which its name speaks of."""
    expected = _MD5_IN_NAME.search(path.name)
    if not expected:
        return
    digest = file_hash(path, hashlib.md5(usedforsecurity=False))
    if not digest.startswith(expected[1]):
        raise InputError(
            f"--weights: {path} is cut off or not what Detectron2's zoo has under this name (its "
            f"MD5 is {digest}, and {expected[1]}… is expected); delete it to download it anew"
        )


def local_weights(name: str) -> Path:
    """Return the local file of a path, a URL or a short name, downloaded if need be.

    Short names are Detectron2's `detectron2://` and `timm://NAME` with a name of timm's
    weights. Downloads are cached below `$FVCORE_CACHE`, by default `~/.torch/iopath_cache`:
    those of Detectron2's zoo where Detectron2 has them, others by their server.

    Raises
    ------
    InputError
        If it is neither there nor available; the line says where to put it by hand.
    """
    url = name.replace(*ZOO, 1)
    if name.startswith(_TIMM[0]):
        url = name.replace(*_TIMM, 1) + _TIMM_FILE
    parsed = urlparse(url)
    if parsed.scheme not in ("http", "https"):
        path = Path(name)
        if not path.is_file():
            raise InputError(
                f"--weights {name}: no such file; imagenet, coco, none, a path or a URL is expected"
            )
        return path
    # The zoo's where Detectron2 has them; others must not take their place.
    server = "" if url.startswith(ZOO[1]) else parsed.netloc
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
        # Written beside and renamed, with a progress bar.
        torch.hub.download_url_to_file(url, str(path))
    except (URLError, HTTPException, OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"--weights: {path.name} can't be downloaded from {url} ({reason}); bring it here by "
            f"other means and put it at {path}, or name it with --weights PATH, or begin from "
            "random weights with --weights none"
        ) from None
    finally:
        socket.setdefaulttimeout(previous_timeout)
    return path


def load_initial_weights(network: torch.nn.Module, name: str) -> str:
    """Load weights to begin with, of which what fits is taken.

    A network may have a method `adapt_weights`, which turns what a file of its engine's
    zoo holds into a state dict of its own.

    Parameters
    ----------
    network
        The network.
    name
        A file, a URL or a short name, as `local_weights` takes it.

    Returns
    -------
    How much of the network came from where.

    Raises
    ------
    InputError
        If it is neither there nor available, not a checkpoint or damaged, or less than half
        of it fits.
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
