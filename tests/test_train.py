"""train.py: every flag, the run folder, and each way in which a training can go wrong."""

from __future__ import annotations

import csv
import gc
import json
import math
import os
import re
import resource
import shutil
import signal
import weakref
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import annotation
import train
import utils
from cellseg import config, runs
from cellseg.errors import InputError
from cellseg.keys import OPTIMIZERS, SCHEDULERS
from cellseg.learn import session
from cellseg.score.ap import AveragePrecision
from trainer import Trainer

MISSION = (
    "--model mask_rcnn_R_50_DC5_3x --epochs 225 --batch_size 14 --lr 0.001 --optimizer Adagrad "
    "--scheduler WarmupCosineLR"
)


@pytest.fixture
def go(tiny, cells, tmp_path, engine):
    """Train the tiny network for a few iterations; gives the exit code."""

    def run(*words, data=cells, root=tmp_path / "runs", model=("--config-file", tiny)):
        argv = [*model, "--data", data, "--output_dir", root, "--device", "cpu"]
        argv += ["--engine", engine, *words]
        return train.main([str(word) for word in argv])

    return run


def same(one, other):
    """Whether two states are equal, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def only_run(root):
    (run,) = root.glob("*/*")
    return run


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def configured(*words):
    return train.setup(train.parse(["--weights", "none", "--device", "cpu", *words]))


# --- the command line


def test_the_homeworks_command_word_for_word():
    cfg = configured(*MISSION.split())
    assert cfg.RECIPE == "mask_rcnn_R_50_DC5_3x"
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (225, 14, 0.001)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LR_SCHEDULER_NAME) == ("Adagrad", "WarmupCosineLR")
    # It says what the recipe says, so that no flags mean the same.
    assert config.flatten(cfg) == config.flatten(configured())


def test_short_flags_and_other_names():
    long = train.parse(MISSION.split())
    short = "-m mask_rcnn_R_50_DC5_3x -e 225 -b 14 -l 0.001 -o Adagrad -s WarmupCosineLR"
    assert train.parse(short.split()) == long
    assert train.parse(MISSION.replace("--lr", "--base_lr").split()) == long
    path = ["--config-file", "x.yaml"]
    assert train.parse(["--config_file", "x.yaml"]) == train.parse(path)


def test_every_flag_reaches_the_config(tmp_path):
    cfg = configured(
        "-m", "demo", "-e", "2.5", "-b", "3", "-l", "0.5", "-o", "SGD", "-s", "WarmupMultiStepLR",
        "--seed", "9", "--num_workers", "1", "--val_fraction", "0.25", "--groups", "g.json",
        "--data", str(tmp_path), "SOLVER.MOMENTUM", "0.5",
    )  # fmt: skip
    solver = cfg.SOLVER
    assert (solver.EPOCHS, solver.IMS_PER_BATCH, solver.BASE_LR) == (2.5, 3, 0.5)
    assert (solver.OPTIMIZER, solver.LR_SCHEDULER_NAME) == ("SGD", "WarmupMultiStepLR")
    assert (cfg.SEED, cfg.DATALOADER.NUM_WORKERS, solver.MOMENTUM) == (9, 1, 0.5)
    assert (cfg.DATA.VAL_FRACTION, cfg.DATA.GROUPS) == (0.25, str(Path("g.json").absolute()))
    assert cfg.DATA.ROOT == str(tmp_path)
    assert cfg.DATA.ANNOTATIONS == str(tmp_path / "train__annot.json")
    assert cfg.MODEL.DEVICE == "cpu"
    assert configured("--annotations", "a.json").DATA.ANNOTATIONS == str(Path("a.json").absolute())


def test_defaults_do_not_depend_on_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configured().DATA.ROOT == str(utils.PROJECT / "nycu-hw3-data")
    assert train.parse([]).output_dir == utils.PROJECT / "tensorboard"


@pytest.mark.parametrize("flag", ["--resume", "--show-batch"])
def test_a_flag_that_may_stand_alone_takes_no_key(flag):
    args = train.parse([flag, "SOLVER.MAX_ITER", "5"])
    assert args.options == ["SOLVER.MAX_ITER", "5"]
    assert vars(args)[flag[2:].replace("-", "_")] in ("newest", Path("batch.png"))


def test_options_come_after_flags_in_rank():
    assert configured("--lr", "0.5", "SOLVER.BASE_LR", "0.25").SOLVER.BASE_LR == 0.25


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model yolo", "--model yolo: no such recipe in configs/"),
        ("--model mask_rcnn_R_50_DC5", "did you mean mask_rcnn_R_50_DC5_3x?"),
        ("--model demo --config-file x.yaml", "--model and --config_file: give one of them"),
        ("--config-file nowhere.yaml", "nowhere.yaml: no such config file"),
        ("--resume --weights coco", "--resume and --weights: the run has its own"),
        ("--resume --config-file x.yaml", "--resume and --config_file: the run has its own"),
        ("--resume x --model demo", "--resume and --model: the run has its own"),
        ("--optimizer adam", "--optimizer (SOLVER.OPTIMIZER) adam: one of SGD, Adam, "),
        ("--scheduler Cosine", "--scheduler (SOLVER.LR_SCHEDULER_NAME) Cosine: one of"),
        ("--epochs 0", "--epochs 0.0: a positive number is expected"),
        ("--epochs nan", "--epochs nan"),
        ("--epochs inf", "--epochs (SOLVER.EPOCHS) inf"),
        ("--epochs many", "invalid float value: 'many'"),
        ("--batch_size 0", "--batch_size (SOLVER.IMS_PER_BATCH) 0"),
        ("--batch_size 1.5", "invalid int value"),
        ("--lr 0", "--lr (SOLVER.BASE_LR) 0.0: a positive number"),
        ("--lr -1", "--lr (SOLVER.BASE_LR) -1.0: a positive number"),
        ("--val_fraction 1", "--val_fraction (DATA.VAL_FRACTION) 1.0: a number from 0 to below 1"),
        ("--num_workers -1", "--num_workers"),
        ("--seed -7", "--seed (SEED) -7"),
        ("--device abacus", "--device abacus: not to be had here"),
        ("--what", "unrecognized arguments: --what|flags must stand before"),
        ("SOLVER.BASELR 1", "there is no key SOLVER.BASELR; did you mean SOLVER.BASE_LR?"),
        ("SOLVER.BASE_LR", "this has no value"),
        ("SEED 1 --lr 2", "--lr: flags must stand before the KEY VALUE pairs"),
        ("--weights nowhere.pth", "--weights nowhere.pth: no such file"),
        pytest.param(
            "--model demo --weights imagenet",
            "there are none for demo; train it with --weights",
            marks=pytest.mark.detectron2,
        ),
        pytest.param(
            "--model demo --weights coco",
            "Detectron2's zoo has none for demo",
            marks=pytest.mark.detectron2,
        ),
        ("--config-file {tiny} -b 6", "--batch_size 6: larger than the training set, which has 5"),
        ("--config-file {tiny} --val_fraction 0.4 -b 4", "which has 3 images after the split"),
        ("--config-file {tiny} --groups nowhere.json", "--groups"),
        ("--config-file {tiny} --annotations nowhere.json", "nowhere.json: no such file"),
        ("--config-file {tiny} --output_dir {tiny}", "choose another --output_dir"),
        pytest.param(
            "--config-file {tiny} MODEL.BACKBONE.NAME x",
            "nothing can be built from it",
            marks=pytest.mark.detectron2,
        ),
        pytest.param(
            "--config-file {tiny} MODEL.RESNETS.DEPTH 51",
            "nothing can be built from it",
            marks=pytest.mark.detectron2,
        ),
        ("--config-file {tiny} SOLVER.WARMUP_METHOD x", "nothing can be built from it"),
        (
            "--config-file {tiny} INPUT.BRIGHTNESS (1,)",
            "INPUT.BRIGHTNESS (1,): a list of two",
        ),
        ("--config-file {tiny} INPUT.RANDOM_FLIP x", "INPUT.RANDOM_FLIP x: one of none"),
        ("--config-file {tiny} --folds 6", "--folds 6: 2 to 5 are expected, as the data has 5"),
        ("--config-file {tiny} --folds 5 -b 5", "which has 4 images after the split"),
        (
            "--config-file {tiny} --folds 2 MODEL.ANCHOR_GENERATOR.SIZES [[8],[9]]",
            "SIZES|built from",
        ),
        ("--config-file {tiny} DATA.FOLDS 2 DATA.FOLD 3", "DATA.FOLDS 2 and DATA.FOLD 3: 2 folds"),
        ("--config-file {tiny} --folds 999999999", "--folds 999999999: 2 to 5 are expected"),
        ("--folds 1", "--folds 1: 2 or more is expected"),
        ("--num_machines 0", "--num_machines 0: 1 or more is expected"),
        ("--folds 2 --val_fraction 0.5", "--folds and --val_fraction: each fold is held out once"),
        ("--folds 2 --num_machines 2 --dist_url tcp://a:1", "--folds and --num_machines: give"),
        ("--resume --folds 2", "--resume and --folds: the run has its own"),
        ("--resume MODEL.WEIGHTS x.pth", "--resume and MODEL.WEIGHTS: the run has its own"),
        (
            "--config-file {tiny} --seed -1 --num_machines 2 --dist_url tcp://a:1",
            "--seed -1: each machine would draw another",
        ),
        ("--config-file {tiny} --resume", "--resume and --config_file"),
        ("--resume", "no unfinished run in it to resume"),
        ("--resume nowhere", "nowhere: not a run"),
    ],
)
def test_what_can_not_be_done_is_one_line(tiny, cells, tmp_path, words, expected):
    argv = ["--data", cells, "--output_dir", tmp_path / "runs", *words.format(tiny=tiny).split()]
    if "--groups" in words:
        argv += ["--val_fraction", "0.5"]
    if "--device" not in words:
        argv = ["--device", "cpu", *argv]
    with pytest.raises(InputError) as caught:
        train.main([str(word) for word in argv])
    message = str(caught.value)
    assert any(part in message for part in expected.split("|")), message
    assert "\n" not in message
    assert not list(tmp_path.glob("runs/*/*")), "a run folder was left behind"


# --- the run folder


def test_the_run_folder(run, cells):
    there = {path.name for path in run.iterdir()}
    assert {runs.CONFIG, runs.RECORD, runs.LAST, runs.FINAL, runs.BEST, "log.txt"} <= there
    assert not [name for name in there if name.startswith(".")]
    cfg = config.load_config(run / runs.CONFIG)
    assert cfg.OUTPUT_DIR == str(run)
    assert cfg.DATA.ROOT == str(cells)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4
    record = runs.read_record(run)
    assert len(record["train"]) == 3
    assert len(record["held_out"]) == 2
    names = {path.name for path in (cells / "train").iterdir()}
    assert {*record["train"], *record["held_out"]} == names
    assert "--val_fraction" in record["command"]
    assert record["annotations"]["sha256"] == runs.file_hash(cells / "train__annot.json")
    assert [category["id"] for category in record["categories"]] == [1, 2, 3, 4]
    last, final, best = (load(run / name) for name in (runs.LAST, runs.FINAL, runs.BEST))
    assert last["trainer"]["iteration"] == 4
    assert final["iteration"] == 4
    assert best["iteration"] in (2, 4)
    assert 0 <= best["AP50"] <= 100
    for name, value in final["model"].items():
        assert torch.equal(value, last["model"][name])


def test_the_curves(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"total_loss", "lr", "validation/AP50", "validation/AP"} <= set(tags)
    assert [event.step for event in events.Scalars("validation/AP50")] == [1, 3]
    # Truth beside prediction, for each of the two validation images each time.
    pictures = events.Tags()["images"]
    assert pictures == [f"held out/{name}" for name in runs.read_record(run)["held_out"]]
    for picture in pictures:
        assert [event.step for event in events.Images(picture)] == [1, 3]
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert math.isfinite(lines[-1]["total_loss"])


def test_the_same_seed_gives_the_same_weights(go, tmp_path):
    weights = []
    for n, seed in enumerate((5, 5, 6)):
        assert go("--seed", seed, "SOLVER.MAX_ITER", 1, root=tmp_path / str(n)) == 0
        weights.append(load(only_run(tmp_path / str(n)) / runs.FINAL)["model"])
    first, second, other = weights
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_run_can_be_repeated_from_its_config(run, tmp_path):
    again = train.main(
        ["--config-file", str(run / runs.CONFIG), "--output_dir", str(tmp_path), "--device", "cpu"]
    )
    assert again == 0
    (repeated,) = tmp_path.glob("tiny/*")
    first, second = (load(path / runs.FINAL)["model"] for path in (run, repeated))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_optimizer_and_scheduler_trains(go, tmp_path, optimizer, scheduler):
    assert go("-o", optimizer, "-s", scheduler, "SOLVER.MAX_ITER", 2, "SEED", -1) == 0
    last = load(only_run(tmp_path / "runs") / runs.LAST)
    assert last["trainer"]["iteration"] == 2


def test_loading_processes(go):
    assert go("--num_workers", 1, "SOLVER.MAX_ITER", 2) == 0


@pytest.mark.parametrize(
    ("device", "words", "expected"),
    [
        ("cpu", [], 0),
        ("cuda", [], 4),
        ("cuda:1", ["-m", "mask_rcnn_R_50_FPN_3x", "--num_workers", "7"], 7),
        ("cuda", ["--num_workers", "0"], 0),
        ("cuda", ["DATALOADER.NUM_WORKERS", "0"], 0),
    ],
)
def test_a_gpu_does_not_wait_for_one_process_that_loads(monkeypatch, device, words, expected):
    monkeypatch.setattr(train, "choose_device", lambda *_: device)
    monkeypatch.setattr(session, "count_cores", lambda: 8)
    recipe = [] if "-m" in words else ["-m", "small_fpn"]
    assert configured(*recipe, *words).DATALOADER.NUM_WORKERS == expected


@pytest.mark.parametrize("words", [["--num_workers", "999"], ["DATALOADER.NUM_WORKERS", "999"], []])
def test_no_more_loading_processes_than_cores(monkeypatch, words):
    """Of more, torch warns."""
    monkeypatch.setattr(session, "count_cores", lambda: 3)
    assert configured(*words).DATALOADER.NUM_WORKERS == 3


def test_the_parameters_that_learn_are_counted(go, tmp_path, monkeypatch, capsys):
    assert go("SOLVER.MAX_ITER", 1, "MODEL.BACKBONE.FREEZE_AT", 0) == 0
    out = capsys.readouterr().out
    weights = load(only_run(tmp_path / "runs") / runs.FINAL)["model"]
    statistics = ("running_mean", "running_var", "num_batches_tracked", "cell_anchors.0")
    learnt = sum(value.numel() for n, value in weights.items() if not n.endswith(statistics))
    assert f"trainable parameters: {learnt:,}" in out
    assert "warning" not in out
    monkeypatch.setattr(session, "MAX_PARAMETERS", learnt - 1)
    assert go("SOLVER.MAX_ITER", 1) == 0
    assert f"warning: the homework allows {learnt - 1:,} trainable" in capsys.readouterr().out


def test_an_epoch_is_longer_where_images_are_repeated(cells):
    """At a threshold of 4, an image whose rarest class is in a part f comes 2 / √f times."""
    presence: dict[int, set[int]] = {}
    for annotation_ in coco_of(cells)["annotations"]:
        presence.setdefault(annotation_["image_id"], set()).add(annotation_["category_id"])
    part = {c: sum(c in there for there in presence.values()) / 5 for c in range(1, 5)}
    samples = sum(2 / math.sqrt(min(part[c] for c in there)) for there in presence.values())
    cfg = configured("-m", "demo", "-e", "3", "-b", "2", "--data", str(cells))
    session.prepare(cfg)
    assert cfg.SOLVER.MAX_ITER == 8  # 3 · 5 images in twos
    cfg.DATALOADER.REPEAT_THRESHOLD = 4.0
    session.prepare(cfg)
    assert cfg.SOLVER.MAX_ITER == math.ceil(3 * math.ceil(samples) / 2) > 15


def test_a_batch_is_drawn_and_nothing_trained(go, tmp_path, capsys):
    path = tmp_path / "pictures" / "batch.png"
    assert go("--show-batch", path, "--weights", "imagenet", "-b", 3) == 0
    with Image.open(path) as picture:
        assert min(picture.size) > 100
    assert f"{path}: " in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_no_validation_without_validation_images(go, tmp_path, capsys):
    assert go("SOLVER.MAX_ITER", 1) == 0
    run = only_run(tmp_path / "runs")
    assert (run / runs.FINAL).is_file()
    assert not (run / runs.BEST).exists()
    out = capsys.readouterr().out
    assert "training tiny on cpu: 5 images, 4 classes; 1 iterations of 2 images" in out
    assert "the warm-up of 1 iterations is longer than the run" in out
    assert f"python inference.py --checkpoint {run}" in out


def test_groups_are_not_split(go, cells, tmp_path):
    names = sorted(path.name for path in (cells / "train").iterdir())
    groups = tmp_path / "groups.csv"
    with groups.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "group"), *((name, n // 2) for n, name in enumerate(names))]
        )
    assert go("--val_fraction", 0.5, "--groups", groups, "SOLVER.MAX_ITER", 1) == 0
    held = runs.read_record(only_run(tmp_path / "runs"))["held_out"]
    assert held
    for n in range(0, 5, 2):
        assert len({name in held for name in names[n : n + 2]}) == 1


# --- stopping and going on


def at_iteration(monkeypatch, number, act):
    """Do something in the middle of a training, after so many iterations."""
    step = Trainer.run_step

    def run_step(self):
        step(self)
        if self.iter + 1 == number:
            act(self)

    monkeypatch.setattr(Trainer, "run_step", run_step)


def rates_of(monkeypatch):
    seen = []
    step = Trainer.run_step

    def run_step(self):
        seen.append((self.iter, self.step.optimizer.param_groups[0]["lr"]))
        step(self)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    return seen


SIX = ["--val_fraction", 0.4, "SOLVER.MAX_ITER", 6, "SOLVER.WARMUP_ITERS", 2]
SIX += ["SOLVER.CHECKPOINT_PERIOD", 100, "TEST.EVAL_PERIOD", 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_where_it_was(go, tmp_path, monkeypatch, capsys, number):
    handler = signal.getsignal(number)
    whole = rates_of(monkeypatch)
    assert go(*SIX, root=tmp_path / "whole") == 0
    monkeypatch.undo()

    parts = rates_of(monkeypatch)
    with monkeypatch.context() as patched:
        at_iteration(patched, 3, lambda _trainer: os.kill(os.getpid(), number))
        assert go(*SIX) == 130
    run = only_run(tmp_path / "runs")
    output = capsys.readouterr()
    assert f"stopped after iteration 3 of 6; go on with: python train.py --resume {run}" in (
        output.out
    )
    assert "stopping after this iteration" in output.err
    assert signal.getsignal(number) is handler
    assert not (run / runs.FINAL).exists()
    assert load(run / runs.LAST)["trainer"]["iteration"] == 3
    best = load(run / runs.BEST)

    # A best score that nothing reaches any more shows that it is known again.
    torch.save({**best, "AP50": 99.5}, run / runs.BEST)
    last = load(run / runs.LAST)
    last["trainer"]["hooks"]["Validation"]["best"] = 99.5
    torch.save(last, run / runs.LAST)
    assert train.main(["--resume", "--output_dir", str(tmp_path / "runs"), "--device", "cpu"]) == 0
    assert load(run / runs.BEST)["AP50"] == 99.5
    assert parts == whole
    assert [n for n, _ in parts] == list(range(6))

    there, here = (load(path / runs.LAST) for path in (only_run(tmp_path / "whole"), run))
    assert here["trainer"]["iteration"] == there["trainer"]["iteration"]
    assert here["step"]["schedule"] == there["step"]["schedule"]
    assert same(here["step"]["optimizer"], there["step"]["optimizer"])
    assert same(here["model"], there["model"])

    assert train.main(["--resume", str(run), "--device", "cpu"]) == 0
    assert "nothing left to do: 6 iterations are done" in capsys.readouterr().out


def test_a_second_signal_stops_at_once(go, tmp_path, monkeypatch):
    def twice(_trainer):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_iteration(monkeypatch, 3, twice)
    with pytest.raises(KeyboardInterrupt):
        go("SOLVER.CHECKPOINT_PERIOD", 2)
    assert load(only_run(tmp_path / "runs") / runs.LAST)["trainer"]["iteration"] == 2


def test_a_finished_run_can_be_made_longer(run, tmp_path):
    copy = tmp_path / "tiny" / "copy"
    shutil.copytree(run, copy)
    assert train.main(["--resume", str(copy), "--device", "cpu", "SOLVER.MAX_ITER", "5"]) == 0
    assert load(copy / runs.FINAL)["iteration"] == 5


def test_a_run_killed_before_its_first_checkpoint_begins_again(run, tmp_path):
    copy = tmp_path / "tiny" / "copy"
    copy.mkdir(parents=True)
    for name in (runs.CONFIG, runs.RECORD):
        shutil.copy(run / name, copy)
    root = ["--output_dir", str(tmp_path)]
    assert train.main(["--resume", *root, "--device", "cpu", "--model", "tiny"]) == 0
    assert load(copy / runs.FINAL)["iteration"] == 4


@pytest.fixture
def stopped(run, tmp_path):
    """A copy of the run as if it had been stopped after 3 iterations."""
    copy = tmp_path / "tiny" / "copy"
    shutil.copytree(run, copy)
    (copy / runs.FINAL).unlink()
    state = load(copy / runs.LAST)
    state["trainer"]["iteration"] = 3
    torch.save(state, copy / runs.LAST)
    return copy


def refused(*words):
    with pytest.raises(InputError) as caught:
        train.main([str(word) for word in words])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("words", [["--val_fraction", 0.2], ["--seed", 1], ["--val_fraction", 0]])
def test_validation_images_stay_the_same(stopped, words):
    assert "held out other images when it began" in refused(
        "--resume", stopped, "--device", "cpu", *words
    )


def test_the_data_must_be_the_same(stopped, cells, tmp_path):
    other = tmp_path / "other.json"
    other.write_text((cells / "train__annot.json").read_text() + "\n")
    message = refused("--resume", stopped, "--device", "cpu", "--annotations", other)
    assert message.startswith(f"{other}: not the annotations that")


@pytest.mark.parametrize("name", [runs.LAST, runs.BEST, runs.CONFIG, runs.RECORD])
def test_damaged_files_of_a_run(stopped, name):
    path = stopped / name
    path.write_bytes(path.read_bytes()[:1000] + b"\n}")
    assert str(path) in refused("--resume", stopped, "--device", "cpu")


def test_a_checkpoint_of_another_network(stopped):
    kept = (stopped / runs.CONFIG).read_bytes()
    message = refused("--resume", stopped, "--device", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", 16)
    assert "can't be loaded as weights" in message
    assert "another shape" in message
    assert (stopped / runs.LAST).is_file()
    assert (stopped / runs.CONFIG).read_bytes() == kept


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--optimizer", "Adagrad"], "--optimizer Adagrad: .* began with AdamW, and goes on"),
        (["--batch_size", 1], "--batch_size 1: .* began with 2, and goes on from its steps"),
    ],
)
def test_a_run_goes_on_in_its_own_steps(stopped, words, expected):
    assert re.match(expected, refused("--resume", stopped, "--device", "cpu", *words))


def test_the_decay_and_the_rate_can_change(stopped):
    words = ["SOLVER.WEIGHT_DECAY", "0.25", "SOLVER.BASE_LR", "0.5", "SOLVER.MAX_ITER", "5"]
    assert train.main(["--resume", str(stopped), "--device", "cpu", *words]) == 0
    groups = load(stopped / runs.LAST)["step"]["optimizer"]["param_groups"]
    assert 0.25 in {group["weight_decay"] for group in groups}
    assert max(group["lr"] for group in groups) > 0.001
    assert config.load_config(stopped / runs.CONFIG).SOLVER.WEIGHT_DECAY == 0.25


def test_weights_alone_are_no_checkpoint(stopped, run):
    shutil.copy(run / runs.FINAL, stopped / runs.LAST)
    assert "without step, trainer" in refused("--resume", stopped, "--device", "cpu")


# --- early stopping


def scores(monkeypatch, *ap50):
    """Let the validation images score these numbers, one after the other."""
    coming = iter(ap50)

    def test(_cls, _cfg, _network, _data, _show):
        value = next(coming)
        return AveragePrecision(100, value, value, value, *(np.full(4, value),) * 3)

    monkeypatch.setattr(Trainer, "test", classmethod(test))


PATIENT = ["--val_fraction", 0.4, "SOLVER.MAX_ITER", 9, "TEST.EVAL_PERIOD", 1]
PATIENT += ["TEST.PATIENCE", 2, "SOLVER.CHECKPOINT_PERIOD", 100]


def test_a_score_that_no_longer_rises_ends_the_training(go, tmp_path, monkeypatch, capsys):
    scores(monkeypatch, 0.1, 0.05, 0.2, 0.2, 0.15)
    assert go(*PATIENT) == 0
    run = only_run(tmp_path / "runs")
    out = capsys.readouterr().out
    assert "stopping early: no better AP50 in the last 2 scores (TEST.PATIENCE)" in out
    assert f"finished; predict with: python inference.py --checkpoint {run}" in out
    assert load(run / runs.BEST)["iteration"] == 3
    assert load(run / runs.FINAL)["iteration"] == 5
    assert load(run / runs.LAST)["trainer"]["iteration"] == 5
    lines = (run / runs.METRICS).read_text().splitlines()
    assert json.loads(lines[-1])["validation/AP50"] == pytest.approx(15)

    # It has ended, and goes on only with more patience.
    assert train.main(["--resume", str(run), "--device", "cpu"]) == 0
    assert "nothing left to do: 5 iterations are done" in capsys.readouterr().out
    scores(monkeypatch, 0.1, 0.1)
    assert train.main(["--resume", str(run), "--device", "cpu", "TEST.PATIENCE", "4"]) == 0
    assert load(run / runs.FINAL)["iteration"] == 7


def test_the_scores_without_a_rise_are_counted_across_a_stop(go, tmp_path, monkeypatch):
    scores(monkeypatch, 0.3, 0.2, 0.1)
    with monkeypatch.context() as patched:
        at_iteration(patched, 2, lambda _trainer: os.kill(os.getpid(), signal.SIGTERM))
        assert go(*PATIENT) == 130
    run = only_run(tmp_path / "runs")
    assert train.main(["--resume", str(run), "--device", "cpu"]) == 0
    assert load(run / runs.FINAL)["iteration"] == 3


def test_a_run_can_t_be_resumed_to_be_shorter_than_it_is(go, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        at_iteration(patched, 2, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert go("SOLVER.MAX_ITER", 4) == 130
    run = only_run(tmp_path / "runs")
    before = (run / runs.CONFIG).read_text()
    words = ["--resume", str(run), "--device", "cpu"]
    line = refused(*words, "SOLVER.MAX_ITER", "2")
    assert "2 iterations are done on the way to more, and 2 are wanted now; want more" in line
    assert (run / runs.CONFIG).read_text() == before
    assert train.main(words) == 0
    assert load(run / runs.FINAL)["iteration"] == 4


def test_validation_images_without_cells_choose_no_best_weights(go, tmp_path, monkeypatch, capsys):
    nan = math.nan
    none = AveragePrecision(100, nan, nan, nan, *(np.full(4, nan),) * 3)
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: none))
    words = ["--val_fraction", 0.4, "TEST.EVAL_PERIOD", 1, "TEST.PATIENCE", 1]
    assert go(*words, "SOLVER.MAX_ITER", 3) == 0
    run = only_run(tmp_path / "runs")
    assert load(run / runs.FINAL)["iteration"] == 3
    assert not (run / runs.BEST).exists()
    assert (
        "iteration 3: no score, since the held-out images have no cells" in capsys.readouterr().out
    )


def test_a_training_leaves_nothing_of_itself(go, monkeypatch):
    """What a cycle held, a GPU would have no room beside for the next fold."""
    seen = []
    init = Trainer.__init__

    def remembered(self, cfg, data):
        seen.append(weakref.ref(self))
        init(self, cfg, data)

    monkeypatch.setattr(Trainer, "__init__", remembered)
    gc.disable()
    try:
        assert go("--val_fraction", 0.4, "SOLVER.MAX_ITER", 1) == 0
        assert seen
        assert seen[0]() is None
    finally:
        gc.enable()


def test_a_process_that_loads_images_and_is_killed(go, monkeypatch):
    def killed(*_):
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error.")
        yield

    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(killed))
    with pytest.raises(InputError, match="perhaps for want of memory, or of shared memory in a"):
        go("SOLVER.MAX_ITER", 1)


def test_a_note_on_random_layers_that_are_frozen(go, capsys):
    words = ["--weights", "none", "SOLVER.MAX_ITER", 1]
    assert go(*words) == 0
    assert "random layers" not in capsys.readouterr().out
    assert go(*words, "MODEL.BACKBONE.FREEZE_AT", 2) == 0
    assert (
        "without weights to begin with, random layers stay as they are" in capsys.readouterr().out
    )


# --- cross-validation


def folder_of_folds(root):
    (summary,) = root.glob(f"*/*/{runs.SUMMARY}")
    return summary.parent


def test_cross_validation(go, cells, tmp_path, capsys):
    assert go("--folds", 2, "--seed", -1, "SOLVER.MAX_ITER", 1) == 0
    folder = folder_of_folds(tmp_path / "runs")
    both = runs.list_fold_runs(folder)
    assert [run.name for run in both] == ["fold1", "fold2"]
    held = [runs.read_record(run)["held_out"] for run in both]
    assert sorted(map(len, held)) == [2, 3]
    assert {*held[0], *held[1]} == {path.name for path in (cells / "train").iterdir()}
    assert all((run / runs.FINAL).is_file() for run in both)

    summary = json.loads((folder / runs.SUMMARY).read_text())
    scores = [load(run / runs.BEST)["AP50"] for run in both]  # of the only score
    assert [fold["AP50"] for fold in summary["folds"]] == pytest.approx(scores)
    assert summary["AP50"]["mean"] == pytest.approx(sum(scores) / 2)
    out = capsys.readouterr().out
    assert "AP50 of the final weights over 2 folds, mean [95 % interval]:" in out
    assert "class4" in out


def test_cross_validation_goes_on_where_it_was(go, tmp_path, monkeypatch, capsys):
    second = []

    def in_the_second_fold(trainer):
        second.append(trainer)
        if len(second) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        at_iteration(patched, 1, in_the_second_fold)
        assert go("--folds", 2, "SOLVER.MAX_ITER", 2) == 130
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert f"go on with: python train.py --resume {folder}\n" in capsys.readouterr().out
    first = (folder / "fold1" / runs.FINAL).stat().st_mtime_ns
    words = ["--resume", str(folder), "--device", "cpu"]
    machines = ["--num_machines", "2", "--dist_url", "tcp://a:1"]
    assert "one machine goes on with" in refused(*words, *machines)
    assert train.main([*words, "--show-batch", str(tmp_path / "batch.png")]) == 0
    assert (tmp_path / "batch.png").is_file()
    assert not (folder / "fold2" / runs.FINAL).exists()  # it only draws
    words = ["--resume", "--output_dir", str(tmp_path / "runs"), "--device", "cpu"]
    assert train.main(words) == 0  # it is the newest
    assert folder_of_folds(tmp_path / "runs") == folder
    assert (folder / "fold1" / runs.FINAL).stat().st_mtime_ns == first
    assert "nothing left to do: 2 iterations are done" in capsys.readouterr().out


def test_a_stop_in_the_last_iteration_of_a_fold_is_one_before_the_next(go, tmp_path, monkeypatch):
    def stop(_trainer):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        at_iteration(patched, 1, stop)
        assert go("--folds", 2, "SOLVER.MAX_ITER", 1) == 130
        assert go("SOLVER.MAX_ITER", 1, root=tmp_path / "alone") == 0  # nothing is left of it
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert [(run / runs.FINAL).is_file() for run in runs.list_fold_runs(folder)] == [True, False]
    assert train.main(["--resume", str(folder), "--device", "cpu"]) == 0
    assert folder_of_folds(tmp_path / "runs") == folder


def test_a_fold_that_was_deleted_is_trained_again(go, tmp_path):
    assert go("--folds", 2, "SOLVER.MAX_ITER", 1) == 0
    folder = folder_of_folds(tmp_path / "runs")
    before = json.loads((folder / runs.SUMMARY).read_text())
    cfg = config.load_config(folder / "fold2" / runs.CONFIG)
    record = runs.read_record(folder / "fold2")
    words = ["--resume", str(folder), "--device", "cpu"]
    assert "fold1 began with 1, and goes on" in refused(*words, "DATA.FOLD", "2")
    for name in ("fold2", "fold1"):
        shutil.rmtree(folder / name)
        # Of other data than the folds that are left it is not begun.
        assert "held out other images" in refused(*words, "--seed", "7")
        assert not (folder / name).exists()
        (folder / name).mkdir()  # as it is when killed before its config is written
        assert train.main(words) == 0
        assert json.loads((folder / runs.SUMMARY).read_text()) == before
    assert config.load_config(folder / "fold2" / runs.CONFIG) == cfg
    assert runs.read_record(folder / "fold2")["held_out"] == record["held_out"]


def test_one_fold_alone(go, tmp_path):
    words = ["DATA.FOLDS", 2, "DATA.FOLD", 2, "SOLVER.MAX_ITER", 1]
    assert go(*words) == 0
    run = only_run(tmp_path / "runs")
    assert len(runs.read_record(run)["held_out"]) in (2, 3)
    assert (run / runs.FINAL).is_file()


# --- divergence


def meddle(monkeypatch, act):
    """Let `act` change the losses of each step: it takes them and how many steps there were."""
    build = Trainer.build_model

    def build_model(_cls, cfg):
        network = build(cfg)
        forward, calls = network.forward, []

        def meddled(samples):
            calls.append(1)
            return act(forward(samples), len(calls))

        network.forward = meddled
        return network

    monkeypatch.setattr(Trainer, "build_model", classmethod(build_model))


def poison(monkeypatch, name, call):
    """Make a loss NaN at the n-th step."""

    def act(losses, number):
        return losses | {name: losses[name] * math.nan} if number == call else losses

    meddle(monkeypatch, act)


def test_a_loss_that_is_not_a_number(go, tmp_path, monkeypatch):
    poison(monkeypatch, "loss_mask", 3)
    with pytest.raises(InputError) as caught:
        go("SOLVER.CHECKPOINT_PERIOD", 1)
    run = only_run(tmp_path / "runs")
    message = str(caught.value)
    assert "training diverged at iteration 3: loss_mask is nan; " in message
    assert f"the last good checkpoint is {run / runs.LAST}; lower --lr (now 0.001)" in message
    last = load(run / runs.LAST)
    assert last["trainer"]["iteration"] == 2
    assert all(torch.isfinite(value).all() for value in last["model"].values())
    assert not (run / runs.FINAL).exists()
    monkeypatch.undo()
    assert train.main(["--resume", str(run), "--device", "cpu"]) == 0


def test_divergence_before_any_checkpoint(go, monkeypatch):
    poison(monkeypatch, "loss_rpn_cls", 1)
    with pytest.raises(InputError, match=r"iteration 1: loss_rpn_cls is nan; no checkpoint had"):
        go()


def test_a_rate_far_too_high(go):
    with pytest.raises(InputError, match="training diverged at iteration"):
        go("-o", "SGD", "--lr", "1e30", "SOLVER.WARMUP_ITERS", 0)


@pytest.mark.parametrize("iterations", [2, 3])
def test_weights_that_are_not_finite_are_never_saved(go, tmp_path, monkeypatch, iterations):
    def ruin(trainer):
        with torch.no_grad():
            next(trainer.step.network.parameters())[0] = math.inf

    at_iteration(monkeypatch, 2, ruin)
    options = ["SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", iterations]
    with pytest.raises(InputError, match=r"iteration 2: the weights backbone\.\S+ are not fi"):
        go("--val_fraction", 0.4, *options)
    run = only_run(tmp_path / "runs")
    for name in (runs.LAST, runs.BEST):
        state = load(run / name)["model"]
        assert all(torch.isfinite(value).all() for value in state.values())
    assert not (run / runs.FINAL).exists()


def test_a_gpu_without_memory(go, monkeypatch):
    def act(_losses, _number):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    meddle(monkeypatch, act)
    with pytest.raises(InputError, match="too small for 2 images at once; split the batch"):
        go()


def test_full_disk(go, tmp_path):
    """No file may be longer than 100 kB: the checkpoint breaks off in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            InputError, match=r"last\.pth: the checkpoint can't be written, \d+ MiB"
        ):
            go("SOLVER.CHECKPOINT_PERIOD", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    run = only_run(tmp_path / "runs")
    assert not [path for path in run.iterdir() if "pth" in path.name]
    assert train.main(["--resume", str(run), "--device", "cpu"]) == 0


# --- bad data


def coco_of(folder):
    return json.loads((folder / "train__annot.json").read_text())


@pytest.fixture
def own(cells, tmp_path):
    """A copy of the data that the test may damage."""
    return Path(shutil.copytree(cells, tmp_path / "own"))


def refusal(go, data, *words):
    with pytest.raises(InputError) as caught:
        go(*words, data=data)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def test_no_annotations(go, own):
    (own / "train__annot.json").unlink()
    message = refusal(go, own)
    assert "train__annot.json: no such file" in message
    assert "annotation.py" in message


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": []}', "hello"])
def test_annotations_that_are_not_coco(go, own, text):
    (own / "train__annot.json").write_text(text)
    assert "train__annot.json: not " in refusal(go, own)


@pytest.mark.parametrize("name", ["class1.tif", "CLASS4.TIF", "cells.geojson", "cells.xml"])
def test_annotations_older_than_the_masks(go, own, name):
    mask = next((own / "train").iterdir()) / name
    mask.touch()
    made = (own / "train__annot.json").stat().st_mtime
    os.utime(mask, (made + 10, made + 10))
    message = refusal(go, own)
    assert f"train__annot.json: older than {mask}" in message
    assert "run python annotation.py again" in message
    os.utime(mask, (made - 10, made - 10))
    assert go("SOLVER.MAX_ITER", 1, data=own) == 0


def test_images_that_moved(go, own):
    folder = sorted((own / "train").iterdir())[2]
    folder.rename(own / "elsewhere")
    message = refusal(go, own)
    assert f"{folder / 'image.tif'}: no such file, but" in message
    assert "--data" in message


def test_images_of_another_size(go, own):
    image = sorted((own / "train").iterdir())[1] / "image.tif"
    tifffile.imwrite(image, np.zeros((9, 8, 3), np.uint8))
    assert f"{image}: 9 x 8 pixels (height x width), but" in refusal(go, own)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image(go, own, workers):
    """Its header is whole, so that it shows only when its pixels are read."""
    for image in own.glob("train/*/image.tif"):
        content = bytearray(image.read_bytes())
        with tifffile.TiffFile(image) as tiff:
            page = tiff.pages[0]
            begin, length = page.dataoffsets[0], page.databytecounts[0]
        content[begin : begin + length] = b"\xff" * length
        image.write_bytes(content)
    message = refusal(go, own, "--num_workers", workers)
    assert message.startswith(str(own / "train"))
    assert "damaged" in message


def test_no_cell_at_all(go, make_cells, tmp_path):
    data = make_cells(tmp_path / "empty", n_train=2, n_test=1, n_empty=2)
    assert "no cell in it, so there is nothing to learn" in refusal(go, data)


def test_images_without_cells_are_trained_on(go, make_cells, tmp_path):
    data = make_cells(tmp_path / "half", n_train=2, n_test=1, n_empty=1)
    assert go("SOLVER.MAX_ITER", 2, data=data) == 0
    options = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True", "SOLVER.MAX_ITER", 1]
    assert go("-b", 1, *options, data=data) == 0


def test_classes_come_from_the_annotations(go, own, tmp_path):
    assert annotation.main(["--data", str(own), "--class_names", *"abcdefg"]) == 0
    assert go("SOLVER.MAX_ITER", 1, data=own) == 0
    run = only_run(tmp_path / "runs")
    assert config.load_config(run / runs.CONFIG).MODEL.ROI_HEADS.NUM_CLASSES == 7
    shapes = {v.shape for v in load(run / runs.FINAL)["model"].values()}
    assert (8,) in shapes  # the scores of the seven and of the background
