"""Training hooks: validation, early stopping, checkpoints, curves."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cellseg import runs
from cellseg.learn import hooks
from cellseg.learn.checkpoint import RunCheckpointer
from cellseg.learn.hooks import CheckpointSaver, MetricWriter, ProgressBar, Validation
from cellseg.messages import warn
from tests.training import TrainerStub, scores_of


def validation(folder, run, scores, before=lambda: None, **keywords):
    """Build the hook with these scores, one after the other; `before` is called before each."""
    coming = iter(scores)

    def score():
        before()
        return scores_of(next(coming), math.nan)

    keywords = {"period": 1, "patience": 0} | keywords
    hook = Validation(score, RunCheckpointer(run.eval_network, folder), ["a", "b"], **keywords)
    hook.trainer = run
    return hook


def go(all_hooks, run):
    """Run the hooks; return the number of steps."""
    for hook in all_hooks:
        hook.before_train()
    while run.iter < run.max_iter:
        for hook in all_hooks:
            hook.after_step()
        run.iter += 1
    for hook in all_hooks:
        hook.after_train()
    return run.iter


@pytest.mark.parametrize(
    ("period", "expected"), [(0, [7]), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (9, [7])]
)
def test_validation_is_periodic_and_at_the_end(tmp_path, period, expected):
    run, done = TrainerStub(7), []
    hook = validation(tmp_path, run, [0.1] * 7, lambda: done.append(run.iter + 1), period=period)
    go([hook], run)
    assert done == expected


def test_lines_of_the_validation_say_which_detections_ap_has(tmp_path, capsys):
    run = TrainerStub(2)
    words = {"score_before": lambda: scores_of(0.25, math.nan), "detections": "all detections"}
    go([validation(tmp_path, run, [0.3, 0.2], **words)], run)
    lines = [line for line in capsys.readouterr().out.splitlines() if "validation AP50" in line]
    assert len(lines) == 3
    assert all("(all detections)" in line for line in lines)


@pytest.mark.parametrize(
    ("patience", "scores", "ends"),
    [
        (1, [0.1, 0.2, 0.2], 3),  # equal is not better
        (2, [0.3, 0.1, 0.4, 0.1, 0.2], 5),
        (2, [0.3, 0.1, 0.4, 0.1, 0.5, 0.6], 6),  # not early
        (0, [0.3, 0.1, 0.1, 0.1, 0.1, 0.1], 6),
    ],
)
def test_patience(tmp_path, patience, scores, ends):
    run = TrainerStub(6)
    hook = validation(tmp_path, run, scores, patience=patience)
    assert go([hook], run) == ends
    best = torch.load(tmp_path / runs.BEST)
    assert best["AP50"] == pytest.approx(max(scores))
    assert best["iteration"] == 1 + scores.index(max(scores))


@pytest.mark.parametrize("ends", ["as planned", "early", "resumed"])
def test_what_a_training_changed(tmp_path, capsys, ends):
    """A score before the first step, which a resumed run does not compute again."""
    after = {"as planned": [0.1, 0.4], "early": [0.3, 0.2], "resumed": [0.3]}[ends]
    run = TrainerStub(1 if ends == "resumed" else 2 if ends == "as planned" else 6)
    words = {"patience": 1} if ends == "early" else {}
    keywords = {"score_before": lambda: scores_of(0.25, math.nan), **words}
    hook = validation(tmp_path, run, after, **keywords)
    go([hook], run)
    if ends == "resumed":
        state = json.loads(json.dumps(hook.state_dict()))
        run = TrainerStub(2, start_iter=1)
        keywords["score_before"] = None
        hook = validation(tmp_path, run, [0.2], **keywords)
        hook.load_state_dict(state)
        capsys.readouterr()
        go([hook], run)
    lines = [text for text in capsys.readouterr().out.splitlines() if " before, " in text]
    expected = {
        "as planned": "0.250 before, 0.400 after",
        "early": "0.250 before, 0.200 after (best 0.300)",
        "resumed": "0.250 before, 0.200 after (best 0.300)",
    }
    assert [text.partition(": ")[2] for text in lines] == [expected[ends]]


@pytest.mark.parametrize(
    ("scores", "best", "warnings"),
    [
        ([0.1, 0.2], [], 1),
        ([0.5, 0.2], ["iteration 1"], 0),
        ([0.4, 0.2], ["iteration 1"], 0),  # equal to the one before
        ([0.1, 0.5], ["iteration 2"], 0),
    ],
)
def test_weights_that_are_worse_than_the_initial_ones(
    tmp_path, capsys, caplog, scores, best, warnings
):
    run = TrainerStub(2)
    hook = validation(tmp_path, run, scores, score_before=lambda: scores_of(0.4, math.nan))
    go([hook], run)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "so far" in line]
    assert [line.partition(":")[0] for line in lines] == best
    assert caplog.text.count("--checkpoint") == warnings
    if warnings:
        assert "iteration 1: validation AP50 0.100" in printed
        assert "(best 0.200, before 0.400)" in printed
    assert torch.load(tmp_path / runs.BEST)["AP50"] == pytest.approx(max(scores))


def test_a_resumed_run_continues_to_count(tmp_path):
    first = validation(tmp_path, TrainerStub(2), [0.3, 0.2], patience=2)
    go([first], first.trainer)
    run = TrainerStub(6, start_iter=2)
    hook = validation(tmp_path, run, [0.1], patience=2)
    hook.load_state_dict(first.state_dict())
    assert go([hook], run) == 3


def test_a_run_that_was_stopped_early_is_finished(tmp_path):
    first = validation(tmp_path, TrainerStub(6), [0.3, 0.2, 0.1], patience=2)
    go([first], first.trainer)
    for patience, left in ((2, 3), (3, 6)):
        run = TrainerStub(6, start_iter=3)
        validation(tmp_path, run, [], patience=patience).load_state_dict(first.state_dict())
        assert run.max_iter == left


def test_best_weights_of_a_repeated_step(tmp_path):
    """Killed after the second score, with only the first in the checkpoint."""
    first = validation(tmp_path, TrainerStub(1), [0.2])
    go([first], first.trainer)
    for _ in range(2):
        hook = validation(tmp_path, TrainerStub(2, start_iter=1), [0.3])
        hook.load_state_dict(first.state_dict())
        go([hook], hook.trainer)
        state = hook.state_dict()
        assert (state["best"], state["worse"]) == (pytest.approx(0.3), 0)


def test_the_best_score_of_a_former_run_was_a_percentage(tmp_path):
    run = TrainerStub(3, start_iter=1)
    hook = validation(tmp_path, run, [0.01, 0.3])
    torch.save({"model": {}, "AP50": 20.0}, tmp_path / runs.BEST)
    hook.load_state_dict({"best": 20.0, "worse": 0})
    go([hook], run)
    best = torch.load(tmp_path / runs.BEST)
    assert (best["iteration"], best["AP50"]) == (3, pytest.approx(0.3))


def test_best_weights_that_were_deleted(tmp_path):
    first = validation(tmp_path, TrainerStub(1), [0.5])
    go([first], first.trainer)
    (tmp_path / runs.BEST).unlink()
    hook = validation(tmp_path, TrainerStub(2, start_iter=1), [0.1])
    hook.load_state_dict(first.state_dict())
    go([hook], hook.trainer)
    assert torch.load(tmp_path / runs.BEST)["AP50"] == pytest.approx(0.1)


def test_when_checkpoints_are_saved(tmp_path, monkeypatch):
    run, saved = TrainerStub(5), []
    hook = CheckpointSaver(RunCheckpointer(run.eval_network, tmp_path), 2)
    monkeypatch.setattr(hook.checkpointer, "save_last", lambda: saved.append(run.iter + 1))
    hook.trainer = run
    go([hook], run)
    assert saved == [2, 4, 5]
    assert torch.load(tmp_path / runs.FINAL)["iteration"] == 5


class Losses(MetricWriter):
    """Curves of a loss: the square of the step."""

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
    run = TrainerStub(7)
    hook = Losses(tmp_path, 3)
    hook.trainer = run
    run.put_scalar("old", 5.0)
    run.iter = 1
    go([hook], run)
    lines = lines_of(tmp_path)
    # Steps 1 and 2; 3, 4 and 5; the last. Only scalars of these steps are written.
    points = [(line["iteration"], line["total_loss"]) for line in lines]
    assert points == [(2, 2.5), (5, 16), (6, 36)]
    assert "old" not in lines[0]


def test_events_of_a_resumed_run_replace_those_after_the_checkpoint(tmp_path):
    for start in (0, 2):
        hook = Losses(tmp_path, 1)
        hook.trainer = TrainerStub(4, start_iter=start)
        go([hook], hook.trainer)
    steps = [event.step for event in events_of(tmp_path).Scalars("total_loss")]
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize("lines", ["", '{"iteration": 0}\n', '{"iteration": 0}\n{"iter', '{"iter'])
def test_a_line_that_a_killed_run_has_begun_is_removed(tmp_path, lines):
    (tmp_path / runs.METRICS).write_text(lines)
    run = TrainerStub(3, start_iter=1)
    hook = Losses(tmp_path, 1)
    hook.trainer = run
    go([hook], run)
    expected = [0, 1, 2] if "\n" in lines else [1, 2]
    assert [line["iteration"] for line in lines_of(tmp_path)] == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is not there")
def test_a_log_on_a_full_disk_ends_with_a_warning(capsys):
    path = Path("/dev/full")
    stop = hooks.log_to_file(path)
    warn("something")
    warn("something else")
    stop()
    err = capsys.readouterr().err
    assert err.count("/dev/full") == 1
    assert "something else" in err
    assert "Traceback" not in err
    assert "Logging error" not in err


def test_scores_and_pictures_are_written_immediately(tmp_path):
    run = TrainerStub(4)
    curves = MetricWriter(tmp_path, 100)
    curves.trainer = run
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)

    def add_picture():
        curves.add_picture("held out/x", picture)

    go([validation(tmp_path, run, [0.5, 0.25], add_picture, period=2), curves], run)
    lines = lines_of(tmp_path)
    assert [line["iteration"] for line in lines] == [1, 3]
    assert [line["validation/AP50 a"] for line in lines] == pytest.approx([0.5, 0.25])
    assert "validation/AP50 b" not in lines[0]  # which has no AP
    pictures = events_of(tmp_path).Images("held out/x")
    assert [(p.step, p.height, p.width) for p in pictures] == [(1, 2, 4), (3, 2, 4)]
    for written in pictures:
        shown = np.asarray(Image.open(io.BytesIO(written.encoded_image_string)))
        np.testing.assert_array_equal(shown, picture)


def progress_of(run, bar, seconds):
    """Run the progress hook, each step of which takes some seconds."""
    bar.trainer = run
    bar.before_train()
    while run.iter < run.max_iter:
        time.sleep(seconds)
        bar.after_step()
        run.iter += 1
    bar.after_train()


def test_the_time_left_is_printed_after_one_iteration(capsys):
    progress_of(TrainerStub(3), ProgressBar(), 0.01)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "3/3"]
    assert all("s/it" in line and line.endswith("0:00 min left") for line in lines)


def test_a_slow_first_iteration_says_how_long_the_run_takes(capsys):
    progress_of(TrainerStub(1), ProgressBar(patience=0.05), 0.5)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("iteration 1/1 takes more than 0.05 s")
    assert last.startswith("iteration 1/1  loss")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00 min"), (245.4, "4:05 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert hooks._duration(seconds) == text
