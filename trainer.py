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
from cellseg.learn.checkpoint import RunCheckpointer, take_number
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
from cellseg.learn.validation import choose_max_detections, describe_max_detections, validate
from cellseg.learn.weights import load_initial_weights
from cellseg.look.batch import draw_middle
from cellseg.memory import is_out_of_memory, memory_name
from cellseg.network import build_network
from cellseg.network.loop import DefaultTrainer, HookBase, TrainerBase
from cellseg.predict.predictor import Predictor
from cellseg.predictions import Predictions
from cellseg.score.ap import AveragePrecision, mask_ap


class Trainer(DefaultTrainer):
    """Trains the network of a config on loaded data, in the run folder `cfg.OUTPUT_DIR`.

    Without Detectron2, the training loop is that of `cellseg.network.loop`.
    """

    def __init__(self, cfg: CfgNode, data: TrainingData) -> None:
        # Skips DefaultTrainer.__init__, which builds Detectron2's loader, step and checkpointer.
        TrainerBase.__init__(self)
        self.cfg, self.data = cfg, data
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        network = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, network)
        self.step = TrainingStep(cfg, network, optimizer, self.build_lr_scheduler(cfg, optimizer))
        self._trainer = self.step  # where DefaultTrainer expects the model and the optimizer
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
        """Return the iterator over this process's part of each batch, from iteration `start` on."""
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
        is_last: bool = True,
    ) -> AveragePrecision:
        """Return the mask AP of the validation set, of the detections that its cells call for.

        `add_picture` receives a name and a picture of ground truth and detections for the first
        few images. Limits that leave out cells are a warning in the last validation of a training:
        a network that has learnt little takes most boxes for cells.
        """
        names = [category["name"] for category in data.categories]

        def draw(sample: ImageCells, image: NDArray[np.uint8], detections: Predictions) -> None:
            if add_picture:
                picture = draw_middle(image, sample, detections, names)
                add_picture(f"held out/{sample.name}", picture)

        predictor = Predictor([model], [cfg])
        cap = choose_max_detections(data, bool(cfg.DATA.FOLDS))
        return validate(
            lambda image, mpp: predictor.predict(image, mpp=mpp, all_tiles=True),
            lambda eval_images: mask_ap(eval_images, len(names), (cap,))[cap],
            data,
            data.validation,
            draw,
            is_last,
        )

    def build_hooks(self) -> list[HookBase]:
        cfg, data = self.cfg, self.data
        trainer = weakref.proxy(self)  # a cycle would keep it, and its GPU memory, for the next run
        curves = MetricWriter(Path(cfg.OUTPUT_DIR), 20)
        hooks: list[HookBase] = []
        if data.validation:
            hooks.append(
                Validation(
                    lambda: trainer.test(
                        cfg,
                        trainer.step.eval_network,
                        data,
                        curves.add_picture,
                        is_last=trainer.iter + 1 >= trainer.max_iter,
                    ),
                    self.checkpointer,
                    [category["name"] for category in data.categories],
                    cfg.TEST.EVAL_PERIOD,
                    cfg.TEST.PATIENCE,
                    (lambda: trainer.test(cfg, trainer.step.eval_network, data, is_last=False))
                    if cfg.DATA.CONTINUES
                    else None,
                    describe_max_detections(choose_max_detections(data, bool(cfg.DATA.FOLDS))),
                )
            )
        if rank() == 0:
            # After validation: a run with final weights has its last score.
            checkpoints = CheckpointSaver(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            hooks += [curves, checkpoints, ProgressBar()]
        # Last, so that all hooks have seen the step after which it stops.
        self._stop = StopOnSignal(self.checkpointer)
        return [*hooks, self._stop]

    @property
    def stop_requested(self) -> bool:
        """Whether a signal was received, even in the last iteration."""
        return self._stop.stop_requested

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the run's checkpoint if there is one, else load the initial weights."""
        if resume and self.checkpointer.last.is_file():
            self.checkpointer.resume()
            self.start_iter = self.iter
        elif self.cfg.MODEL.WEIGHTS:
            model = self.cfg.MODEL
            summary = load_initial_weights(self.step.network, model.WEIGHTS, model.TRUSTED_SHA256)
            self.step.reset_average()
            if rank() == 0:
                print(f"initial weights: {summary}", flush=True)

    def train(self) -> None:  # type: ignore[override]
        """Train until the last iteration, early stopping or a signal."""
        self._batches = self.build_train_loader(self.cfg, self.data, self.start_iter)
        with contextlib.suppress(EarlyStop):
            # Skips DefaultTrainer.train, which would look for Detectron2's evaluation results.
            TrainerBase.train(self, self.start_iter, self.max_iter)

    def run_step(self) -> None:
        """Run one training step. Raise InputError if the loss is not finite or memory runs out."""
        start = time.perf_counter()
        try:
            samples = next(self._batches)
            waited = time.perf_counter() - start
            rate = self.step.rate
            # Processes draw different numbers; a resumed run draws those of an uninterrupted one.
            seed = (self.cfg.SEED + self.iter) * world_size() + rank()
            losses = self.step.step(samples, seed)
        except FloatingPointError as error:
            raise self._diverged(error) from error
        except InputError as error:
            # From a data loading worker it comes with that worker's traceback before it.
            raise InputError(str(error).rpartition("InputError: ")[2]) from error
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                memory = memory_name(torch.device(self.cfg.MODEL.DEVICE).type)
                n_images = self.cfg.SOLVER.IMS_PER_BATCH // world_size()
                raise InputError(
                    f"{memory} is too small for {n_images} images at once; split the batch "
                    "with SOLVER.ACCUMULATE 2 or more, or lower --batch_size (and --lr with it)"
                ) from None
            if "DataLoader worker (pid" not in str(error):  # else an error in a worker
                raise
            raise InputError(
                "a data loading worker was killed, perhaps out of memory or of shared memory in a "
                "container (docker run --shm-size 2g); resume with --resume, and add "
                "--num_workers 0 if it happens again"
            ) from None
        took = time.perf_counter() - start
        scalars = {"total_loss": sum(losses.values()), "lr": rate, "time": took}
        for name, value in {**losses, **scalars, "data_share": waited / took}.items():
            self.storage.put_scalar(name, value)

    def after_step(self) -> None:
        try:
            super().after_step()
        except FloatingPointError as error:
            raise self._diverged(error) from error
        if self.iter + 1 == self.max_iter < self.cfg.SOLVER.MAX_ITER:
            raise EarlyStop

    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished iterations and the hooks' states."""
        hooks = {type(hook).__name__: hook.state_dict() for hook in self._hooks}
        return {"iteration": self.iter + 1, "hooks": {k: v for k, v in hooks.items() if v}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.iter = take_number(state, "iteration", 0, 1e12, whole=True)
        for hook in self._hooks:
            if type(hook).__name__ in state["hooks"]:
                hook.load_state_dict(state["hooks"][type(hook).__name__])

    def _diverged(self, error: FloatingPointError) -> InputError:
        last = self.checkpointer.last
        kept = f"the last valid checkpoint is {last}" if last.is_file() else "no checkpoint yet"
        return InputError(
            f"training diverged at iteration {self.iter + 1}: {error}; {kept}; lower --lr "
            f"(now {self.cfg.SOLVER.BASE_LR:g}), warm up longer (SOLVER.WARMUP_ITERS) or clip "
            "gradients (SOLVER.CLIP_GRADIENTS.ENABLED True)"
        )
