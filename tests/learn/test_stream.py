"""The stream of samples: every position is what it is, whoever asks and when."""

from __future__ import annotations

import itertools
import os
import signal
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
    repeat_factors,
)
from cellseg.view import resize_shortest_edge
from tests.learn.cell_cases import image_of

# More loading processes than cores, torch warns, are slow: not what is tested here.
few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def image(*classes, name=0):
    """An image whose cells are of these classes, in boxes 10 pixels apart."""
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


def test_a_pass_holds_each_image_once_in_another_order():
    stream = stream_of(50)
    assert stream.epoch_length == 50
    passes = [tuple(stream.order(epoch).tolist()) for epoch in range(5)]
    assert all(sorted(order) == list(range(50)) for order in passes)
    assert len(set(passes)) == 5
    names = [stream[position]["name"] for position in range(100)]
    assert tuple(names) == passes[0] + passes[1]


def test_orders_are_evenly_likely():
    """Of the 6 orders of 3 images each is seen about 600 / 6 times (5 sigma is 46)."""
    stream = stream_of(3)
    seen = Counter(tuple(stream.order(epoch).tolist()) for epoch in range(600))
    assert len(seen) == 6
    assert all(54 < count < 146 for count in seen.values())


def test_the_seed_makes_the_stream():
    one, same, other = stream_of(9, 7), stream_of(9, 7), stream_of(9, 8)
    assert [one[p] for p in range(30)] == [same[p] for p in range(30)]
    assert [one[p]["name"] for p in range(30)] != [other[p]["name"] for p in range(30)]
    assert {one[p]["draw"] for p in range(30)}.isdisjoint(other[p]["draw"] for p in range(30))


def test_every_position_draws_its_own_numbers():
    assert len({stream_of(3)[p]["draw"] for p in range(300)}) == 300
    assert len({stream_of(1, seed)[0]["draw"] for seed in (0, 1, 2**32 - 1)}) == 3


def test_orders_and_samples_draw_apart():
    def draw_as_an_order_does(_sample, rng):
        rng.random()
        return rng.permutation(20).tolist()

    stream = SampleStream(images(20), draw_as_an_order_does, 0)
    assert all(stream[number] != stream.order(number).tolist() for number in range(5))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=10),
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
)
def test_positions_in_any_order(positions, seed, n):
    """What was read before does not matter."""
    stream = stream_of(n, seed)
    assert [stream[p] for p in positions] == [stream_of(n, seed)[p] for p in positions]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(1, 8, exclude_max=True), min_size=1, max_size=30),
    st.integers(0, 2**32 - 1),
    st.integers(0, 10**6),
)
def test_each_image_comes_as_often_as_its_factor_says(factors, seed, epoch):
    factors = np.array(factors)
    stream = stream_of(len(factors), seed, factors)
    share = factors * stream.epoch_length / factors.sum()
    order = stream.order(epoch)
    assert len(order) == stream.epoch_length
    assert 0 <= stream.epoch_length - factors.sum() < 1
    times = np.bincount(order, minlength=len(factors))
    assert times.min() >= 1
    # The shares come from sums, which are rounded.
    assert (times >= np.floor(share - 1e-9)).all()
    assert (times <= np.ceil(share + 1e-9)).all()


def test_sampling_by_hand():
    """1 + 1.5 + 2.5 is 5 samples; over many passes the halves come out."""
    stream = stream_of(3, factors=np.array([1, 1.5, 2.5]))
    assert stream.epoch_length == 5
    times = np.array([np.bincount(stream.order(epoch)) for epoch in range(400)])
    assert {tuple(row) for row in times.tolist()} == {(1, 1, 3), (1, 2, 2)}
    assert times.mean(0) == pytest.approx([1, 1.5, 2.5], abs=0.125)  # 5 sigma


def test_repeat_factors_by_hand():
    samples = [image(0, 0, 1), image(0), image(), image(0)]
    # Class 0 is in 3 of 4 images, class 1 in 1 of 4.
    assert repeat_factors(samples, 0).tolist() == [1, 1, 1, 1]
    assert repeat_factors(samples, 0.25).tolist() == [1, 1, 1, 1]
    assert repeat_factors(samples, 0.5) == pytest.approx([2**0.5, 1, 1, 1])
    assert repeat_factors(samples, 1.0) == pytest.approx([2, (4 / 3) ** 0.5, 1, (4 / 3) ** 0.5])


@pytest.mark.detectron2
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=12),
    st.floats(0, 1),
)
def test_repeat_factors_are_detectron2s(classes, threshold):
    from detectron2.data import samplers

    theirs = samplers.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        [{"annotations": [{"category_id": c} for c in present]} for present in classes], threshold
    )
    ours = repeat_factors([image(*present) for present in classes], threshold)
    assert ours == pytest.approx(theirs.numpy(), rel=1e-6)


