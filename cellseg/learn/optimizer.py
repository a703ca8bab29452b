"""Optimizers and learning rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LambdaLR

from cellseg.errors import InputError
from cellseg.messages import plural, warn

_PERIODS = 40

_NORMS = (
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.modules.instancenorm._InstanceNorm,
    torch.nn.GroupNorm,
    torch.nn.LayerNorm,
)


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build SGD, Adam, AdamW or Adagrad for the trainable parameters.

    The weight decays of weights, normalization layers and biases, and the learning rate of biases
    are set as in Detectron2. `SOLVER.BACKBONE_MULTIPLIER` multiplies the learning rate of the
    backbone, as in Mask2Former's configs, but not of a feature pyramid on it.
    """
    solver = cfg.SOLVER
    types: dict[str, tuple[Any, dict[str, Any]]] = {
        "SGD": (torch.optim.SGD, {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
        "Adam": (torch.optim.Adam, {}),
        "AdamW": (torch.optim.AdamW, {}),
        "Adagrad": (torch.optim.Adagrad, {}),
    }
    optimizer_type, options = types[solver.OPTIMIZER]
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    seen = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                rate_and_decay = _rate_and_decay(solver, path, module, name)
                groups.setdefault(rate_and_decay, []).append(parameter)
    on_cpu = all(p.device.type == "cpu" for p in seen)
    on_gpu = all(p.device.type == "cuda" for p in seen)
    if on_cpu or (on_gpu and solver.OPTIMIZER != "Adagrad"):  # torch has none for it
        # A quarter of AdamW's time. Requires moments with the memory layout of their parameter.
        options["fused"] = True
    by_group = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    optimizer: torch.optim.Optimizer = optimizer_type(by_group, lr=solver.BASE_LR, **options)
    return optimizer


def optimizer_state(
    optimizer: torch.optim.Optimizer, network: torch.nn.Module
) -> dict[str, dict[str, Any]]:
    """Return the state of each parameter by its name, which no learning rate or decay changes."""
    return {
        name: optimizer.state[parameter]
        for name, parameter in network.named_parameters()
        if parameter in optimizer.state
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, network: torch.nn.Module, state: dict[str, Any]
) -> None:
    """Restore what `optimizer_state` returned; the optimizer's options stay those of the config.

    Moments get the memory layout of their parameters. The state of earlier checkouts is that of
    torch, with numbers of parameters in the order of their groups, which depends on the options.
    Raises ValueError if it does not fit.
    """
    own = optimizer.state_dict()
    if "param_groups" in state:
        former, now = ([len(g["params"]) for g in s["param_groups"]] for s in (state, own))
        if former != now:
            raise ValueError(
                "the optimizer's state, saved by an earlier checkout, fits only the parameters' "
                "former learning rates and weight decays, or common factors of them"
            )
        numbered = state["state"]
    else:
        names = {parameter: name for name, parameter in network.named_parameters()}
        trained = [names[p] for group in optimizer.param_groups for p in group["params"]]
        number = {name: n for n, name in enumerate(trained)}
        if others := sorted({*state} - {*number}):
            raise ValueError(
                f"{others[0]} was trained before, as {len(others)} of its parameters that are not "
                "trained now"
            )
        numbered = {number[name]: moments for name, moments in state.items()}
    optimizer.load_state_dict({**own, "state": numbered})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.dim():
                if value.shape != parameter.shape:
                    raise ValueError("the optimizer's state is of tensors of another shape")
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _rate_and_decay(
    solver: CfgNode, path: str, module: torch.nn.Module, name: str
) -> tuple[float, float]:
    """Return the learning rate and the weight decay of a parameter of the module at a path."""
    rate = solver.BASE_LR
    if f"{path}.".startswith("backbone.") and not path.startswith("backbone.fpn"):
        rate *= solver.BACKBONE_MULTIPLIER
    decay = solver.WEIGHT_DECAY_NORM if isinstance(module, _NORMS) else solver.WEIGHT_DECAY
    if name == "bias":
        rate *= solver.BIAS_LR_FACTOR
        if solver.WEIGHT_DECAY_BIAS is not None:
            decay = solver.WEIGHT_DECAY_BIAS
    return rate, decay


def set_schedule(cfg: CfgNode, epoch_length: int) -> None:
    """Convert lengths in epochs to iterations, for epochs of `epoch_length` samples.

    An epoch need not be a whole number of iterations. The length of the run is rounded up. A run
    of a given number of iterations, which may be many epochs, has at most `_PERIODS` validations
    and checkpoints, unless their periods are given in iterations too.

    Raises InputError if a batch has more images than an epoch; windows may come from the same
    image.
    """
    solver = cfg.SOLVER
    windows = cfg.INPUT.ZOOM and cfg.INPUT.WINDOWS_BY_AREA
    if solver.IMS_PER_BATCH > epoch_length and not windows:
        raise InputError(
            f"--batch_size {solver.IMS_PER_BATCH}: larger than the training set, which has "
            f"{plural(epoch_length, 'image')}; choose {epoch_length} or less"
        )
    epoch = epoch_length / solver.IMS_PER_BATCH
    if solver.EPOCHS:
        epoch = max(epoch, solver.MIN_ITER / solver.EPOCHS)
        # Without the small number, 3 epochs of 10/3 iterations would be 11.
        solver.MAX_ITER = max(1, math.ceil(solver.EPOCHS * epoch - 1e-6))
    if solver.WARMUP_EPOCHS:
        solver.WARMUP_ITERS = round(solver.WARMUP_EPOCHS * epoch)
    least = 1 if solver.EPOCHS else math.ceil(solver.MAX_ITER / _PERIODS)
    if solver.CHECKPOINT_EPOCHS:
        solver.CHECKPOINT_PERIOD = max(least, round(solver.CHECKPOINT_EPOCHS * epoch))
    if cfg.TEST.EVAL_EPOCHS:
        cfg.TEST.EVAL_PERIOD = max(least, round(cfg.TEST.EVAL_EPOCHS * epoch))
    key, late = "STEPS", [step for step in solver.STEPS if step >= solver.MAX_ITER]
    if len(solver.STEP_FRACTIONS):
        solver.STEPS = sorted({round(part * solver.MAX_ITER) for part in solver.STEP_FRACTIONS})
        key, late = "STEP_FRACTIONS", [part for part in solver.STEP_FRACTIONS if part > 1]
    if late and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        warn(
            f"SOLVER.{key} {', '.join(map(str, late))}: not before the end of the run, after "
            f"{plural(solver.MAX_ITER, 'iteration')}, so the rate does not fall there; set "
            "SOLVER.STEP_FRACTIONS below 1, such as (0.6,0.9)"
        )
    solver.STEPS = tuple(step for step in solver.STEPS if 0 < step < solver.MAX_ITER)


def build_schedule(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Build WarmupCosineLR or WarmupMultiStepLR, with the learning rates of Detectron2's.

    Raises ValueError if a key of the schedule is not valid.
    """
    solver = cfg.SOLVER
    after: ParamScheduler
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        after = CosineParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR)
    else:
        after = MultiStepParamScheduler(
            values=[solver.GAMMA**k for k in range(len(solver.STEPS) + 1)],
            milestones=solver.STEPS,
            num_updates=solver.MAX_ITER,
        )
    length = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    start = solver.WARMUP_FACTOR * after(0.0)
    end = after(0.0 if solver.RESCALE_INTERVAL else length)
    if solver.WARMUP_METHOD == "linear":
        warmup: ParamScheduler = LinearParamScheduler(start, end)
    elif solver.WARMUP_METHOD == "constant":
        warmup = ConstantParamScheduler(start)
    else:
        raise ValueError(f"SOLVER.WARMUP_METHOD {solver.WARMUP_METHOD}: linear or constant")
    if length == 1:
        multiplier: ParamScheduler = warmup
    else:
        multiplier = CompositeParamScheduler(
            [warmup, after],
            lengths=[length, 1 - length],
            interval_scaling=["rescaled", "rescaled" if solver.RESCALE_INTERVAL else "fixed"],
        )
    last = solver.MAX_ITER - 1
    # It is called once more after the last step, where no rate is defined.
    return LambdaLR(optimizer, lambda step: multiplier(min(step, last) / solver.MAX_ITER))


def clip_gradients(cfg: CfgNode, parameters: list[torch.nn.Parameter]) -> None:
    """Clip gradients by `SOLVER.CLIP_GRADIENTS`.

    "value" and "norm" act on each parameter, as in Detectron2; "full_model" on the norm of all
    gradients together.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return
    if clip.CLIP_TYPE == "value":
        torch.nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
    elif clip.CLIP_TYPE == "full_model":
        torch.nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)
    else:
        for parameter in parameters:
            torch.nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
