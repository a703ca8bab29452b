"""A simulated GPU: its tensors are in main memory, but can't be combined with those of the CPU.

The device "gpux" of torch has tensors that wrap CPU tensors. Operators on tensors of both devices
fail as with CUDA, so that device errors are detected on machines without a GPU.

    python tests/pretended_gpu.py RUN FOLDER

trains, resumes and predicts with the network of a run, and writes its files to FOLDER.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "gpux"
aten = torch.ops.aten
# Allowed with CUDA too: copies between devices, and CPU indices into GPU tensors.
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


class OnGpu(torch.Tensor):
    """A tensor on the simulated device; `held` is the CPU tensor with its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        return run(func, args, kwargs or {})

    def unsqueeze_(self, dim):  # a wrapper's shape can't change in place
        return self.unsqueeze(dim)

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *_arguments, **_keywords):
        raise TypeError("can't convert a tensor on a GPU to numpy")

    def __reduce_ex__(self, protocol):  # saved as a CPU tensor
        detached: Any = self.detach()
        return detached.held.__reduce_ex__(protocol)


class PretendedGpu(TorchDispatchMode):
    """Mode that runs every operator on the device of its tensors."""

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on the wrapped tensors, and wrap its result."""
    leaves = tree_leaves((args, kwargs))
    wrapped = [x for x in leaves if isinstance(x, OnGpu)]
    others = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnGpu)]
    indexed = func in INDEXED and isinstance(args[0], OnGpu)
    if wrapped and any(x.dim() for x in others) and func not in COPIES and not indexed:
        raise RuntimeError(f"{func}: tensors on {NAME} and on the CPU")
    to_gpu = isinstance(args[0], OnGpu) if func is aten.copy_.default else bool(wrapped)
    if kwargs.get("device") is not None:
        to_gpu = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, OnGpu) else x, (args, kwargs))
    result = func(*args, **kwargs)
    if func._schema.name.endswith("_") and isinstance(args[0], torch.Tensor):
        return next((x for x in wrapped if x.held is args[0]), args[0])
    return tree_map(lambda x: OnGpu(x) if to_gpu and isinstance(x, torch.Tensor) else x, result)


def install() -> None:
    """Register the device."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    module: Any = getattr(torch, NAME)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.autograd.set_multithreading_enabled(False)
    for name in ("tensor", "as_tensor"):  # not dispatched as operators
        setattr(torch, name, _placed(getattr(torch, name)))


def _placed(make: Any) -> Any:
    def result(data: Any, *, device: Any = None, **keywords: Any) -> Any:
        if device is None or torch.device(device).type != NAME:
            return make(data, device=device, **keywords)
        return make(data, **keywords).to(device)

    return result


def check(folder: Path, output: Path) -> None:
    """Train, resume and predict on the device; predictions equal those on the CPU."""
    from cellseg import runs
    from cellseg.config import load_config, merge_options
    from cellseg.device import detectron2_problem
    from cellseg.learn.session import prepare
    from cellseg.predict.predictor import Predictor
    from trainer import Trainer

    storage: Any = contextlib.nullcontext()
    if not detectron2_problem():
        from detectron2.utils.events import EventStorage

        storage = EventStorage()
    cfg = load_config(folder / runs.CONFIG)
    merge_options(cfg, ["SOLVER.EMA", "0.9", "SOLVER.ACCUMULATE", "2", "OUTPUT_DIR", str(output)])
    merge_options(cfg, ["MODEL.DEVICE", NAME, "SOLVER.CLIP_GRADIENTS.ENABLED", "True"])
    merge_options(cfg, ["MODEL.AUXILIARY_HEAD.LOSS_WEIGHT", "1.0"])
    data = prepare(cfg).data
    batches = Trainer.build_train_loader(cfg, data)
    for start in (0, 1):
        trainer = Trainer(cfg, data)
        trainer.resume_or_load(resume=start > 0)
        assert trainer.start_iter == start
        with storage:
            trainer.step.step(next(batches), start)
        trainer.iter = start
        trainer.checkpointer.save_last()
        state = trainer.step.optimizer.state_dict()["state"][0]
        tensors = [*trainer.step.eval_network.parameters(), state["exp_avg"]]
        assert all(isinstance(tensor, OnGpu) for tensor in tensors)
    options = ["TEST.SYMMETRIES", "2", "TEST.BATCH", "2", "TEST.SCALES", "(0.8, 1.0)"]
    options += ["TEST.BFLOAT16_ON_CPU", "False"]
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    predictions, expected = (
        Predictor.from_run(folder, device=device, options=options).predict(image)
        for device in (NAME, "cpu")
    )
    assert len(expected) > 10
    assert predictions.masks == expected.masks
    assert np.array_equal(predictions.scores, expected.scores)


if __name__ == "__main__":
    install()
    with PretendedGpu():
        mixed = False
        with contextlib.suppress(RuntimeError):
            mixed = bool((torch.ones(2, device=NAME) + torch.ones(2)).sum())
        assert not mixed, "tensors of both devices were added"
        check(Path(sys.argv[1]), Path(sys.argv[2]))
