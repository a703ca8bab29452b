"""Tables in CSV files, with commas, semicolons or tabs."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Sequence
from pathlib import Path

from cellseg.errors import InputError
from cellseg.files import check_ordinary
from cellseg.text import show

_LONGEST_LINE = 1 << 16  # characters


def has_columns(path: Path, columns: Sequence[str]) -> bool:
    """Return whether a file is CSV with some columns, as `read_columns` reads them."""
    with contextlib.suppress(OSError, UnicodeDecodeError, csv.Error):
        check_ordinary(path)
        with path.open(encoding="utf-8-sig") as file:
            return _find_separator([file.readline(_LONGEST_LINE)], columns) is not None
    return False


def _find_separator(lines: Sequence[str], columns: Sequence[str]) -> str | None:
    """Return the separator with which the first of some lines has the columns, None if none."""
    for separator in ",;\t":
        header = next(csv.reader(lines, delimiter=separator), [])
        if set(columns) <= set(_titles(header)):
            return separator
    return None


def _titles(header: Sequence[str]) -> list[str]:
    return [title.strip().casefold() for title in header]


def read_columns(
    path: Path, columns: Sequence[str], where: str = "", may_be_empty: bool = False
) -> list[tuple[str, ...]]:
    """Return the values in some columns of a CSV file, row by row, as `read_rows` reads them.

    Raises InputError also if a value is missing, unless they may be empty.
    """
    values = []
    for line, row in read_rows(path, columns, where):
        cells = tuple(row[column] for column in columns)
        if "" in cells and not may_be_empty:
            missing = columns[cells.index("")]
            raise InputError(f"{where}{path}: no {missing} in line {line}; add it")
        values.append(cells)
    return values


def read_rows(
    path: Path, columns: Sequence[str], where: str = "", optional: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Return the number of each line of a CSV file, and its values by the names of the columns.

    The first line has the names, in any order; upper and lower case are the same. The separator is
    a comma, a semicolon or a tab. Values have no spaces around them, missing ones are empty, and
    blank lines are left out. `where` precedes the path in messages.

    Raises InputError if the file can't be read, one of `columns` is missing, one of these or of the
    `optional` ones is there twice, or a line has more values than the first, as of an unquoted
    `0,25`.
    """
    name = ",".join(columns)
    expected = f"expected a CSV file with the column{'s' if len(columns) > 1 else ''} {name}"
    check_ordinary(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{where}{path}: no such file; {expected}") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}{path}: not UTF-8 text; save it as CSV in UTF-8") from None
    except OSError as error:
        raise InputError(f"{where}{path}: can't be read ({error.strerror}); {expected}") from None
    try:
        separator = _find_separator(lines[:1], columns)
        if separator is None:
            found = show(lines[0]) if lines else "nothing"
            raise InputError(f"{where}{path}: no columns {name} in line 1, {found}; {expected}")
        header, *rows = csv.reader(lines, delimiter=separator)
    except csv.Error as error:
        raise InputError(f"{where}{path}: not CSV ({error}); {expected}") from None
    titles = _titles(header)
    if twice := [title for title in (*columns, *optional) if titles.count(title) > 1]:
        raise InputError(
            f"{where}{path}: the column {twice[0]} occurs twice in line 1; remove one of them"
        )
    places = {title: titles.index(title) for title in titles}  # the first of two unknown ones
    for line, row in enumerate(rows, 2):
        if any(map(str.strip, row[len(titles) :])):
            raise InputError(
                f"{where}{path}: line {line} has {len(row)} values, but line 1 {len(titles)} "
                f"columns; put double quotes around values with {show(separator)} in them"
            )
    return [
        (line, {t: row[i].strip() if i < len(row) else "" for t, i in places.items()})
        for line, row in enumerate(rows, 2)
        if any(map(str.strip, row))
    ]
