"""The weights that a network begins with."""

from __future__ import annotations

import socket
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from fvcore.common.config import CfgNode
from iopath.common.file_io import get_cache_dir

from cellseg.errors import InputError
from cellseg.network import engine

_ZOO = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")  # short name, address
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
        If there are none of that kind, or they can be neither found nor downloaded.
    """
    if wanted == "none":
        cfg.MODEL.WEIGHTS = ""
    elif wanted in ("imagenet", "coco") or (wanted is None and cfg.MODEL.WEIGHTS.startswith(_ZOO)):
        cfg.MODEL.WEIGHTS = engine(cfg.ENGINE).initial_weights(cfg, wanted or "imagenet")
    elif wanted is not None:
        cfg.MODEL.WEIGHTS = wanted
    if cfg.MODEL.WEIGHTS:
        local_weights(cfg.MODEL.WEIGHTS)


def local_weights(name: str) -> Path:
    """Give the local file of a path, a URL or a `detectron2://` name, downloaded if need be.

    Downloads are cached where Detectron2 caches them: below `$FVCORE_CACHE`, by default
    `~/.torch/iopath_cache`.

    Raises
    ------
    InputError
        If it is neither there nor to be had; the line says where to put it by hand.
    """
    url = name.replace(*_ZOO, 1)
    parsed = urlparse(url)
    if parsed.scheme not in ("http", "https"):
        path = Path(name)
        if not path.is_file():
            raise InputError(
                f"--weights {name}: no such file; imagenet, coco, none, a path or a URL is expected"
            )
        return path
    path = Path(get_cache_dir()) / parsed.path.lstrip("/")
    if path.is_file():
        return path
    patience = socket.getdefaulttimeout()
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
        socket.setdefaulttimeout(patience)
    return path
