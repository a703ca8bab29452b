"""`CellMasks`: the instance masks of a training image, each stored within its tight box.

Detectron2's `BitMasks` has an array of the whole image per cell: 243 MB for 500 cells in
608 x 800.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cellseg.compiler import without_compiler

with without_compiler():
    from torchvision.ops import roi_align

# Pixels per call of ROIAlign: limits the memory, and the padding of small cells to the size
# of large ones.
_BATCH = 1 << 18


class CellMasks:
    """N instance masks of one image, in place of Detectron2's `BitMasks`.

    `size` is the height and width of the image in pixels, here and in all methods. Indexing copies
    no masks: the result refers to the same pixels.
    """

    def __init__(
        self,
        size: tuple[int, int],
        tight: torch.Tensor,
        starts: torch.Tensor,
        pixels: torch.Tensor,
    ) -> None:
        """
        Parameters
        ----------
        tight
            `(N, 4)` int64: the tight box of each mask, XYXY in pixels, right and bottom
            exclusive; 0, 0, 0, 0 for a mask without pixels.
        starts
            `(N,)` int64: index of each mask's first pixel in `pixels`.
        pixels
            `(P,)` bool: the pixels of the boxes, row by row.
        """
        self.size = size
        self._tight = tight
        self._starts = starts
        self._pixels = pixels

    @staticmethod
    def from_rows(
        size: tuple[int, int],
        owner: NDArray[np.int64],
        row: NDArray[np.int64],
        left: NDArray[np.int64],
        right: NDArray[np.int64],
    ) -> CellMasks:
        """Build masks from pieces of their rows.

        Parameters
        ----------
        owner, row, left, right
            int64 arrays `(R,)`: piece r covers the pixels `[left[r], right[r])`, at least one,
            of a row of mask `owner[r]`. Sorted by mask; each mask 0…N−1 has a piece, and its
            pieces don't overlap.
        """
        at = np.flatnonzero(np.diff(owner, prepend=-1))
        tight = np.stack(
            [
                np.minimum.reduceat(left, at),
                np.minimum.reduceat(row, at),
                np.maximum.reduceat(right, at),
                np.maximum.reduceat(row, at) + 1,
            ],
            axis=1,
        )
        width, height = (tight[:, 2:] - tight[:, :2]).T
        ends = np.cumsum(width * height)
        starts = ends - width * height
        row_start = (starts - tight[:, 1] * width - tight[:, 0])[owner] + row * width[owner]
        change = np.zeros(int(ends[-1]) + 1 if len(ends) else 1, np.int8)
        change[row_start + left] += 1
        change[row_start + right] -= 1
        pixels = np.cumsum(change[:-1], dtype=np.int8).view(bool)
        return CellMasks(size, *map(torch.from_numpy, (tight, starts, pixels)))

    @staticmethod
    def from_columns(
        size: tuple[int, int],
        owner: NDArray[np.int64],
        column: NDArray[np.int64],
        top: NDArray[np.int64],
        bottom: NDArray[np.int64],
    ) -> CellMasks:
        """Build masks from pieces of their columns, otherwise as `from_rows`."""
        transposed = CellMasks.from_rows(size[::-1], owner, column, top, bottom)
        pixels = transposed._pixels.numpy()
        rows = np.empty_like(pixels)
        width, height = (transposed._tight[:, 2:] - transposed._tight[:, :2]).T.tolist()
        for start, w, h in zip(transposed._starts.tolist(), width, height, strict=True):
            cell = slice(start, start + w * h)
            rows[cell].reshape(w, h)[:] = pixels[cell].reshape(h, w).T
        tight = transposed._tight[:, [1, 0, 3, 2]]
        return CellMasks(size, tight, transposed._starts, torch.from_numpy(rows))

    @staticmethod
    def from_crops(
        size: tuple[int, int], corners: Sequence[tuple[int, int]], crops: Sequence[torch.Tensor]
    ) -> CellMasks:
        """Build masks from crops, `(h, w)` bool each, which need not be tight.

        `corners` are left and top of each crop in the image.
        """
        tight = torch.zeros((len(crops), 4), dtype=torch.int64)
        pixels = [torch.zeros(0, dtype=torch.bool)]
        for n, ((left, top), crop) in enumerate(zip(corners, crops, strict=True)):
            rows, columns = crop.any(1).nonzero(), crop.any(0).nonzero()
            if len(rows):
                y0, y1 = int(rows[0]), int(rows[-1]) + 1
                x0, x1 = int(columns[0]), int(columns[-1]) + 1
                tight[n] = torch.tensor([left + x0, top + y0, left + x1, top + y1])
                pixels.append(crop[y0:y1, x0:x1].flatten())
        n_pixels = (tight[:, 2:] - tight[:, :2]).prod(1)
        return CellMasks(size, tight, n_pixels.cumsum(0) - n_pixels, torch.cat(pixels))

    @staticmethod
    def cat(parts: Sequence[CellMasks]) -> CellMasks:
        """Concatenate one or more parts of the same image size."""
        starts, n_pixels = [], 0
        for part in parts:
            starts.append(part._starts + n_pixels)
            n_pixels += len(part._pixels)
        return CellMasks(
            parts[0].size,
            torch.cat([part._tight for part in parts]),
            torch.cat(starts),
            torch.cat([part._pixels for part in parts]),
        )

    def __len__(self) -> int:
        return len(self._tight)

    def __getitem__(self, item: int | slice | torch.Tensor) -> CellMasks:
        """Return the masks that a tensor index selects; an int gives `CellMasks` of length 1."""
        if isinstance(item, int):
            item = torch.arange(len(self))[item].reshape(1)
        return CellMasks(self.size, self._tight[item], self._starts[item], self._pixels)

    def __repr__(self) -> str:
        return f"CellMasks(num_instances={len(self)}, size={self.size})"

    @property
    def device(self) -> torch.device:
        return self._pixels.device

    def to(self, *args: Any, **kwargs: Any) -> CellMasks:
        """Move to a device, with the arguments of `torch.Tensor.to`."""
        parts = (self._tight, self._starts, self._pixels)
        return CellMasks(self.size, *(part.to(*args, **kwargs) for part in parts))

    @property
    def boxes(self) -> torch.Tensor:
        """Tight boxes, `(N, 4)` float32 XYXY in pixels, right and bottom exclusive.

        A mask without pixels has the box 0, 0, 0, 0.
        """
        return self._tight.float()

    def areas(self) -> torch.Tensor:
        """Return the number of pixels of each mask, `(N,)` int64."""
        width, height = (self._tight[:, 2:] - self._tight[:, :2]).T
        total = functional.pad(self._pixels.cumsum(0), (1, 0))
        return total[self._starts + width * height] - total[self._starts]

    @staticmethod
    def owners(parts: Sequence[CellMasks], stride: int) -> torch.Tensor:
        """Return which mask of an image has each of a grid of pixels, -1 for none.

        Of several masks at a pixel, that with the smallest box is taken.

        Parameters
        ----------
        parts
            The masks of each of N images of the same size, at least one.
        stride
            Step S of the grid. Its first pixel is (S // 2, S // 2).

        Returns
        -------
        `(N, ceil((height - S // 2) / S), ceil((width - S // 2) / S))` int64: indices into the
        masks of all images together.
        """
        masks, first = CellMasks.cat(parts), stride // 2
        height, width = (-(-(side - first) // stride) for side in masks.size)
        # The part of the grid in each box: left, top, right, bottom, the last two exclusive.
        grid = (masks._tight - first + stride - 1).div(stride, rounding_mode="floor")
        columns, rows = (grid[:, 2:] - grid[:, :2]).T
        counts = columns * rows
        cell = torch.arange(len(masks), device=masks.device).repeat_interleave(counts)
        place = torch.arange(len(cell), device=masks.device) - (counts.cumsum(0) - counts)[cell]
        row = grid[cell, 1] + place.div(columns[cell], rounding_mode="floor")
        column = grid[cell, 0] + place % columns[cell]
        left, top, right, _ = masks._tight[cell].T
        pixel = (row * stride + first - top) * (right - left) + column * stride + first - left
        inside = masks._pixels[masks._starts[cell] + pixel]
        by_area = (masks._tight[:, 2:] - masks._tight[:, :2]).prod(1).argsort(descending=True)
        rank = by_area.argsort()  # of the smallest box: the highest
        ranks = torch.full((len(parts) * height * width,), -1, device=masks.device)
        n_masks = torch.tensor([len(part) for part in parts])
        image = torch.arange(len(parts)).repeat_interleave(n_masks, output_size=len(masks))
        at = (image.to(masks.device)[cell] * height + row) * width + column
        ranks.scatter_reduce_(0, at[inside], rank[cell[inside]], "amax")
        return functional.pad(by_area, (0, 1), value=-1)[ranks].view(len(parts), height, width)

    def crop(self, index: int) -> torch.Tensor:
        """Return one mask within its tight box, `(bottom - top, right - left)` bool."""
        left, top, right, bottom = self._tight[index].tolist()
        start, height, width = int(self._starts[index]), bottom - top, right - left
        return self._pixels[start : start + height * width].view(height, width)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Sample each mask on a grid over a box: the targets of the mask head.

        As Detectron2's `BitMasks.crop_and_resize`: an ROIAlign (He et al. 2017,
        arXiv:1703.06870) of the full mask of at least 0.5. Only the rounding differs, since
        the coordinates are relative to a window around the cell.

        Parameters
        ----------
        boxes
            `(N, 4)` float, XYXY in pixels of the image.
        mask_size
            Side M of the grid.

        Returns
        -------
        `(N, M, M)` bool.
        """
        boxes = boxes.to(self.device, torch.float32)
        targets = torch.zeros(
            (len(self), mask_size, mask_size), dtype=torch.bool, device=self.device
        )
        for cells, side in self._batches():
            corners, windows = self._windows(cells, side)
            rois = torch.cat(
                [
                    torch.arange(len(cells), dtype=torch.float32, device=self.device)[:, None],
                    boxes[cells] - corners.repeat(1, 2),
                ],
                dim=1,
            )
            values = roi_align(windows[:, None], rois, mask_size, aligned=True)
            targets[cells] = values[:, 0] >= 0.5
        return targets

    def _batches(self) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield indices of cells of similar size, and the longest side of their boxes.

        Masks without pixels are skipped.
        """
        sides, order = (self._tight[:, 2:] - self._tight[:, :2]).amax(1).sort(descending=True)
        longest = sides[sides > 0].tolist()
        begin = 0
        while begin < len(longest):
            side = longest[begin]
            count = max(1, _BATCH // (side + 2) ** 2)
            yield order[begin : min(begin + count, len(longest))], side
            begin += count

    def _windows(self, cells: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each cell in a window of the image with room for a box of that side.

        All windows have one size and are within the image. They have a border of zeros around
        the cell, except at the image's edge: there ROIAlign extends the last pixel, elsewhere
        zeros.

        Returns
        -------
        corners
            `(n, 2)` int64: left and top of the windows in the image.
        windows
            `(n, h, w)` float32, 0 or 1.
        """
        image_height, image_width = self.size
        height, width = min(side + 2, image_height), min(side + 2, image_width)
        tight = self._tight[cells]
        left = (tight[:, 0] - 1).clamp(0, image_width - width)
        top = (tight[:, 1] - 1).clamp(0, image_height - height)
        column = (left - tight[:, 0])[:, None] + torch.arange(width, device=self.device)
        row = (top - tight[:, 1])[:, None] + torch.arange(height, device=self.device)
        box_width, box_height = (tight[:, 2:] - tight[:, :2])[:, :, None].unbind(1)
        in_column = (column >= 0) & (column < box_width)
        in_row = (row >= 0) & (row < box_height)
        inside = in_row[:, :, None] & in_column[:, None, :]
        # int32, since reading and writing these takes most of the time.
        row_start = (self._starts[cells, None] + row * box_width).int()
        place = (row_start[:, :, None] + column.int()[:, None, :]).mul_(inside)
        windows = self._pixels.index_select(0, place.view(-1)).view_as(place).logical_and_(inside)
        return torch.stack([left, top], 1), windows.float()
