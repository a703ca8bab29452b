"""Tables in CSV files, with commas, semicolons or tabs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from cellseg.errors import InputError
from cellseg.files import check_ordinary


def read_columns(path: Path, columns: Sequence[str], where: str = "") -> list[tuple[str, ...]]:
    """Return the values in some columns of a CSV file, without spaces around them, row by row.

    The first line has the names of the columns, in any order; upper and lower case are the same.
    The separator is a comma, a semicolon or a tab. `where` precedes the path in messages.

    Raises InputError if the file can't be read, or a column or a value is missing.
    """
    name = ",".join(columns)
    expected = f"expected a CSV file with the columns {name}"
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
    places = [titles.index(column) for column in columns]
    values = []
    for number, row in enumerate(rows, 2):
        if any(map(str.strip, row)):  # not blank
            cells = tuple(row[place].strip() if place < len(row) else "" for place in places)
            if "" in cells:
                missing = columns[cells.index("")]
                raise InputError(f"{where}{path}: no {missing} in line {number}; add it")
            values.append(cells)
    return values
