"""An endless stream of training samples, each a pure function of its position.

A resumed run continues with the samples of an uninterrupted one. The number of data loading
workers, and of processes of a distributed run, does not change the samples.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cellseg.errors import InputError
from cellseg.images import ImageCells
from cellseg.learn.packed import PackedBatch

_ORDER, _SAMPLE, _POOL = 0, 1, 2  # separate the random numbers by their use

# Maximum number of batches that are sorted by aspect ratio together. A larger pool leaves less
# padding, but a pool of a whole epoch has the same images in each batch.
POOL = 8


class SampleStream(Dataset[dict[str, Any]]):
    """An endless stream of samples, shuffled in each epoch, with access to any position.

    Parameters
    ----------
    samples
        n images, at least one.
    mapper
        Loads and augments a sample, with random numbers from the generator only.
    seed
        Seed of the stream, 0 or more.
    factors
        `(n,)` float, 1 or more (default: 1). An image is in an epoch this number of times,
        rounded up or down at random, so that the mean is the factor.

    Attributes
    ----------
    epoch_length
        Samples of an epoch: the sum of the factors, rounded up.
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
        self.epoch_length = math.ceil(factors.sum())  # rounded up, so that no factor falls below 1
        self._cumulative_factors = np.cumsum(factors * (self.epoch_length / factors.sum()))
        self._latest: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))  # epoch, order

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the indices of the images of an epoch in their order, `(epoch_length,)`.

        The images are drawn by systematic sampling (Madow 1949), so that all epochs have the
        same length.
        """
        if epoch != self._latest[0]:
            rng = np.random.default_rng([self.seed, _ORDER, epoch])
            points = rng.random() + np.arange(self.epoch_length)
            drawn = np.searchsorted(self._cumulative_factors[:-1], points, side="right")
            self._latest = (epoch, rng.permutation(drawn))
        return self._latest[1]

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the sample at a position, 0 or more."""
        return self.mapper(*self._draw(position))

    def shape(self, position: int) -> tuple[int, int]:
        """Return the height and width of the image at a position, by the mapper's `shape`."""
        shape: tuple[int, int] = self.mapper.shape(*self._draw(position))  # type: ignore[attr-defined]
        return shape

    def _draw(self, position: int) -> tuple[ImageCells, np.random.Generator]:
        epoch, index = divmod(position, self.epoch_length)
        sample = self.samples[self.order(epoch)[index]]
        return sample, np.random.default_rng([self.seed, _SAMPLE, position])


def repeat_factors(samples: Sequence[ImageCells], threshold: float) -> NDArray[np.float64]:
    """Return the repeat factors of n images, `(n,)` of 1 or more, for repeat factor sampling.

    A class in a fraction f of the images has the factor max(1, √(threshold / f)). An image has the
    largest factor of its classes, and 1 without cells (Gupta et al., LVIS, CVPR 2019, appendix
    B.2). A threshold of 0 repeats no image.
    """
    present = [set(sample.classes.tolist()) for sample in samples]
    n_images = Counter(itertools.chain.from_iterable(present))
    factor = {c: max(1.0, math.sqrt(threshold * len(samples) / n)) for c, n in n_images.items()}
    return np.array([max((factor[c] for c in classes), default=1.0) for classes in present])


def count_windows(
    samples: Sequence[ImageCells], scales: float | Sequence[float], window: int
) -> NDArray[np.float64]:
    """Return how many windows fit on the area of n images, `(n,)` of 1 or more.

    `scales` are in network pixels per image pixel, `window` is the side in network pixels. The
    windows of an image that is lower or narrower are cut to it.
    """
    sizes = np.array([sample.size for sample in samples], np.float64).reshape(-1, 2)
    factors = np.broadcast_to(scales, len(samples)) / window
    counts: NDArray[np.float64] = np.maximum(1, sizes * factors[:, None]).prod(axis=1)
    return counts


def choose_crop_centre(
    sample: ImageCells, probability: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    """Choose a cell for the crop of a sample with some probability, 0 to 1.

    First a class of the image is drawn, then one of its cells, so that rare classes are as
    frequent as others.

    Returns
    -------
    Centre of the cell's box, x and y in image pixels; None if no cell was chosen.
    """
    if not len(sample.classes) or rng.random() >= probability:
        return None
    cells = np.flatnonzero(sample.classes == rng.choice(np.unique(sample.classes)))
    left, top, right, bottom = sample.boxes[rng.choice(cells)].tolist()
    return (left + right) / 2, (top + bottom) / 2


def batches_of_positions(
    stream: SampleStream, start_iteration: int, batch_size: int, group: bool
) -> Iterator[list[int]]:
    """Yield the positions of each batch of a training, endlessly.

    Parameters
    ----------
    stream
        The samples.
    start_iteration
        First iteration, counted from 0.
    batch_size
        Images per iteration in all processes.
    group
        Whether to group samples of similar aspect ratio, for little padding. The samples of a
        pool of up to `POOL` batches, and up to half an epoch, are sorted by aspect ratio, and its
        batches shuffled. A training can be resumed in the middle of a pool.
    """
    pool_size = min(POOL, stream.epoch_length // batch_size // 2) if group else 0
    if pool_size < 2:
        for iteration in itertools.count(start_iteration):
            yield list(range(iteration * batch_size, (iteration + 1) * batch_size))
    for pool in itertools.count(start_iteration // pool_size):
        batches = _pooled(stream, pool, pool_size, batch_size)
        yield from batches[max(0, start_iteration - pool * pool_size) :]


def _pooled(stream: SampleStream, pool: int, pool_size: int, batch_size: int) -> list[list[int]]:
    """Return the positions of the batches of a pool."""
    first = pool * pool_size * batch_size
    positions = range(first, first + pool_size * batch_size)
    shapes = [stream.shape(position) for position in positions]
    batches: NDArray[np.int64] = np.reshape(positions, (pool_size, batch_size))
    if len(set(shapes)) > 1:
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
    """Build the endless iterator over one process's part of each batch.

    Parameters
    ----------
    stream, start_iteration, batch_size, group
        See `batches_of_positions`.
    rank, world_size
        Rank of the process and number of processes, which `batch_size` must be a multiple of.
    num_workers
        Data loading workers; 0 loads in this process. The samples are the same.
    pin_memory
        Whether to use memory that a GPU copies from faster.

    Raises
    ------
    InputError
        If the batch can't be split evenly, or the workers can't be started.
    """
    if batch_size % world_size:
        raise InputError(
            f"--batch_size {batch_size}: can't be split among {world_size} processes; choose a "
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
        collate_fn=PackedBatch,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
    )
    try:
        if num_workers:
            multiprocessing.Lock()  # without semaphores, torch would end with a traceback
        packed = iter(loader)  # starts the workers
    except OSError as error:  # no shared memory (/dev/shm), too many processes or open files
        raise InputError(
            f"the data loading workers can't be started ({error}); add --num_workers 0"
        ) from None
    return (batch.unpack() for batch in packed)


def _init_worker(_number: int) -> None:
    cv2.setNumThreads(0)  # torch limits its own threads
    # Ctrl-C is handled by the main process, and SIGTERM is obeyed only if that has sent it: a
    # terminal, `timeout` and schedulers signal all processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_if_told_by, args=[os.getppid()], daemon=True).start()


def _end_if_told_by(parent: int) -> None:
    """End this process when a SIGTERM of its parent comes."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
