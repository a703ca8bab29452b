"""The optimizer that a config names."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build SGD, Adam, AdamW or Adagrad over the parameters that learn.

    Weight decay, its own value for normalization layers (`SOLVER.WEIGHT_DECAY_NORM`) and
    for biases, and gradient clipping mean what they mean in Detectron2's `build_optimizer`,
    which knows SGD alone.
    """
    solver = cfg.SOLVER
    kinds: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
        "SGD": (torch.optim.SGD, {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
        "Adam": (torch.optim.Adam, {}),
        "AdamW": (torch.optim.AdamW, {}),
        "Adagrad": (torch.optim.Adagrad, {}),
    }
    kind, options = kinds[solver.OPTIMIZER]
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    return maybe_add_gradient_clipping(cfg, kind)(
        parameters, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, **options
    )
