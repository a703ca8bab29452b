"""Predict many images as one job: plan tiles, predict them in shards, merge them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fvcore.common.config import CfgNode
from tqdm import tqdm

from cellseg import distributed
from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.messages import plural, warn
from cellseg.network.limits import warn_of_limits
from cellseg.predict.predictor import Predictor, TileJob, note_limits, require_predictions
from cellseg.predict.tile_store import TileKey, TileStore, fingerprint
from cellseg.predict.tiles import TilePlan
from cellseg.predictions import Predictions
from cellseg.read.images import read_size

PendingTile = tuple[TileKey, TileJob]


@dataclass(frozen=True)
class PredictionJob:
    """Images to predict into one results file, and the progress.

    Without networks, so that it can be sent to other processes.

    Attributes
    ----------
    images
        All requested images, usable or not.
    weights, cfgs
        Weights file and config of each network.
    results
        Results file, written after `merge`.
    plans
        Tiles of each image of known size, by its index in `images`.
    unusable
        Error of each image that can't be used, by its index.
    store
        Predicted tiles.
    """

    images: Sequence[ImageRecord]
    weights: Sequence[Path]
    cfgs: Sequence[CfgNode]
    results: Path
    plans: dict[int, TilePlan]
    unusable: dict[int, str]
    store: TileStore

    @classmethod
    def begin(
        cls,
        predictor: Predictor,
        weights: Sequence[Path],
        images: Sequence[ImageRecord],
        results: Path,
        first: bool = True,
    ) -> PredictionJob:
        """Plan the tiles of images, and open the store next to the results.

        Of several machines, the `first` one creates the store. Raises InputError as `TileStore`
        and `plan_tiles` do.
        """
        plans: dict[int, TilePlan] = {}
        unusable: dict[int, str] = {}
        for number, image in enumerate(images):
            try:
                size = read_size(image)
            except InputError as error:
                unusable[number] = str(error)
            else:
                plans[number] = predictor.plan(size, image.mpp)
        folder = results.with_name(results.stem + ".parts")
        store = TileStore(folder, fingerprint(weights, predictor.cfgs, images), create=first)
        return cls(images, weights, predictor.cfgs, results, plans, unusable, store)

    @property
    def usable(self) -> list[ImageRecord]:
        """Images not known to be unusable."""
        return [image for n, image in enumerate(self.images) if n not in self.unusable]

    def pending(self) -> list[PendingTile]:
        """Return the tiles that are not in the store, image by image."""
        done = self.store.done()
        return [
            ((n, index), TileJob(image.path, image.level, plan.size, tile, image.mpp))
            for n, plan in self.plans.items()
            for image in [self.images[n]]
            for index, tile in enumerate(plan)
            if (n, index) not in done
        ]

    def run(
        self,
        predictor: Predictor,
        work: Callable[[PredictionJob], object],
        n_processes: int = 1,
        *,
        n_machines: int = 1,
        machine_rank: int = 0,
        dist_url: str = "auto",
    ) -> None:
        """Predict the pending tiles, in this process or in several.

        Each of several processes calls `work` with this job, and that `predict_shard`. Other
        parameters and errors as for `cellseg.distributed.launch`.
        """
        pending = self.pending()
        if n_damaged := self.store.n_damaged():
            warn(
                f"{self.store.folder}: {plural(n_damaged, 'damaged line')} of predicted tiles; "
                "these tiles are predicted again"
            )
        if n_done := sum(map(len, self.plans.values())) - len(pending):
            print(f"resuming: {plural(n_done, 'tile')} already predicted")
        if n_machines == 1 and (n_processes == 1 or len(pending) < 2):
            self.predict(predictor, pending)
        else:
            distributed.launch(
                n_processes, work, self, device=predictor.cfg.MODEL.DEVICE,
                n_machines=n_machines, machine_rank=machine_rank, dist_url=dist_url,
            )  # fmt: skip

    def predict(
        self, predictor: Predictor, pending: Sequence[PendingTile], rank: int = 0, n: int = 1
    ) -> None:
        """Predict shard `rank` of `n` of the pending tiles into the store."""
        own_tiles = shard(pending, rank, n)
        with (
            contextlib.closing(predictor.predict_tiles(job for _, job in own_tiles)) as results,
            self.store.open(rank) as file,
            tqdm(total=len(own_tiles), desc="predicting", unit="tile", disable=rank or None) as bar,
        ):
            for (key, _), result in zip(own_tiles, results, strict=True):
                self.store.append(key, result, file)
                bar.update()

    def predict_shard(self) -> None:
        """Predict the shard of this process, one of several launched together.

        Raises InputError if the store is not that of this job, or another process failed.
        """
        barrier = distributed.make_barrier()
        self.store.check()
        pending = self.pending()
        barrier()  # no process starts before all know what is pending, or ends before all is done
        predictor = Predictor.load(self.weights, self.cfgs)
        self.predict(predictor, pending, distributed.rank(), distributed.world_size())
        barrier()

    def collect_failures(self) -> None:
        """Add the images with failed tiles to the unusable ones.

        Raises InputError if tiles are missing without an error, or the store is not that of this
        job any more.
        """
        self.store.check()
        failures = self.store.errors()
        if n_pending := len({key for key, _ in self.pending()} - set(failures)):
            raise InputError(
                f"not predicted: {plural(n_pending, 'tile')}; run the same command again to "
                "continue"
            )
        for (number, _), reason in failures.items():
            self.unusable.setdefault(number, reason)

    def merge(self, predictor: Predictor) -> Iterator[tuple[ImageRecord, Predictions]]:
        """Merge the tiles of each usable image, and yield it with a batch of its cells.

        Warns, after the last, of tiles where a limit left out cells.
        """
        limited: dict[str, list[tuple[str, ...]]] = {}
        for number, tiles in itertools.groupby(self.store.entries(), key=lambda tile: tile[0][0]):
            if number not in self.unusable:
                keys = limited.setdefault(self.images[number].file_name, [])
                predictions = note_limits(
                    keys, (require_predictions(result) for _, result in tiles)
                )
                for part in predictor.merge(self.plans[number], predictions):
                    yield self.images[number], part
        warn_of_limits(limited)

    def close(self) -> None:
        """Remove the store, or report the images that are not in the results.

        Raises InputError if there are any; predicted tiles are kept then.
        """
        if not (self.unusable and self.store.done()):
            self.store.remove()
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


def choose_results(output: Path, name: str) -> Path:
    """Return the results file: `output` if it ends in .json, else `name` in that folder."""
    if output.suffix.lower() != ".json":
        if output.suffix[1:].isalpha() and not output.is_dir():
            raise InputError(
                f"--output {output}: ends like a file, expected a .json file or a folder; choose "
                "another name, or create the folder first"
            )
        return output / name
    if output.is_dir():  # checked before the prediction, not after it
        raise InputError(f"--output {output}: is a folder, expected a file; choose another name")
    return output


def shard(tiles: Sequence[PendingTile], rank: int, n: int) -> list[PendingTile]:
    """Return shard `rank` of `n`: contiguous, since neighbours share reads, and of equal area."""
    areas = [job.tile.size[0] * job.tile.size[1] for _, job in tiles]
    ends = itertools.accumulate(areas)
    total = sum(areas)
    return [
        pair
        for pair, end, area in zip(tiles, ends, areas, strict=True)
        if rank * total <= (end - area / 2) * n < (rank + 1) * total
    ]
