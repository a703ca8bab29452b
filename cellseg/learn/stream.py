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
from cellseg.learn.samples import Sample

# What a generator of random numbers is for, so that no two share their numbers.
_ORDER, _SAMPLE = 0, 1


class SampleStream(Dataset[dict[str, Any]]):
    """An endless, shuffled stream of samples, read at any position.

    Each pass over the images is shuffled anew. An image's repeat factor is how often it
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
        samples: Sequence[Sample],
        mapper: Callable[[Sample, np.random.Generator], dict[str, Any]],
        seed: int,
        factors: NDArray[np.float64] | None = None,
    ) -> None:
        self.samples = samples
        self.mapper = mapper
        self.seed = seed
        factors = np.ones(len(samples)) if factors is None else factors
        # Rounded up, so that no image's share of a pass falls below one.
        self.epoch_length = math.ceil(factors.sum())
        self._share_ends = np.cumsum(factors * (self.epoch_length / factors.sum()))
        # The pass that was asked for last, and its order.
        self._latest: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Give the indices of the images of a pass in their order, `(epoch_length,)`.

        The images are drawn by systematic sampling (Madow 1949): their shares stand in a
        row, and one point in each unit of it, all at the same place in theirs, draws the
        image whose share it falls on. So a pass always has the same length.
        """
        if epoch != self._latest[0]:
            rng = np.random.default_rng([self.seed, _ORDER, epoch])
            points = rng.random() + np.arange(self.epoch_length)
            drawn = np.searchsorted(self._share_ends[:-1], points, side="right")
            self._latest = (epoch, rng.permutation(drawn))
        return self._latest[1]

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Make the sample at a position, 0 or more."""
        epoch, place = divmod(position, self.epoch_length)
        sample = self.samples[self.order(epoch)[place]]
        return self.mapper(sample, np.random.default_rng([self.seed, _SAMPLE, position]))


def repeat_factors(samples: Sequence[Sample], threshold: float) -> NDArray[np.float64]:
    """Say how often each image should come in a pass, so that rare classes come more often.

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
    present = [{annotation["class"] for annotation in s["annotations"]} for s in samples]
    n_images = Counter(itertools.chain.from_iterable(present))
    factor = {c: max(1.0, math.sqrt(threshold * len(samples) / n)) for c, n in n_images.items()}
    return np.array([max((factor[c] for c in classes), default=1.0) for classes in present])


def choose_centre(
    sample: Sample, probability: float, rng: np.random.Generator
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
    annotations = sample["annotations"]
    if not annotations or rng.random() >= probability:
        return None
    classes = np.array([annotation["class"] for annotation in annotations])
    cells = np.flatnonzero(classes == rng.choice(np.unique(classes)))
    x, y, width, height = annotations[rng.choice(cells)]["bbox"]
    return x + width / 2, y + height / 2


def batch_positions(iteration: int, batch_size: int, rank: int, world_size: int) -> range:
    """Give a process's positions in the stream of an iteration, counted from 0.

    Parameters
    ----------
    iteration
        Iteration i has the positions from `i * batch_size` on.
    batch_size
        Images of an iteration in all processes together, a multiple of `world_size`.
    rank, world_size
        The process's number and how many there are; each takes a part in one piece.
    """
    share = batch_size // world_size
    first = iteration * batch_size + rank * share
    return range(first, first + share)


def build_loader(
    stream: SampleStream,
    start_iteration: int,
    batch_size: int,
    rank: int,
    world_size: int,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[list[dict[str, Any]]]:
    """Build the endless iterator over a process's part of each batch.

    Parameters
    ----------
    stream
        Where the samples come from.
    start_iteration
        The first iteration, counted from 0.
    batch_size, rank, world_size
        As `batch_positions` takes them.
    num_workers
        Processes that load, ahead of time; 0 loads in this one. The samples are the same.
    pin_memory
        Whether tensors come in memory that a GPU copies from faster.

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
    batches = (
        list(batch_positions(iteration, batch_size, rank, world_size))
        for iteration in itertools.count(start_iteration)
    )
    loader = DataLoader(
        stream,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=list,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )
    return iter(loader)


def _start_worker(_number: int) -> None:
    # One thread for each process, as torch sees to for its own: more would only wait.
    cv2.setNumThreads(0)
    # Ctrl-C goes to all processes; the main one ends the run, and the others with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
