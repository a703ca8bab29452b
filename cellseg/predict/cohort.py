"""Predict many slides, each into a folder of its own, with a list of what was done.

A folder gets the results and then a marker, `done.json`, which says of which image they are and
what they were made from; a slide with such a marker is left out the next time, also if its file was
moved. Results of another image are never replaced. `manifest.csv` lists all slides in their order.
A slide that fails costs no other. With workers, several slides are under way, and one that is
predicted is merged and written while the next are predicted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.files import (
    display_path,
    exists,
    read_json,
    sample_hash,
    write_atomic,
    write_csv,
    write_json,
)
from cellseg.images import ImageRecord
from cellseg.messages import listed, plural, warn
from cellseg.predict.inputs import TileJob
from cellseg.predict.job import PredictionJob, PredictTiles
from cellseg.predict.tile_store import TileKey, file_state, lock_folder, remove_lock
from cellseg.predictions import Predictions
from cellseg.read.csv_table import read_columns
from cellseg.read.names import name_outputs_uniquely
from cellseg.read.results import MANIFEST, OWN_RESULTS_FILE, sidecar_path
from cellseg.read.slide_table import Slide
from cellseg.text import printable

MARKER = "done.json"
_TRACE = "error.txt"
_MADE_OF_RESULTS = ("report-files", "export")  # folders of report.py and export.py
_RESULTS = f"{Path(OWN_RESULTS_FILE).stem}*"  # of a slide, also unfinished ones

_COLUMNS = ("path", "folder", "cells", "mm2", "seconds", "error")
_MANIFEST_SECONDS = 5.0  # between writes, as it has a line for each slide
_MOST_UNWRITTEN = 4  # slides that are predicted but not yet written, which need memory and disk


@dataclass(frozen=True)
class Outcome:
    """Result of a slide: number of cells, tissue in mm² if known, a line about both."""

    cells: int
    mm2: float | None
    line: str


@dataclass
class _Open:
    """A slide that is being predicted."""

    slide: Slide
    folder: Path
    job: PredictionJob
    made_from: dict[str, str]
    n_left: int
    began: float = field(default_factory=time.monotonic)


class Cohort:
    """Slides to predict, each into a folder in `output`.

    Parameters
    ----------
    slides
        The slides.
    output
        Folder of their folders and of the manifest. It is locked.
    made_from
        Returns everything but its files that the results of an image depend on, as JSON can hold
        it.
    begin
        Opens an image: plans its tiles, for a results file.
    write
        Writes the results of a job whose tiles are predicted.

    Raises
    ------
    InputError
        If the folder can't be created or another command uses it.
    """

    def __init__(
        self,
        slides: Sequence[Slide],
        output: Path,
        made_from: Callable[[ImageRecord], Any],
        begin: Callable[[ImageRecord, Path], PredictionJob],
        write: Callable[[PredictionJob], Outcome],
    ) -> None:
        self._slides, self._output = slides, output
        self._made_from, self._begin, self._write = made_from, begin, write
        self._rows: dict[Slide, dict[str, Any]] = {}
        self._written = -_MANIFEST_SECONDS
        self._lock = threading.RLock()  # of these two
        self._unlock = lock_folder(output)

    def run(self, predict: PredictTiles, in_background: bool = False) -> None:
        """Predict the slides that are not done, and write their results and the manifest.

        `in_background` merges and writes in another thread, for workers in other processes.

        Raises InputError at the end if slides failed.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._release)
            todo = self._choose()
            pool = stack.enter_context(ThreadPoolExecutor(1)) if in_background else None
            bar = stack.enter_context(tqdm(desc="predicting", unit="tile", total=0, disable=None))
            results = stack.enter_context(contextlib.closing(predict(self._groups(todo, bar))))
            unwritten: list[Future[None]] = []
            for (opened, key), result in results:
                bar.update()
                self._add(opened, key, result)
                if opened.n_left:
                    continue
                if not pool:
                    self._finish(opened)
                    continue
                unwritten = [future for future in unwritten if not future.done()]
                unwritten.append(pool.submit(self._finish, opened))
                if len(unwritten) > _MOST_UNWRITTEN:
                    unwritten.pop(0).result()
        manifest = display_path(self._output / MANIFEST)
        failed = sum(bool(row["error"]) for row in self._rows.values())
        if failed:
            raise InputError(
                f"{failed} of {plural(len(self._slides), 'slide')} failed, see {manifest}; run the "
                "same command again to retry them"
            )
        print(f"{plural(len(self._slides), 'slide')} done: {manifest}")

    def _release(self) -> None:
        self._write_manifest()
        remove_lock(self._output)
        self._unlock()

    def _choose(self) -> list[tuple[Slide, dict[str, str]]]:
        """Return the slides that are not done, and what their results depend on."""
        self._follow_names()
        todo, moved = [], []
        for slide in self._slides:
            folder, made_from = self._output / slide.name, self._fingerprint(slide)
            marker = _read_marker(folder)
            if slide.problem:
                self._fail(slide, slide.problem)
            elif marker.get("made_from") == made_from["made_from"]:
                self._note(slide, **marker["outcome"])
            elif marker.get("unplaced") == made_from["unplaced"] and not exists(marker["image"]):
                with self._guard(slide):
                    _follow_file(folder, marker | made_from, slide.image)
                    self._note(slide, **marker["outcome"])
                moved.append(f"{marker['image']} to {slide.image.path}")
            elif (other := _image_in(folder)) and other != slide.image.path.resolve():
                self._fail(
                    slide,
                    f"{slide.image.path}: its folder {folder} has the results of {other}; move "
                    "that folder away, or choose another --output",
                )
            else:
                todo.append((slide, made_from))
        if moved:
            print(f"{plural(len(moved), 'slide')} moved since the prediction: {listed(moved)}")
        if n_done := sum(not row["error"] for row in self._rows.values()):
            print(f"{plural(n_done, 'slide')} already done")
        return todo

    def _follow_names(self) -> None:
        """Move the results of slides whose names differ from those in the manifest.

        A slide gets another name when the table gets one with the same name. Warns of folders of
        slides that are in the manifest, but not in the table.
        """
        manifest = self._output / MANIFEST
        try:
            paths = [path for (path,) in read_columns(manifest, ("path",))]
            former = dict(zip(paths, name_outputs_uniquely(manifest, paths), strict=True))
        except InputError:  # none, or not one that this program wrote
            return
        for slide in self._slides:
            name = former.get(str(slide.image.path), slide.name)
            before, folder = self._output / name, self._output / slide.name
            if name != slide.name and _image_in(before) == slide.image.path.resolve():
                _move_files(before, folder)
        names = {slide.name for slide in self._slides}
        names |= {former.get(str(slide.image.path), slide.name) for slide in self._slides}
        places = [self._output / name for name in former.values() if name not in names]
        if left := [str(place) for place in places if any(place.glob(_RESULTS))]:
            warn(
                f"{manifest}: {plural(len(left), 'folder')} of slides that are no longer in the "
                f"table, kept but not listed: {listed(left)}"
            )

    def _groups(
        self, todo: Sequence[tuple[Slide, dict[str, str]]], bar: tqdm[Any]
    ) -> Iterator[list[tuple[tuple[_Open, TileKey], TileJob]]]:
        """Open slides, and yield the pending tiles of each."""
        for number, (slide, made_from) in enumerate(todo, 1):
            bar.set_description(f"slide {number} of {len(todo)}")
            folder, pending = self._output / slide.name, []
            with self._guard(slide):
                job = self._begin(slide.image, folder / OWN_RESULTS_FILE)
                if job.unusable:
                    job.release()
                    raise InputError(job.unusable[0])
                pending = job.pending()
                job.report_resumed(len(pending))
                bar.total += len(pending)
                opened = _Open(slide, folder, job, made_from, len(pending))
                if not pending:
                    self._finish(opened)
            if pending:
                yield [((opened, key), tile) for key, tile in pending]

    def _add(self, opened: _Open, key: TileKey, result: Predictions | Exception) -> None:
        """Store the result of a tile; an error that is a bug is only this slide's."""
        opened.n_left -= 1
        try:
            opened.job.add(key, result)
        except Exception as error:  # noqa: BLE001
            opened.job.add(key, self._report(opened.folder, error))

    def _finish(self, opened: _Open) -> None:
        """Merge the tiles of a slide, and write its results, the marker and the manifest."""
        slide, folder, job = opened.slide, opened.folder, opened.job
        with self._guard(slide):
            job.collect_failures()
            if job.unusable:
                job.release()
                raise InputError(job.unusable[0])
            (folder / MARKER).unlink(missing_ok=True)  # that of the results to be replaced
            outcome = self._write(job)
            job.release()
            seconds = round(time.monotonic() - opened.began, 1)
            row = {"cells": outcome.cells, "mm2": outcome.mm2, "seconds": seconds}
            size = (folder / OWN_RESULTS_FILE).stat().st_size
            marker = {"image": str(slide.image.path), **opened.made_from}
            write_json(folder / MARKER, marker | {"outcome": row, "bytes": size}, indent=1)
            (folder / _TRACE).unlink(missing_ok=True)
            tqdm.write(f"{outcome.line}; {seconds:.3g} s: {display_path(folder)}")
            self._note(slide, **row)

    @contextlib.contextmanager
    def _guard(self, slide: Slide) -> Iterator[None]:
        """Report an error in the block as that of a slide."""
        try:
            yield
        except InputError as error:
            self._fail(slide, str(error))
        except Exception as error:  # noqa: BLE001
            self._fail(slide, str(self._report(self._output / slide.name, error)))

    def _report(self, folder: Path, error: Exception) -> InputError:
        """Return the error for the user; write the traceback of a bug into the slide's folder."""
        if isinstance(error, OSError):
            return InputError(f"{error.filename or folder}: {error.strerror or error}")
        with write_atomic(folder / _TRACE) as file:
            file.write("".join(traceback.format_exception(error)))
        return InputError(
            f"{folder / _TRACE}: {type(error).__name__}, which is a bug; please report it"
        )

    def _fail(self, slide: Slide, reason: str) -> None:
        warn(f"failed: {reason}")
        self._note(slide, error=reason)

    def _note(self, slide: Slide, **values: Any) -> None:
        with self._lock:
            self._rows[slide] = {"error": "", **values}
            if time.monotonic() > self._written + _MANIFEST_SECONDS:
                self._write_manifest()

    def _write_manifest(self) -> None:
        """Write the manifest; slides that are not done have empty fields."""
        with self._lock:
            rows = []
            for slide in self._slides:
                path, folder = slide.image.path, self._output / slide.name
                names = {"path": printable(str(path)), "folder": printable(str(folder))}
                rows.append(names | self._rows.get(slide, {}))
            write_csv(self._output / MANIFEST, _COLUMNS, rows)
            self._written = time.monotonic()

    def _fingerprint(self, slide: Slide) -> dict[str, str]:
        """Return hashes of all that the results depend on, without opening the slide.

        `unplaced` stays the same if the slide's or the regions' file is moved.
        """
        image = slide.image
        paths = [path for path in (image.path, image.regions) if path]
        states = [file_state(path) for path in paths]
        contents = [
            [*state[1:3], sample_hash(path)] for state, path in zip(states, paths, strict=True)
        ]
        hashes = {}
        for name, files in ("made_from", states), ("unplaced", contents):
            text = json.dumps([self._made_from(image), files, image.level, image.mpp])
            hashes[name] = hashlib.sha256(text.encode()).hexdigest()
        return hashes


