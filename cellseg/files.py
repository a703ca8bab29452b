"""Files that are whole or absent: written beside, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cellseg.errors import InputError

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def write_atomic(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a new file that becomes `path` when the block ends without an exception.

    Until then `path` stays what it was, and a killed process leaves it so. The unfinished
    file that it leaves too, hidden and beside it, goes when `path` is written the next time.
    Missing parent folders are made. A link stays, and what it leads to is written. Text is UTF-8.

    Raises
    ------
    InputError
        If the file can't be written: no right to, a full disk, a folder or device of that name.
    """
    path = Path(path)
    temporary = None
    try:
        # Else found out at the end alone, when the work is done.
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():  # a device would be replaced
            raise OSError(errno.EINVAL, "not an ordinary file")
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(target)
        descriptor, temporary = _create_temporary(target)
        # mkstemp makes the file private; give it the rights of any new file.
        Path(temporary).chmod(0o666 & ~_umask())
        encoding = None if "b" in mode else "utf-8"
        # Through an opener, so that the file knows its name: tifffile asks for it.
        with open(temporary, mode, encoding=encoding, opener=lambda *_: descriptor) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":  # while it is locked, or another would clear it away
                os.replace(temporary, target)
        if sys.platform == "win32":  # where no open file is renamed
            os.replace(temporary, target)
        temporary = None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{path}: can't be written ({reason}); make room or choose another place"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


_TEMPORARY_SUFFIX = ".part"


def _temporary_prefix(path: Path) -> str:
    """Begin the names of `path`'s unfinished files, not longer than names may be: 255 bytes."""
    return f".{path.name[:60]}."


def _create_temporary(path: Path) -> tuple[int, str]:
    """Make a file beside `path` that stays locked as long as this process holds it open."""
    while True:
        descriptor, name = tempfile.mkstemp(_TEMPORARY_SUFFIX, _temporary_prefix(path), path.parent)
        try:
            _lock(descriptor)
            ours = Path(name).exists()
        except BlockingIOError:
            ours = False
        except OSError:  # a file system that knows no locks, so that none is cleared there
            ours = True
        if ours:
            return descriptor, name
        os.close(descriptor)  # another process cleared it away before it was locked


def remove_unfinished(path: Path) -> None:
    """Remove the unfinished files of processes that were killed while they wrote `path`."""
    for leftover in path.parent.glob(
        f"{glob.escape(_temporary_prefix(path))}????????{_TEMPORARY_SUFFIX}"
    ):
        with contextlib.suppress(OSError), open(leftover, "r+b") as file:
            _lock(file.fileno())
            leftover.unlink()


def _lock(file: int) -> None:
    """Lock an open file; raise OSError where another process holds it."""
    if sys.platform == "win32":
        raise OSError("no such locks here")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = None) -> None:
    """Write `value` as JSON, whole or not at all. NaN and infinity are refused."""
    text = to_json(value, indent=indent)
    with write_atomic(path) as file:
        file.write(text + "\n")


def to_json(value: Any, **options: Any) -> str:
    """Return `value` as JSON, with `json.dumps`'s options, in letters that UTF-8 has.

    The bytes of a file's name may be none; they are escaped then, and read back as they were.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, **options)
    return text


def read_json(path: str | os.PathLike[str], what: str, remedy: str) -> Any:
    """Read a JSON file. The parameters and errors are those of `open_json`."""
    with open_json(path, what, remedy) as file:
        return json.load(file)


@contextlib.contextmanager
def open_json(path: str | os.PathLike[str], what: str, remedy: str) -> Iterator[IO[str]]:
    """Open a JSON file, and say what is wrong with it, also if that is found in the block.

    Parameters
    ----------
    path
        The file.
    what
        What it is to the user, for the error's text: "annotations", "test list".
    remedy
        What to do if it isn't there or isn't JSON.

    Raises
    ------
    InputError
        If the file is missing, unreadable or not JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            yield file
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file, but the {what} should be there; {remedy}"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not JSON ({error}), but the {what} should be; {remedy}"
        ) from None


def display_path(path: str | os.PathLike[str]) -> str:
    """Return a path as short as the user can type it: relative to here where it lies below."""
    try:
        path = Path(path).absolute()
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # not below here, or here is a folder that is gone
        return str(path)
