"""Which image comes next: an endless stream of samples, each a pure function of its position.

So a resumed run sees what an uninterrupted one would have seen, however many processes
load the images, and the processes of a distributed run see together what one would see.
"""

from __future__ import annotations

import itertools
import math
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cellseg.errors import InputError
from cellseg.images import ImageCells

# What a generator of random numbers is for, so that no two share their numbers.
_ORDER, _SAMPLE, _POOL = 0, 1, 2

# Batches that samples are sorted into by aspect ratio at a time, at the most. More of them leave
# less padding, but the same images meet in every pass once they hold a whole one.
POOL = 8


class SampleStream(Dataset[dict[str, Any]]):
    """An endless, shuffled stream of samples, read at any position.

    Each pass over the images is shuffled again. An image's repeat factor is how often it
    comes in a pass on average: in each pass that number rounded down or up, at least once.

    Parameters
    ----------
    samples
        n images, at least one.
    mapper
        Makes of a sample what the network learns from, drawing from the generator alone.
    seed
        A number of 0 or more. The same seed gives the same stream.
    factors
        `(n,)` float, each 1 or more; without them, each image comes once in a pass.

    Attributes
    ----------
    epoch_length
        Samples in a pass: the sum of the factors, rounded up.
    """

    def __init__(
        self,
        samples: Sequence[ImageCells],
        mapper: Callable[[ImageCells, np.random.Generator], dict[str, Any]],
        seed: int,
        factors: NDArray[np.float64] | None = None,
    ) -> None:
        self.samples = samples
        self.mapper = mapper
        self.seed = seed
        factors = np.ones(len(samples)) if factors is None else factors
        # Rounded up, so that no image's share of a pass falls below one.
        self.epoch_length = math.ceil(factors.sum())
        self._cumulative_factors = np.cumsum(factors * (self.epoch_length / factors.sum()))
        # The pass that was asked for last, and its order.
        self._latest: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the indices of the images of a pass in their order, `(epoch_length,)`.

        The images are drawn by systematic sampling (Madow 1949): their shares stand in a
        row, and one point in each unit of it, all at the same place in theirs, draws the
        image whose share it falls on. So a pass always has the same length.
        """
        if epoch != self._latest[0]:
            rng = np.random.default_rng([self.seed, _ORDER, epoch])
            points = rng.random() + np.arange(self.epoch_length)
            drawn = np.searchsorted(self._cumulative_factors[:-1], points, side="right")
            self._latest = (epoch, rng.permutation(drawn))
        return self._latest[1]

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Make the sample at a position, 0 or more."""
        return self.mapper(*self._drawn(position))

    def shape(self, position: int) -> tuple[int, int]:
        """Return the height and width of the image at a position, in the network's pixels.

        Nothing is read. The mapper's `shape` tells.
        """
        shape: tuple[int, int] = self.mapper.shape(*self._drawn(position))  # type: ignore[attr-defined]
        return shape

    def _drawn(self, position: int) -> tuple[ImageCells, np.random.Generator]:
        epoch, index = divmod(position, self.epoch_length)
        sample = self.samples[self.order(epoch)[index]]
        return sample, np.random.default_rng([self.seed, _SAMPLE, position])


def repeat_factors(samples: Sequence[ImageCells], threshold: float) -> NDArray[np.float64]:
    """Return how often each image should come in a pass, so that rare classes come more often.

    A class that is in a part f of the images has the factor max(1, √(threshold / f)); an
    image has the largest of its classes, and 1 without a cell (Gupta et al., LVIS, CVPR
    2019, appendix B.2).

    Parameters
    ----------
    samples
        n images.
    threshold
        The part of the images below which a class counts as rare; 0 for none.

    Returns
    -------
    `(n,)`, each 1 or more.
    """
    present = [set(sample.classes.tolist()) for sample in samples]
    n_images = Counter(itertools.chain.from_iterable(present))
    factor = {c: max(1.0, math.sqrt(threshold * len(samples) / n)) for c, n in n_images.items()}
    return np.array([max((factor[c] for c in classes), default=1.0) for classes in present])


