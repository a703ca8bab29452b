"""Networks at work: images in, `Predictions` out.

    predictor = Predictor.of_run("tensorboard/mask_rcnn_R_50_FPN_3x/20250401-120000")
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
from cellseg.config import building, check_prediction_values, load_config, merge_options
from cellseg.device import mixed_precision
from cellseg.errors import InputError
from cellseg.network import Found, build_network
from cellseg.network.weights import load_weights
from cellseg.predict.fuse import fuse
from cellseg.predict.masks import encode_masks
from cellseg.predict.merge import merge_tiles
from cellseg.predict.tiles import Tile, TilePlan, choose_tile, plan_tiles
from cellseg.predict.views import plan_views
from cellseg.predictions import Predictions
from cellseg.read.window import WindowedImage, from_array, open_image
from cellseg.view import View, to_tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Look:
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
    def of_run(
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
        categories = runs.shared_categories([file.parent for file in files])
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
        looks = [Look(image, level, size, tile) for tile in plan]
        with contextlib.closing(self.look(looks)) as found:
            tiles = (cells[cells.scores >= score_threshold] for cells in map(_sound, found))
            return replace(join(size, self.merge(plan, tiles)), class_names=self.class_names)

    def plan(self, size: tuple[int, int]) -> TilePlan:
        """Plan the tiles of an image of that height and width, the same for all networks."""
        test = self.cfg.TEST
        zoom = max(cfg.INPUT.ZOOM for cfg in self.cfgs)
        if not (zoom or test.TILE):
            return plan_tiles(size, max(2, *size), 1)  # as a whole
        longest_cell = max(cfg.DATA.LONGEST_CELL for cfg in self.cfgs)
        tile, overlap = choose_tile(longest_cell, zoom or 1.0)
        overlap = test.OVERLAP or overlap
        tile = test.TILE or max(tile, 4 * overlap)
        if not test.OVERLAP:
            # Small tiles that hardly move on would be without number; longer cells are joined.
            overlap = min(overlap, tile // 2)
        return plan_tiles(size, tile, overlap)

    def merge(self, plan: TilePlan, found: Iterable[Predictions]) -> Iterator[Predictions]:
        """Put together what was found in the tiles of an image, in the plan's order."""
        test = self.cfg.TEST
        return merge_tiles(plan, found, iou=test.MASK_IOU, across_classes=test.ACROSS_CLASSES)

    def look(self, looks: Iterable[Look]) -> Generator[Predictions | InputError, None, None]:
        """Find the cells of tiles, in the tiles' own pixels.

        While the networks are busy with some tiles, the next ones are read, and the masks
        of the former ones encoded. Whoever may not take all of them closes the generator: it
        waits for threads, and where it is left to the garbage collector, that may be in the
        middle of another thread's start, which it would wait for.

        Yields
        ------
        For each, in their order, the cells, best first, or why there are none to be had.
        """
        n_views = sum(len(c.TEST.SCALES) * c.TEST.SYMMETRIES for c in self.cfgs)
        groups = _grouped(looks, max(1, self.batch // n_views))
        with (
            contextlib.closing(_Reader()) as reader,
            ThreadPoolExecutor(1) as ahead,
            ThreadPoolExecutor(1) as behind,
        ):
            read = _ahead(ahead, ((group, list(map(reader.read, group))) for group in groups))
            finished: Future[list[Predictions | InputError]] | None = None
            for group, pixels in read:
                found = self._find(group, pixels)
                if finished:
                    yield from finished.result()
                finished = behind.submit(self._finish, group, found)
            if finished:
                yield from finished.result()

    def _find(
        self, group: Sequence[Look], pixels: Sequence[NDArray[np.uint8] | InputError]
    ) -> list[list[Found] | InputError]:
        """Give for each tile what was found in each of its views, in its pixels, on the CPU."""
        found: list[list[Found] | InputError] = [
            p if isinstance(p, InputError) else [] for p in pixels
        ]
        for network, cfg in zip(self.networks, self.cfgs, strict=True):
            jobs: list[tuple[int, View]] = []
            inputs = []
            for number, (look, seen) in enumerate(zip(group, pixels, strict=True)):
                if isinstance(seen, InputError) or isinstance(found[number], InputError):
                    continue
                for view in plan_views(look.tile, look.size, cfg):
                    shown = _if_it_fits(_shown, view, seen, cfg.INPUT.FORMAT)
                    if shown is None:
                        found[number] = _too_large(view.shape, "cpu")
                        break
                    jobs.append((number, view))
                    inputs.append(shown)
            outputs = self._in_batches(network, cfg, inputs)
            for (number, view), output in zip(jobs, outputs, strict=True):
                of_tile = found[number]
                if isinstance(output, InputError):
                    found[number] = output
                elif isinstance(of_tile, list):
                    of_tile.append(_inverted(output, view))
        return found

    def _in_batches(
        self, network: torch.nn.Module, cfg: CfgNode, inputs: Sequence[torch.Tensor]
    ) -> Iterator[Found | InputError]:
        """Show a network its inputs, `batch` at a time; fewer, when the memory is short.

        Those of one batch have one shape: padding would change what is found near it.
        """
        done = 0
        device = torch.device(cfg.MODEL.DEVICE).type
        precision = mixed_precision(device, cfg.TEST.AMP)
        mixed = torch.autocast(device, precision, enabled=precision is not None)
        with _evaluating(network), mixed:
            while done < len(inputs):
                ahead = inputs[done : done + self.batch]
                _, alike = next(itertools.groupby(ahead, key=lambda image: image.shape))
                part = list(alike)
                finder: Any = network
                found: list[Found] | None = _if_it_fits(finder.find, part)
                if found is None and len(part) > 1:
                    self.batch = len(part) // 2
                    tqdm.write(
                        f"{_memory_of(device)} is too small for {len(part)} views at once: going "
                        f"on with {self.batch}",
                        file=sys.stderr,
                    )
                    continue
                if found is None:
                    yield _too_large(part[0].shape[1:], device)
                else:
                    yield from found
                done += len(part)

    def _finish(
        self, group: Sequence[Look], found: Sequence[list[Found] | InputError]
    ) -> list[Predictions | InputError]:
        """Fuse what was found in the views of each tile, and encode the masks."""
        # A cell that few views saw may have sunk below what one view has to reach.
        least = self.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
        most = self.cfg.TEST.DETECTIONS_PER_IMAGE
        return [
            views
            if isinstance(views, InputError)
            else _encode(fuse(views), look.tile.size, least, most)
            for look, views in zip(group, found, strict=True)
        ]


def load_network(cfg: CfgNode, weights: Path) -> torch.nn.Module:
    """Build the network of a run's config and load its weights.

    Raises
    ------
    InputError
        If the config gives no Mask R-CNN, or the file does not hold its weights.
    """
    with building("the run's config"):
        network = build_network(cfg)
    load_weights(network, weights)
    return network


def join(size: tuple[int, int], parts: Iterable[Predictions]) -> Predictions:
    """Put the cells of several parts of an image into one, best score first."""
    listed = [Predictions.none(size), *parts]
    whole = Predictions(
        size,
        np.concatenate([part.boxes for part in listed]),
        np.concatenate([part.scores for part in listed]),
        np.concatenate([part.classes for part in listed]),
        [mask for part in listed for mask in part.masks],
    )
    return whole[np.argsort(-whole.scores, kind="stable")]


def _sound(found: Predictions | InputError) -> Predictions:
    if isinstance(found, InputError):
        raise found
    return found


def _if_it_fits(work: Callable[..., T], *what: Any) -> T | None:
    """Do some work; None if the memory, the GPU's or not, is too small for it."""
    try:
        return work(*what)
    except (RuntimeError, MemoryError, cv2.error) as error:
        if not _is_of_memory(error):
            raise
    # Only now, when the error is gone, is nothing held any more that the work had made.
    torch.cuda.empty_cache()
    return None


def _is_of_memory(error: Exception) -> bool:
    """Whether an error says that there is too little memory."""
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    # On a CPU torch has no type of its own for it.
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or "DefaultCPUAllocator" in str(error)


def _shown(view: View, image: NDArray[np.uint8], image_format: str) -> torch.Tensor:
    """Look at an image as the network does."""
    return to_tensor(view.apply_image(image), image_format)


def _inverted(found: Found, view: View) -> Found:
    """Give what was found in a view in the pixels of what it shows."""
    return Found(
        view.invert_boxes(found.boxes.float().cpu()),
        found.scores.float().cpu(),
        found.classes.cpu(),
        view.invert_grids(found.masks.float().cpu()),
    )


def _encode(found: Found, size: tuple[int, int], least: float, most: int) -> Predictions:
    """Encode the cells of a tile of that size: the best ones, of that score at least."""
    height, width = size
    boxes = found.boxes.clamp(torch.zeros(4), torch.tensor([width, height] * 2))
    found = Found(boxes, found.scores, found.classes, found.masks)
    found = found[(boxes[:, 2:] > boxes[:, :2]).all(1) & (found.scores >= least)]
    found = found[torch.argsort(found.scores, descending=True, stable=True)[:most]]
    return Predictions(
        size=size,
        boxes=found.boxes.numpy(),
        scores=found.scores.numpy(),
        classes=found.classes.numpy(),
        masks=encode_masks(found.masks, found.boxes, size),
    )


def _memory_of(device: str) -> str:
    return "the memory" if device == "cpu" else "the GPU's memory"


def _too_large(size: Sequence[int], device: str) -> InputError:
    height, width = size
    elsewhere = "" if device == "cpu" else "with --device cpu, "
    return InputError(
        f"{height} x {width} pixels, as the network sees it, are too many for "
        f"{_memory_of(device)}; predict in smaller tiles with TEST.TILE, {elsewhere}or enlarge less"
    )


@contextlib.contextmanager
def _evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and back."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


class _Reader:
    """Reads tiles, and keeps the image open that it read last."""

    def __init__(self) -> None:
        self._image: Path | NDArray[Any] | None = None
        self._opened: WindowedImage | None = None

    def read(self, look: Look) -> NDArray[np.uint8] | InputError:
        """Read a tile, or say what is wrong with its image."""
        try:
            if self._opened is None or self._image is not look.image:
                self.close()
                self._opened = _open(look.image, look.level)
                self._image = look.image
            if self._opened.size != look.size:
                found, size = self._opened.size, look.size
                return InputError(
                    f"{look.image}: {found[0]} x {found[1]} pixels (height x width), but it is "
                    f"listed with {size[0]} x {size[1]}; take the image that the list means"
                )
            return self._opened.read(look.tile.window)
        except InputError as error:
            return error

    def close(self) -> None:
        if self._opened:
            self._opened.close()
        self._opened = None


def _open(image: Path | NDArray[Any], level: int) -> WindowedImage:
    return from_array(image) if isinstance(image, np.ndarray) else open_image(image, level)


def _grouped(looks: Iterable[Look], count: int) -> Iterator[list[Look]]:
    """Take so many at a time."""
    group: list[Look] = []
    for look in looks:
        group.append(look)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group


def _ahead(pool: ThreadPoolExecutor, items: Iterator[Any]) -> Iterator[Any]:
    """Make the next item in another thread, while the caller works on this one."""
    end = object()
    coming = pool.submit(next, items, end)
    while (item := coming.result()) is not end:
        coming = pool.submit(next, items, end)
        yield item
