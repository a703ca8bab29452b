"""The trainer: Detectron2's `DefaultTrainer` for cells."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray

from cellseg.distributed import rank, world_size
from cellseg.errors import InputError
from cellseg.images import ImageCells
from cellseg.learn.checkpoint import RunCheckpointer
from cellseg.learn.hooks import (
    CheckpointSaver,
    EarlyStop,
    MetricWriter,
    ProgressBar,
    StopOnSignal,
    Validation,
)
from cellseg.learn.mapper import build_stream
from cellseg.learn.optimizer import build_optimizer, build_schedule
from cellseg.learn.samples import TrainingData
from cellseg.learn.step import TrainingStep
from cellseg.learn.stream import build_loader
from cellseg.learn.validation import validate
from cellseg.learn.weights import load_initial_weights
from cellseg.look.batch import draw_middle
from cellseg.network import build_network
from cellseg.network.loop import DefaultTrainer, HookBase, TrainerBase
from cellseg.predict.predictor import Predictor
from cellseg.predictions import Predictions
from cellseg.score.ap import AveragePrecision, mask_ap


class Trainer(DefaultTrainer):
    """Trains the network of a config on loaded data.

    The config's `OUTPUT_DIR` is the run's folder. The engine, the optimizer and the schedule
    are chosen by name. Where Detectron2 is not installed, the loop is the one of
    `cellseg.network.loop`.
    """

    def __init__(self, cfg: CfgNode, data: TrainingData) -> None:
        # DefaultTrainer's own __init__ would build Detectron2's loader, step and checkpointer.
        TrainerBase.__init__(self)
        self.cfg, self.data = cfg, data
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        network = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, network)
        self.step = TrainingStep(cfg, network, optimizer, self.build_lr_scheduler(cfg, optimizer))
        self._trainer = self.step  # where DefaultTrainer looks for the model and the optimizer
        self.checkpointer = RunCheckpointer(
            network, cfg.OUTPUT_DIR, step=self.step, trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        return build_network(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_schedule(cfg, optimizer)

    @classmethod
    def build_train_loader(
        cls, cfg: CfgNode, data: TrainingData, start: int = 0
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield this process's part of each batch, from the iteration `start` on."""
        return build_loader(
            build_stream(cfg, data),
            start,
            cfg.SOLVER.IMS_PER_BATCH,
            rank(),
            world_size(),
            cfg.DATALOADER.NUM_WORKERS,
            pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda",
            group=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        )

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        data: TrainingData,
        add_picture: Callable[[str, NDArray[np.uint8]], None] | None = None,
    ) -> AveragePrecision:
        """Score the validation set by mask AP, at COCO's 100 detections.

        `add_picture` is called for the first few images with a name and a picture of ground truth
        and detections.
        """
        names = [category["name"] for category in data.categories]

        def draw(sample: ImageCells, image: NDArray[np.uint8], detections: Predictions) -> None:
            if add_picture:
                add_picture(
                    f"held out/{sample.name}", draw_middle(image, sample, detections, names)
                )

        return validate(
            Predictor([model], [cfg]).predict,
            lambda eval_images: mask_ap(eval_images, len(names), (100,))[100],
            data,
            data.validation,
            draw,
        )

    def build_hooks(self) -> list[HookBase]:
        cfg, data = self.cfg, self.data
        trainer = weakref.proxy(self)  # nothing of it is to outlive it, as on a GPU between folds
        curves = MetricWriter(Path(cfg.OUTPUT_DIR), 20)
        built: list[HookBase] = []
        if data.validation:
            names = [category["name"] for category in data.categories]
            built.append(
                Validation(
                    lambda: trainer.test(cfg, trainer.step.eval_network, data, curves.add_picture),
                    self.checkpointer,
                    names,
                    cfg.TEST.EVAL_PERIOD,
                    cfg.TEST.PATIENCE,
                )
            )
        if rank() == 0:
            # A run that has its final weights has its last score.
            checkpoints = CheckpointSaver(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            built += [curves, checkpoints, ProgressBar()]
        # Last, so that a step that is cut short here is a whole one.
        self._stop = StopOnSignal(self.checkpointer)
        return [*built, self._stop]

    @property
    def stop_requested(self) -> bool:
        """Whether a signal came, be it too late for this training."""
        return self._stop.stop_requested

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the run's checkpoint, or begin with the weights that the config names."""
        if resume and self.checkpointer.last.is_file():
            self.checkpointer.resume()
            self.start_iter = self.iter
        elif self.cfg.MODEL.WEIGHTS:
            summary = load_initial_weights(self.step.network, self.cfg.MODEL.WEIGHTS)
            if rank() == 0:
                print(f"initial weights: {summary}", flush=True)

    def train(self) -> None:  # type: ignore[override]
        """Train until the end, or until it is asked to stop."""
        self._batches = self.build_train_loader(self.cfg, self.data, self.start_iter)
        with contextlib.suppress(EarlyStop):
            # DefaultTrainer's own train takes no iterations, and would look for results to verify.
            TrainerBase.train(self, self.start_iter, self.max_iter)

    def run_step(self) -> None:
        """Make one step; a loss that is not a number ends the run and says which it was."""
        began = time.perf_counter()
        try:
            samples = next(self._batches)
            waited = time.perf_counter() - began
            rate = self.step.optimizer.param_groups[0]["lr"]
            # Processes draw apart, and a resumed run draws as if it had not stopped.
            seed = (self.cfg.SEED + self.iter) * world_size() + rank()
            losses = self.step.step(samples, seed)
        except FloatingPointError as error:
            raise self._diverged(error) from error
        except InputError as error:
            # Of a process that loads images it comes with that one's traceback before it.
            raise InputError(str(error).rpartition("InputError: ")[2]) from error
        except torch.OutOfMemoryError:
            raise InputError(
                f"the GPU's memory is too small for {len(samples)} images at once; split the batch "
                "with SOLVER.ACCUMULATE 2 or more, or lower --batch_size (and --lr with it)"
            ) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                "a process that loads images was ended from outside, perhaps for want of memory, "
                "or of shared memory in a container (docker run --shm-size 2g); go on with "
                "--resume, and --num_workers 0 if it happens again"
            ) from None
        took = time.perf_counter() - began
        for name, value in losses.items():
            self.storage.put_scalar(name, value)
        self.storage.put_scalar("total_loss", sum(losses.values()))
        self.storage.put_scalar("lr", rate)
        self.storage.put_scalar("time", took)
        self.storage.put_scalar("data_share", waited / took)

    def after_step(self) -> None:
        try:
            super().after_step()
        except FloatingPointError as error:
            raise self._diverged(error) from error
        if self.iter + 1 == self.max_iter < self.cfg.SOLVER.MAX_ITER:
            raise EarlyStop

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps done, and the hooks' states."""
        hooks = {type(hook).__name__: hook.state_dict() for hook in self._hooks}
        return {"iteration": self.iter + 1, "hooks": {k: v for k, v in hooks.items() if v}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.iter = int(state["iteration"])
        for hook in self._hooks:
            if type(hook).__name__ in state["hooks"]:
                hook.load_state_dict(state["hooks"][type(hook).__name__])

    def _diverged(self, error: FloatingPointError) -> InputError:
        kept = (
            f"the last good checkpoint is {self.checkpointer.last}"
            if self.checkpointer.last.is_file()
            else "no checkpoint had been saved yet"
        )
        return InputError(
            f"training diverged at iteration {self.iter + 1}: {error}; {kept}; lower --lr "
            f"(now {self.cfg.SOLVER.BASE_LR:g}), warm up longer (SOLVER.WARMUP_ITERS) or clip "
            "gradients (SOLVER.CLIP_GRADIENTS.ENABLED True)"
        )
