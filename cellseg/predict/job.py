"""The prediction of many images as one job: its tiles planned, done in shards, merged."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fvcore.common.config import CfgNode
from tqdm import tqdm

from cellseg import distributed
from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.predict.predictor import Predictor, TileJob, load_network
from cellseg.predict.tile_store import TileKey, TileStore, fingerprint
from cellseg.predict.tiles import TilePlan
from cellseg.predictions import Predictions
from cellseg.read.images import read_size

PendingTile = tuple[TileKey, TileJob]  # with the numbers of its image and of itself


@dataclass(frozen=True)
class PredictionJob:
    """Images to predict into one results file, and how far that is.

    It has no network, so that it can be sent to other processes.

    Attributes
    ----------
    images
        All that were asked for. An image's number is its place here.
    weights, cfgs
        Of each network the file of its weights and its config.
    results
        The results file, which `write` makes.
    plans
        The tiles of each image whose size is known, by its number.
    unusable
        Why an image can't be used, by its number.
    store
        What the tiles that are done gave.
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
        """Plan the tiles of images, and open the store beside the results.

        Of several machines, the `first` one makes the store. Raises InputError as `TileStore`
        does, or if tiles and overlap don't fit.
        """
        plans: dict[int, TilePlan] = {}
        unusable: dict[int, str] = {}
        for number, image in enumerate(images):
            try:
                size = read_size(image)
            except InputError as error:
                unusable[number] = str(error)
            else:
                plans[number] = predictor.plan(size)
        folder = results.with_name(results.stem + ".parts")
        store = TileStore(folder, fingerprint(weights, predictor.cfgs, images), create=first)
        return cls(images, weights, predictor.cfgs, results, plans, unusable, store)

    @property
    def usable(self) -> list[ImageRecord]:
        """The images that have, or may have, results."""
        return [image for n, image in enumerate(self.images) if n not in self.unusable]

    def pending(self) -> list[PendingTile]:
        """Return the tiles that are not done, image by image."""
        done = self.store.done()
        return [
            ((n, index), TileJob(self.images[n].path, self.images[n].level, plan.size, tile))
            for n, plan in self.plans.items()
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
        """Predict the tiles that are pending, in this process or in several.

        Each of several calls `work` with this job, which is to call `predict_shard`; the other
        parameters and errors are those of `cellseg.distributed.launch`.
        """
        pending = self.pending()
        if n_done := sum(map(len, self.plans.values())) - len(pending):
            print(f"going on: {n_done} tiles were done before")
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
        """Predict the shard of process `rank` of `n` of the pending tiles, into the store."""
        own_tiles = shard(pending, rank, n)
        keys = [key for key, _ in own_tiles]
        with (
            contextlib.closing(predictor.predict_tiles(job for _, job in own_tiles)) as detections,
            self.store.open(rank) as file,
            tqdm(total=len(own_tiles), desc="predicting", unit="tile", disable=rank or None) as bar,
        ):
            for key, result in zip(keys, detections, strict=True):
                self.store.append(key, result, file)
                bar.update()

    def predict_shard(self) -> None:
        """Predict the shard of this process, one of several that were launched together.

        Raises InputError if the store is not that of this job, or another process has ended.
        """
        barrier = distributed.make_barrier()
        self.store.check()
        pending = self.pending()
        barrier()  # none begins before all know what is pending, none ends before all is done
        predictor = load_predictor(self.weights, self.cfgs)
        self.predict(predictor, pending, distributed.rank(), distributed.world_size())
        barrier()

    def collect_failures(self) -> None:
        """Count the images of which a tile failed among the unusable ones.

        Raises InputError if some tiles were not tried at all.
        """
        failures = self.store.errors()
        if n_pending := len({key for key, _ in self.pending()} - set(failures)):
            raise InputError(f"{n_pending} tiles were not done; the same command goes on from here")
        for (number, _), why in failures.items():
            self.unusable.setdefault(number, why)

    def merge(self, predictor: Predictor) -> Iterator[tuple[ImageRecord, Predictions]]:
        """Merge the tiles of each usable image, and yield it with some of its detections."""
        for number, tiles in itertools.groupby(self.store.entries(), key=lambda tile: tile[0][0]):
            if number not in self.unusable:
                detections = (_require_predictions(result) for _, result in tiles)
                for part in predictor.merge(self.plans[number], detections):
                    yield self.images[number], part

    def close(self) -> None:
        """Remove the store, and print which images were left out of the results.

        Raises InputError if there is such an image; tiles that are done are kept then.
        """
        if not (self.unusable and self.store.done()):
            self.store.remove()
        if not self.unusable:
            return
        reasons = [self.unusable[number] for number in sorted(self.unusable)]
        n, total = len(reasons), len(self.images)
        if n == total:
            raise InputError(
                f"none of the {total} images can be used, the same command tries them again; "
                f"{reasons[0]}"
            )
        for reason in reasons:
            print(f"left out: {reason}", file=sys.stderr)
        raise InputError(
            f"{n} of {total} images left out, see above; the same command tries them again, and "
            "all of them if a file was changed"
        )


def choose_results(output: Path, name: str) -> Path:
    """Return the results file: `output` if it ends in .json, else `name` in that folder."""
    if output.suffix != ".json":
        return output / name
    if output.is_dir():  # else found out at the end alone, when the work is done
        raise InputError(f"--output {output}: can't be written, it is a folder; name a file")
    return output


def load_predictor(weights: Sequence[Path], cfgs: Sequence[CfgNode]) -> Predictor:
    """Build the network of each config and load its weights; raises as `load_network` does."""
    pairs = zip(cfgs, weights, strict=True)
    return Predictor([load_network(cfg, path) for cfg, path in pairs], cfgs)


def shard(tiles: Sequence[PendingTile], rank: int, n: int) -> list[PendingTile]:
    """Return the tiles that process `rank` of `n` does: in one piece, of equal area.

    Tiles that lie side by side share what is read for them.
    """
    areas = [job.tile.size[0] * job.tile.size[1] for _, job in tiles]
    ends = itertools.accumulate(areas)
    total = sum(areas)
    return [
        pair
        for pair, end, area in zip(tiles, ends, areas, strict=True)
        if rank * total <= (end - area / 2) * n < (rank + 1) * total
    ]


def _require_predictions(result: Predictions | InputError) -> Predictions:
    assert not isinstance(result, InputError)  # its image is unusable
    return result
