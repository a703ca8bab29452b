"""Files that are complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import glob
import hashlib
import json
import os
import platform
import re
import shlex
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from cellseg.errors import InputError
from cellseg.process import unfinished
from cellseg.text import printable

if sys.platform != "win32":
    import fcntl


LOCK = "in-use-by"  # name of the file in a folder that `lock_file` locks

_SAMPLE = 1 << 16  # bytes

_reading_umask = threading.Lock()  # it is 0 meanwhile


@contextlib.contextmanager
def write_atomic(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a new file that replaces `path` when the block ends without an exception.

    Until then `path` stays unchanged, also if the process is killed. The hidden temporary file
    next to it that a killed process leaves is removed when `path` is written the next time.
    Missing parent folders are created, links are followed, text is UTF-8.

    Raises
    ------
    InputError
        If the file can't be written: no permission, a full disk, a folder or device of that name.
    """
    path = Path(path)
    temporary = None
    try:
        # Checked first, since renaming fails only at the end, and would replace a device.
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not an ordinary file")
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(target)
        descriptor, temporary = _create_temporary(target)
        unfinished.add(temporary)
        with _reading_umask:
            umask = os.umask(0)
            os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes private files
        encoding = None if "b" in mode else "utf-8"
        # With an opener the file knows its name, which tifffile needs.
        with open(temporary, mode, encoding=encoding, opener=lambda *_: descriptor) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":  # while it is locked against remove_unfinished
                os.replace(temporary, target)
        if sys.platform == "win32":  # which can't rename an open file
            os.replace(temporary, target)
        unfinished.discard(temporary)
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
            unfinished.discard(temporary)


def check_own(path: Path, own: bytes, what: str, flag: str = "--output") -> None:
    """Raise InputError if writing a file would replace a folder, or a file of someone else.

    Parameters
    ----------
    path
        The file to write. An empty one can be replaced.
    own
        Regular expression for the beginning of such a file that this project wrote.
    what, flag
        What is written, and the flag that names the file, for the message.
    """
    if path.is_dir():
        raise InputError(
            f"{path}: can't be written (a folder); move it away, or choose another place with "
            f"{flag}"
        )
    if not path.is_file():  # to write it is an error if it is something else
        return
    start = file_start(path, 4096)
    if start and not re.match(own, start, re.DOTALL):
        raise InputError(
            f"{path}: exists, but was not written as {what} by this program, so it isn't "
            f"replaced; move it away, or choose another place with {flag}"
        )


_SUFFIX = ".part"


def _temporary_prefix(path: Path) -> str:
    return f".{path.name[:60]}."  # names are limited to 255 bytes


def _create_temporary(path: Path) -> tuple[int, str]:
    """Create a temporary file next to `path`, locked as long as this process keeps it open."""
    while True:
        descriptor, name = tempfile.mkstemp(_SUFFIX, _temporary_prefix(path), path.parent)
        try:
            _lock(descriptor)
            exists = Path(name).exists()
        except BlockingIOError:
            exists = False
        except OSError:  # a file system without locks, where none is removed
            exists = True
        if exists:
            return descriptor, name
        os.close(descriptor)  # another process removed it before it was locked


def remove_unfinished(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote `path`."""
    for leftover in path.parent.glob(f"{glob.escape(_temporary_prefix(path))}????????{_SUFFIX}"):
        with contextlib.suppress(OSError), open(leftover, "r+b") as file:
            _lock(file.fileno())
            leftover.unlink()


def _lock(file: int) -> None:
    """Lock an open file; raise OSError if another process holds the lock."""
    if sys.platform == "win32":
        raise OSError("no such locks here")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_file(path: Path) -> Callable[[], object]:
    """Lock a file, which is created if needed, for this process; return what unlocks it.

    The system releases the lock of a process that ends, however it ends. A process can lock a file
    again. Where the file system has no locks, none is set.

    Raises
    ------
    BlockingIOError
        If another process has locked it; the message says which.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform == "win32":
                raise OSError("no such locks here")
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(path.stat(), os.fstat(file)):
                os.truncate(file, 0)
                os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
                return functools.partial(os.close, file)
        except FileNotFoundError:  # another process removed it before it was locked
            pass
        except (BlockingIOError, PermissionError):
            other = os.read(file, 1000).decode(errors="replace")
            os.close(file)
            raise BlockingIOError(other) from None
        except OSError:
            os.close(file)
            return lambda: None
        os.close(file)


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = None) -> None:
    """Write `value` as JSON with `write_atomic`. Raise ValueError for NaN and infinity."""
    text = to_json(value, indent=indent)
    with write_atomic(path) as file:
        file.write(text + "\n")


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV with `write_atomic`; a value that a row lacks is empty."""
    with write_atomic(path) as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def to_json(value: Any, **options: Any) -> str:
    """Return `value` as JSON that can be encoded in UTF-8; `options` are those of `json.dumps`.

    File names may contain bytes that are not UTF-8. They are escaped and read back unchanged.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, **options)
    return text