def choose_crop_centre(
    sample: ImageCells, probability: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    """Choose a cell for the crop of a sample to be laid around, rare classes as often as others.

    The class is drawn evenly among those that the image has, then one of its cells.

    Parameters
    ----------
    sample
        The image with its annotations.
    probability
        How likely a cell is chosen at all, 0…1.
    rng
        Where the draws come from.

    Returns
    -------
    The middle of the cell's box, x and y in pixels of the image; None if none was chosen.
    """
    if not len(sample.classes) or rng.random() >= probability:
        return None
    cells = np.flatnonzero(sample.classes == rng.choice(np.unique(sample.classes)))
    left, top, right, bottom = sample.boxes[rng.choice(cells)].tolist()
    return (left + right) / 2, (top + bottom) / 2


def batches_of_positions(
    stream: SampleStream, start_iteration: int, batch_size: int, group: bool
) -> Iterator[list[int]]:
    """Return the positions of each batch of a training, endlessly.

    Parameters
    ----------
    stream
        Where the samples come from.
    start_iteration
        The first iteration, counted from 0.
    batch_size
        Images of an iteration in all processes together.
    group
        Whether samples of like aspect ratio come together, so that little of a batch is
        padding. A pool of some batches, of half a pass and `POOL` at the most, is sorted by
        aspect ratio, cut into batches, and these are shuffled; so a pool holds the positions
        that it would hold anyway, and a training can be resumed anywhere.
    """
    pool_size = min(POOL, stream.epoch_length // batch_size // 2) if group else 0
    if pool_size < 2:
        for iteration in itertools.count(start_iteration):
            yield list(range(iteration * batch_size, (iteration + 1) * batch_size))
    for pool in itertools.count(start_iteration // pool_size):
        batches = _pooled(stream, pool, pool_size, batch_size)
        yield from batches[max(0, start_iteration - pool * pool_size) :]


def _pooled(stream: SampleStream, pool: int, pool_size: int, batch_size: int) -> list[list[int]]:
    """Return the batches of a pool, sorted by aspect ratio within."""
    first = pool * pool_size * batch_size
    positions = range(first, first + pool_size * batch_size)
    shapes = [stream.shape(position) for position in positions]
    batches: NDArray[np.int64] = np.reshape(positions, (pool_size, batch_size))
    if len(set(shapes)) > 1:  # else they stay as they are
        order = np.argsort([width / height for height, width in shapes], kind="stable")
        rng = np.random.default_rng([stream.seed, _POOL, pool])
        batches = rng.permutation((first + order).reshape(pool_size, batch_size))
    listed: list[list[int]] = batches.tolist()
    return listed


def build_loader(
    stream: SampleStream,
    start_iteration: int,
    batch_size: int,
    rank: int,
    world_size: int,
    num_workers: int,
    pin_memory: bool,
    group: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Build the endless iterator over a process's part of each batch.

    Parameters
    ----------
    stream
        Where the samples come from.
    start_iteration
        The first iteration, counted from 0.
    batch_size
        Images of an iteration in all processes together, a multiple of `world_size`.
    rank, world_size
        The process's number and how many there are; each takes a part in one piece.
    num_workers
        Processes that load, ahead of time; 0 loads in this one. The samples are the same.
    pin_memory
        Whether tensors come in memory that a GPU copies from faster.
    group
        As `batches_of_positions` takes it.

    Raises
    ------
    InputError
        If the batch can't be shared evenly.
    """
    if batch_size % world_size:
        raise InputError(
            f"--batch_size {batch_size}: can't be shared evenly by {world_size} processes; give a "
            f"multiple of {world_size}"
        )
    part = batch_size // world_size
    batches = (
        positions[rank * part : (rank + 1) * part]
        for positions in batches_of_positions(stream, start_iteration, batch_size, group)
    )
    loader = DataLoader(
        stream,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=list,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
    )
    return iter(loader)


def _init_worker(_number: int) -> None:
    # One thread for each process, as torch sees to for its own: more would only wait.
    cv2.setNumThreads(0)
    # Ctrl-C goes to all processes; the main one ends the run, and the others with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
