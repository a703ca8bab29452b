"""The loop that `trainer.py` stands on: Detectron2's, or where it is missing its like.

`HookBase`, `DefaultTrainer` and the storage of scalars have Detectron2's interface, as far
as this project uses it, so that one trainer and one set of hooks serve every engine.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cellseg.device import detectron2_problem

if not TYPE_CHECKING and not detectron2_problem():
    from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
else:

    class HookBase:
        """What happens between the steps of a training; `trainer` is set by the loop."""

        trainer: Any = None

        def before_train(self) -> None:
            """Act before the first step."""

        def before_step(self) -> None:
            """Act before each step."""

        def after_step(self) -> None:
            """Act after each step."""

        def after_train(self) -> None:
            """Act after the last step, or the error that ended the training."""

        def state_dict(self) -> dict[str, Any]:
            """Return what must come back when a run is resumed; most hooks have nothing."""
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            """Take back what `state_dict` gave."""

    class EventStorage:
        """The latest value of each scalar and the step that gave it."""

        def __init__(self, iteration: int) -> None:
            self.iter = iteration
            self._latest: dict[str, tuple[float, int]] = {}

        def put_scalar(self, name: str, value: float) -> None:
            """Keep a value of the running step."""
            self._latest[name] = (float(value), self.iter)

        def latest(self) -> dict[str, tuple[float, int]]:
            """Return each scalar's latest value and its step."""
            return self._latest

    class TrainerBase:
        """The loop itself: steps, and hooks between them."""

        def __init__(self) -> None:
            self._hooks: list[HookBase] = []
            self.iter = self.start_iter = 0
            self.max_iter = 0
            self.storage: EventStorage

        def register_hooks(self, hooks: Sequence[HookBase]) -> None:
            for hook in hooks:
                hook.trainer = weakref.proxy(self)
            self._hooks.extend(hooks)

        def run_step(self) -> None:
            raise NotImplementedError

        def train(self, start_iter: int, max_iter: int) -> None:
            self.iter = self.start_iter = start_iter
            self.max_iter = max_iter
            self.storage = EventStorage(start_iter)
            try:
                for hook in self._hooks:
                    hook.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter += 1
            finally:
                for hook in self._hooks:
                    hook.after_train()

        def before_step(self) -> None:
            self.storage.iter = self.iter
            for hook in self._hooks:
                hook.before_step()

        def after_step(self) -> None:
            for hook in self._hooks:
                hook.after_step()

    class DefaultTrainer(TrainerBase):
        """Stands where Detectron2's would; `trainer.Trainer` fills in all that it builds."""


__all__ = ["DefaultTrainer", "HookBase", "TrainerBase"]
