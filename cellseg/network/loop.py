"""The training loop of Detectron2, or a replacement where it is not available.

The replacements have Detectron2's interface, as far as this project uses it.
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
        """Actions before, between and after the steps of a training."""

        trainer: Any = None  # set by the loop

        def before_train(self) -> None: ...

        def before_step(self) -> None: ...

        def after_step(self) -> None: ...

        def after_train(self) -> None:
            """Act after the last step, or after an error."""

        def state_dict(self) -> dict[str, Any]:
            """Return the state that a resumed run needs."""
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            """Restore what `state_dict` returned."""

    class EventStorage:
        """The latest value of each scalar, with its step."""

        def __init__(self, iteration: int) -> None:
            self.iter = iteration
            self._latest: dict[str, tuple[float, int]] = {}

        def put_scalar(self, name: str, value: float) -> None:
            self._latest[name] = (float(value), self.iter)

        def latest(self) -> dict[str, tuple[float, int]]:
            return self._latest

    class TrainerBase:
        """The loop of steps and hooks."""

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
        """Base of `trainer.Trainer`, which overrides all that Detectron2's builds."""


__all__ = ["DefaultTrainer", "HookBase", "TrainerBase"]
