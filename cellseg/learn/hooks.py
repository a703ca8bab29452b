"""Training hooks: validation, checkpoints, curves, progress, and stopping."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import Summary  # type: ignore[attr-defined]
from tqdm import tqdm

from cellseg.distributed import any_process, make_barrier, rank, world_size
from cellseg.errors import InputError
from cellseg.learn.checkpoint import RunCheckpointer, take_number
from cellseg.learn.validation import Scores
from cellseg.messages import HANDLER, LOGGERS, warn
from cellseg.network.loop import HookBase
from cellseg.network.weights import reason
from cellseg.png import encode_png
from cellseg.process import is_repeated
from cellseg.runs import BEST, FINAL, FULL_SCORE, METRICS, check_run_folder, rescale_score


class TrainingStopped(KeyboardInterrupt):
    """Raised when a training was stopped by a signal, after its checkpoint was saved."""


class EarlyStop(BaseException):
    """Raised when early stopping ends a training."""


class Validation(HookBase):
    """Scores the validation set every `period` steps and at the end; keeps the best weights.

    `patience` consecutive scores without improvement end the training; 0 disables this.
    `score_before` scores it before the first step, to tell at the end what the training changed.
    `detections` says in the messages which ones AP has.
    The best score is restored from the checkpoint when a run is resumed. The file of the best
    weights may be of a later step, which is repeated then, or deleted.
    """

    def __init__(
        self,
        score: Callable[[], Scores],
        checkpointer: RunCheckpointer,
        class_names: list[str],
        period: int,
        patience: int = 0,
        score_before: Callable[[], Scores] | None = None,
        detections: str = "",
    ) -> None:
        self.score = score
        self.checkpointer = checkpointer
        self.class_names = class_names
        self.period = period
        self.patience = patience
        self.best = -math.inf
        self.n_without_improvement = 0
        self.score_before = score_before
        self.before: float | None = None
        self.detections = f" ({detections})" if detections else ""
        self._barrier: Callable[[], None] = lambda: None

    def before_train(self) -> None:
        if self.trainer.start_iter:
            self.best = min(self.best, self.checkpointer.best_score())
        # Only rank 0 validates, which may take longer than the timeout of the other processes.
        self._barrier = make_barrier()
        if self.score_before and not self.trainer.start_iter:
            if rank() == 0:
                ap50 = self.score_before().ap50
                self.before = ap50 if math.isfinite(ap50) else None
                _print(f"before the first iteration: validation AP50 {ap50:.3f}{self.detections}")
            self._barrier()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self.period and done % self.period == 0):
            if rank() == 0:
                self._validate(done)
            self._barrier()
            if any_process(self.should_stop, self.trainer.cfg.MODEL.DEVICE):
                self.trainer.max_iter = done  # the hooks that follow treat this step as the last

    @property
    def should_stop(self) -> bool:
        """Whether early stopping ends the training."""
        return bool(self.patience) and self.n_without_improvement >= self.patience

    def _validate(self, done: int) -> None:
        result = self.score()
        values = {"AP": result.ap, "AP50": result.ap50, "AP75": result.ap75}
        for name, value in zip(self.class_names, result.class_ap50, strict=True):
            values[f"AP50 {name}"] = float(value)
        # Classes that are not in the validation set have no AP.
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in values.items():
            self.trainer.storage.put_scalar(f"validation/{name}", value)
        if "AP50" not in values:
            _print(f"iteration {done}: no AP, the validation images have no cells")
            return
        ap50 = values["AP50"]
        better = ap50 > self.best
        self.n_without_improvement = 0 if better else self.n_without_improvement + 1
        if better:
            self.best = ap50
            network = self.trainer.step.eval_network
            score = {"AP50": ap50, FULL_SCORE: 1.0}
            self.checkpointer.save_weights(BEST, network, iteration=done, **score)
        self._print_score(done, ap50, values.get("AP", 0.0), better)
        if self.before is not None and (self.should_stop or done == self.trainer.max_iter):
            self._print_change(self.before, ap50)
        if self.should_stop and done < self.trainer.max_iter:
            _print(
                f"early stopping: AP50 has not improved in the last {self.n_without_improvement} "
                "validations (TEST.PATIENCE); the best weights are kept"
            )

    def _print_score(self, done: int, ap50: float, ap: float, is_best: bool) -> None:
        """Print the score of an iteration, and the best one, or that before the first iteration."""
        before, others = self.before or 0.0, f" (best {self.best:.3f})"
        if before > self.best:
            others = f" (best {self.best:.3f}, before {before:.3f})"
        elif is_best:
            others = ", the best so far"
        _print(
            f"iteration {done}: validation AP50 {ap50:.3f}, AP {ap:.3f}{self.detections}{others}"
        )

    def _print_change(self, before: float, after: float) -> None:
        """Print what the training changed, and warn if all weights are worse than the first."""
        best = f" (best {self.best:.3f})" if self.best > after else ""
        _print(f"AP50 of the same validation images: {before:.3f} before, {after:.3f} after{best}")
        if self.best < before:
            warn(
                "AP50 is lower than before with all weights of this run; inference.py takes "
                "the newest run, so name the former one with --checkpoint"
            )

    def state_dict(self) -> dict[str, Any]:
        before = {} if self.before is None else {"before": self.before}
        state = {"best": self.best, "worse": self.n_without_improvement, FULL_SCORE: 1.0}
        return state | before

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = rescale_score(take_number(state, "best", -math.inf, 100), state)
        self.n_without_improvement = take_number(state, "worse", 0, whole=True)
        if "before" in state:
            self.before = take_number(state, "before", 0, 1)
        if self.should_stop:  # it was stopped early before
            self.trainer.max_iter = self.trainer.iter


class CheckpointSaver(HookBase):
    """Saves a resumable checkpoint every `period` steps, and the final weights at the end."""

    def __init__(self, checkpointer: RunCheckpointer, period: int) -> None:
        self.checkpointer = checkpointer
        self.period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        # The final weights first: a run killed between the two is finished.
        if done == self.trainer.max_iter:
            network = self.trainer.step.eval_network
            self.checkpointer.save_weights(FINAL, network, iteration=done)
        if done % self.period == 0 or done == self.trainer.max_iter:
            self.checkpointer.save_last()


def _cut_unfinished_line(path: Path) -> None:
    """Remove the end of a file of lines that was killed while it wrote one."""
    lines = path.read_bytes() if path.exists() else b""
    if lines and not lines.endswith(b"\n"):
        path.write_bytes(lines[: lines.rfind(b"\n") + 1])


class MetricWriter(HookBase):
    """Writes medians over `period` steps, and the learning rate, to TensorBoard and as JSON lines.

    The rate is that of the last step.
    """

    def __init__(self, folder: Path, period: int) -> None:
        self.folder = folder
        self.period = period
        self._values: dict[str, list[float]] = {}
        self._open = contextlib.ExitStack()

    def before_train(self) -> None:
        # Steps after the last checkpoint of a killed run are repeated, and their events replaced.
        start = self.trainer.start_iter
        _cut_unfinished_line(self.folder / METRICS)
        self._events = self._open.enter_context(SummaryWriter(str(self.folder), purge_step=start))
        self._lines = self._open.enter_context((self.folder / METRICS).open("a", encoding="utf-8"))

    def after_step(self) -> None:
        self._last_step = step = self.trainer.iter
        for name, (value, of_step) in self.trainer.storage.latest().items():
            if of_step == step:
                self._values.setdefault(name, []).append(float(value))
        if (step + 1) % self.period == 0 or step + 1 == self.trainer.max_iter or self._is_scored:
            self._write()

    @property
    def _is_scored(self) -> bool:
        return any(name.startswith("validation/") for name in self._values)

    def _write(self) -> None:
        medians = {name: statistics.median(v) for name, v in sorted(self._values.items())}
        if "lr" in medians:
            medians["lr"] = self._values["lr"][-1]
        check_run_folder(self.folder)
        with self._errors():
            for name, value in medians.items():
                self._events.add_scalar(name, value, self._last_step)
            unit = {FULL_SCORE: 1.0} if self._is_scored else {}
            line = {"iteration": self._last_step, **medians, **unit}
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
        self._values.clear()

    def add_picture(self, name: str, picture: NDArray[np.uint8]) -> None:
        """Add an `(H, W, 3)` uint8 RGB picture to TensorBoard."""
        height, width, n_channels = picture.shape
        image = Summary.Image(
            height=height,
            width=width,
            colorspace=n_channels,
            encoded_image_string=encode_png(picture),
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        with self._errors():
            self._events.file_writer.add_summary(summary, self.trainer.iter)

    def after_train(self) -> None:
        if self._values:  # it stopped within a period
            with contextlib.suppress(InputError):  # hooks that follow must end, too
                self._write()
        with self._errors():
            self._open.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise InputError if the curves can't be written."""
        try:
            yield
        except OSError as error:  # of TensorBoard's thread, perhaps of an earlier event
            check_run_folder(self.folder)
            raise InputError(
                f"{self.folder}: the curves can't be written ({error.strerror}); make room, then "
                "resume with --resume"
            ) from None


