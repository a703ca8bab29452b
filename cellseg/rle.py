"""COCO run-length encoding of many masks at once.

A COCO RLE is a dict `{"size": [height, width], "counts": str}`. Its counts are the lengths of
the runs of 0 and 1 in column-major order, beginning with a run of 0, each written in base 32
as its difference to the count two before it (`pycocotools`, common/maskApi.c, rleToString).

All functions work on *runs*: column-major positions `[start, end)` of the pixels of each mask.
Their cost grows with the outlines of the cells, not with the image, and numpy encodes hundreds
of masks in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

RLE = dict[str, Any]
Ints = NDArray[np.int64]


class PackedMasks(Sequence[RLE]):
    """N compressed RLEs of one image in less memory; each is built when it is taken."""

    def __init__(self, masks: Sequence[RLE], size: tuple[int, int]) -> None:
        """`masks` are RLEs of the image's `size`, height and width, with `counts` a str."""
        self._size = [int(size[0]), int(size[1])]
        self._counts = "".join(mask["counts"] for mask in masks)
        self._offsets = np.cumsum([0, *(len(mask["counts"]) for mask in masks)])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> RLE: ...
    @overload
    def __getitem__(self, index: slice) -> list[RLE]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> RLE | list[RLE]:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        n = range(len(self))[index]
        counts = self._counts[self._offsets[n] : self._offsets[n + 1]]
        return {"size": [*self._size], "counts": counts}


@dataclass(frozen=True)
class MaskRuns:
    """The pixels of N masks of one image, as runs in column-major order.

    Attributes
    ----------
    size
        Height and width of the image in pixels.
    starts, ends
        int64 arrays `(R,)`: run r covers the positions `[starts[r], ends[r])`, where the
        pixel in row y and column x is at `x * height + y`. Sorted by mask, then position;
        the runs of a mask don't touch.
    offsets
        int64 array `(N + 1,)`: mask n has the runs `offsets[n]` to `offsets[n + 1]`, exclusive.
    """

    size: tuple[int, int]
    starts: Ints
    ends: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1


def label_map_to_runs(labels: NDArray[Any]) -> tuple[NDArray[Any], MaskRuns]:
    """Return the runs of every instance of a label map.

    Parameters
    ----------
    labels
        `(H, W)` array of any number type; 0 is background, each other value one instance of
        one or more pieces. Each NaN pixel becomes an instance, so that callers can detect it.

    Returns
    -------
    values
        `(N,)` the labels except 0, rising, with the dtype of `labels`.
    mask_runs
        The N masks.
    """
    height, width = labels.shape
    if labels.size == 0:
        empty = np.zeros(0, np.int64)
        return labels.reshape(-1), MaskRuns((height, width), empty, empty, np.zeros(1, np.int64))
    # A run begins where a pixel differs from the one above it, and in the first row. Runs that
    # continue from the end of one column into the next are joined below: there are fewer runs
    # than pixels.
    border = np.empty((height, width), bool)
    border[0] = True
    np.not_equal(labels[1:], labels[:-1], out=border[1:])
    at = np.flatnonzero(border)
    rows, columns = np.divmod(at, width)
    starts = columns * height + rows
    order = np.argsort(starts)
    starts = starts[order]
    values = labels.reshape(-1)[at[order]]
    ends = np.append(starts[1:], height * width)

    cell = values != 0
    starts, ends, values = starts[cell], ends[cell], values[cell]
    order = np.argsort(values, kind="stable")
    starts, ends, values = starts[order], ends[order], values[order]

    new_mask = np.append(True, values[1:] != values[:-1])[: len(values)]
    head = new_mask | np.append(True, starts[1:] != ends[:-1])[: len(values)]
    first = np.flatnonzero(head)
    last = np.append(first[1:], len(values))[: len(first)] - 1
    offsets = np.append(np.flatnonzero(new_mask[first]), len(first))
    unique = values[first][new_mask[first]]
    return unique, MaskRuns((height, width), starts[first], ends[last], offsets)


