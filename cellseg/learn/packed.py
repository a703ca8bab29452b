"""Batches that are sent from data loading workers in one piece."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch.utils.data import get_worker_info

from cellseg.errors import InputError

_ALIGNMENT = 16  # bytes; a view of a buffer must start at a multiple of its type's size


class PackedBatch:
    """Samples of any type whose tensors are stored in one buffer.

    Sent to the training process and pinned tensor by tensor, a hundred for 16 images, a batch would
    hold up the training, since Python runs one thread at a time.

    In a worker the buffer is in shared memory. Raises InputError if that is too small: later, the
    thread that sends the batch would lose it, and the training would wait forever.
    """

    def __init__(self, samples: Any) -> None:
        packer = _Packer(io.BytesIO(), pickle.HIGHEST_PROTOCOL)
        packer.dump(samples)
        self._content = packer.file.getvalue()
        self._buffer = torch.empty(packer.n_bytes, dtype=torch.uint8)
        if get_worker_info():
            self._share()
        for tensor, (start, dtype, shape) in packer.tensors:
            _view(self._buffer, start, dtype, shape).copy_(tensor)

    def _share(self) -> None:
        try:
            self._buffer.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise InputError(
                f"a batch of {self._buffer.nbytes:,} bytes has no room in shared memory ({error}); "
                "make that larger (docker run --shm-size 2g), or add --num_workers 0"
            ) from None

    def pin_memory(self) -> PackedBatch:
        """Move to page-locked memory; `DataLoader` calls this."""
        self._buffer = self._buffer.pin_memory()
        return self

    def unpack(self) -> Any:
        """Return the samples, whose tensors are views of the buffer."""
        unpacker = _Unpacker(io.BytesIO(self._content))
        unpacker.buffer = self._buffer
        return unpacker.load()


_Place = tuple[int, torch.dtype, torch.Size]  # first byte, type, shape


class _Packer(pickle.Pickler):
    """Pickles all but tensors, which get a place in the buffer."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.file = file
        self.tensors: list[tuple[torch.Tensor, _Place]] = []
        self.n_bytes = 0

    def persistent_id(self, value: Any) -> _Place | None:
        if not isinstance(value, torch.Tensor):
            return None
        place = (self.n_bytes, value.dtype, value.shape)
        self.tensors.append((value, place))
        self.n_bytes += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        return place


class _Unpacker(pickle.Unpickler):
    buffer: torch.Tensor

    def persistent_load(self, place: _Place) -> torch.Tensor:
        return _view(self.buffer, *place)


def _view(buffer: torch.Tensor, start: int, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    end = start + shape.numel() * dtype.itemsize
    return buffer[start:end].view(dtype).view(shape)