class ProgressBar(HookBase):
    """Shows the progress: a bar on a terminal, else a line after one step and every `seconds`.

    If the first step takes longer than `patience`, a line says how long the run takes at least.
    """

    def __init__(self, seconds: float = 20.0, patience: float = 40.0) -> None:
        self.seconds = seconds
        self.patience = patience
        self._bar = tqdm(disable=True)
        self._timer = threading.Timer(patience, self._say_that_it_is_slow)

    def before_train(self) -> None:
        total, start = self.trainer.max_iter, self.trainer.start_iter
        self._bar = tqdm(total=total, initial=start, unit="it", desc="training", disable=None)
        self._started = self._last_printed = time.monotonic()
        self._timer.daemon = True
        self._timer.start()

    def _say_that_it_is_slow(self) -> None:
        left = self.patience * (self.trainer.max_iter - self.trainer.start_iter)
        _print(
            f"iteration {self.trainer.start_iter + 1}/{self.trainer.max_iter} takes more than "
            f"{self.patience:g} s, the run more than {_duration(left)}"
        )

    def after_step(self) -> None:
        self._timer.cancel()
        loss = self.trainer.storage.latest().get("total_loss", (math.nan, 0))[0]
        done, total = self.trainer.iter + 1, self.trainer.max_iter
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self._bar.update()
        now = time.monotonic()
        n = done - self.trainer.start_iter
        if n == 1:
            self._first_done = now
        if self._bar.disable and (
            now - self._last_printed > self.seconds or n == 1 or done == total
        ):
            # The first step takes longer than others.
            pace = (now - self._first_done) / (n - 1) if n > 1 else now - self._started
            print(
                f"iteration {done}/{total}  loss {loss:.3f}  {pace:.2f} s/it  "
                f"{_duration(pace * (total - done))} left",
                flush=True,
            )
            self._last_printed = now

    def after_train(self) -> None:
        self._timer.cancel()
        self._bar.close()