def encode(mask_runs: MaskRuns) -> list[RLE]:
    """Return each mask as a compressed COCO RLE, `counts` a str.

    Byte for byte equal to `pycocotools.mask.encode` of the full masks.
    """
    height, width = mask_runs.size
    total = height * width
    n_runs = np.diff(mask_runs.offsets)
    # Counts of mask n: (gap, run) for each of its runs, then the zeros after the last run
    # unless it ends with the image. A mask without pixels is one run of zeros.
    last_end = np.zeros(len(mask_runs), np.int64)
    has_runs = n_runs > 0
    last_end[has_runs] = mask_runs.ends[mask_runs.offsets[1:][has_runs] - 1]
    tail = (last_end < total) | ~has_runs
    n_counts = 2 * n_runs + tail
    bounds = np.append(0, np.cumsum(n_counts))

    counts = np.empty(bounds[-1], np.int64)
    previous_end = np.append(0, mask_runs.ends[:-1])[: len(mask_runs.ends)]
    previous_end[mask_runs.offsets[:-1][has_runs]] = 0
    place = 2 * np.arange(len(mask_runs.starts)) + np.repeat(
        bounds[:-1] - 2 * mask_runs.offsets[:-1], n_runs
    )
    counts[place] = mask_runs.starts - previous_end
    counts[place + 1] = mask_runs.ends - mask_runs.starts
    counts[bounds[1:][tail] - 1] = total - last_end[tail]

    text, ends = _compress(counts, bounds)
    return [
        {"size": [height, width], "counts": text[begin:end]}
        for begin, end in zip(np.append(0, ends[:-1]).tolist(), ends.tolist(), strict=False)
    ]


def _compress(counts: Ints, bounds: Ints) -> tuple[str, Ints]:
    """Return the counts of all masks as one string, and the end of each mask's part."""
    # From the fourth count of a mask on, the difference to the count two before it.
    index = np.arange(len(counts)) - np.repeat(bounds[:-1], np.diff(bounds))
    delta = counts.copy()
    later = np.flatnonzero(index > 2)
    delta[later] -= counts[later - 2]
    digits, ends = five_bit_digits(delta, 4)
    text = (digits + 48).astype(np.uint8).tobytes().decode("ascii")
    return text, np.append(0, ends)[bounds[1:]]


def five_bit_digits(numbers: Ints, last_bits: int) -> tuple[Ints, Ints]:
    """Write integers in digits of five bits, lowest first, plus 32 if another one follows.

    `last_bits` are those of a number's last digit that hold the number: 5, or 4 if the fifth is its
    sign. Returns the digits of all numbers, and the end of each number's.
    """
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    n_digits = np.ones(len(numbers), np.int64)
    bits = last_bits
    while (more := magnitude >> bits != 0).any():
        n_digits += more
        bits += 5
    ends = np.cumsum(n_digits)
    owner = np.repeat(np.arange(len(numbers)), n_digits)
    place = np.arange(len(owner)) - np.repeat(ends - n_digits, n_digits)
    digits = (numbers[owner] >> (5 * place)) & 31
    digits[place < n_digits[owner] - 1] |= 32
    return digits, ends


