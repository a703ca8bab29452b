"""The trainer: Detectron2's `DefaultTrainer` for cells."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter

from cellseg.errors import InputError
from cellseg.learn.checkpoint import RunCheckpointer
from cellseg.learn.hooks import Checkpoints, Curves, Progress, StopOnSignal, Validation
from cellseg.learn.mapper import CellMapper
from cellseg.learn.optimizer import build_optimizer
from cellseg.learn.samples import TrainingData, load_training_data
from cellseg.learn.validation import validate
from cellseg.predict.engine import Detectron2Engine
from cellseg.score.ap import AveragePrecision


class Trainer(DefaultTrainer):
    """Trains the network of a config on the images of its annotation file.

    The config's `DATA` says which; `OUTPUT_DIR` is the run's folder. The optimizer is
    chosen by name (`SOLVER.OPTIMIZER`).
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.checkpointer = RunCheckpointer(self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self._losses: dict[str, torch.Tensor] = {}
        self.model.register_forward_hook(self._remember)

    def _remember(self, module: torch.nn.Module, _inputs: Any, losses: Any) -> None:
        if module.training:
            self._losses = losses

    @staticmethod
    def data(cfg: CfgNode) -> TrainingData:
        """Load the annotation file that a config names."""
        return load_training_data(
            cfg.DATA.ROOT,
            cfg.DATA.ANNOTATIONS,
            cfg.DATA.VAL_FRACTION,
            cfg.DATA.GROUPS,
            cfg.SEED,
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        samples = cls.data(cfg).train
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            samples = [sample for sample in samples if sample["annotations"]]
        return build_detection_train_loader(
            samples,
            mapper=CellMapper(cfg),
            sampler=TrainingSampler(len(samples), seed=cfg.SEED if cfg.SEED >= 0 else None),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module) -> AveragePrecision:
        """Score the held-out images by mask AP."""
        data = cls.data(cfg)
        return validate(Detectron2Engine.of_model(model, cfg).predict, data, data.held_out)

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        data = self.data(cfg)

        def checkpointer() -> RunCheckpointer:
            return self.checkpointer

        built: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if data.held_out:
            names = [category["name"] for category in data.categories]
            built.append(
                Validation(
                    lambda: self.test(cfg, self.model), checkpointer, names, cfg.TEST.EVAL_PERIOD
                )
            )
        # Curves show the last value before each writing, so that no score may come between.
        period = min(20, cfg.TEST.EVAL_PERIOD) if data.held_out and cfg.TEST.EVAL_PERIOD else 20
        built += [
            Checkpoints(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD),
            Curves(self.build_writers, period),
            Progress(),
            # Last, so that a step that is cut short here is a whole one.
            StopOnSignal(checkpointer),
        ]
        return built

    def build_writers(self) -> list[EventWriter]:
        folder = self.cfg.OUTPUT_DIR
        return [JSONWriter(f"{folder}/metrics.json"), TensorboardXWriter(folder)]

    def run_step(self) -> None:
        """Make one step; a loss that is not a number ends the run and says which it was."""
        try:
            super().run_step()
        except FloatingPointError as error:
            raise self._diverged(error) from error
        except InputError as error:
            # Of a process that loads images it comes with that one's traceback before it.
            raise InputError(str(error).rpartition("InputError: ")[2]) from error
        except torch.OutOfMemoryError:
            raise InputError(
                f"the GPU's memory is too small for {self.cfg.SOLVER.IMS_PER_BATCH} images a step; "
                "lower --batch_size (and --lr with it) or INPUT.MIN_SIZE_TRAIN"
            ) from None

    def after_step(self) -> None:
        try:
            super().after_step()
        except FloatingPointError as error:
            raise self._diverged(error) from error

    def _diverged(self, error: FloatingPointError) -> InputError:
        bad = [
            f"{name} is {value.item():g}"
            for name, value in self._losses.items()
            if not math.isfinite(value.item())
        ]
        what = ", ".join(bad) or str(error).splitlines()[0]
        kept = (
            f"the last good checkpoint is {self.checkpointer.get_checkpoint_file()}"
            if self.checkpointer.has_checkpoint()
            else "no checkpoint had been saved yet"
        )
        return InputError(
            f"training diverged at iteration {self.iter + 1}: {what}; {kept}; lower --lr "
            f"(now {self.cfg.SOLVER.BASE_LR:g}), warm up longer (SOLVER.WARMUP_ITERS) or clip "
            "gradients (SOLVER.CLIP_GRADIENTS.ENABLED True)"
        )
