"""Networks at work: images in, `Predictions` out.

    predictor = Predictor.from_run("tensorboard/mask_rcnn_R_50_FPN_3x/20250401-120000")
    predictions = predictor.predict("slide.tif")

An image is looked at tile by tile, each tile in several views and by several networks if
they are wanted; what they find is fused, and the tiles are merged.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg import runs
from cellseg.config import check_prediction_values, config_errors, load_config, merge_options
from cellseg.device import autocast_dtype
from cellseg.errors import InputError
from cellseg.network import Detections, build_network
from cellseg.network.weights import load_weights
from cellseg.predict.fuse import fuse
from cellseg.predict.masks import encode_masks
from cellseg.predict.merge import merge_tiles
from cellseg.predict.tiles import Tile, TilePlan, choose_tile_size, plan_tiles
from cellseg.predict.views import plan_views
from cellseg.predictions import Predictions
from cellseg.read.window import WindowedImage, from_array, open_image
from cellseg.view import View, to_tensor

T = TypeVar("T")


@dataclass(frozen=True)
class TileJob:
    """A tile of an image to look at.

    Attributes
    ----------
    image
        A file, or pixels as `cellseg.read.window.from_array` takes them.
    level
        Which level of a file's pyramid.
    size
        Height and width of the image in pixels.
    tile
        The tile.
    """

    image: Path | NDArray[Any]
    level: int
    size: tuple[int, int]
    tile: Tile


class Predictor:
    """Predicts with one or more trained networks."""

    def __init__(
        self,
        networks: Sequence[torch.nn.Module],
        cfgs: Sequence[CfgNode],
        class_names: Sequence[str] = (),
    ) -> None:
        """
        Parameters
        ----------
        networks
            One or more, of the same classes. What they find is fused.
        cfgs
            The config of each. What isn't a network's own matter is as the first says.
        class_names
            The names of the classes 0…K−1, for `predict`.

        Raises
        ------
        InputError
            If a key of the prediction makes no sense.
        """
        self.networks = networks
        self.cfgs = cfgs
        self.cfg = cfgs[0]
        self.class_names = tuple(class_names)
        self.batch = self.cfg.TEST.BATCH
        for cfg in cfgs:
            check_prediction_values(cfg)

    @classmethod
    def from_run(
        cls,
        run: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        weights: str | None = None,
        device: str = "cpu",
        options: Sequence[str] = (),
    ) -> Predictor:
        """Load the network of a run folder, or those of several.

        Parameters
        ----------
        run
            The folder, or weights in it; or several of these.
        weights
            Which weights in the folder; the best ones, if there are such, else the final ones.
        device
            Where the network runs: "cpu", "cuda", …
        options
            Keys of the config and their values, one after the other:
            `["TEST.SYMMETRIES", "4"]`.

        Raises
        ------
        InputError
            If it isn't a run, its files are damaged, a key or value is unknown, or several
            runs have other classes.
        """
        named = [run] if isinstance(run, str | os.PathLike) else run
        files = [runs.find_weights(Path(path), weights) for path in named]
        categories = runs.common_categories([file.parent for file in files])
        networks, cfgs = [], []
        for file in files:
            cfg = load_config(file.parent / runs.CONFIG)
            merge_options(cfg, options)
            cfg.MODEL.DEVICE = device
            networks.append(load_network(cfg, file))
            cfgs.append(cfg)
        return cls(networks, cfgs, [category["name"] for category in categories])

    def predict(
        self,
        image: str | os.PathLike[str] | NDArray[Any],
        level: int = 0,
        score_threshold: float = 0.0,
    ) -> Predictions:
        """Detect the cells of an image.

        Parameters
        ----------
        image
            A file that `cellseg.read.window.open_image` takes, or `(H, W)`, `(H, W, 3)` or
            `(H, W, 4)` uint8 or uint16.
        level
            Of a file with a pyramid, which level to look at; all pixels are then its.
        score_threshold
            The lowest score to keep, from 0 to 1. The config has another,
            `MODEL.ROI_HEADS.SCORE_THRESH_TEST`; the higher one holds.

        Returns
        -------
        The cells, best score first, with the run's class names; none if there is none.

        Raises
        ------
        InputError
            If the file can't be read, the threshold is none, or the memory is too small.
        """
        if not 0 <= score_threshold <= 1:
            raise InputError(f"score_threshold {score_threshold}: a number from 0 to 1 is expected")
        if not isinstance(image, np.ndarray):
            image = Path(image)
        with _open(image, level) as opened:
            size = opened.size
        plan = self.plan(size)
        jobs = [TileJob(image, level, size, tile) for tile in plan]
        with contextlib.closing(self.predict_tiles(jobs)) as found:
            tiles = (
                cells[cells.scores >= score_threshold] for cells in map(_require_predictions, found)
            )
            return replace(
                join_predictions(size, self.merge(plan, tiles)), class_names=self.class_names
            )

    def plan(self, size: tuple[int, int]) -> TilePlan:
        """Plan the tiles of an image of that height and width, the same for all networks."""
        test = self.cfg.TEST
        scale = max(cfg.INPUT.ZOOM for cfg in self.cfgs)
        if not (scale or test.TILE):
            return plan_tiles(size, max(2, *size), 1)  # as a whole
        longest_cell = max(cfg.DATA.LONGEST_CELL for cfg in self.cfgs)
        tile, overlap = choose_tile_size(longest_cell, scale or 1.0)
        overlap = test.OVERLAP or overlap
        tile = test.TILE or max(tile, 4 * overlap)
        if not test.OVERLAP:
            # Small tiles that hardly move on would be without number; longer cells are joined.
            overlap = min(overlap, tile // 2)
        return plan_tiles(size, tile, overlap)

    def merge(
        self, plan: TilePlan, tile_predictions: Iterable[Predictions]
    ) -> Iterator[Predictions]:
        """Put together what was found in the tiles of an image, in the plan's order."""
        test = self.cfg.TEST
        return merge_tiles(
            plan, tile_predictions, iou=test.MASK_IOU, across_classes=test.ACROSS_CLASSES
        )

    def predict_tiles(
        self, jobs: Iterable[TileJob]
    ) -> Generator[Predictions | InputError, None, None]:
        """Find the cells of tiles, in the tiles' own pixels.

        While the networks are busy with some tiles, the next ones are read, and the masks
        of the former ones encoded. Whoever may not take all of them closes the generator: it
        waits for threads, and where it is left to the garbage collector, that may be in the
        middle of another thread's start, which it would wait for.

        Yields
        ------
        For each, in their order, the cells, best first, or why there are none available.
        """
        n_views = sum(len(c.TEST.SCALES) * c.TEST.SYMMETRIES for c in self.cfgs)
        groups = _batched(jobs, max(1, self.batch // n_views))
        with (
            contextlib.closing(_TileReader()) as reader,
            ThreadPoolExecutor(1) as ahead,
            ThreadPoolExecutor(1) as behind,
        ):
            read = _prefetch(ahead, ((group, list(map(reader.read, group))) for group in groups))
            encoding: Future[list[Predictions | InputError]] | None = None
            for group, pixels in read:
                detections = self._detect(group, pixels)
                if encoding:
                    yield from encoding.result()
                encoding = behind.submit(self._fuse_and_encode, group, detections)
            if encoding:
                yield from encoding.result()

    def _detect(
        self, group: Sequence[TileJob], pixels: Sequence[NDArray[np.uint8] | InputError]
    ) -> list[list[Detections] | InputError]:
        """Return for each tile what was found in each of its views, in its pixels, on the CPU."""
        detections: list[list[Detections] | InputError] = [
            p if isinstance(p, InputError) else [] for p in pixels
        ]
        for network, cfg in zip(self.networks, self.cfgs, strict=True):
            owners: list[tuple[int, View]] = []
            inputs = []
            for number, (tile_job, tile_pixels) in enumerate(zip(group, pixels, strict=True)):
                if isinstance(tile_pixels, InputError) or isinstance(
                    detections[number], InputError
                ):
                    continue
                for view in plan_views(tile_job.tile, tile_job.size, cfg):
                    view_input = _unless_out_of_memory(
                        _network_input, view, tile_pixels, cfg.INPUT.FORMAT
                    )
                    if view_input is None:
                        detections[number] = _too_large_error(view.shape, "cpu")
                        break
                    owners.append((number, view))
                    inputs.append(view_input)
            outputs = self._detect_in_batches(network, cfg, inputs)
            for (number, view), output in zip(owners, outputs, strict=True):
                tile_detections = detections[number]
                if isinstance(output, InputError):
                    detections[number] = output
                elif isinstance(tile_detections, list):
                    tile_detections.append(_to_tile_pixels(output, view))
        return detections

    def _detect_in_batches(
        self, network: torch.nn.Module, cfg: CfgNode, inputs: Sequence[torch.Tensor]
    ) -> Iterator[Detections | InputError]:
        """Show a network its inputs, `batch` at a time; fewer, when the memory is short.

        Those of one batch have one shape: padding would change what is found near it.
        """
        done = 0
        device = torch.device(cfg.MODEL.DEVICE).type
        precision = autocast_dtype(device, cfg.TEST.AMP)
        mixed = torch.autocast(device, precision, enabled=precision is not None)
        with _eval_mode(network), mixed:
            while done < len(inputs):
                ahead = inputs[done : done + self.batch]
                _, same_shape = next(itertools.groupby(ahead, key=lambda image: image.shape))
                part = list(same_shape)
                detector: Any = network
                detections: list[Detections] | None = _unless_out_of_memory(detector.detect, part)
                if detections is None and len(part) > 1:
                    self.batch = len(part) // 2
                    tqdm.write(
                        f"{_memory_name(device)} is too small for {len(part)} views at once: going "
                        f"on with {self.batch}",
                        file=sys.stderr,
                    )
                    continue
                if detections is None:
                    yield _too_large_error(part[0].shape[1:], device)
                else:
                    yield from detections
                done += len(part)

    def _fuse_and_encode(
        self, group: Sequence[TileJob], detections: Sequence[list[Detections] | InputError]
    ) -> list[Predictions | InputError]:
        """Fuse what was found in the views of each tile, and encode the masks."""
        # A cell that few views saw may have sunk below what one view has to reach.
        min_score = self.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
        max_detections = self.cfg.TEST.DETECTIONS_PER_IMAGE
        return [
            views
            if isinstance(views, InputError)
            else _encode_detections(fuse(views), job.tile.size, min_score, max_detections)
            for job, views in zip(group, detections, strict=True)
        ]


def load_network(cfg: CfgNode, weights: Path) -> torch.nn.Module:
    """Build the network of a run's config and load its weights.

    Raises
    ------
    InputError
        If the config gives no Mask R-CNN, or the file does not hold its weights.
    """
    with config_errors("the run's config"):
        network = build_network(cfg)
    load_weights(network, weights)
    return network


def join_predictions(size: tuple[int, int], parts: Iterable[Predictions]) -> Predictions:
    """Put the cells of several parts of an image into one, best score first."""
    listed = [Predictions.empty(size), *parts]
    whole = Predictions(
        size,
        np.concatenate([part.boxes for part in listed]),
        np.concatenate([part.scores for part in listed]),
        np.concatenate([part.classes for part in listed]),
        [mask for part in listed for mask in part.masks],
    )
    return whole[np.argsort(-whole.scores, kind="stable")]


def _require_predictions(result: Predictions | InputError) -> Predictions:
    if isinstance(result, InputError):
        raise result
    return result


def _unless_out_of_memory(work: Callable[..., T], *what: Any) -> T | None:
    """Do some work; None if the memory, the GPU's or not, is too small for it."""
    try:
        return work(*what)
    except (RuntimeError, MemoryError, cv2.error) as error:
        if not _is_out_of_memory(error):
            raise
    # Only now, when the error is gone, is nothing held any more that the work had made.
    torch.cuda.empty_cache()
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is too little memory."""
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    # On a CPU torch has no type of its own for it.
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or "DefaultCPUAllocator" in str(error)


def _network_input(view: View, image: NDArray[np.uint8], image_format: str) -> torch.Tensor:
    """Look at an image as the network does."""
    return to_tensor(view.apply_image(image), image_format)


def _to_tile_pixels(detections: Detections, view: View) -> Detections:
    """Return what was found in a view in the pixels of what it shows."""
    return Detections(
        view.invert_boxes(detections.boxes.float().cpu()),
        detections.scores.float().cpu(),
        detections.classes.cpu(),
        view.invert_grids(detections.masks.float().cpu()),
    )


def _encode_detections(
    detections: Detections, size: tuple[int, int], min_score: float, max_detections: int
) -> Predictions:
    """Encode the cells of a tile of that size: the best ones, of that score at least."""
    height, width = size
    boxes = detections.boxes.clamp(torch.zeros(4), torch.tensor([width, height] * 2))
    detections = Detections(boxes, detections.scores, detections.classes, detections.masks)
    detections = detections[(boxes[:, 2:] > boxes[:, :2]).all(1) & (detections.scores >= min_score)]
    detections = detections[
        torch.argsort(detections.scores, descending=True, stable=True)[:max_detections]
    ]
    return Predictions(
        size=size,
        boxes=detections.boxes.numpy(),
        scores=detections.scores.numpy(),
        classes=detections.classes.numpy(),
        masks=encode_masks(detections.masks, detections.boxes, size),
    )


def _memory_name(device: str) -> str:
    return "the memory" if device == "cpu" else "the GPU's memory"


def _too_large_error(size: Sequence[int], device: str) -> InputError:
    height, width = size
    elsewhere = "" if device == "cpu" else "with --device cpu, "
    return InputError(
        f"{height} x {width} pixels, as the network sees it, are too many for "
        f"{_memory_name(device)}; predict in smaller tiles with TEST.TILE, {elsewhere}or enlarge "
        "less"
    )


@contextlib.contextmanager
def _eval_mode(network: torch.nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and back."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


class _TileReader:
    """Reads tiles, and keeps the image open that it read last."""

    def __init__(self) -> None:
        self._image: Path | NDArray[Any] | None = None
        self._opened: WindowedImage | None = None

    def read(self, job: TileJob) -> NDArray[np.uint8] | InputError:
        """Read a tile, or say what is wrong with its image."""
        try:
            if self._opened is None or self._image is not job.image:
                self.close()
                self._opened = _open(job.image, job.level)
                self._image = job.image
            if self._opened.size != job.size:
                actual, expected = self._opened.size, job.size
                return InputError(
                    f"{job.image}: {actual[0]} x {actual[1]} pixels (height x width), but it is "
                    f"listed with {expected[0]} x {expected[1]}; take the image that the list means"
                )
            return self._opened.read(job.tile.window)
        except InputError as error:
            return error

    def close(self) -> None:
        if self._opened:
            self._opened.close()
        self._opened = None


def _open(image: Path | NDArray[Any], level: int) -> WindowedImage:
    return from_array(image) if isinstance(image, np.ndarray) else open_image(image, level)


def _batched(jobs: Iterable[TileJob], count: int) -> Iterator[list[TileJob]]:
    """Take so many at a time."""
    group: list[TileJob] = []
    for job in jobs:
        group.append(job)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group


def _prefetch(pool: ThreadPoolExecutor, items: Iterator[Any]) -> Iterator[Any]:
    """Make the next item in another thread, while the caller works on this one."""
    end = object()
    pending = pool.submit(next, items, end)
    while (item := pending.result()) is not end:
        pending = pool.submit(next, items, end)
        yield item
