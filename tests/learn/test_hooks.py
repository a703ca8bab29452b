"""Hooks between the steps: when to score and stop, what to save, what the curves tell."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cellseg import runs
from cellseg.learn.checkpoint import RunCheckpointer
from cellseg.learn.hooks import CheckpointSaver, MetricWriter, Validation
from cellseg.score.ap import AveragePrecision


class Run:
    """What the hooks see of a trainer and of its storage and step."""

    def __init__(self, max_iter=10, start_iter=0):
        self.cfg = type("cfg", (), {"MODEL": type("model", (), {"DEVICE": "cpu"})})
        self.eval_network = torch.nn.Linear(1, 1)
        self.step = self.storage = self
        self.iter, self.start_iter, self.max_iter = start_iter, start_iter, max_iter
        self._latest: dict[str, tuple[float, int]] = {}

    def put_scalar(self, name, value):
        self._latest[name] = (value, self.iter)

    def latest(self):
        return self._latest


def validation(folder, run, scores, before=lambda: None, **keywords):
    """Score these numbers, one after the other; `before` is called each time."""
    coming = iter(scores)

    def score():
        before()
        value = next(coming)
        return AveragePrecision(100, value, value, value, *(np.array([value, math.nan]),) * 3)

    keywords = {"period": 1, "patience": 0} | keywords
    hook = Validation(score, RunCheckpointer(run.eval_network, folder), ["a", "b"], **keywords)
    hook.trainer = run
    return hook


def go(hooks, run):
    """Let the hooks see the steps of a run; return the number of the last one."""
    for hook in hooks:
        hook.before_train()
    while run.iter < run.max_iter:
        for hook in hooks:
            hook.after_step()
        run.iter += 1
    for hook in hooks:
        hook.after_train()
    return run.iter


@pytest.mark.parametrize(
    ("period", "expected"), [(0, [7]), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (9, [7])]
)
def test_scores_every_so_often_and_at_the_end(tmp_path, period, expected):
    run, done = Run(7), []
    hook = validation(tmp_path, run, [0.1] * 7, lambda: done.append(run.iter + 1), period=period)
    go([hook], run)
    assert done == expected


@pytest.mark.parametrize(
    ("patience", "scores", "ends"),
    [
        (1, [0.1, 0.2, 0.2], 3),  # as good is no better
        (2, [0.3, 0.1, 0.4, 0.1, 0.2], 5),
        (2, [0.3, 0.1, 0.4, 0.1, 0.5, 0.6], 6),  # its length
        (0, [0.3, 0.1, 0.1, 0.1, 0.1, 0.1], 6),
    ],
)
def test_patience(tmp_path, patience, scores, ends):
    run = Run(6)
    hook = validation(tmp_path, run, scores, patience=patience)
    assert go([hook], run) == ends
    best = torch.load(tmp_path / runs.BEST)
    assert best["AP50"] == pytest.approx(100 * max(scores))
    assert best["iteration"] == 1 + scores.index(max(scores))


def test_a_resumed_run_counts_on(tmp_path):
    first = validation(tmp_path, Run(2), [0.3, 0.2], patience=2)
    go([first], first.trainer)
    run = Run(6, start_iter=2)
    hook = validation(tmp_path, run, [0.1], patience=2)
    hook.load_state_dict(first.state_dict())
    assert go([hook], run) == 3


def test_a_run_that_had_ended_early_has_nothing_left(tmp_path):
    first = validation(tmp_path, Run(6), [0.3, 0.2, 0.1], patience=2)
    go([first], first.trainer)
    for patience, left in ((2, 3), (3, 6)):
        run = Run(6, start_iter=3)
        validation(tmp_path, run, [], patience=patience).load_state_dict(first.state_dict())
        assert run.max_iter == left


def test_best_weights_of_a_step_that_comes_again(tmp_path):
    """Killed after the second score, the first of which alone is in the checkpoint."""
    first = validation(tmp_path, Run(1), [0.2])
    go([first], first.trainer)
    for _ in range(2):
        hook = validation(tmp_path, Run(2, start_iter=1), [0.3])
        hook.load_state_dict(first.state_dict())
        go([hook], hook.trainer)
        assert hook.state_dict() == {"best": pytest.approx(30), "worse": 0}


def test_best_weights_that_were_deleted(tmp_path):
    first = validation(tmp_path, Run(1), [0.5])
    go([first], first.trainer)
    (tmp_path / runs.BEST).unlink()
    hook = validation(tmp_path, Run(2, start_iter=1), [0.1])
    hook.load_state_dict(first.state_dict())
    go([hook], hook.trainer)
    assert torch.load(tmp_path / runs.BEST)["AP50"] == pytest.approx(10)


def test_when_checkpoints_are_saved(tmp_path, monkeypatch):
    run, saved = Run(5), []
    hook = CheckpointSaver(RunCheckpointer(run.eval_network, tmp_path), 2)
    monkeypatch.setattr(hook.checkpointer, "save_last", lambda: saved.append(run.iter + 1))
    hook.trainer = run
    go([hook], run)
    assert saved == [2, 4, 5]
    assert torch.load(tmp_path / runs.FINAL)["iteration"] == 5


class Losses(MetricWriter):
    """Curves of a loss that is put in just before: the square of the step."""

    def after_step(self):
        self.trainer.put_scalar("total_loss", self.trainer.iter**2)
        super().after_step()


def lines_of(folder):
    return [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]


def events_of(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_curves_are_medians(tmp_path):
    run = Run(7)
    hook = Losses(tmp_path, 3)
    hook.trainer = run
    run.put_scalar("old", 5.0)
    run.iter = 1
    go([hook], run)
    lines = lines_of(tmp_path)
    # Steps 1 and 2; 3, 4 and 5; the last alone. What no step has put again is not there.
    found = [(line["iteration"], line["total_loss"]) for line in lines]
    assert found == [(2, 2.5), (5, 16), (6, 36)]
    assert "old" not in lines[0]


def test_a_resumed_runs_events_replace_those_after_the_checkpoint(tmp_path):
    for start in (0, 2):
        hook = Losses(tmp_path, 1)
        hook.trainer = Run(4, start_iter=start)
        go([hook], hook.trainer)
    steps = [event.step for event in events_of(tmp_path).Scalars("total_loss")]
    assert steps == [0, 1, 2, 3]


def test_a_score_comes_at_once_and_pictures_with_it(tmp_path):
    run = Run(4)
    curves = MetricWriter(tmp_path, 100)
    curves.trainer = run
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)

    def show():
        curves.add_picture("held out/x", picture)

    go([validation(tmp_path, run, [0.5, 0.25], show, period=2), curves], run)
    lines = lines_of(tmp_path)
    assert [line["iteration"] for line in lines] == [1, 3]
    assert [line["validation/AP50 a"] for line in lines] == pytest.approx([50, 25])
    assert "validation/AP50 b" not in lines[0]  # which has no AP
    shown = events_of(tmp_path).Images("held out/x")
    assert [(image.step, image.height, image.width) for image in shown] == [(1, 2, 4), (3, 2, 4)]
