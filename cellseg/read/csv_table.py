"""Tables in CSV files, with commas, semicolons or tabs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from cellseg.errors import InputError
from cellseg.files import check_ordinary


def read_columns(path: Path, columns: Sequence[str], where: str = "") -> list[tuple[str, ...]]:
    """Return the values in some columns of a CSV file, row by row, as `read_rows` does.

    Raises InputError also if a value is missing.
    """
    values = []
    for line, row in read_rows(path, columns, where):
        cells = tuple(row[column] for column in columns)
        if "" in cells:
            missing = columns[cells.index("")]
            raise InputError(f"{where}{path}: no {missing} in line {line}; add it")
        values.append(cells)
    return values


def read_rows(
    path: Path, columns: Sequence[str], where: str = ""
) -> list[tuple[int, dict[str, str]]]:
    """Return the number of each line of a CSV file, and its values by the names of the columns.

    The first line has the names, in any order; upper and lower case are the same. The separator is
    a comma, a semicolon or a tab. Values have no spaces around them, missing ones are empty, and
    blank lines are left out. `where` precedes the path in messages.

    Raises InputError if the file can't be read, or one of `columns` is missing.
    """
    name = ",".join(columns)
    expected = f"expected a CSV file with the column{'s' * (len(columns) > 1)} {name}"
    check_ordinary(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{where}{path}: no such file; {expected}") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}{path}: not UTF-8 text; save it as CSV in UTF-8") from None
    except OSError as error:
        raise InputError(f"{where}{path}: can't be read ({error.strerror}); {expected}") from None
    for separator in ",;\t":
        try:
            header, *rows = list(csv.reader(lines, delimiter=separator)) or [[]]
        except csv.Error as error:
            raise InputError(f"{where}{path}: not CSV ({error}); {expected}") from None
        titles = [title.strip().casefold() for title in header]
        if set(columns) <= set(titles):
            break
    else:
        raise InputError(f"{where}{path}: no columns {name} in line 1; {expected}")
    places = {title: titles.index(title) for title in titles}  # the first of two equal ones
    return [
        (line, {t: row[i].strip() if i < len(row) else "" for t, i in places.items()})
        for line, row in enumerate(rows, 2)
        if any(map(str.strip, row))
    ]