def check_ordinary(path: str | os.PathLike[str]) -> None:
    """Raise InputError for a device or a pipe, which may have no end; other paths pass."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # reading it gives the error
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: a device or pipe, expected a file; copy its content into one")


def file_start(path: Path, length: int) -> bytes | None:
    """Return the first bytes of a file, None if it can't be read: reading it gives the error.

    Raises InputError as `check_ordinary`.
    """
    check_ordinary(path)  # before it is opened, which may take for ever
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        return file.read(length)
    return None


def sample_hash(path: Path) -> str:
    """Return a hash of the beginning, the middle and the end of a file, "" if it can't be read.

    It tells most files of one size apart, whatever their size.
    """
    sample = hashlib.sha256()
    try:
        check_ordinary(path)
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            for start in (0, size // 2, size - _SAMPLE):
                file.seek(max(0, start))
                sample.update(file.read(_SAMPLE))
    except (OSError, InputError):
        return ""
    return sample.hexdigest()


def exists(path: Path) -> bool:
    """Return whether a path exists, also if its name is too long, of which Path.exists raises."""
    return os.path.exists(path)  # noqa: PTH110


def find_in_another_case(path: Path) -> Path | None:
    """Return the file whose path differs from that of a missing one only in case, if there is one.

    Programs on Windows and macOS write such paths, as both name the same file there.
    """
    folder: Path | None = path.parent
    # Path.is_dir raises an error for long names.
    if not os.path.isdir(path.parent):  # noqa: PTH112
        folder = None if path.parent == path else find_in_another_case(path.parent)
    if folder is None:
        return None
    with contextlib.suppress(OSError):
        names = _names_by_case(folder, folder.stat().st_mtime_ns).get(path.name.casefold(), [])
        return next((folder / name for name in names if folder / name != path), None)
    return None


@functools.lru_cache(maxsize=1)  # of many missing files in a folder
def _names_by_case(folder: Path, _changed: int) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208 faster than Paths
        names.setdefault(name.casefold(), []).append(name)
    return names


def read_json(path: str | os.PathLike[str], what: str, remedy: str) -> Any:
    """Read a JSON file, with the parameters and errors of `open_json`."""
    with open_json(path, what, remedy) as file:
        return json.load(file)


@contextlib.contextmanager
def open_json(path: str | os.PathLike[str], what: str, remedy: str) -> Iterator[IO[str]]:
    """Open a JSON file, and convert the errors of opening and parsing it in the block.

    `what` (such as "annotations") and `remedy` are parts of the message: the expected content, and
    what to do. Raise InputError if the file is missing, unreadable or not JSON.
    """
    try:
        check_ordinary(path)
        with open(path, encoding="utf-8-sig") as file:  # Windows begins files with a mark
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected the {what}; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}), expected the {what}; {remedy}") from None


# Names of devices on Windows, in any folder and with any extension.
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{d}{n}" for d in ("COM", "LPT") for n in range(1, 10))}
_LONGEST = 200  # bytes; file systems allow 255, and a suffix may follow


def safe_name(name: str) -> str:
    """Return a name from a file as the name of a single file or folder, on any operating system.

    Slashes and control characters, a drive (a character before a colon), dots and spaces at the
    end, names of devices and the rest of long names are replaced. A name that had to be changed
    ends with its hash, so that distinct names stay distinct.
    """
    safe = re.sub(r"(?s)^.:+|[/\\\x00-\x1f\x7f\ud800-\udfff]", "_", name)
    safe = re.sub(r"[. ]+$", lambda end: "_" * len(end[0]), safe) or "_"
    if safe.partition(".")[0].rstrip().upper() in _DEVICES:
        safe = f"_{safe}"
    safe = safe.encode()[:_LONGEST].decode(errors="ignore")
    if safe == name:
        return name
    return hashed_name(safe, name)


def hashed_name(name: str, of: str) -> str:
    """Return a name that ends with the hash of another, by which it differs from others."""
    return f"{name}-{hashlib.sha256(of.encode(errors='surrogatepass')).hexdigest()[:8]}"


def display_path(path: str | os.PathLike[str]) -> str:
    """Return a path as printable text, relative to the current folder if it is below it."""
    try:
        path = Path(path).absolute()
        return printable(str(path.relative_to(Path.cwd())))
    except (ValueError, OSError):  # not below it, or the current folder was deleted
        return printable(str(path))


def shell_path(path: str | os.PathLike[str]) -> str:
    """Return a path as `display_path` does, quoted where a shell needs it."""
    return shlex.quote(display_path(path))