def decode(rles: Sequence[RLE], size: tuple[int, int] | None = None) -> MaskRuns:
    """Decode the compressed COCO RLEs of one image, `counts` a str or bytes.

    Parameters
    ----------
    rles
        N masks.
    size
        Height and width of the image (default: of the first mask).

    Raises
    ------
    ValueError
        If a mask has another size than the image, or its counts are no RLE of that size.
        The message begins with the mask's index.
    """
    if size is None:
        size = (int(rles[0]["size"][0]), int(rles[0]["size"][1])) if rles else (0, 0)
    texts = []
    for index, rle in enumerate(rles):
        if tuple(rle["size"]) != tuple(size):
            raise ValueError(f"{index}: size {list(rle['size'])}, expected {list(size)}")
        counts = rle["counts"]
        texts.append(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
    # In blocks, since the intermediate arrays are many times larger than the runs.
    blocks = [
        _decode_block(texts[first : first + _BLOCK], size, first)
        for first in range(0, len(texts), _BLOCK)
    ]
    return concatenate((size[0], size[1]), blocks)


_BLOCK = 4096  # masks


def _decode_block(texts: Sequence[bytes], size: tuple[int, int], first: int) -> MaskRuns:
    """Decode the counts of the masks with the indices from `first` on."""
    total = size[0] * size[1]
    n_chars = np.array([len(text) for text in texts], np.int64)
    counts, n_pairs = _decompress(np.frombuffer(b"".join(texts), np.uint8), n_chars, first)

    bounds = np.append(0, np.cumsum(2 * n_pairs))
    # Each count is checked too, since the sum of huge ones may overflow to the right number.
    outside = (counts < 0) | (counts > total)
    wrong = np.flatnonzero((_sum(counts, bounds) != total) | (_sum(outside, bounds) > 0))
    if len(wrong):
        raise ValueError(
            f"{first + wrong[0]}: the counts don't add up to {size[0]} x {size[1]} pixels"
        )
    owner = np.repeat(np.arange(len(texts)), n_pairs)
    ends = np.cumsum(counts).reshape(-1, 2) - total * owner[:, None]
    return join_runs(size, len(texts), owner, ends[:, 0], ends[:, 1])


def join_runs(
    size: tuple[int, int], n_masks: int, owner: Ints, starts: Ints, ends: Ints
) -> MaskRuns:
    """Build `MaskRuns` from pieces that may touch or be empty.

    `owner`, `starts`, `ends` are int64 arrays `(R,)`: piece r covers the column-major positions
    `[starts[r], ends[r])` of mask `owner[r]`; sorted by mask, then position.
    """
    some = ends > starts
    owner, starts, ends = owner[some], starts[some], ends[some]
    first = np.append(True, (starts[1:] != ends[:-1]) | (owner[1:] != owner[:-1]))[: len(owner)]
    last = np.append(first[1:], True)[: len(owner)]
    offsets = np.searchsorted(owner[first], np.arange(n_masks + 1))
    return MaskRuns((int(size[0]), int(size[1])), starts[first], ends[last], offsets)


def unite_runs(
    size: tuple[int, int], n_masks: int, owner: Ints, starts: Ints, ends: Ints
) -> MaskRuns:
    """Build `MaskRuns` as `join_runs` does, from pieces in any order that may overlap."""
    offset = owner * (size[0] * size[1] + 1)  # positions of all masks one after the other
    order = np.argsort(offset + starts, kind="stable")
    owner, starts, ends, offset = owner[order], starts[order], ends[order], offset[order]
    reach = np.maximum.accumulate(ends + offset)
    new = np.append(True, (starts + offset)[1:] > reach[:-1])[: len(starts)]
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(starts))[: len(first)] - 1
    return join_runs(size, n_masks, owner[first], starts[first], reach[last] - offset[first])


def unite_masks(mask_runs: MaskRuns, groups: Ints, n_groups: int) -> MaskRuns:
    """Return the union of the masks of each group; `groups`, `(N,)`, are 0 to `n_groups` - 1."""
    owner = np.repeat(groups, np.diff(mask_runs.offsets))
    return unite_runs(mask_runs.size, n_groups, owner, mask_runs.starts, mask_runs.ends)


def subtract_masks(masks: MaskRuns, others: MaskRuns) -> MaskRuns:
    """Return each of N masks without the pixels of the other mask with its index."""
    length = masks.size[0] * masks.size[1] + 1  # positions of all masks one after the other
    edges, steps = [], []
    for mask_runs, step in ((masks, 1), (others, 2)):
        offset = np.repeat(np.arange(len(mask_runs)) * length, np.diff(mask_runs.offsets))
        edges += [mask_runs.starts + offset, mask_runs.ends + offset]
        steps += [np.full(len(offset), step), np.full(len(offset), -step)]
    edge = np.concatenate(edges)
    order = np.argsort(edge, kind="stable")
    edge = edge[order]
    left = np.cumsum(np.concatenate(steps)[order])[:-1] == 1  # in a mask, and not in the other
    owner, starts = np.divmod(edge[:-1][left], length)
    return join_runs(masks.size, len(masks), owner, starts, edge[1:][left] - owner * length)


