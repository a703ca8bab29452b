"""One training step: forward, backward, optimizer, averaged weights."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import distributed
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from cellseg.device import autocast_dtype
from cellseg.distributed import world_size
from cellseg.learn.checkpoint import take_number
from cellseg.learn.optimizer import clip_gradients, load_optimizer_state, optimizer_state
from cellseg.messages import warn


class TrainingStep:
    """Trains a network step by step, with the state that a resumed run needs.

    Attributes
    ----------
    network, model
        The network, and its `DistributedDataParallel` in a run of several processes.
    ema
        Exponential moving average of the weights (`SOLVER.EMA`), or None.
    """

    def __init__(
        self,
        cfg: CfgNode,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LambdaLR,
    ) -> None:
        self.cfg = cfg
        self.network = network
        self.model = create_ddp_model(network)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.ema = MovingAverage(network, cfg.SOLVER.EMA) if cfg.SOLVER.EMA else None
        self._device = torch.device(cfg.MODEL.DEVICE).type
        self._autocast_dtype = autocast_dtype(self._device, cfg.SOLVER.AMP.ENABLED)
        # Only float16 needs loss scaling.
        self.scaler = GradScaler(self._device, enabled=self._autocast_dtype is torch.float16)

    def step(self, samples: Sequence[dict[str, Any]], seed: int) -> dict[str, float]:
        """Run one training step. Return the losses, averaged over samples and processes.

        Parameters
        ----------
        samples
            This process's part of the batch.
        seed
            Seed of the network's random numbers, so that the step can be repeated.

        Raises
        ------
        FloatingPointError
            If a loss is not finite. The weights are not changed then.
        """
        torch.manual_seed(seed)
        if not self.model.training:  # a walk over all modules
            self.model.train()
        self.optimizer.zero_grad()
        parts = _split(samples, self.cfg.SOLVER.ACCUMULATE)
        totals: dict[str, torch.Tensor] = {}
        for number, part in enumerate(parts):
            fraction = len(part) / len(samples)
            last = number == len(parts) - 1
            with _gradient_sync(self.model, last):
                dtype = self._autocast_dtype
                with torch.autocast(self._device, dtype, dtype is not None):
                    losses = self.model(part)
                self.scaler.scale(fraction * sum(losses.values())).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + fraction * loss.detach().float()
        values = _mean_over_processes(totals)
        bad = [f"{name} is {value:g}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(", ".join(bad))
        self.scaler.unscale_(self.optimizer)
        clip_gradients(self.cfg, [p for g in self.optimizer.param_groups for p in g["params"]])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update()
        return values

    @property
    def rate(self) -> float:
        """The learning rate of the next step, without the factors of biases and the backbone."""
        multiplier: float = self.scheduler.lr_lambdas[0](self.scheduler.last_epoch)
        return float(self.cfg.SOLVER.BASE_LR * multiplier)

    @property
    def eval_network(self) -> torch.nn.Module:
        """The network to score and save: the averaged one if there is one."""
        return self.network if self.ema is None else self.ema.module

    def reset_average(self) -> None:
        """Set the averaged weights to the network's, as they are loaded after it was built."""
        if self.ema is not None:
            self.ema.module.load_state_dict(self.network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return all state except the network's weights."""
        state = {
            "optimizer": optimizer_state(self.optimizer, self.network),
            "schedule": {"last_epoch": self.scheduler.last_epoch},
            "scaler": self.scaler.state_dict(),
        }
        if self.ema is not None:
            state["average"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, with the optimizer options of the config."""
        load_optimizer_state(self.optimizer, self.network, state["optimizer"])
        done = take_number(state["schedule"], "last_epoch", 0, 1e12, whole=True)
        self.scheduler.last_epoch = done
        parts = zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        self.scheduler._last_lr = [rate * multiplier(done) for rate, multiplier in parts]
        for group, rate in zip(self.optimizer.param_groups, self.scheduler._last_lr, strict=True):
            group["lr"] = rate
        if state["scaler"]:  # empty if the run was started with bfloat16
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and "average" in state:
            self.ema.load_state_dict(state["average"])
        elif self.ema is not None:
            warn(f"SOLVER.EMA: the run had no averaged weights, which begin after iteration {done}")
            self.reset_average()


def create_ddp_model(network: torch.nn.Module) -> torch.nn.Module:
    """Wrap a network for a distributed run; return it unchanged in a single process."""
    if world_size() == 1:
        return network
    device = next(network.parameters()).device
    return DistributedDataParallel(
        network,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=True,  # a recipe may use only some levels of a pyramid
    )


class MovingAverage(AveragedModel):
    """An exponential moving average, whose decay rises from 0.18 to `decay`.

    An `AveragedModel` of the weights and buffers, whose `update_parameters` would take each tensor
    by itself; `update` takes all at once. The network keeps its tensors.
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self.decay = decay
        # Found once: a walk over all modules takes longer than the update.
        self._pairs = [
            (own.detach(), new.detach())
            for own, new in zip(_tensors(self.module), _tensors(network), strict=True)
        ]
        self.eval()

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the weights of the network."""
        n = int(self.n_averaged)
        weight = 1 - min(self.decay, (1 + n) / (10 + n))
        for floating in (False, True):  # batch counts, and all else
            pairs = [pair for pair in self._pairs if pair[0].is_floating_point() == floating]
            if not pairs:
                continue
            own, new = map(list, zip(*pairs, strict=True))
            if floating and n:
                torch._foreach_lerp_(own, new, weight)
            else:
                torch._foreach_copy_(own, new)
        self.n_averaged += 1


def _tensors(network: torch.nn.Module) -> Iterator[torch.Tensor]:
    return itertools.chain(network.parameters(), network.buffers())


def _split(samples: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """Split a batch into nearly equal parts that are not empty."""
    count = min(parts, len(samples))
    bounds = [len(samples) * n // count for n in range(count + 1)]
    return [samples[a:b] for a, b in itertools.pairwise(bounds)]


def _gradient_sync(model: torch.nn.Module, now: bool) -> contextlib.AbstractContextManager[Any]:
    """Synchronise gradients between processes only after the last accumulated part."""
    if now or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = model.no_sync()
    return context


def _mean_over_processes(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    values = torch.stack([losses[name] for name in sorted(losses)])
    if world_size() > 1:
        distributed.all_reduce(values)
        values /= world_size()
    return dict(zip(sorted(losses), values.tolist(), strict=True))
