"""Batches in one buffer: what goes in comes out, through a worker process too."""

from __future__ import annotations

import pickle
import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cellseg.errors import InputError
from cellseg.learn.packed import PackedBatch
from tests.bitmasks import from_bitmasks, to_full

DTYPES = st.sampled_from([torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64])


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    tensor = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0))
    tensor = tensor.to(draw(DTYPES))
    return tensor.T if tensor.ndim == 2 and draw(st.booleans()) else tensor  # not contiguous


@given(samples=st.lists(st.lists(tensors(), max_size=4), max_size=4))
@settings(deadline=None, max_examples=60)
def test_any_tensors(samples):
    packed = pickle.loads(pickle.dumps(PackedBatch(samples)))
    for sample, expected in zip(packed.unpack(), samples, strict=True):
        for tensor, value in zip(sample, expected, strict=True):
            assert tensor.dtype == value.dtype
            assert torch.equal(tensor, value)


def sample_with_masks(n):
    full = torch.zeros((n, 9, 7), dtype=torch.bool)
    for k in range(n):
        full[k, k : k + 3, 1 : 3 + k] = True
    masks = from_bitmasks(full)
    return {"name": f"n{n}", "image": torch.full((3, 9, 7), n, dtype=torch.uint8), "masks": masks}


def test_samples_from_a_worker():
    data = [sample_with_masks(n) for n in range(4)]
    loader = DataLoader(data, batch_size=2, num_workers=1, collate_fn=PackedBatch)  # type: ignore[arg-type,var-annotated]
    samples = [sample for packed in loader for sample in packed.unpack()]
    for sample, expected in zip(samples, data, strict=True):
        assert sample["name"] == expected["name"]
        assert torch.equal(sample["image"], expected["image"])
        assert sample["masks"].size == (9, 7)
        assert torch.equal(to_full(sample["masks"]), to_full(expected["masks"]))
        assert torch.equal(sample["masks"].boxes, expected["masks"].boxes)
    first, second = PackedBatch(data[2:]).unpack()
    images = first["image"], second["image"]
    assert len({image.untyped_storage().data_ptr() for image in images}) == 1


def limit_files(_number):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # shared memory is a file


def test_a_batch_without_room_in_shared_memory_is_an_error():
    data = [torch.zeros(1 << 20, dtype=torch.uint8)]
    loader: DataLoader[torch.Tensor] = DataLoader(
        data,  # type: ignore[arg-type]
        num_workers=1,
        collate_fn=PackedBatch,
        worker_init_fn=limit_files,
        timeout=20,
    )
    with pytest.raises(InputError, match=r"1,048,576 bytes .* shared memory .*--num_workers 0"):
        next(iter(loader))