def _decompress(chars: NDArray[np.uint8], n_chars: Ints, first: int) -> tuple[Ints, Ints]:
    """Return the counts of all masks from their joined text.

    Returns
    -------
    counts
        `(P, 2)` int64: pairs of a run of 0 and a run of 1, the last one of a mask perhaps 0.
    n_pairs
        `(N,)` int64: the number of pairs of each mask.
    """
    char_bounds = np.append(0, np.cumsum(n_chars))
    value = chars - np.uint8(48)  # characters before "0" become large
    last = (value & 32) == 0
    count_ends = np.flatnonzero(last) + 1
    # Texts that end within a count, contain an invalid character, or have a count of more than
    # the 12 characters of 60 bits.
    digits = np.diff(count_ends, prepend=0)
    bad = value > 63
    text_ends = char_bounds[1:][n_chars > 0] - 1
    bad[text_ends] |= ~last[text_ends]
    if bad.any() or (digits > 12).any():
        at = np.flatnonzero(bad)[0] if bad.any() else count_ends[digits > 12][0] - 1
        index = np.searchsorted(char_bounds, at, side="right") - 1
        raise ValueError(f"{first + index}: the counts are not a COCO RLE string")

    five_bits = (value & 31).astype(np.int64)
    sign = five_bits[count_ends - 1] >> 4
    count_starts = count_ends - digits
    delta = five_bits[count_starts] - (sign << (5 * digits))
    for digit in range(1, digits.max(initial=0)):
        longer = np.flatnonzero(digits > digit)
        delta[longer] += five_bits[count_starts[longer] + digit] << (5 * digit)

    n_counts = _sum(last, char_bounds)
    n_pairs = (n_counts + 1) // 2
    pair_ends = np.cumsum(n_pairs)
    # Masks with an odd number of counts leave a gap before the next mask.
    n_gaps = 2 * pair_ends - np.cumsum(n_counts) - n_counts % 2
    place = np.arange(len(delta)) + np.repeat(n_gaps, n_counts)
    counts = np.zeros((n_pairs.sum(), 2), np.int64)
    counts.reshape(-1)[place] = delta
    # Undo the differences: cumulative sums of the columns of each mask, where a first count,
    # which is no difference, stays out.
    heads = (pair_ends - n_pairs)[n_counts > 0]
    first_counts = counts[heads, 0]
    counts[heads, 0] = 0
    sums = np.cumsum(counts, axis=0)
    sums -= np.repeat((sums - counts)[heads], n_pairs[n_counts > 0], axis=0)
    sums[heads, 0] = first_counts
    sums[pair_ends[n_counts % 2 == 1] - 1, 1] = 0  # gaps
    return sums, n_pairs


