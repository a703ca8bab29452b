"""Download files into a cache: complete, within it, and with the expected sums."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from iopath.common.file_io import get_cache_dir
from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.files import safe_name, write_atomic

TIMEOUT = 30.0  # seconds without an answer

CheckFile = Callable[[Path], None]
"""Raises InputError if a downloaded file is not the expected one."""


def cache_path(url: str, server: bool) -> Path:
    """Return the path of a URL's file in the cache `$FVCORE_CACHE`, by default of iopath.

    `server` tells whether its name is part of the path. Raises InputError if the URL names no file,
    or one that would be outside the cache.
    """
    parsed = urlparse(url)
    parts = [parsed.netloc] * server + parsed.path.lstrip("/").split("/")
    if not parsed.netloc or any(part != safe_name(part) for part in parts):
        raise InputError(
            f"--weights {url}: not the address of a file, expected https://server/folder/file.pth; "
            "download it yourself and use --weights PATH"
        )
    path = Path(get_cache_dir()).joinpath(*parts)
    if parsed.query:
        query_hash = hashlib.sha256(parsed.query.encode()).hexdigest()[:16]
        path = path.with_name(f"{path.stem}-{query_hash}{path.suffix}")
    return path


def download(url: str, path: Path, check: CheckFile) -> None:
    """Download a file to `path`, which is written only if it is complete and passes `check`.

    Raises
    ------
    InputError
        If it can't be downloaded or written, has another length than the server announced, is
        redirected from https to http, or by `check`.
    """
    with write_atomic(path, "wb") as file:
        for block in _read(url, path):
            file.write(block)
        file.flush()
        check(Path(file.name))


def _read(url: str, path: Path) -> Iterator[bytes]:
    """Yield the blocks of a URL's content; `path` is only for the message of an error."""
    try:
        request = Request(url, headers={"User-Agent": "he-cellseg"})
        with urlopen(request, timeout=TIMEOUT) as response:
            if url.startswith("https:") and not response.geturl().startswith("https:"):
                raise ValueError(f"redirected to {response.geturl()}, which is not encrypted")
            length = int(response.headers.get("Content-Length") or 0)
            n_read = 0
            with tqdm(
                total=length or None, desc=path.name, unit="B", unit_scale=True, disable=None
            ) as bar:
                while block := response.read(1 << 20):
                    n_read += len(block)
                    bar.update(len(block))
                    yield block
            if length and n_read != length:
                raise ValueError(f"{n_read} of {length} bytes received")
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"--weights: {path.name} can't be downloaded from {url} ({reason}); try again, save it "
            f"as {path}, or use --weights PATH, --weights none for random weights, or --model "
            "lite_fpn, whose weights are installed"
        ) from None
