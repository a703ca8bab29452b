"""Write the table of cells as CSV, Parquet or AnnData, and its summary by class."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from cellseg.errors import InputError
from cellseg.files import check_own, write_atomic, write_csv
from cellseg.images import ImageCells, searched_area
from cellseg.score.composition import Composition, composition, composition_rows
from cellseg.write.measured import Measure, column_types, measure_cells, warn_of_unreadable

_ROWS = 1 << 16  # of a row group

_SUMMARY = b"image,class,area_px,"  # the beginning of one
_IDENTITY = ("image", "id", "class")  # first columns

Sink = Callable[[Any], object]  # takes a pyarrow.Table


def check_tables(table: Path | None, h5ad: Path | None) -> None:
    """Raise InputError if a table can't be written: its ending, a package, somebody else's file."""
    tables = [(flag, path) for flag, path in (("--table", table), ("--h5ad", h5ad)) if path]
    for flag, path in tables:
        endings = (".csv", ".parquet") if flag == "--table" else (".h5ad",)
        if path.suffix.lower() not in endings:
            raise InputError(f"{flag} {path}: expected a name that ends in {' or '.join(endings)}")
        for package in ("pyarrow", "anndata")[: 1 + (flag == "--h5ad")]:
            _need(package, flag)
        _check_own_table(path, flag)
        check_own(summary_path(path), _SUMMARY, "a summary of cells", flag)
    for flag, path in tables:
        if path.resolve() in [summary_path(other).resolve() for _, other in tables]:
            raise InputError(f"{flag} {path}: is also the summary of a table; choose another name")


def _check_own_table(path: Path, flag: str) -> None:
    """Raise InputError if a file exists that isn't a table of cells."""
    columns: Sequence[str] = ()
    ending = path.suffix.lower()
    if ending == ".csv":
        check_own(path, ",".join(f'"{name}"' for name in _IDENTITY).encode(), _WHAT, flag)
    elif path.is_file() or path.is_dir():
        with contextlib.suppress(OSError, ValueError, KeyError):  # another format
            if ending == ".parquet":
                import pyarrow.parquet

                columns = pyarrow.parquet.read_schema(path).names
            else:
                import h5py

                with h5py.File(path) as store:
                    columns = [*_IDENTITY] if "spatial_um" in store["obsm"] else []
        if tuple(columns[:3]) != _IDENTITY:
            check_own(path, b"(?!)", _WHAT, flag)


_WHAT = "a table of cells"


def summary_path(table: Path) -> Path:
    """Return the path of the summary of a table."""
    return table.with_name(f"{table.stem}-summary.csv")


def write_tables(
    images: Sequence[ImageCells],
    names: Sequence[str],
    paths: Sequence[Path],
    progress: Callable[[int], object] = lambda _: None,
    measure: Measure = measure_cells,
) -> Composition:
    """Measure all cells, write them to one or more tables, and a summary next to each.

    Memory is that of one image's cells, except for AnnData, which is written as a whole.

    Parameters
    ----------
    images
        Images with their cells, whose `mpp` is known or None.
    names
        The K class names.
    paths
        Files that end in `.csv`, `.parquet` or `.h5ad`.
    progress
        Called with the number of cells that were measured since the last call.
    measure
        `measure_cells`, or as `measured_once` returns it.

    Raises
    ------
    InputError
        If a file can't be written.
    """
    import pyarrow

    types = column_types(images, names)
    arrow_types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, arrow_types[type_]) for name, type_ in types.items()])
    unreadable: list[InputError] = []
    areas = []
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(_open_sink(path, schema)) for path in paths]
        waiting: list[Any] = []
        for image in images:
            columns = measure(image, names, progress, unreadable)
            areas.append(columns["area_px"])
            none = [None] * len(image.masks)
            arrays = [
                # NaN becomes null.
                pyarrow.array(columns.get(name, none), schema.field(name).type, from_pandas=True)
                for name in types
            ]
            waiting.append(pyarrow.Table.from_arrays(arrays, schema=schema))
            if sum(map(len, waiting)) >= _ROWS or image is images[-1]:
                rows = pyarrow.concat_tables(waiting)
                waiting.clear()
                for sink in sinks:
                    sink(rows)
        found = composition(
            [image.classes for image in images],
            len(names),
            [searched_area(image) for image in images],
            [image.mpp for image in images],
            areas,
        )
        for path in paths:
            _write_summary(summary_path(path), found, [image.name for image in images], names)
    warn_of_unreadable(unreadable)
    return found


@contextlib.contextmanager
def _open_sink(path: Path, schema: Any) -> Iterator[Sink]:
    """Open a table for writing; it is complete when the block ends without an error."""
    ending = path.suffix.lower()
    with write_atomic(path, "w+b") as file:
        if ending == ".csv":
            from pyarrow.csv import CSVWriter, WriteOptions

            options = WriteOptions(quoting_style="needed")
            with CSVWriter(_Unclosed(file), schema, write_options=options) as writer:
                yield writer.write_table
        elif ending == ".parquet":
            from pyarrow.parquet import ParquetWriter

            with ParquetWriter(_Unclosed(file), schema, compression="zstd") as writer:
                yield lambda rows: writer.write_table(rows, row_group_size=_ROWS)
        else:
            tables: list[Any] = []
            yield tables.append
            _write_h5ad(file, tables)


class _Unclosed(io.RawIOBase):
    """A file whose owner closes it, and not pyarrow."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


def _write_h5ad(file: IO[bytes], tables: Sequence[Any]) -> None:
    """Write AnnData: cells by measures, what identifies a cell in `obs`, places in `obsm`."""
    import anndata
    import h5py
    import pandas

    frame = pandas.concat([table.to_pandas() for table in tables], ignore_index=True)
    identity = ["image", "class", "score"]
    for name in ("image", "class"):
        frame[name] = frame[name].astype("category")
    index = pandas.Index(frame["id"].astype(str), name=None)
    measures = frame.drop(columns=["id", *identity]).astype(np.float64)
    places = {
        unit: frame[[f"centroid_x_{unit}", f"centroid_y_{unit}"]].to_numpy(np.float64)
        for unit in ("px", "um")
    }
    table = anndata.AnnData(
        X=measures.to_numpy(),
        obs=frame[identity].set_index(index),
        var=pandas.DataFrame(index=measures.columns.astype(str)),
        obsm={"spatial": places["px"], "spatial_um": places["um"]},
    )
    with h5py.File(file, "w") as store:
        anndata.io.write_elem(store, "/", table)


def _write_summary(
    path: Path, found: Composition, images: Sequence[str], names: Sequence[str]
) -> None:
    rows = composition_rows(found, images, names)
    texts = [
        {key: _text(value) if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]
    write_csv(path, rows[0], texts)


def _text(number: float) -> str:
    return f"{number:.0f}" if number.is_integer() else f"{number:.6g}"


def _need(package: str, flag: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise InputError(
            f"{flag}: needs the package {package}, which is not installed; pip install {package}"
        ) from None
