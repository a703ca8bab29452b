"""Predict images with trained networks.

    predictor = Predictor.from_run("tensorboard/mask_rcnn_R_50_FPN_3x/20250401-120000")
    predictions = predictor.predict("slide.tif")

An image is predicted tile by tile, each tile in one or more views and by one or more networks.
Their detections are fused, and the tiles are merged.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray

from cellseg import runs
from cellseg.config import check_prediction_values, config_errors, load_config, merge_options
from cellseg.device import autocast_dtype, choose_device
from cellseg.errors import InputError
from cellseg.memory import memory_name, too_large_error, unless_out_of_memory
from cellseg.messages import warn
from cellseg.network import Detections, build_network
from cellseg.network.folding import fold_batch_norms
from cellseg.network.limits import Limits, count_detections
from cellseg.network.weights import load_weights
from cellseg.pieces import largest_pieces
from cellseg.predict.fuse import fuse
from cellseg.predict.inputs import InputReader, NetworkInput, TileInputs, TileJob
from cellseg.predict.masks import sample_masks
from cellseg.predict.merge import merge_tiles
from cellseg.predict.part import ImagePart, choose_part
from cellseg.predict.threads import count_threads, split_cores
from cellseg.predict.tiles import Tile, TilePlan, choose_tile_size, edge_margin, plan_tiles
from cellseg.predict.unusual import BrightnessCheck, warn_of_values_not_finite
from cellseg.predictions import Predictions, check_score_threshold
from cellseg.read.resolution import MPP_RANGE, is_plausible, magnification
from cellseg.read.window import open_file_or_array
from cellseg.rle import areas, boxes_xyxy, encode
from cellseg.view import View


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
            One or more networks of the same classes, whose detections are fused.
        cfgs
            Config of each. Keys that don't concern a single network are those of the first.
        class_names
            Names of the classes 0…K−1, for `predict`.

        Raises
        ------
        InputError
            If a value of the prediction is out of range.
        """
        self.networks = networks
        self.cfgs = cfgs
        self.cfg = cfgs[0]
        self.class_names = tuple(class_names)
        self.batch = self.cfg.TEST.BATCH
        for cfg in cfgs:
            check_prediction_values(cfg)

    @classmethod
    def load(
        cls, weights: Sequence[Path], cfgs: Sequence[CfgNode], class_names: Sequence[str] = ()
    ) -> Predictor:
        """Build the network of each config and load its weights (see `load_network`)."""
        pairs = zip(cfgs, weights, strict=True)
        return cls([load_network(cfg, path) for cfg, path in pairs], cfgs, class_names)

    @classmethod
    def from_run(
        cls,
        run: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        weights: str | None = None,
        device: str = "cpu",
        options: Sequence[object] = (),
    ) -> Predictor:
        """Load the network of a run folder, or of several.

        Parameters
        ----------
        run
            Run folder or weights file in one, or several of these.
        weights
            Name of the weights file in the folder (default: the best weights, else the final).
        device
            Device of the network: "cpu", "cuda", …
        options
            Config keys and values: `["TEST.SYMMETRIES", 4]`.

        Raises
        ------
        InputError
            If no run is given, one is not found or damaged, a key or value is unknown, the classes
            differ, or the device is not available.
        """
        paths = [run] if isinstance(run, str | os.PathLike) else list(run)
        if not paths:
            raise InputError("no run given; pass a run folder, or a list of one or more")
        device = choose_device(device)
        files = [runs.find_weights(Path(path), weights) for path in paths]
        categories = runs.common_categories([file.parent for file in files])
        cfgs = [load_config(file.parent / runs.CONFIG) for file in files]
        for cfg in cfgs:
            merge_options(cfg, list(map(str, options)))
            cfg.MODEL.DEVICE = device
        return cls.load(files, cfgs, [category["name"] for category in categories])

    of_run = from_run  # former name

    def predict(
        self,
        image: str | os.PathLike[str] | NDArray[Any],
        level: int = 0,
        score_threshold: float = 0.0,
        mpp: float | None = None,
        regions: str | os.PathLike[str] | None = None,
        all_tiles: bool = False,
    ) -> Predictions:
        """Detect the cells of an image.

        Parameters
        ----------
        image
            File (see `cellseg.read.window.open_image`), or `(H, W)`, `(H, W, 3)` or
            `(H, W, 4)` uint8 or uint16.
        level
            Pyramid level of the file; the result is in pixels of that level.
        score_threshold
            Minimum score, 0 to 1; `MODEL.ROI_HEADS.SCORE_THRESH_TEST` applies too.
        mpp
            Micrometres per pixel of the level (default: as the file says, else the run's). An
            image of another resolution than the run's is scaled to it.
        regions
            GeoJSON file of the regions to predict, in pixels of full resolution.
        all_tiles
            Predict tiles without tissue too, which a large image is spared by default.

        Returns
        -------
        Detections, best score first, with the run's class names; empty if there are none. A cell
        may be detected in several classes; `Predictions.distinct` returns each cell once.

        Raises
        ------
        InputError
            If a file can't be read or has no such level, the threshold or `mpp` is out of range,
            or memory is too small.
        ValueError
            If an array has another shape or type.
        TypeError
            If the image is neither a file nor an array.
        """
        check_score_threshold(score_threshold)
        if mpp is not None and not is_plausible(mpp):
            raise InputError(f"mpp {mpp}: {MPP_RANGE} is expected")
        if not isinstance(image, str | os.PathLike | np.ndarray):
            raise TypeError(
                f"image is {type(image).__name__}, expected a file or an array (H, W), (H, W, 3) "
                "or (H, W, 4)"
            )
        if not isinstance(image, np.ndarray):
            image = Path(image)
        with open_file_or_array(image, level) as opened:
            size, mpp = opened.size, float(mpp) if mpp else opened.mpp
        whole = ImagePart(image, level, mpp, self.plan(size, mpp))
        part = self.choose_part(whole, None if regions is None else Path(regions), all_tiles)
        limits: list[tuple[str, ...]] = []
        with contextlib.closing(self.predict_tiles(part.jobs())) as results:
            tiles = note_limits(limits, map(require_predictions, results))
            kept = (cells[cells.scores >= score_threshold] for cells in tiles)
            cells = join_predictions(size, map(part.keep, self.merge(part.plan, kept)))
        limited_by = tuple(sorted({*itertools.chain(*limits)}))
        return replace(cells, class_names=self.class_names, limited_by=limited_by)

    def plan(self, size: tuple[int, int], mpp: float | None = None) -> TilePlan:
        """Plan the tiles of an image, the same for all networks.

        `size` is its height and width in pixels, `mpp` its micrometres per pixel, if known.
        """
        test = self.cfg.TEST
        # 0 is not fixed.
        scales = [cfg.INPUT.ZOOM * magnification(mpp, cfg.DATA.MPP) for cfg in self.cfgs]
        scale = max(scales)
        if not (scale or test.TILE):
            return plan_tiles(size, max(2, *size), 1)  # the whole image
        # The coarsest view ends the furthest from the edges.
        views = (s * min(c.TEST.SCALES) for s, c in zip(scales, self.cfgs, strict=True) if s)
        margin = edge_margin(min(views, default=1.0))
        tile, overlap = choose_tile_size(self._longest_cell(mpp), scale or 1.0, margin)
        overlap = test.OVERLAP or overlap
        tile = test.TILE or max(tile, 4 * overlap)
        if not test.OVERLAP:
            # Bounds the number of small tiles; cells longer than the overlap are joined.
            overlap = min(overlap, tile // 2)
        return plan_tiles(size, tile, overlap, margin)

    def _longest_cell(self, mpp: float | None) -> float:
        """Return the length of the longest expected cells, in pixels of an image of `mpp`."""
        return max(float(c.DATA.LONGEST_CELL) / magnification(mpp, c.DATA.MPP) for c in self.cfgs)

    def choose_part(
        self, whole: ImagePart, regions: Path | None = None, all_tiles: bool = False
    ) -> ImagePart:
        """Choose which tiles of an image to predict; see `cellseg.predict.part`."""
        longest = self._longest_cell(whole.mpp)
        _, overlap = choose_tile_size(longest, margin=whole.plan.margin)
        return choose_part(whole, max(overlap, self.cfg.TEST.OVERLAP), regions, all_tiles)

    def merge(
        self, plan: TilePlan, tile_predictions: Iterable[Predictions]
    ) -> Iterator[Predictions]:
        """Merge the predictions of the tiles of an image, in the plan's order."""
        iou, across_classes = self.cfg.TEST.MASK_IOU, self.cfg.TEST.ACROSS_CLASSES
        return merge_tiles(plan, tile_predictions, iou=iou, across_classes=across_classes)

    def predict_tiles(
        self, jobs: Iterable[TileJob], brightness: BrightnessCheck | None = None
    ) -> Generator[Predictions | InputError, None, None]:
        """Detect the cells of tiles, in pixels of each tile.

        While the networks process some tiles, the next ones are read and resized, and the masks of
        the previous ones encoded; on a CPU, several tiles are processed at once, each on its own
        cores. Close the generator unless you exhaust it: it waits for its threads, and in the
        garbage collector that may deadlock with another thread's start.

        Warns of dark images at the end, unless they have further tiles elsewhere: then `brightness`
        gets the counts of these.

        Yields
        ------
        For each job, in order, the predictions, best score first, or why there are none.
        """
        n_views = sum(len(c.TEST.SCALES) * c.TEST.SYMMETRIES for c in self.cfgs)
        groups = list(_batched(jobs, max(1, self.batch // n_views)))
        n_threads = count_threads([cfg.MODEL.DEVICE for cfg in self.cfgs], len(groups))
        with contextlib.ExitStack() as stack:
            for network in self.networks:
                stack.enter_context(_eval_mode(network))
            stack.enter_context(warn_of_values_not_finite(self.networks))
            counts = BrightnessCheck() if brightness is None else brightness
            reader = stack.enter_context(contextlib.closing(InputReader(self.cfgs, counts)))
            ahead = stack.enter_context(ThreadPoolExecutor(1))
            workers = stack.enter_context(split_cores(n_threads))
            waiting: collections.deque[Future[list[Predictions | InputError]]] = collections.deque()
            prepared = ([*map(reader.prepare, group)] for group in groups)
            for group, inputs in zip(groups, _prefetch(ahead, prepared), strict=True):
                if n_threads > 1:
                    waiting.append(workers.submit(self._predict_group, group, inputs))
                else:
                    detections = self._detect(inputs)
                    waiting.append(workers.submit(self._fuse_and_encode, group, detections))
                if len(waiting) > n_threads:
                    yield from waiting.popleft().result()
            for predicted in waiting:
                yield from predicted.result()
            if brightness is None:
                counts.warn()

    def _predict_group(
        self, group: Sequence[TileJob], inputs: Sequence[TileInputs]
    ) -> list[Predictions | InputError]:
        return self._fuse_and_encode(group, self._detect(inputs))

    def _detect(self, tiles: Sequence[TileInputs]) -> list[list[Detections] | InputError]:
        """Return the detections of each view of each tile, in the tile's pixels, on the CPU."""
        detections: list[list[Detections] | InputError] = [
            tile if isinstance(tile, InputError) else [] for tile in tiles
        ]
        for number, (network, cfg) in enumerate(zip(self.networks, self.cfgs, strict=True)):
            owners: list[int] = []
            inputs: list[NetworkInput] = []
            for owner, (tile, found) in enumerate(zip(tiles, detections, strict=True)):
                if isinstance(tile, list) and isinstance(found, list):
                    owners += [owner] * len(tile[number])
                    inputs += tile[number]
            outputs = self._detect_in_batches(network, cfg, inputs)
            for owner, view_input, output in zip(owners, inputs, outputs, strict=True):
                found = detections[owner]
                if isinstance(output, InputError):
                    detections[owner] = output
                elif isinstance(found, list):
                    found.append(_to_tile_pixels(output, view_input.view))
        return detections

    def _detect_in_batches(
        self, network: torch.nn.Module, cfg: CfgNode, inputs: Sequence[NetworkInput]
    ) -> Iterator[Detections | InputError]:
        """Run a network on its inputs, `batch` at a time; fewer if memory is too small.

        Images of a batch have one shape, since padding would change detections near it, and the
        same limits.
        """
        shape_and_limits = attrgetter("pixels.shape", "limits")
        done = 0
        device = torch.device(cfg.MODEL.DEVICE).type
        on_cpu = device == "cpu" and cfg.TEST.BFLOAT16_ON_CPU
        precision = autocast_dtype(device, cfg.TEST.AMP or on_cpu)
        mixed = torch.autocast(device, precision, enabled=precision is not None)
        with torch.no_grad(), mixed:
            while done < len(inputs):
                following = inputs[done : done + self.batch]
                (_, limits), alike = next(itertools.groupby(following, shape_and_limits))
                batch = [view_input.pixels for view_input in alike]
                detector: Any = network
                detect = partial(detector.detect, batch, limits)
                detections = unless_out_of_memory(detect, or_perhaps=True)
                if detections is None and len(batch) > 1:
                    self.batch = min(self.batch, len(batch) // 2)  # other threads halve it, too
                    warn(
                        f"{memory_name(device)} is too small for a batch of {len(batch)} views; "
                        f"continuing with {self.batch}"
                    )
                    continue
                if detections is None:  # memory may have been in pieces, or others have left some
                    detections = unless_out_of_memory(detect)
                if detections is None:
                    yield too_large_error(batch[0].shape[1:], device)
                else:
                    yield from detections
                done += len(batch)

    def _fuse_and_encode(
        self, group: Sequence[TileJob], detections: Sequence[list[Detections] | InputError]
    ) -> list[Predictions | InputError]:
        """Fuse the detections of the views of each tile, and encode the masks."""
        # Threshold and limits apply again: fused scores of cells in few views are lower, and
        # several views have more cells than one.
        return [
            views
            if isinstance(views, InputError)
            else _encode_detections(fuse(views), job.tile, self.cfg, job.limits(self.cfg))
            for job, views in zip(group, detections, strict=True)
        ]


def load_network(cfg: CfgNode, weights: Path) -> torch.nn.Module:
    """Build the network of a run's config and load its weights, for prediction only.

    Raises
    ------
    InputError
        If the config is not that of a Mask R-CNN, or the file doesn't hold its weights.
    """
    check_prediction_values(cfg)
    with config_errors("the run's config"):
        network = build_network(cfg)
    load_weights(network, weights)
    fold_batch_norms(network)
    return network


def join_predictions(size: tuple[int, int], parts: Iterable[Predictions]) -> Predictions:
    """Concatenate the cells of several parts of an image, best score first."""
    listed = [Predictions.empty(size), *parts]
    whole = Predictions(
        size,
        np.concatenate([part.boxes for part in listed]),
        np.concatenate([part.scores for part in listed]),
        np.concatenate([part.classes for part in listed]),
        [mask for part in listed for mask in part.masks],
    )
    return whole[np.argsort(-whole.scores, kind="stable")]


def require_predictions(result: Predictions | InputError) -> Predictions:
    """Return the predictions of a tile, or raise its error."""
    if isinstance(result, InputError):
        raise result
    return result


def note_limits(
    limits: list[tuple[str, ...]], tiles: Iterable[Predictions]
) -> Iterator[Predictions]:
    """Yield the predictions of tiles, and append the `limited_by` of each to `limits`."""
    for predictions in tiles:
        limits.append(predictions.limited_by)
        yield predictions


def _to_tile_pixels(detections: Detections, view: View) -> Detections:
    """Map the detections of a view to pixels of the tile."""
    return Detections(
        view.invert_boxes(detections.boxes.cpu().float()),
        detections.scores.cpu().float(),
        detections.classes.cpu(),
        view.invert_grids(detections.masks.cpu().float()),
        limited_by=detections.limited_by,
        mask_scale=detections.mask_scale,
    )


def _encode_detections(
    detections: Detections, tile: Tile, cfg: CfgNode, limits: Limits
) -> Predictions:
    """Encode the best detections of a tile, with the minimum score or more.

    Their boxes are the network's; those of masks in enlarged boxes, or of which pieces are left
    out, are the tight boxes of the masks.
    """
    min_score, largest_piece = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.LARGEST_PIECE
    size = height, width = tile.size
    boxes = detections.boxes.clamp(torch.zeros(4), torch.tensor([width, height] * 2))
    detections = replace(detections, boxes=boxes)
    detections = detections[(boxes[:, 2:] > boxes[:, :2]).all(1) & (detections.scores >= min_score)]
    order = torch.argsort(detections.scores, descending=True, stable=True)
    n, key = count_detections(detections.scores, limits)
    detections = detections[order[:n]]
    mask_runs = sample_masks(detections.masks, detections.mask_boxes, size)
    sampled = areas(mask_runs)
    if largest_piece:
        # A cell at an inner edge may be in one piece together with its part in the next tile.
        at_edge = (boxes_xyxy(mask_runs) == [0, 0, width, height]) & tile.inner_edges
        mask_runs = largest_pieces(mask_runs, ~at_edge.any(axis=1))
    area = areas(mask_runs)
    is_tight = (area > 0) & ((area < sampled) | (detections.mask_scale != 1))
    final_boxes = detections.boxes.numpy()
    final_boxes = np.where(is_tight[:, None], boxes_xyxy(mask_runs), final_boxes)
    return Predictions(
        size=size,
        boxes=final_boxes.astype(np.float32),
        scores=detections.scores.numpy(),
        classes=detections.classes.numpy(),
        masks=encode(mask_runs),
        limited_by=tuple(sorted({*detections.limited_by, *key})),
    )


@contextlib.contextmanager
def _eval_mode(network: torch.nn.Module) -> Iterator[None]:
    """Switch a network to evaluation mode, and back."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _batched(jobs: Iterable[TileJob], count: int) -> Iterator[list[TileJob]]:
    jobs = iter(jobs)
    while group := list(itertools.islice(jobs, count)):
        yield group


def _prefetch(pool: ThreadPoolExecutor, items: Iterator[Any]) -> Iterator[Any]:
    """Prepare the next item in another thread, while the caller uses the current one."""
    end = object()
    pending = pool.submit(next, items, end)
    while (item := pending.result()) is not end:
        pending = pool.submit(next, items, end)
        yield item
