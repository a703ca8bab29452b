"""Predict many images as one job: plan tiles, predict them, merge them."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.messages import plural, warn
from cellseg.network.limits import warn_of_limits
from cellseg.predict.inputs import TileJob
from cellseg.predict.part import ImagePart
from cellseg.predict.predictor import Predictor, note_limits
from cellseg.predict.tile_store import TileKey, TileStore, tiles_fingerprint
from cellseg.predictions import Predictions
from cellseg.read.image_lists import read_size

PendingTile = tuple[Any, TileJob]  # with a key of any type

PredictTiles = Callable[
    [Iterable[Sequence[PendingTile]]], Generator[tuple[Any, Predictions | Exception], None, None]
]
"""Predicts groups of tiles, and yields each with its key, in any order: the predictions, or an
InputError that says why there are none, or another error, which is a bug. Groups are taken when
they are needed."""


def predict_here(predictor: Predictor) -> PredictTiles:
    """Return the function that predicts tiles in this process, in their order."""

    def predict(
        groups: Iterable[Sequence[PendingTile]],
    ) -> Generator[tuple[Any, Predictions | Exception], None, None]:
        for group in groups:
            keys = iter([key for key, _ in group])
            try:
                with contextlib.closing(
                    predictor.predict_tiles(job for _, job in group)
                ) as results:
                    for result in results:
                        yield next(keys), result
            except Exception as error:  # noqa: BLE001 for the caller to raise or report
                yield from ((key, error) for key in keys)

    return predict


@dataclass(frozen=True)
class PredictionJob:
    """Images to predict into one results file, and the progress.

    Attributes
    ----------
    images
        All requested images, usable or not.
    results
        Results file, written after `merge`.
    parts
        What is predicted of each image of known size, by its index in `images`.
    unusable
        Error of each image that can't be used, by its index.
    store
        Predicted tiles.
    failures
        Errors of tiles that could not be predicted, by key.
    clock
        Time that the images take.
    """

    images: Sequence[ImageRecord]
    results: Path
    parts: dict[int, ImagePart]
    unusable: dict[int, str]
    store: TileStore
    failures: dict[TileKey, str] = field(default_factory=dict)
    clock: ImageClock = field(default_factory=lambda: ImageClock())

    @classmethod
    def begin(
        cls,
        predictor: Predictor,
        weights: Sequence[Path],
        images: Sequence[ImageRecord],
        results: Path,
        all_tiles: bool = False,
    ) -> PredictionJob:
        """Plan the tiles of images, and open the store next to the results.

        With `all_tiles`, tiles without tissue are predicted too. Raises InputError as `TileStore`
        and `plan_tiles` do.
        """
        parts: dict[int, ImagePart] = {}
        unusable: dict[int, str] = {}
        for number, image in enumerate(images):
            try:
                size = read_size(image)
            except InputError as error:
                unusable[number] = str(error)
                continue
            plan = predictor.plan(size, image.mpp)
            whole = ImagePart(image.path, image.level, image.mpp, plan)
            try:
                parts[number] = predictor.choose_part(whole, image.regions, all_tiles)
            except InputError as error:
                unusable[number] = str(error)
        plans = [part.plan for part in parts.values()]
        folder = results.with_name(results.stem + ".parts")
        store = TileStore(folder, tiles_fingerprint(weights, predictor.cfgs, images, plans))
        return cls(images, results, parts, unusable, store)

    @property
    def usable(self) -> list[ImageRecord]:
        """Images not known to be unusable."""
        return [image for n, image in enumerate(self.images) if n not in self.unusable]

    def pending(self) -> list[tuple[TileKey, TileJob]]:
        """Return the tiles that are not in the store, image by image."""
        done = self.store.done()
        return [
            ((n, index), job)
            for n, part in self.parts.items()
            for index, job in enumerate(part.jobs())
            if (n, index) not in done
        ]

    def run(self, predict: PredictTiles) -> None:
        """Predict the pending tiles into the store."""
        pending = self.pending()
        self.report_resumed(len(pending))
        self.clock.start()
        with (
            contextlib.closing(predict([pending])) as results,
            tqdm(total=len(pending), desc="predicting", unit="tile", disable=None) as bar,
        ):
            for key, result in results:
                self.add(key, result)
                bar.update()

    def report_resumed(self, n_pending: int) -> None:
        """Print how many tiles were already predicted, and warn of damaged ones."""
        if n_damaged := self.store.n_damaged:
            warn(
                f"{self.store.folder}: {plural(n_damaged, 'damaged line')} of predicted tiles; "
                "these tiles are predicted again"
            )
        if n_done := sum(len(part.plan) for part in self.parts.values()) - n_pending:
            print(f"resuming: {plural(n_done, 'tile')} already predicted")

    def add(self, key: TileKey, result: Predictions | Exception) -> None:
        """Store the result of a tile. Raises errors that are not an InputError."""
        if isinstance(result, InputError):
            self.failures[key] = str(result)
        elif isinstance(result, Exception):
            raise result
        else:
            self.store.append(key, result)
            self.clock.lap(key[0], math.prod(self.parts[key[0]].plan[key[1]].size))

    def seconds(self, number: int) -> float | None:
        """Return the time that all tiles of an image take, None if none was predicted now."""
        return self.clock.seconds(number, self.parts[number].plan.area)

    def collect_failures(self) -> None:
        """Add the images with failed tiles to the unusable ones.

        Raises InputError if tiles are missing without an error.
        """
        if n_pending := len({key for key, _ in self.pending()} - set(self.failures)):
            raise InputError(
                f"not predicted: {plural(n_pending, 'tile')}; run the same command again to "
                "continue"
            )
        for (number, _), reason in sorted(self.failures.items()):
            self.unusable.setdefault(number, reason)

    def merge(self, predictor: Predictor) -> Iterator[tuple[ImageRecord, Predictions]]:
        """Merge the tiles of each usable image, and yield it with a batch of its cells.

        Warns, after the last, of tiles where a limit left out cells.
        """
        limited: dict[str, list[tuple[str, ...]]] = {}
        for number, tiles in itertools.groupby(self.store.entries(), key=lambda tile: tile[0][0]):
            if number not in self.unusable:
                keys = limited.setdefault(self.images[number].file_name, [])
                predictions = note_limits(keys, (result for _, result in tiles))
                part = self.parts[number]
                for cells in predictor.merge(part.plan, predictions):
                    yield self.images[number], part.keep(cells)
        warn_of_limits(limited)

    def release(self) -> None:
        """Remove the store, unless it has tiles and images are missing."""
        if self.unusable and self.store.done():
            self.store.close()
        else:
            self.store.remove()

    def close(self) -> None:
        """Remove the store, or report the images that are not in the results.

        Raises InputError if there are any; predicted tiles are kept then.
        """
        self.release()
        if not self.unusable:
            return
        reasons = [self.unusable[number] for number in sorted(self.unusable)]
        n, total = len(reasons), len(self.images)
        if n == total:
            raise InputError(
                f"none of {plural(total, 'image')} can be used, run the same command to retry "
                f"them; {reasons[0]}"
            )
        for reason in reasons:
            warn(f"skipped: {reason}")
        raise InputError(
            f"{n} of {plural(total, 'image')} skipped, see above; run the same command to retry "
            "them (all images, if a file changed)"
        )


class ImageClock:
    """Measures the time of each of several images.

    As several tiles are predicted at once, also of several images, it is known of `SHARED` tiles
    together, and each has a part of it by its pixels.
    """

    SHARED = 16

    def __init__(self) -> None:
        self.start()
        self._waiting: list[tuple[int, int]] = []  # image and pixels of tiles since the start
        self._seconds: defaultdict[int, float] = defaultdict(float)
        self._pixels: Counter[int] = Counter()

    def start(self) -> None:
        """Don't count the time until now."""
        self._start = self._last = time.monotonic()

    def lap(self, number: int, pixels: int) -> None:
        """Count the time until now, at which a tile of an image is done."""
        self._last = time.monotonic()
        self._waiting.append((number, pixels))
        if len(self._waiting) == self.SHARED:
            self._share()

    def seconds(self, number: int, pixels: int) -> float | None:
        """Return the time of so many pixels of an image at its speed, None if unknown."""
        self._share()
        done = self._pixels[number]
        return self._seconds[number] * pixels / done if done else None

    def _share(self) -> None:
        """Share the time between the start and the last tile by the pixels of the tiles."""
        total = sum(pixels for _, pixels in self._waiting)
        for number, pixels in self._waiting:
            self._seconds[number] += (self._last - self._start) * pixels / total
            self._pixels[number] += pixels
        self._waiting.clear()
        self._start = self._last
