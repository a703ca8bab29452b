"""Helpers for the tests of training."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch


def same(one, other):
    """Return whether two states are equal, bit for bit, on any device."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one.cpu(), other.cpu()) if isinstance(one, torch.Tensor) else one == other


def load(path):
    """Load a checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True)


def scores_of(*class_ap50):
    """Return the scores of a validation with these AP50 by class; the first is also the mean."""
    value = class_ap50[0]
    return SimpleNamespace(ap=value, ap50=value, ap75=value, class_ap50=np.array(class_ap50))


class TrainerStub:
    """Stand-in for a trainer and its storage, and by default its step, as used by hooks."""

    def __init__(self, max_iter=10, start_iter=0, step=None):
        self.cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"))
        self.eval_network = torch.nn.Linear(1, 1)
        self.step, self.storage = step or self, self
        self.iter, self.start_iter, self.max_iter = start_iter, start_iter, max_iter
        self._latest: dict[str, tuple[float, int]] = {}

    def put_scalar(self, name, value):
        self._latest[name] = (value, self.iter)

    def latest(self):
        return self._latest
