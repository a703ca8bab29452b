"""Merge the detections of overlapping tiles, by the overlap of their masks.

Inner tile edges cut cells, and cells in an overlap are detected twice. These rules keep each
cell once:

1. Within a tile, greedy NMS by mask overlap. A piece that seems to be less than half of a
   cell is dropped if another tile contains it: even if that tile misses the cell, so small
   a part would be no true positive. A larger part may be one, so it stays.
2. A cut piece is dropped for a whole cell of another tile that covers most of it.
3. Cut pieces of two tiles that agree where both tiles overlap are parts of one cell, longer
   than the overlap or even than a tile. They are joined.
4. NMS across tiles: whole and joined cells come before pieces that no other tile continues,
   then the score decides.

Tiles are processed one at a time, and a cell is returned as soon as no later tile can
change it. Memory depends on the cells of a tile and of the overlaps along one row of tiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cellseg.overlap import (
    better_first,
    box_intersections,
    kept_greedily,
    overlapping_boxes,
    same_cell,
    shared_pixels,
)
from cellseg.predict.tiles import Tile, TilePlan
from cellseg.predictions import Predictions
from cellseg.rle import (
    Ints,
    MaskRuns,
    areas,
    boxes_xyxy,
    concatenate,
    cut_at_columns,
    decode,
    encode,
    place_runs,
    select_masks,
    unite_masks,
)

Bools = NDArray[np.bool_]

# Fraction of a cut piece that a whole cell must cover to replace it. Low, since a network
# outlines partly visible cells badly.
_MIN_COVERED = 0.5

# Detections of two tiles that share this fraction of the smaller one are resolved together.
# Below the thresholds of NMS, which two pieces may reach when they are joined; not zero, or
# touching cells would form one chain through the whole tissue.
_MIN_RELATED = 0.25


def merge_tiles(
    plan: TilePlan,
    tile_predictions: Iterable[Predictions],
    *,
    iou: float = 0.5,
    ios: float = 0.8,
    across_classes: bool = False,
) -> Iterator[Predictions]:
    """Merge the cells of tiles, in batches, as soon as no later tile can change them.

    Parameters
    ----------
    plan
        Tiles of the image.
    tile_predictions
        Predictions of each tile in the plan's order, in pixels and of the size of the tile;
        consumed one at a time.
    iou
        Minimum IoU of two masks of the same cell, and of two cut pieces in the tiles' overlap.
    ios
        Minimum intersection of two masks of the same cell, as a fraction of the smaller mask.
    across_classes
        Compare cells of different classes too. In any case a piece is dropped for a whole
        cell of another class with a higher score: the tile that shows more of a cell knows
        its class better. Pieces are joined within their class; one without a continuation in
        its class is joined to another's.

    Yields
    ------
    Cells of the image, each in one non-empty batch, best score first within a batch. Those of
    which one covers half of another are in the same, of whichever classes. A joined
    cell has the pixels of all its pieces, the best score and the class of the largest piece.
    The result doesn't depend on the order of a tile's cells.

    Raises
    ------
    ValueError
        If predictions are not of their tile's size, or not one for each tile.
    """
    rule = _SameCell(iou, ios, across_classes)
    pending, relations = _Pieces.empty(plan.size), _Relations.empty()
    together: Ints = np.zeros((0, 2), np.int64)  # pairs of pieces for the same batch
    for index, (tile, predictions) in enumerate(zip(plan, tile_predictions, strict=True)):
        if predictions.size != tile.size:
            raise ValueError(f"predictions of {predictions.size}, expected the tile's {tile.size}")
        if tile.size == plan.size:  # the only tile: nothing is cut, or detected twice
            mask_runs = decode(predictions.masks, tile.size)
            kept = _nms(mask_runs, predictions.scores, predictions.classes, rule)
            if len(kept):
                yield predictions[kept]
            continue
        new = _Pieces.from_tile(tile, predictions, plan.size)
        new = new[_nms(new.mask_runs, new.scores, new.classes, rule)]
        new = new[~(tile.shows_less_than_half(new.boxes) & plan.some_tile_contains(new.boxes))]
        n_before = len(pending)
        pending = pending.concatenated(new)
        relations = relations.concatenated(_relate_pieces(pending, n_before, tile, iou))
        together = np.concatenate([together, n_before + _near_pairs(boxes_xyxy(new.mask_runs))])

        group = _connected_groups(len(pending), np.concatenate([relations.pairs, together]))
        shown_later = plan.is_in_later_tiles(index, boxes_xyxy(pending.mask_runs))
        waiting = np.isin(group, group[shown_later])
        if not waiting.all():
            ready = relations.restricted_to(~waiting)
            yield _resolve(pending[~waiting], ready, rule)
        pending, relations = pending[waiting], relations.restricted_to(waiting)
        together = (np.cumsum(waiting) - 1)[together[waiting[together].all(1)]]


@dataclass(frozen=True)
class _SameCell:
    """When two masks are of the same cell: the parameters of `merge_tiles`."""

    iou: float
    ios: float
    across_classes: bool

    def among(self, mask_runs: MaskRuns, classes: Ints, pairs: Ints) -> Ints:
        """Return the `(P, 2)` pairs of masks that are of the same cell, among those given."""
        pairs = pairs[(classes[pairs[:, 0]] == classes[pairs[:, 1]]) | self.across_classes]
        boxes, area = boxes_xyxy(mask_runs), areas(mask_runs)
        return pairs[same_cell(mask_runs, boxes, area, pairs, self.iou, self.ios)]


@dataclass(frozen=True)
class _Pieces:
    """N whole or cut cells of tiles, in pixels of the image.

    Attributes
    ----------
    mask_runs, boxes, scores, classes
        As in `Predictions`.
    cut
        `(N,)` bool: reaches an inner edge of its tile.
    windows
        `(N, 4)` int64, XYXY: window of the tile of each.
    """

    mask_runs: MaskRuns
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: Ints
    cut: Bools
    windows: Ints

    @classmethod
    def empty(cls, size: tuple[int, int]) -> _Pieces:
        none = Predictions.empty(size)
        boxes, classes = none.boxes, none.classes
        cut, windows = np.zeros(0, bool), np.zeros((0, 4), np.int64)
        return cls(concatenate(size, []), boxes, none.scores, classes, cut, windows)

    @classmethod
    def from_tile(cls, tile: Tile, predictions: Predictions, size: tuple[int, int]) -> _Pieces:
        left, top = tile.window[:2]
        boxes = predictions.boxes + np.array([left, top] * 2, np.float32)
        mask_runs = decode(predictions.masks, predictions.size)
        return cls(
            place_runs(mask_runs, size, (left, top)),
            boxes,
            predictions.scores,
            predictions.classes,
            tile.may_cut(boxes),
            np.tile(np.array(tile.window), (len(predictions), 1)),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Ints | Bools) -> _Pieces:
        return _Pieces(
            select_masks(self.mask_runs, np.arange(len(self))[index]),
            self.boxes[index],
            self.scores[index],
            self.classes[index],
            self.cut[index],
            self.windows[index],
        )

    def concatenated(self, other: _Pieces) -> _Pieces:
        return _Pieces(
            concatenate(self.mask_runs.size, [self.mask_runs, other.mask_runs]),
            np.concatenate([self.boxes, other.boxes]),
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.classes, other.classes]),
            np.concatenate([self.cut, other.cut]),
            np.concatenate([self.windows, other.windows]),
        )


@dataclass(frozen=True)
class _Relations:
    """Pairs of pieces of different tiles that may be the same cell.

    Attributes
    ----------
    pairs
        `(P, 2)` int64 indices of pieces.
    superseded
        `(P,)` bool: the first piece is cut, the second is whole and covers most of the first.
    agrees
        `(P,)` bool: both are cut and match where their tiles overlap.
    """

    pairs: Ints
    superseded: Bools
    agrees: Bools

    @classmethod
    def empty(cls) -> _Relations:
        return cls(np.zeros((0, 2), np.int64), np.zeros(0, bool), np.zeros(0, bool))

    def concatenated(self, other: _Relations) -> _Relations:
        return _Relations(
            np.concatenate([self.pairs, other.pairs]),
            np.concatenate([self.superseded, other.superseded]),
            np.concatenate([self.agrees, other.agrees]),
        )

    def restricted_to(self, kept: Bools) -> _Relations:
        """Return the relations among the kept pieces, with their new indices."""
        both = kept[self.pairs].all(1)
        index = np.cumsum(kept) - 1
        return _Relations(index[self.pairs[both]], self.superseded[both], self.agrees[both])


def _relate_pieces(pieces: _Pieces, n_before: int, tile: Tile, iou: float) -> _Relations:
    """Compare the pieces of a tile, the last ones, with the `n_before` others."""
    boxes = boxes_xyxy(pieces.mask_runs)
    left, top, right, bottom = tile.window
    in_columns = (boxes[:, 0] < right) & (boxes[:, 2] > left)
    near = np.flatnonzero(in_columns & (boxes[:, 1] < bottom) & (boxes[:, 3] > top))
    pieces, is_new = pieces[near], near >= n_before
    pairs = overlapping_boxes(boxes[near])
    pairs = pairs[is_new[pairs[:, 0]] != is_new[pairs[:, 1]]]

    shared, area = shared_pixels(pieces.mask_runs, pairs), areas(pieces.mask_runs)[pairs]
    cut, scores, classes = pieces.cut[pairs], pieces.scores[pairs], pieces.classes[pairs]
    superseded = cut & ~cut[:, ::-1] & (shared[:, None] >= _MIN_COVERED * area)
    superseded &= (classes == classes[:, ::-1]) | (scores < scores[:, ::-1])
    pairs[superseded[:, 1]] = pairs[superseded[:, 1], ::-1]
    both_cut = np.flatnonzero(cut.all(1) & (shared > 0))
    agrees = np.zeros(len(pairs), bool)
    agrees[both_cut] = _local_iou(pieces, pairs[both_cut], shared[both_cut]) >= iou
    related = agrees | (shared >= _MIN_RELATED * area.min(1))
    return _Relations(near[pairs[related]], superseded.any(1)[related], agrees[related])


def _near_pairs(boxes: Ints) -> Ints:
    """Return the pairs of `(N, 4)` boxes of which one covers half of the other, or more."""
    pairs = overlapping_boxes(boxes)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    near: Ints = pairs[2 * box_intersections(boxes, pairs) >= area[pairs].min(1)]
    return near


def _local_iou(pieces: _Pieces, pairs: Ints, shared: Ints) -> NDArray[np.float64]:
    """Return the `(P,)` IoU of pairs of pieces within the overlap of their tiles."""
    a, b = pairs.T
    in_both = _pixels_within(pieces.mask_runs, a, pieces.windows[b])
    in_both += _pixels_within(pieces.mask_runs, b, pieces.windows[a])
    return shared / (in_both - shared)


def _resolve(pieces: _Pieces, relations: _Relations, rule: _SameCell) -> Predictions:
    """Return the cells of pieces that no later tile can change."""
    keep = np.ones(len(pieces), bool)
    keep[relations.pairs[relations.superseded, 0]] = False
    pieces, relations = pieces[keep], relations.restricted_to(keep)

    links = relations.pairs[relations.agrees]
    same = (pieces.classes[links[:, 0]] == pieces.classes[links[:, 1]]) | rule.across_classes
    alone = np.ones(len(pieces), bool)
    alone[links[same]] = False
    group = _connected_groups(len(pieces), links[same | alone[links].any(1)])
    cells = _join(pieces, group)

    pairs = np.unique(np.sort(group[relations.pairs], axis=1), axis=0)
    pairs = rule.among(cells.mask_runs, cells.classes, pairs[pairs[:, 0] != pairs[:, 1]])
    order = _best_first(cells.mask_runs, cells.scores, cells.classes)
    whole_first = order[np.argsort(cells.cut[order], kind="stable")]
    order = order[_suppress_in_order(whole_first, pairs)[order]]
    return Predictions(
        cells.mask_runs.size,
        cells.boxes[order],
        cells.scores[order],
        cells.classes[order],
        encode(select_masks(cells.mask_runs, order)),
    )


def _join(pieces: _Pieces, group: Ints) -> _Pieces:
    """Join the pieces of each group; `group` is `(N,)`, 0…G−1."""
    n = int(group.max()) + 1 if len(group) else 0
    area = areas(pieces.mask_runs)
    # The largest piece of each group determines class and box.
    order = np.lexsort((pieces.classes, -pieces.scores, -area, group))
    first = order[np.searchsorted(group[order], np.arange(n))]
    scores = np.zeros(n, np.float32)
    np.maximum.at(scores, group, pieces.scores)
    boxes = pieces.boxes[first]
    np.minimum.at(boxes[:, :2], group, pieces.boxes[:, :2])
    np.maximum.at(boxes[:, 2:], group, pieces.boxes[:, 2:])
    return _Pieces(
        unite_masks(pieces.mask_runs, group, n),
        boxes,
        scores,
        pieces.classes[first],
        pieces.cut[first] & (np.bincount(group, minlength=n) == 1),
        pieces.windows[first],
    )


def _nms(mask_runs: MaskRuns, scores: NDArray[np.float32], classes: Ints, rule: _SameCell) -> Ints:
    """Return the indices that greedy mask NMS keeps, best score first; empty masks are dropped."""
    pairs = rule.among(mask_runs, classes, overlapping_boxes(boxes_xyxy(mask_runs)))
    order = _best_first(mask_runs, scores, classes)
    keep = _suppress_in_order(order, pairs) & (areas(mask_runs) > 0)
    return order[keep[order]]


def _best_first(mask_runs: MaskRuns, scores: NDArray[np.float32], classes: Ints) -> Ints:
    """Return the order by score; ties by area, box and class, independent of the input order."""
    order: Ints = np.lexsort((classes, *boxes_xyxy(mask_runs).T, -areas(mask_runs), -scores))
    return order


def _suppress_in_order(order: Ints, pairs: Ints) -> Bools:
    """Return `(N,)` bool: kept, if each kept one suppresses those after it paired with it."""
    return kept_greedily(len(order), *better_first(order, pairs)[0].T)


def _connected_groups(n: int, pairs: Ints) -> Ints:
    """Return the `(n,)` int64 connected components, 0…G−1, of a graph with `pairs` as edges."""
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    labels: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return labels.astype(np.int64)


def _pixels_within(mask_runs: MaskRuns, masks: Ints, windows: Ints) -> Ints:
    """Return the `(P,)` int64 pixels of masks `(P,)` within windows `(P, 4)`, XYXY."""
    mask, column, top, bottom = cut_at_columns(select_masks(mask_runs, masks))
    window = windows[mask]
    rows = np.minimum(bottom, window[:, 3]) - np.maximum(top, window[:, 1])
    rows[(column < window[:, 0]) | (column >= window[:, 2])] = 0
    count = np.zeros(len(masks), np.int64)
    np.add.at(count, mask, np.maximum(rows, 0))
    return count