def crop_mask(mask_runs: MaskRuns, index: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Return one mask within its tight box.

    Returns
    -------
    box
        `(4,)` int64: the tight box, XYXY in pixels, right and bottom exclusive.
    mask
        `(bottom - top, right - left)` bool.
    """
    begin, end = mask_runs.offsets[index], mask_runs.offsets[index + 1]
    one = MaskRuns(
        mask_runs.size,
        mask_runs.starts[begin:end],
        mask_runs.ends[begin:end],
        np.array([0, end - begin]),
    )
    box = boxes_xyxy(one)[0]
    width, height = box[2] - box[0], box[3] - box[1]
    column, row = np.divmod(one.starts, max(mask_runs.size[0], 1))
    # Runs over several columns occur only if the box is as high as the image, so that they are
    # in one piece here too.
    start = (column - box[0]) * height + row - box[1]
    change = np.zeros(width * height + 1, np.int8)
    change[start] += 1
    change[start + one.ends - one.starts] -= 1
    return box, np.cumsum(change[:-1], dtype=np.int8).astype(bool).reshape(width, height).T


def cut_at_columns(mask_runs: MaskRuns) -> tuple[Ints, ...]:
    """Split runs that continue from the end of one column into the next.

    Returns
    -------
    mask, column, top, bottom
        `(P,)` int64 each: piece p covers the rows `[top[p], bottom[p])` of a column, in
        the order of `mask_runs`. Pieces of a mask in one column don't touch.
    """
    height = max(mask_runs.size[0], 1)
    mask = np.repeat(np.arange(len(mask_runs)), np.diff(mask_runs.offsets))
    column, top = np.divmod(mask_runs.starts, height)
    n_columns = (mask_runs.ends - 1) // height - column + 1
    owner = np.repeat(np.arange(len(mask)), n_columns)
    column = ranges(column, n_columns)
    top = np.maximum(mask_runs.starts[owner] - column * height, 0)
    bottom = np.minimum(mask_runs.ends[owner] - column * height, height)
    return mask[owner], column, top, bottom


def crop_runs(mask_runs: MaskRuns, box: tuple[int, int, int, int]) -> MaskRuns:
    """Return all masks cropped to a window of the image; those outside have no runs.

    `box` is the window, XYXY in pixels, right and bottom exclusive, within the image.
    """
    left, top, right, bottom = box
    mask, column, start, end = cut_at_columns(mask_runs)
    inside = (column >= left) & (column < right) & (start < bottom) & (end > top)
    base = (column[inside] - left) * (bottom - top)
    start = np.maximum(start[inside] - top, 0)
    end = np.minimum(end[inside], bottom) - top
    size = (bottom - top, right - left)
    return join_runs(size, len(mask_runs), mask[inside], base + start, base + end)


def place_runs(mask_runs: MaskRuns, size: tuple[int, int], corner: tuple[int, int]) -> MaskRuns:
    """Return the masks of a window as masks of the image of `size` (H, W): undo `crop_runs`.

    `corner` is the left and top of the window, which is within the image.
    """
    left, top = corner
    mask, column, start, end = cut_at_columns(mask_runs)
    base = (column + left) * size[0] + top
    return join_runs(size, len(mask_runs), mask, base + start, base + end)


def concatenate(size: tuple[int, int], parts: Sequence[MaskRuns]) -> MaskRuns:
    """Concatenate the masks of all parts, which are of one image of that size."""
    empty = np.zeros(0, np.int64)
    n_runs = np.concatenate([empty, *(np.diff(part.offsets) for part in parts)])
    return MaskRuns(
        size,
        np.concatenate([empty, *(part.starts for part in parts)]),
        np.concatenate([empty, *(part.ends for part in parts)]),
        np.append(0, np.cumsum(n_runs)),
    )


def select_masks(mask_runs: MaskRuns, masks: Ints) -> MaskRuns:
    """Return the masks at the indices `masks`."""
    n_runs = np.diff(mask_runs.offsets)[masks]
    run = ranges(mask_runs.offsets[masks], n_runs)
    offsets = np.append(0, np.cumsum(n_runs))
    return MaskRuns(mask_runs.size, mask_runs.starts[run], mask_runs.ends[run], offsets)


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Concatenate the ranges `starts[i]` … `starts[i] + lengths[i]`."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    joined: Ints = np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
    return joined


def areas(mask_runs: MaskRuns) -> Ints:
    """Return the number of pixels of each mask, `(N,)` int64."""
    return _sum(mask_runs.ends - mask_runs.starts, mask_runs.offsets)


def first_and_last(mask_runs: MaskRuns) -> tuple[Ints, Ints]:
    """Return the column-major positions of the first and the last pixel of each mask, `(N,)` int64.

    Of one without pixels, both are -1.
    """
    some = np.diff(mask_runs.offsets) > 0
    first, last = np.full((2, len(mask_runs)), -1, np.int64)
    first[some] = mask_runs.starts[mask_runs.offsets[:-1][some]]
    last[some] = mask_runs.ends[mask_runs.offsets[1:][some] - 1] - 1
    return first, last


def centroids(mask_runs: MaskRuns) -> NDArray[np.float64]:
    """Return the centroid of each mask, `(N, 2)` x and y in pixels; NaN for one without pixels.

    The first pixel's centre is at 0.5.
    """
    mask, column, top, bottom = cut_at_columns(mask_runs)
    n_pixels, area = bottom - top, areas(mask_runs)
    sums = [
        np.bincount(mask, position * n_pixels, len(mask_runs))
        for position in (column + 0.5, (top + bottom) / 2)
    ]
    mean: NDArray[np.float64] = np.stack(sums, axis=1) / np.where(area > 0, area, np.nan)[:, None]
    return mean


def _sum(values: Ints | NDArray[np.bool_], offsets: Ints) -> Ints:
    total: Ints = np.append(0, np.cumsum(values))
    return total[offsets[1:]] - total[offsets[:-1]]


def boxes_xyxy(mask_runs: MaskRuns) -> Ints:
    """Return the tight box of each mask, `(N, 4)` int64 XYXY in pixels, right, bottom exclusive.

    A mask without pixels has the box 0, 0, 0, 0.
    """
    height = mask_runs.size[0]
    boxes = np.zeros((len(mask_runs), 4), np.int64)
    if not len(mask_runs.starts):
        return boxes
    left, top = np.divmod(mask_runs.starts, height)
    right, bottom = np.divmod(mask_runs.ends - 1, height)
    # A run over several columns contains the end of a column and the begin of the next.
    wraps = left != right
    top = np.where(wraps, 0, top)
    bottom = np.where(wraps, height - 1, bottom)
    some = np.diff(mask_runs.offsets) > 0
    at = mask_runs.offsets[:-1][some]
    boxes[some, 0] = np.minimum.reduceat(left, at)
    boxes[some, 1] = np.minimum.reduceat(top, at)
    boxes[some, 2] = np.maximum.reduceat(right, at) + 1
    boxes[some, 3] = np.maximum.reduceat(bottom, at) + 1
    return boxes


def xyxy_to_xywh(boxes: NDArray[Any]) -> NDArray[Any]:
    """Convert `(N, 4)` boxes from XYXY (right and bottom exclusive) to COCO's XYWH."""
    boxes = np.array(boxes, copy=True)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