def _read_marker(folder: Path) -> dict[str, Any]:
    """Return the marker of a slide that is done and has its results, else an empty one."""
    results = folder / OWN_RESULTS_FILE
    with contextlib.suppress(InputError, OSError):
        marker = read_json(folder / MARKER, "marker", "predict again")
        if (
            isinstance(marker, dict)
            and isinstance(outcome := marker.get("outcome"), dict)
            and outcome.keys() == {"cells", "mm2", "seconds"}
            and results.stat().st_size == marker.get("bytes")
            and all(sidecar_path(results, what).is_file() for what in ("list", "classes"))
        ):
            return marker
    return {}


def _follow_file(folder: Path, marker: dict[str, Any], image: ImageRecord) -> None:
    """Write where a slide's file is now into the list of its results and the marker."""
    list_path = sidecar_path(folder / OWN_RESULTS_FILE, "list")
    (listed_image,) = read_json(list_path, "list", "predict again")
    write_json(list_path, [listed_image | {"file_name": image.file_name}], indent=1)
    write_json(folder / MARKER, marker | {"image": str(image.path)}, indent=1)


def _image_in(folder: Path) -> Path | None:
    """Return the path, links resolved, of the image whose results a folder has, None if unknown.

    The marker says it, or the list of a folder without one or with that of an earlier version.
    """
    results = folder / OWN_RESULTS_FILE
    if results.is_file():
        for path, key in ((folder / MARKER, "image"), (sidecar_path(results, "list"), "file_name")):
            with contextlib.suppress(InputError, OSError, LookupError, TypeError, ValueError):
                content = read_json(path, "image", "predict again")
                return Path((content[0] if isinstance(content, list) else content)[key]).resolve()
    return None


def _move_files(source: Path, target: Path) -> None:
    """Move a slide's files, and what was made of them, into a new folder, the marker last.

    Folders of other slides may be in the same. What can't be moved is predicted again.
    """
    if _image_in(target):
        return
    with contextlib.suppress(OSError):
        target.mkdir(parents=True, exist_ok=True)
        files = [
            path for path in source.iterdir() if path.is_file() or path.name in _MADE_OF_RESULTS
        ]
        for path in sorted(files, key=lambda path: path.name == MARKER):
            path.replace(target / path.name)
        source.rmdir()
