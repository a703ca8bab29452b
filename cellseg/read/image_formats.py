"""Formats of image files: their endings, their first bytes, and the errors of their decoders."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from cellseg.errors import InputError
from cellseg.files import check_ordinary, find_in_another_case

MRXS = ".mrxs"  # a JPEG beside a folder with the slide

# Endings of image files: TIFFs, pictures, and slides that OpenSlide reads.
SUFFIXES = (
    *(".tif", ".tiff", ".btf", ".tf8", ".svs", ".qptiff"),
    *(".png", ".jpg", ".jpeg", ".bmp"),
    *(".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"),
)

# What files begin with.
PNG_MAGIC = b"\x89PNG"
JPEG_MAGIC = b"\xff\xd8"
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PICTURES = {PNG_MAGIC: "PNG", JPEG_MAGIC: "JPEG", b"BM": "BMP"}


def file_kind(path: Path) -> str:
    """Return what a file is by content: "TIFF", "picture" (PNG, JPEG, BMP), or "" if else.

    Raises InputError if it can't be read.
    """
    magic = file_magic(path)
    if magic in _TIFF_MAGIC:
        return "TIFF"
    return "picture" if magic in PICTURES and path.suffix.lower() != MRXS else ""  # JPEG in front


def file_magic(path: Path) -> bytes:
    """Return the first bytes of a file, cut to those that identify the format, or none."""
    try:
        check_ordinary(path)
        with open(path, "rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        other = find_in_another_case(path)
        advice = (
            f"{other} differs from it only in case; use one name" if other else "check the name"
        )
        raise InputError(f"{path}: no such file; {advice}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, expected an image file") from None
    except OSError as error:
        raise InputError(
            f"{path}: can't be read ({error.strerror}); check its permissions"
        ) from None
    except ValueError:  # such as a null character in the name
        raise InputError(f"{str(path)!r}: not the name of a file; fix it") from None
    if not head:
        raise InputError(f"{path}: an empty file; copy or export it again")
    known = (*_TIFF_MAGIC, *PICTURES)
    return next((magic for magic in known if head.startswith(magic)), b"")


@contextlib.contextmanager
def decode_errors(path: Path) -> Iterator[None]:
    """Raise InputError for all errors of decoders in the block."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: too large for the memory; cut it into smaller images") from None
    except Exception as error:  # noqa: BLE001 (damaged files can cause any error)
        raise InputError(
            f"{path}: damaged or of an unknown type ({_reason(error)}); copy or export it again"
        ) from None


def _reason(error: Exception) -> str:
    """Return what a decoder says to people, else that the file's structure is broken."""
    explained = isinstance(error, ValueError | OSError | RuntimeError) and not isinstance(
        error, UnicodeError
    )
    text = re.sub(r"<[^<>]*>", "the file", str(error)) if explained else ""  # Python objects
    return text or "its structure is broken"