def test_a_centre_is_the_middle_of_a_cell():
    rng = np.random.default_rng(0)
    sample = image(2, 0)
    seen = {choose_crop_centre(sample, 1, rng) for _ in range(50)}
    assert seen == {(2, 3), (12, 23)}
    assert all(choose_crop_centre(sample, 0, rng) is None for _ in range(50))
    assert choose_crop_centre(image(), 1, rng) is None


def test_centres_of_rare_classes_are_as_frequent():
    """900 cells of class 0 and 1 of class 3: half of the centres each, in half of the draws."""
    rng = np.random.default_rng(0)
    sample = image(*[0] * 900, 3)
    seen = Counter(choose_crop_centre(sample, 0.5, rng) for _ in range(800))
    assert seen[None] == pytest.approx(400, abs=71)  # 5 sigma
    assert seen[9002, 18003] == pytest.approx(200, abs=61)
    # The others are spread over the cells of class 0.
    assert len(seen) > 100


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


def test_batches_in_turn():
    stream = SampleStream(images(30), Shaped(), 0)
    assert positions_of(stream, 2, 3, 2, group=False) == [[4, 5], [6, 7], [8, 9]]
    # A batch of half of a pass or more leaves nothing to choose from.
    assert positions_of(stream, 0, 2, 8) == positions_of(stream, 0, 2, 8, group=False)


def test_images_of_one_shape_keep_their_order():
    stream = SampleStream(images(30), Shaped(lambda *_: (5, 7)), 0)
    assert positions_of(stream, 0, 6, 2) == positions_of(stream, 0, 6, 2, group=False)


@settings(max_examples=30)
@given(st.integers(40, 90), st.integers(1, 5), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_grouped_batches(n, size, start, seed):
    """A pool holds its own positions, alike ones together, and a start in it goes on the same."""
    stream = SampleStream(images(n), Shaped(), seed)
    pool = min(8, n // size // 2)
    found = positions_of(stream, 0, 5 * pool, size)
    for number in range(5):
        batches = found[number * pool : (number + 1) * pool]
        flat = sorted(itertools.chain.from_iterable(batches))
        assert flat == list(range(number * pool * size, (number + 1) * pool * size))
        ratios = sorted([stream[p]["shape"][1] / stream[p]["shape"][0] for p in b] for b in batches)
        assert list(itertools.chain.from_iterable(ratios)) == sorted(itertools.chain(*ratios))
    start %= len(found)
    assert positions_of(stream, start, len(found) - start, size) == found[start:]


def test_grouping_leaves_little_padding():
    def filled(batches):
        shapes = [[sample["shape"] for sample in batch] for batch in batches]
        image = sum(h * w for batch in shapes for h, w in batch)
        return image / sum(
            len(batch) * max(h for h, _ in batch) * max(w for _, w in batch) for batch in shapes
        )

    def shape(sample, _rng):
        return resize_shortest_edge((100 + 9 * sample.name, 1000), 608, 1333)

    stream = SampleStream(images(200), Shaped(shape), 0)
    loaders = [build_loader(stream, 0, 14, 0, 1, 0, False, group) for group in (False, True)]
    without, grouped = (filled(itertools.islice(loader, 56)) for loader in loaders)
    assert without < 0.6
    assert grouped > 0.8


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(InputError, match="--batch_size 5: can't be shared evenly by 2 processes"):
        build_loader(stream_of(3), 0, 5, 0, 2, 0, False)


@pytest.mark.parametrize("start", [0, 1, 2, 7])
def test_resuming_goes_on_where_it_stopped(start):
    assert batches(stream_of(7), start, 5) == batches(stream_of(7), 0, start + 5)[start:]


def test_two_processes_see_what_one_sees():
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
def test_loading_processes_change_nothing():
    def seen(num_workers):
        stream = SampleStream(images(7), tensors, 3)
        return [
            [(sample["name"], sample["image"].tolist()) for sample in batch]
            for batch in batches(stream, 2, 9, num_workers=num_workers)
        ]

    assert seen(0) == seen(2) == seen(3)


@few_cores
def test_loading_processes_are_quiet():
    """Each takes one thread and leaves Ctrl-C to the process that asked for it."""
    stream = SampleStream(images(7), tensors, 3)
    loaded = list(itertools.chain(*batches(stream, 0, 4, num_workers=2)))
    processes = {sample["process"] for sample in loaded}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {sample["threads"] for sample in loaded} == {(1, 1)}
    assert {sample["interrupt"] for sample in loaded} == {signal.SIG_IGN}


def broken(_sample, _rng):
    raise InputError("x.tif: not an image")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_faults_of_an_image_reach_the_user(num_workers):
    with pytest.raises(InputError, match=r"x\.tif: not an image"):
        batches(SampleStream(images(3), broken, 0), 0, 1, num_workers=num_workers)
