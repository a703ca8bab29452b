"""Estimate the memory of a training step before it is taken."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode

from cellseg.device import autocast_dtype, available_memory
from cellseg.learn.stream import SampleStream, batches_of_positions
from cellseg.messages import warn

# Bytes of a process without the network: Python with its libraries, or CUDA's context and
# workspaces (which are not in torch's own figures).
_PROCESS = {"cpu": 0.9e9, "cuda": 0.8e9}
_MOMENTS = {"SGD": 1, "Adagrad": 1, "Adam": 2, "AdamW": 2}  # per parameter
_N_BATCHES = 32  # of which the largest is taken


def report_memory(
    cfg: CfgNode, network: torch.nn.Module, stream: SampleStream, n_processes: int
) -> None:
    """Print the estimated memory of a training step on this machine, or warn if it is too much.

    It is a warning, since the estimate may be wrong by a third, and other programs may end.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    size = largest_batch(cfg, stream, n_processes)
    try:
        needed = estimate(cfg, network, size, n_processes)
    except Exception:  # noqa: BLE001 a network of other parts: no reason not to train it
        logging.getLogger(__name__).info("the memory can't be estimated", exc_info=True)
        return
    if device.type == "cuda":
        what = "the GPU's memory"  # without the weights, which are there already
        there = float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    else:
        what, there = "memory", available_memory()
        needed *= n_processes
    if needed < 0.9 * there:
        print(f"memory of a step: about {_gb(needed)} of {_gb(there)}", flush=True)
        return
    warn(
        f"a step needs about {_gb(needed)}, but only {_gb(there)} of {what} are free; stop it "
        f"(Ctrl-C), then split a batch with SOLVER.ACCUMULATE {min(4, max(2, size[0]))}, lower "
        "--batch_size, or use a smaller recipe such as --model lite_fpn"
    )


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB"


def largest_batch(cfg: CfgNode, stream: SampleStream, n_processes: int) -> tuple[int, int, int]:
    """Return images, height and width of the largest batch that a process has in memory at once."""
    solver = cfg.SOLVER
    batches = batches_of_positions(
        stream, 0, solver.IMS_PER_BATCH, cfg.DATALOADER.ASPECT_RATIO_GROUPING
    )
    n = max(1, -(-solver.IMS_PER_BATCH // n_processes // solver.ACCUMULATE))
    shapes = [[stream.shape(p) for p in b] for b in itertools.islice(batches, _N_BATCHES)]
    height, width = max(
        ((max(h for h, _ in batch), max(w for _, w in batch)) for batch in shapes),
        key=lambda side: side[0] * side[1],
    )
    return n, height, width


def estimate(
    cfg: CfgNode, network: torch.nn.Module, size: tuple[int, int, int], n_processes: int = 1
) -> float:
    """Estimate the peak memory in bytes of one process in a training step.

    The sum of the process, the weights with gradients, moments and averages, and the values that
    layers keep for the backward pass. These are counted in a forward pass without data (torch's
    meta device).

    Parameters
    ----------
    cfg, network
        The config, and the network on any device.
    size
        Images, height and width of a batch.
    n_processes
        Processes of the training: gradients are copied if there are several.
    """
    n_all = sum(p.numel() for p in network.parameters())
    n_trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    copies = 1 + _MOMENTS[cfg.SOLVER.OPTIMIZER] + (n_processes > 1)
    weights = 4 * (n_all * (1 + bool(cfg.SOLVER.EMA)) + n_trained * copies)
    device = torch.device(cfg.MODEL.DEVICE).type
    kept, largest = _count_kept(cfg, _without_data(network), size)
    mixed = autocast_dtype(device, cfg.SOLVER.AMP.ENABLED) is not None
    # In the backward pass, the largest value has a gradient in and one out.
    values = (kept + 2 * largest) * (0.55 if mixed else 1.0)
    return _PROCESS.get(device, 0.9e9) + weights + values


def _without_data(network: torch.nn.Module) -> Any:
    """Return a copy of a network on the meta device."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, torch.nn.Parameter):
            empty = torch.nn.Parameter(empty, tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy.deepcopy(network, memo).train()


def _count_kept(cfg: CfgNode, network: Any, size: tuple[int, int, int]) -> tuple[int, int]:
    """Return the bytes kept for the backward pass, and those of the largest value."""
    n, height, width = size
    kept: dict[int, int] = {}
    alive = []  # storages, whose ids would be used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            alive.append(storage)
            kept[storage._cdata] = storage.nbytes()
        return tensor

    model = cfg.MODEL
    n_boxes = n * model.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    n_cells = round(n_boxes * model.ROI_HEADS.POSITIVE_FRACTION)
    if most := model.ROI_MASK_HEAD.BATCH_SIZE_PER_IMAGE:
        n_cells = min(n_cells, n * most)
    side = -(-height // 32) * 32, -(-width // 32) * 32
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        images = torch.empty((n, 3, *side), device="meta")
        features = network.backbone(images)
        rpn, boxes, masks = _heads(network)
        outputs: list[Any] = [features, rpn([features[f] for f in model.RPN.IN_FEATURES])]
        finest = features[model.ROI_HEADS.IN_FEATURES[0]]
        if network.auxiliary:
            outputs.append(network.auxiliary(finest))
        channels = finest.shape[1]
        for heads, count, part in (
            (boxes, n_boxes, model.ROI_BOX_HEAD),
            ([masks], n_cells, model.ROI_MASK_HEAD),
        ):
            shape = (count, channels, part.POOLER_RESOLUTION, part.POOLER_RESOLUTION)
            for head in heads:
                pooled = torch.empty(shape, device="meta", requires_grad=True)
                outputs.append(head(keep(pooled)))
    return sum(kept.values()), max(kept.values(), default=0)


def _heads(
    network: Any,
) -> tuple[Callable[..., Any], Sequence[Callable[..., Any]], Callable[..., Any]]:
    """Return the layers of the RPN, of the box heads and of the mask head, of either engine."""
    roi = network.roi_heads
    if hasattr(network, "rpn"):
        return network.rpn.head, [roi.box_head], lambda x: roi.mask_predictor(roi.mask_head(x))
    boxes = roi.box_head
    cascade = boxes if isinstance(boxes, torch.nn.ModuleList) else [boxes]
    return network.proposal_generator.rpn_head, list(cascade), roi.mask_head.layers
