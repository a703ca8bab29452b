"""The stream of samples: each position is always the same sample."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import time
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.errors import InputError
from cellseg.learn.stream import (
    SampleStream,
    batches_of_positions,
    build_loader,
    choose_crop_centre,
    count_windows,
    repeat_factors,
)
from cellseg.view import resize_shortest_edge
from tests.learn.cell_cases import image_of

# torch warns of more workers than cores.
few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def image(*classes, name=0):
    """Return an image with a cell of each of these classes, in boxes 10 pixels apart."""
    boxes = [(10 * n, 20 * n, 10 * n + 4, 20 * n + 6) for n in range(len(classes))]
    return image_of(boxes, classes, name=name)


def images(n):
    return [image(name=name) for name in range(n)]


def draw(sample, rng):
    return {"name": sample.name, "draw": rng.random()}


def stream_of(n, seed=0, factors=None):
    return SampleStream(images(n), draw, seed, factors)


def batches(stream, start, n, batch_size=4, rank=0, world_size=1, num_workers=0):
    loader = build_loader(stream, start, batch_size, rank, world_size, num_workers, False)
    return list(itertools.islice(loader, n))


def test_an_epoch_contains_each_image_once_in_another_order():
    stream = stream_of(50)
    assert stream.epoch_length == 50
    orders = [tuple(stream.order(epoch).tolist()) for epoch in range(5)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 5
    names = [stream[position]["name"] for position in range(100)]
    assert tuple(names) == orders[0] + orders[1]


def test_all_orders_are_equally_likely():
    """Each of the 6 orders of 3 images occurs about 600 / 6 times (5 sigma is 46)."""
    stream = stream_of(3)
    counts = Counter(tuple(stream.order(epoch).tolist()) for epoch in range(600))
    assert len(counts) == 6
    assert all(54 < count < 146 for count in counts.values())


def test_the_stream_depends_on_the_seed():
    one, same, other = stream_of(9, 7), stream_of(9, 7), stream_of(9, 8)
    assert [one[p] for p in range(30)] == [same[p] for p in range(30)]
    assert [one[p]["name"] for p in range(30)] != [other[p]["name"] for p in range(30)]
    assert {one[p]["draw"] for p in range(30)}.isdisjoint(other[p]["draw"] for p in range(30))


def test_random_numbers_differ_between_positions():
    assert len({stream_of(3)[p]["draw"] for p in range(300)}) == 300
    assert len({stream_of(1, seed)[0]["draw"] for seed in (0, 1, 2**32 - 1)}) == 3


def test_random_numbers_differ_between_orders_and_samples():
    def draw_like_an_order(_sample, rng):
        rng.random()
        return rng.permutation(20).tolist()

    stream = SampleStream(images(20), draw_like_an_order, 0)
    assert all(stream[number] != stream.order(number).tolist() for number in range(5))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=10),
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
)
def test_positions_can_be_read_in_any_order(positions, seed, n):
    stream = stream_of(n, seed)
    assert [stream[p] for p in positions] == [stream_of(n, seed)[p] for p in positions]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(1, 8, exclude_max=True), min_size=1, max_size=30),
    st.integers(0, 2**32 - 1),
    st.integers(0, 10**6),
)
def test_images_are_repeated_by_their_factors(factors, seed, epoch):
    factors = np.array(factors)
    stream = stream_of(len(factors), seed, factors)
    expected = factors * stream.epoch_length / factors.sum()
    order = stream.order(epoch)
    assert len(order) == stream.epoch_length
    assert 0 <= stream.epoch_length - factors.sum() < 1
    counts = np.bincount(order, minlength=len(factors))
    assert counts.min() >= 1
    # The cumulative sums are rounded.
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()


def test_sampling_by_hand():
    """1 + 1.5 + 2.5 is 5 samples; the means over many epochs are the factors."""
    stream = stream_of(3, factors=np.array([1, 1.5, 2.5]))
    assert stream.epoch_length == 5
    counts = np.array([np.bincount(stream.order(epoch)) for epoch in range(400)])
    assert {tuple(row) for row in counts.tolist()} == {(1, 1, 3), (1, 2, 2)}
    assert counts.mean(0) == pytest.approx([1, 1.5, 2.5], abs=0.125)  # 5 sigma


def test_repeat_factors_by_hand():
    samples = [image(0, 0, 1), image(0), image(), image(0)]
    # Class 0 is in 3 of 4 images, class 1 in 1 of 4.
    assert repeat_factors(samples, 0).tolist() == [1, 1, 1, 1]
    assert repeat_factors(samples, 0.25).tolist() == [1, 1, 1, 1]
    assert repeat_factors(samples, 0.5) == pytest.approx([2**0.5, 1, 1, 1])
    assert repeat_factors(samples, 1.0) == pytest.approx([2, (4 / 3) ** 0.5, 1, (4 / 3) ** 0.5])


def test_windows_by_hand():
    """Images of 128 x 256, 10 x 1000 and 1 x 1 px; windows of 64 px at scale 2 are 32 px wide.

    In the second image they are 10 px high, of which 31.25 fit side by side.
    """
    samples = [image_of([], (), size=size) for size in ((128, 256), (10, 1000), (1, 1))]
    assert count_windows(samples, 2.0, 64).tolist() == [32, 31.25, 1]
    assert count_windows(samples, 0.5, 64).tolist() == [2, 7.8125, 1]
    assert count_windows(samples, [2.0, 0.5, 3.0], 64).tolist() == [32, 7.8125, 1]
    assert count_windows([], 1.0, 64).tolist() == []


@pytest.mark.detectron2
@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=12), st.floats(0, 1))
def test_repeat_factors_are_detectron2s(classes, threshold):
    from detectron2.data import samplers

    theirs = samplers.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        [{"annotations": [{"category_id": c} for c in present]} for present in classes], threshold
    )
    ours = repeat_factors([image(*present) for present in classes], threshold)
    assert ours == pytest.approx(theirs.numpy(), rel=1e-6)


def test_a_crop_centre_is_the_centre_of_a_cell():
    rng = np.random.default_rng(0)
    sample = image(2, 0)
    assert {choose_crop_centre(sample, 1, rng) for _ in range(50)} == {(2, 3), (12, 23)}
    assert all(choose_crop_centre(sample, 0, rng) is None for _ in range(50))
    assert choose_crop_centre(image(), 1, rng) is None


def test_rare_classes_are_equally_frequent_crop_centres():
    """900 cells of class 0 and 1 of class 3: half of the centres each, in half of the draws."""
    rng = np.random.default_rng(0)
    sample = image(*[0] * 900, 3)
    counts = Counter(choose_crop_centre(sample, 0.5, rng) for _ in range(800))
    assert counts[None] == pytest.approx(400, abs=71)  # 5 sigma
    assert counts[9002, 18003] == pytest.approx(200, abs=61)
    assert len(counts) > 100  # cells of class 0


def tall_or_wide(_sample, rng):
    return (int(rng.integers(1, 9)), int(rng.integers(1, 9)))


class Shaped:
    """A mapper whose images have known shapes."""

    def __init__(self, shape=tall_or_wide):
        self.shape = shape

    def __call__(self, sample, rng):
        return {"name": sample.name, "shape": self.shape(sample, rng)}


def positions_of(stream, start, n, batch_size, group=True):
    return list(itertools.islice(batches_of_positions(stream, start, batch_size, group), n))


def test_batches_without_grouping():
    stream = SampleStream(images(30), Shaped(), 0)
    assert positions_of(stream, 2, 3, 2, group=False) == [[4, 5], [6, 7], [8, 9]]
    # Two batches or less per epoch can't be grouped.
    assert positions_of(stream, 0, 2, 8) == positions_of(stream, 0, 2, 8, group=False)


def test_images_of_one_shape_keep_their_order():
    stream = SampleStream(images(30), Shaped(lambda *_: (5, 7)), 0)
    assert positions_of(stream, 0, 6, 2) == positions_of(stream, 0, 6, 2, group=False)


@settings(max_examples=30)
@given(st.integers(40, 90), st.integers(1, 5), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_grouped_batches(n, size, start, seed):
    """A pool contains its positions, sorted by aspect ratio; it can be resumed in the middle."""
    stream = SampleStream(images(n), Shaped(), seed)
    pool = min(8, n // size // 2)
    result = positions_of(stream, 0, 5 * pool, size)
    for number in range(5):
        batches = result[number * pool : (number + 1) * pool]
        flat = sorted(itertools.chain.from_iterable(batches))
        assert flat == list(range(number * pool * size, (number + 1) * pool * size))
        ratios = sorted([stream[p]["shape"][1] / stream[p]["shape"][0] for p in b] for b in batches)
        assert list(itertools.chain.from_iterable(ratios)) == sorted(itertools.chain(*ratios))
    start %= len(result)
    assert positions_of(stream, start, len(result) - start, size) == result[start:]


def test_grouping_leaves_little_padding():
    def filled_fraction(batches):
        shapes = [np.array([sample["shape"] for sample in batch]) for batch in batches]
        padded = sum(len(batch) * batch.max(0).prod() for batch in shapes)
        return sum(batch.prod(1).sum() for batch in shapes) / padded

    def shape(sample, _rng):
        return resize_shortest_edge((100 + 9 * sample.name, 1000), 608, 1333)

    stream = SampleStream(images(200), Shaped(shape), 0)
    loaders = [build_loader(stream, 0, 14, 0, 1, 0, False, group) for group in (False, True)]
    without, grouped = (filled_fraction(itertools.islice(loader, 56)) for loader in loaders)
    assert without < 0.6
    assert grouped > 0.8


def test_a_batch_that_can_not_be_shared():
    with pytest.raises(InputError, match=r"--batch_size 5: .*2 processes"):
        build_loader(stream_of(3), 0, 5, 0, 2, 0, False)


@pytest.mark.parametrize("start", [0, 1, 2, 7])
def test_a_resumed_stream_continues(start):
    assert batches(stream_of(7), start, 5) == batches(stream_of(7), 0, start + 5)[start:]


def test_two_processes_get_the_samples_of_one():
    one = batches(stream_of(7), 3, 5)
    halves = [batches(stream_of(7), 3, 5, rank=rank, world_size=2) for rank in range(2)]
    assert [first + second for first, second in zip(*halves, strict=True)] == one


def tensors(sample, rng):
    if sample.name == 0:
        time.sleep(0.05)  # so that the next batch is loaded before this one
    return {
        "name": sample.name,
        "image": torch.full((2, 2), rng.random()),
        "process": os.getpid(),
        "threads": (torch.get_num_threads(), cv2.getNumThreads()),
        "interrupt": signal.getsignal(signal.SIGINT),
    }


@few_cores
def test_workers_do_not_change_the_samples():
    def samples(num_workers):
        stream = SampleStream(images(7), tensors, 3)
        loaded = itertools.chain(*batches(stream, 2, 9, num_workers=num_workers))
        return [(sample["name"], sample["image"].tolist()) for sample in loaded]

    assert samples(0) == samples(2) == samples(3)


@few_cores
def test_workers_use_one_thread_and_ignore_ctrl_c():
    stream = SampleStream(images(7), tensors, 3)
    loaded = list(itertools.chain(*batches(stream, 0, 4, num_workers=2)))
    processes = {sample["process"] for sample in loaded}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {sample["threads"] for sample in loaded} == {(1, 1)}
    assert {sample["interrupt"] for sample in loaded} == {signal.SIG_IGN}


@few_cores
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs sigwaitinfo")
def test_workers_end_when_their_process_tells_them_and_for_nobody_else():
    """`timeout` signals all processes, but the main one decides."""
    loader = build_loader(SampleStream(images(7), tensors, 3), 0, 4, 0, 1, 2, False)

    def workers():
        loaded = itertools.chain(*itertools.islice(loader, 8))
        return {sample["process"] for sample in loaded}

    pids = workers()
    subprocess.run(["kill", *map(str, pids)], check=True)
    assert workers() == pids
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + 20
    while left := pids & {child.pid for child in multiprocessing.active_children()}:
        assert time.monotonic() < limit, left
        time.sleep(0.05)


def broken(_sample, _rng):
    raise InputError("x.tif: not an image")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_an_image_are_raised(num_workers):
    with pytest.raises(InputError, match=r"x\.tif: not an image"):
        batches(SampleStream(images(3), broken, 0), 0, 1, num_workers=num_workers)


def test_workers_that_can_not_be_started(monkeypatch):
    def no_semaphores():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(multiprocessing, "Lock", no_semaphores)
    with pytest.raises(InputError, match=r"Read-only file system.* --num_workers 0"):
        batches(stream_of(3), 0, 1, num_workers=1)
    assert batches(stream_of(3), 0, 1)