def _duration(seconds: float) -> str:
    """Return a duration as "4:05 min" or "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes}:{rest:02d} min"


class StopOnSignal(HookBase):
    """On Ctrl-C or SIGTERM, saves a checkpoint after the current step and stops.

    A second request stops immediately, without a checkpoint.
    """

    def __init__(self, checkpointer: RunCheckpointer) -> None:
        self.checkpointer = checkpointer
        self.stop_requested = False
        self._requested = 0.0  # when, in seconds of `time.monotonic`
        self._former: dict[signal.Signals, Any] = {}

    def before_train(self) -> None:
        self._process = os.getpid()
        self._former = {
            s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)
        }

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data loading worker, which ends with this process
        if self.stop_requested and world_size() > 1:
            return  # the process that started this one decides
        if self.stop_requested and is_repeated(number, self._requested):
            return
        if self.stop_requested:
            stop = self._former[signal.Signals(number)]
            if callable(stop):
                stop(number, frame)
            raise KeyboardInterrupt
        self._requested = time.monotonic()
        self.stop_requested = True
        if rank() == 0:
            with contextlib.suppress(RuntimeError):  # the signal came while it was printing
                _print("stopping after this iteration; press again to stop immediately", sys.stderr)

    def after_step(self) -> None:
        requested = any_process(self.stop_requested, self.trainer.cfg.MODEL.DEVICE)
        if requested and self.trainer.iter + 1 < self.trainer.max_iter:
            if rank() == 0:
                self.checkpointer.save_last()
            raise TrainingStopped(self.trainer.iter + 1)

    def after_train(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


class _LogFile(logging.FileHandler):
    """A log that ends with a warning where it can't be written, as on a full disk."""

    def handleError(self, _record: object) -> None:
        if self.level <= logging.CRITICAL:
            self.setLevel(logging.CRITICAL + 1)
            error = sys.exc_info()[1]  # that is being handled
            assert isinstance(error, Exception)
            warn(f"{self.baseFilename}: the log can't be written ({reason(error)}); it ends here")

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # what is still in the buffer
            self.handleError(None)


def log_to_file(path: Path) -> Callable[[], None]:
    """Log Detectron2 and this project to a file, and warnings also to the terminal.

    Returns a function that restores the loggers and closes the file.
    """
    # Detectron2's own handlers would print every layer of the network.
    to_file = _LogFile(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    former = [(logger, logger.level, logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [to_file, HANDLER]

    def stop() -> None:
        for logger, level, propagate, handlers in former:
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers = handlers
        to_file.close()

    return stop


def _print(line: str, file: Any = None) -> None:
    """Print a line above a progress bar, to the standard output by default."""
    tqdm.write(line, file=file or sys.stdout)
