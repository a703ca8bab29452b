"""train.py: flags, run folder, resuming, cross-validation, and errors."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import weakref
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import annotation
import evaluate
import inference
import train
import utils
from cellseg import config, runs
from cellseg.errors import InputError
from cellseg.keys import OPTIMIZERS, SCHEDULERS
from cellseg.learn import session
from tests.training import load, same, scores_of
from trainer import Trainer

ONE = pytest.mark.one_engine  # of single parameters

DEFAULTS = (
    "--model mask_rcnn_R_50_DC5_3x --epochs 225 --batch_size 14 --lr 0.001 --optimizer Adagrad "
    "--scheduler WarmupCosineLR"
)


@pytest.fixture
def go(tiny, cells, tmp_path, engine):
    """Train the tiny network for a few iterations; return the exit code."""

    def run(*words, data=cells, root=tmp_path / "runs", model=("--config-file", tiny)):
        argv = [*model, "--data", data, "--output_dir", root, "--device", "cpu"]
        argv += ["--engine", engine, *words]
        return train.main([str(word) for word in argv])

    return run


def only_run(root):
    (run,) = root.glob("*/*")
    return run


def resume(run, *words):
    """Resume a run on the CPU; return the exit code."""
    return train.main(["--resume", str(run), "--device", "cpu", *map(str, words)])


def refused(run, *words):
    """Return the error of resuming a run."""
    with pytest.raises(InputError) as caught:
        resume(run, *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def configured(*words):
    return train.setup(train.parse(["--weights", "none", "--device", "cpu", *words]))


# --- the command line


def test_the_command_of_the_readme():
    cfg = configured(*DEFAULTS.split())
    assert cfg.RECIPE == "mask_rcnn_R_50_DC5_3x"
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (225, 14, 0.001)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LR_SCHEDULER_NAME) == ("Adagrad", "WarmupCosineLR")
    assert config.flatten(cfg) == config.flatten(configured())


def test_short_flags_and_other_names():
    long = train.parse(DEFAULTS.split())
    short = "-m mask_rcnn_R_50_DC5_3x -e 225 -b 14 -l 0.001 -o Adagrad -s WarmupCosineLR"
    assert train.parse(short.split()) == long
    assert train.parse(DEFAULTS.replace("--lr", "--base_lr").split()) == long
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


@pytest.mark.parametrize("words", ["SEED 3 SOLVER.MAX_ITER 5", "SOLVER.MAX_ITER 5 SEED 3"])
def test_keys_with_and_without_a_section_in_any_order(words):
    cfg = configured("-m", "demo", *words.split())
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (3, 5)


def test_defaults_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configured().DATA.ROOT == str(utils.PROJECT / "nycu-hw3-data")
    assert train.parse([]).output_dir == utils.PROJECT / "tensorboard"


@pytest.mark.parametrize("flag", ["--resume", "--show-batch"])
def test_keys_are_not_values_of_flags(flag):
    args = train.parse([flag, "SOLVER.MAX_ITER", "5"])
    assert args.options == ["SOLVER.MAX_ITER", "5"]
    assert vars(args)[flag[2:].replace("-", "_")] in ("newest", Path("batch.png"))


def test_options_override_flags():
    assert configured("--lr", "0.5", "SOLVER.BASE_LR", "0.25").SOLVER.BASE_LR == 0.25


def detectron2(*case):
    return pytest.param(*case, marks=pytest.mark.detectron2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model yolo", "--model yolo: "),
        ("--config-file {tiny} SOLVER.WARMUP_ITERS 5", "SOLVER.WARMUP_ITERS 5: "),
        ("--model mask_rcnn_R_50_DC5", "did you mean mask_rcnn_R_50_DC5_3x?"),
        ("--model demo --config-file x.yaml", "--model and --config_file: "),
        ("--config-file nowhere.yaml", "nowhere.yaml: "),
        ("--resume --weights coco", "--resume and --weights: "),
        ("--resume --config-file x.yaml", "--resume and --config_file: "),
        ("--resume x --model demo", "--resume and --model: "),
        ("--optimizer adam", "--optimizer (SOLVER.OPTIMIZER) adam: one of SGD, Adam, "),
        ("--scheduler Cosine", "--scheduler (SOLVER.LR_SCHEDULER_NAME) Cosine: one of"),
        ("--epochs 0", "--epochs 0.0: "),
        ("--epochs nan", "--epochs nan"),
        ("--epochs inf", "--epochs (SOLVER.EPOCHS) inf"),
        ("--epochs many", "invalid float value: 'many'"),
        ("--batch_size 0", "--batch_size (SOLVER.IMS_PER_BATCH) 0"),
        ("--batch_size 1.5", "invalid int value"),
        ("--lr 0", "--lr (SOLVER.BASE_LR) 0.0: "),
        ("--lr -1", "--lr (SOLVER.BASE_LR) -1.0: "),
        ("--val_fraction 1", "--val_fraction (DATA.VAL_FRACTION) 1.0: "),
        ("--num_workers -1", "--num_workers"),
        ("--seed -7", "--seed (SEED) -7"),
        ("--device abacus", "--device abacus: "),
        ("--what", "unrecognized arguments: --what|--what: flags must"),
        ("SOLVER.BASELR 1", "SOLVER.BASELR; did you mean SOLVER.BASE_LR?"),
        ("SOLVER.BASE_LR", "has no value"),
        ("SEED 1 --lr 2", "--lr: flags must"),
        ("SEED 1 -l 2", "-l: flags must"),
        ("SOLVER.WARMUP_FACTOR -3", "SOLVER.WARMUP_FACTOR -3.0: "),
        ("SOLVER.GAMMA -1", "SOLVER.GAMMA -1.0: "),
        ("SOLVER.MOMENTUM -1", "SOLVER.MOMENTUM -1.0: "),
        ("SOLVER.BIAS_LR_FACTOR nan", "SOLVER.BIAS_LR_FACTOR nan: "),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE -1", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE -1.0: "),
        ("--weights nowhere.pth", "--weights nowhere.pth: "),
        detectron2(
            "--model small_fpn --weights imagenet",
            "--weights imagenet: not available for small_fpn",
        ),
        detectron2("--model demo --weights coco", "--weights coco: not in Detectron2's zoo"),
        ("--config-file {tiny} -b 6", "--batch_size 6: larger than the training set, which has 5"),
        ("--config-file {tiny} --val_fraction 0.4 -b 4", "which has 3 images"),
        ("--config-file {tiny} --groups nowhere.json", "--groups"),
        ("--config-file {tiny} DATA.VAL_IMAGES ['nope','no']", "DATA.VAL_IMAGES: no, nope: not "),
        ("--config-file {tiny} --annotations nowhere.json", "nowhere.json: "),
        ("--model mask_rcnn_R_50_FPN_3x --annotations nowhere.json", "nowhere.json: "),
        ("--config-file {tiny} --output_dir {tiny}", "choose another --output_dir"),
        ("--config-file {tiny} DATA.LONGEST_CELL 50", "DATA.LONGEST_CELL 50.0: "),
        ("--config-file {tiny} DATA.CELLS_PER_MEGAPIXEL 9", "DATA.CELLS_PER_MEGAPIXEL 9.0: "),
        ("--model demo INPUT.MIN_SIZE_TRAIN (99,)", "INPUT.MIN_SIZE_TRAIN (99,): "),
        ("--model demo INPUT.CROP.SIZE [0.2,0.2]", "INPUT.CROP.SIZE [0.2, 0.2]: "),
        ("--config-file {tiny} INPUT.ZOOM 0 INPUT.WINDOW 99", "INPUT.WINDOW 99: "),
        detectron2(
            "--config-file {tiny} SEED 1 MODEL.BACKBONE.NAME x", "yaml MODEL.BACKBONE.NAME x: "
        ),
        detectron2(
            "--config-file {tiny} MODEL.RESNETS.DEPTH 51", "tiny.yaml MODEL.RESNETS.DEPTH 51: "
        ),
        detectron2(
            "--folds 2 --config-file {tiny} MODEL.BACKBONE.NAME x", "MODEL.BACKBONE.NAME x: "
        ),
        detectron2(
            "-m small_fpn --weights none MODEL.FPN.NORM x", "--model small_fpn MODEL.FPN.NORM x: "
        ),
        (
            "--config-file {tiny} INPUT.ZOOM_FROM_DATA True MODEL.RPN.IN_FEATURES []",
            "FEATURES []: the",
        ),
        ("--config-file {tiny} SOLVER.WARMUP_METHOD x", "SOLVER.WARMUP_METHOD x"),
        ("--config-file {tiny} INPUT.BRIGHTNESS (1,)", "INPUT.BRIGHTNESS (1,): "),
        ("--config-file {tiny} INPUT.RANDOM_FLIP x", "INPUT.RANDOM_FLIP x: one of none"),
        ("--config-file {tiny} --folds 6", "--folds 6: expected 2 to 5"),
        ("--config-file {tiny} --folds 5 -b 5", "which has 4 images"),
        ("--config-file {tiny} --folds 2 MODEL.ANCHOR_GENERATOR.SIZES [[8],[9]]", "SIZES|config"),
        ("--config-file {tiny} DATA.FOLDS 2 DATA.FOLD 3", "DATA.FOLDS 2 and DATA.FOLD 3: "),
        ("--config-file {tiny} --folds 999999999", "--folds 999999999: expected 2 to 5"),
        ("--folds 1", "--folds 1: 2 or more"),
        ("--num_machines 0", "--num_machines 0: 1 or more"),
        ("--folds 2 --val_fraction 0.5", "--folds and --val_fraction: "),
        ("--folds 2 --num_machines 2 --dist_url tcp://a:1", "--folds and --num_machines: "),
        ("--resume --folds 2", "--resume and --folds: "),
        ("--resume MODEL.WEIGHTS x.pth", "--resume and MODEL.WEIGHTS: "),
        ("--config-file {tiny} --seed -1 --num_machines 2 --dist_url tcp://a:1", "--seed -1: "),
        ("--config-file {tiny} --resume", "--resume and --config_file"),
        ("--config-file {tiny} RECIPE ../../x", "RECIPE ../../x: "),
        ("--config-file {tiny} RECIPE /x", "RECIPE /x: "),
        ("--config-file {tiny} RECIPE ..", "RECIPE ..: "),
        ("--resume", "runs: no unfinished run"),
        ("--resume nowhere", "nowhere: not a run"),
    ],
)
def test_errors_are_one_line(tiny, cells, tmp_path, words, expected):
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
    left = [path for path in tmp_path.rglob("*") if path.parent.parent != tmp_path]
    assert {path.name for path in left} <= {"runs"}, "a run folder was left behind"


@ONE
def test_a_class_without_training_cells_is_a_warning(go, cells, tmp_path, capsys):
    coco = json.loads((cells / "train__annot.json").read_text())
    first = coco["images"][0]
    for each in coco["annotations"]:  # the third class only in the first image
        each["category_id"] = 3 if each["image_id"] == first["id"] else 4
    n_first = sum(each["image_id"] == first["id"] for each in coco["annotations"])
    coco["categories"] = [{"id": n, "name": f"class{n}"} for n in (3, 4, 5)]
    file = tmp_path / "rare.json"
    file.write_text(json.dumps(coco))
    held_out = ["DATA.VAL_IMAGES", f"['{Path(first['file_name']).parent.name}']"]
    assert go("--annotations", file, "SOLVER.MAX_ITER", 1, *held_out) == 0
    err = capsys.readouterr().err
    assert f"can't be learnt: 2: class3 ({n_first} in the validation set), class5\n" in err


@ONE
def test_weights_of_a_run_with_other_classes_are_a_warning(go, cells, tmp_path, capsys):
    assert go("SOLVER.MAX_ITER", 1) == 0
    former = only_run(tmp_path / "runs")
    assert "classes are" not in capsys.readouterr().err
    coco = json.loads((cells / "train__annot.json").read_text())
    for category in coco["categories"]:
        category["name"] = f"class{5 - category['id']}"
    file = tmp_path / "turned.json"
    file.write_text(json.dumps(coco))
    assert go("--annotations", file, "--weights", former, "SOLVER.MAX_ITER", 1) == 0
    warning = "its classes are class1, class2, class3, class4, now they are class4, class3, class2"
    assert warning in (err := capsys.readouterr().err)
    assert "was trained on" not in err
    words = ["--folds", 2, "SOLVER.MAX_ITER", 1]
    assert go("--annotations", file, "--weights", former, *words) == 0
    assert warning in (err := capsys.readouterr().err)
    assert "was trained on 5 of the 5 validation images" in err
    assert go("--weights", former, "SOLVER.MAX_ITER", 1) == 0
    assert "classes are" not in capsys.readouterr().err


@ONE
def test_steps_after_the_end_of_a_run_are_a_warning(go, capsys):
    words = ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,2,30)"]
    assert go("--scheduler", "WarmupMultiStepLR", *words) == 0
    assert "SOLVER.STEPS 2, 30: not before the end" in capsys.readouterr().err
    fractions = ["SOLVER.MAX_ITER", 2, "SOLVER.STEP_FRACTIONS"]
    assert go("--scheduler", "WarmupMultiStepLR", *fractions, "(0.5,2)") == 0
    assert "SOLVER.STEP_FRACTIONS 2: not before the end" in capsys.readouterr().err
    assert go("--scheduler", "WarmupMultiStepLR", *fractions, "(0.5,0.9)") == 0  # rounded up
    assert "STEP" not in capsys.readouterr().err
    assert go(*words) == 0  # a cosine has no steps
    assert "STEPS" not in capsys.readouterr().err


@ONE
def test_weights_that_are_not_finite_are_refused(go, tmp_path):
    assert go("SOLVER.MAX_ITER", 1) == 0
    file = only_run(tmp_path / "runs") / runs.FINAL
    saved = load(file)
    name = next(iter(saved["model"]))
    saved["model"][name] = torch.full_like(saved["model"][name], torch.nan)
    torch.save(saved, tmp_path / "nan.pth")
    with pytest.raises(InputError, match=rf"nan\.pth: .*{re.escape(name)} is not finite"):
        go("--weights", tmp_path / "nan.pth", "SOLVER.MAX_ITER", 1)


@ONE
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["INPUT.ZOOM", "2"], "INPUT.ZOOM 2.0: "),
        (["DATA.MPP", "0.5"], "DATA.MPP 0.5: "),
        (["INPUT.FORMAT", "RGB"], "INPUT.FORMAT RGB: .* started with BGR"),
        (["MODEL.PIXEL_MEAN", "[1,2,3]"], r"MODEL.PIXEL_MEAN \[1, 2, 3\]: "),
        (["MODEL.PIXEL_STD", "[1,2,3]"], r"MODEL.PIXEL_STD \[1, 2, 3\]: "),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[9,33]]"], r"GENERATOR.SIZES .* with \[\[16, 32\]\]"),
        (["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.3,1.0,3.0]]"], "ASPECT_RATIOS .* with "),
        (["MODEL.BACKBONE.FREEZE_AT", "2"], r"last\.pth: .*backbone\..*trained before"),
    ],
)
def test_a_run_is_not_resumed_with_other_inputs_anchors_or_frozen_layers(
    go, tmp_path, words, expected
):
    assert go("SOLVER.MAX_ITER", 1) == 0
    assert re.search(expected, refused(only_run(tmp_path / "runs"), "SOLVER.MAX_ITER", 2, *words))


@ONE
def test_a_resumed_run_keeps_scale_anchors_and_length(go, tmp_path):
    """Those of its config, though others would be chosen from the data now."""
    keys = ["INPUT.ZOOM_FROM_DATA", True, "MODEL.ANCHOR_GENERATOR.FROM_DATA", True]
    assert go("--epochs", 1, "--batch_size", 2, "INPUT.WINDOW", 64, *keys) == 0
    run = only_run(tmp_path / "runs")
    cfg = config.load_config(run / runs.CONFIG)
    done, chosen = cfg.SOLVER.MAX_ITER, (cfg.INPUT.ZOOM, cfg.MODEL.ANCHOR_GENERATOR.SIZES)
    cfg.INPUT.ZOOM = 0.77
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[size + 1 for size in level] for level in chosen[1]]
    cfg.SOLVER.MAX_ITER = done + 1
    (run / runs.CONFIG).write_text(cfg.dump())
    assert resume(run) == 0
    own = config.load_config(run / runs.CONFIG)
    assert load(run / runs.LAST)["trainer"]["iteration"] == own.SOLVER.MAX_ITER == done + 1
    assert own.INPUT.ZOOM == 0.77 != chosen[0]
    assert own.MODEL.ANCHOR_GENERATOR.SIZES == cfg.MODEL.ANCHOR_GENERATOR.SIZES
    assert own.INPUT.ZOOM_FROM_DATA
    assert resume(run, "--epochs", 2) == 0
    assert done == 3  # 5 images in batches of 2, rounded up
    assert load(run / runs.LAST)["trainer"]["iteration"] == 5


# --- the run folder


def test_the_run_folder(run, cells):
    files = {path.name for path in run.iterdir()}
    assert {runs.CONFIG, runs.RECORD, runs.LAST, runs.FINAL, runs.BEST, "log.txt"} <= files
    assert not [name for name in files if name.startswith(".")]
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
    assert 0 <= best["AP50"] <= 1
    assert same(final["model"], last["model"])


def test_the_curves(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"total_loss", "lr", "validation/AP50", "validation/AP"} <= set(tags)
    assert [event.step for event in events.Scalars("validation/AP50")] == [1, 3]
    # Ground truth and detections of the two validation images, at each validation.
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
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.one_engine
def test_a_run_can_be_repeated_from_its_config(run, tmp_path):
    again = train.main(
        ["--config-file", str(run / runs.CONFIG), "--output_dir", str(tmp_path), "--device", "cpu"]
    )
    assert again == 0
    first, second = (load(path / runs.FINAL)["model"] for path in (run, only_run(tmp_path)))
    assert same(first, second)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "scheduler", [SCHEDULERS[0], *(pytest.param(s, marks=ONE) for s in SCHEDULERS[1:])]
)
def test_every_optimizer_and_scheduler_trains(go, tmp_path, optimizer, scheduler):
    assert go("-o", optimizer, "-s", scheduler, "SOLVER.MAX_ITER", 2, "SEED", -1) == 0
    last = load(only_run(tmp_path / "runs") / runs.LAST)
    assert last["trainer"]["iteration"] == 2


@pytest.mark.one_engine
def test_training_with_a_data_loading_worker(go):
    assert go("--num_workers", 1, "SOLVER.MAX_ITER", 2) == 0


@pytest.mark.parametrize(
    ("recipe", "device", "cores", "words", "expected"),
    [
        # The recipe of a CPU has none, as the network needs all cores; a GPU would wait for data.
        ("small_fpn", "cpu", 8, [], 0),
        ("small_fpn", "cuda", 8, [], 4),
        ("small_fpn", "cuda", 8, ["--num_workers", "0"], 0),
        ("small_fpn", "cuda", 8, ["DATALOADER.NUM_WORKERS", "0"], 0),
        ("mask_rcnn_R_50_FPN_3x", "cuda:1", 8, ["--num_workers", "7"], 7),
        # Never more than cores; the recipe's number is 4.
        ("mask_rcnn_R_50_DC5_3x", "cpu", 3, [], 3),
        ("mask_rcnn_R_50_DC5_3x", "cpu", 3, ["--num_workers", "999"], 3),
        ("mask_rcnn_R_50_DC5_3x", "cpu", 3, ["DATALOADER.NUM_WORKERS", "999"], 3),
    ],
)
def test_the_number_of_data_loading_workers(monkeypatch, recipe, device, cores, words, expected):
    monkeypatch.setattr(train, "choose_device", lambda *_: device)
    monkeypatch.setattr(session, "count_cores", lambda: cores)
    assert configured("-m", recipe, *words).DATALOADER.NUM_WORKERS == expected


def test_trainable_parameters_are_counted(go, tmp_path, monkeypatch, capsys):
    assert go("SOLVER.MAX_ITER", 1, "MODEL.BACKBONE.FREEZE_AT", 0) == 0
    out, err = capsys.readouterr()
    weights = load(only_run(tmp_path / "runs") / runs.FINAL)["model"]
    statistics = ("running_mean", "running_var", "num_batches_tracked", "cell_anchors.0")
    n_trainable = sum(value.numel() for n, value in weights.items() if not n.endswith(statistics))
    assert f"trainable parameters: {n_trainable:,}" in out
    assert "trainable" not in err
    monkeypatch.setattr(session, "MAX_PARAMETERS", n_trainable - 1)
    assert go("SOLVER.MAX_ITER", 1) == 0
    message = f"NYCU HW3 allows {n_trainable - 1:,} trainable"
    assert f"warning: {message}" in capsys.readouterr().err
    logs = [path.read_text() for path in (tmp_path / "runs").glob("*/*/log.txt")]
    assert sum(f"WARNING: {message}" in text for text in logs) == 1


def test_an_epoch_is_longer_where_images_are_repeated(cells):
    """Threshold 4: an image whose rarest class is in a fraction f has the factor 2 / √f."""
    presence: dict[int, set[int]] = {}
    for annotation_ in json.loads((cells / "train__annot.json").read_text())["annotations"]:
        presence.setdefault(annotation_["image_id"], set()).add(annotation_["category_id"])
    fraction = {c: sum(c in classes for classes in presence.values()) / 5 for c in range(1, 5)}
    samples = sum(2 / math.sqrt(min(fraction[c] for c in ids)) for ids in presence.values())
    words = ["-e", "3", "-b", "2", "--data", str(cells), "INPUT.WINDOWS_BY_AREA", "False"]
    cfg = configured("-m", "demo", *words)
    session.prepare(cfg)
    assert cfg.SOLVER.MAX_ITER == 8  # 3 · 5 images in batches of 2
    cfg.DATALOADER.REPEAT_THRESHOLD = 4.0
    session.prepare(cfg)
    assert cfg.SOLVER.MAX_ITER == math.ceil(3 * math.ceil(samples) / 2) > 15


def test_epochs_of_the_command_line_are_not_lengthened():
    assert configured("-m", "lite_fpn").SOLVER.MIN_ITER == 800
    assert configured("-m", "lite_fpn", "-e", "2").SOLVER.MIN_ITER == 0


@pytest.mark.one_engine
def test_too_little_memory_for_samples_is_one_line(go, monkeypatch):
    monkeypatch.setattr("cellseg.learn.mapper.read_image", Mock(side_effect=MemoryError))
    with pytest.raises(InputError, match=r"the memory is too small for 2 images at once"):
        go()


@pytest.mark.one_engine
def test_show_batch(go, tmp_path, capsys):
    path = tmp_path / "pictures" / "batch.png"
    assert go("--show-batch", path, "--weights", "imagenet", "-b", 3) == 0
    with Image.open(path) as picture:
        assert min(picture.size) > 100
    assert f"{path}: " in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@ONE
def test_show_batch_does_not_replace_other_files(go, tmp_path):
    path = tmp_path / "note.png"
    path.write_text("not a picture")
    with pytest.raises(InputError, match=r"note\.png.* --show_batch"):
        go("--show-batch", path)
    assert path.read_text() == "not a picture"


@ONE
def test_groups_without_validation_images(go, tmp_path):
    with pytest.raises(InputError, match=r"--groups .*--val_fraction"):
        go("--groups", tmp_path / "groups.csv")


@pytest.mark.one_engine
def test_no_validation_without_validation_images(go, tmp_path, capsys):
    assert go("SOLVER.MAX_ITER", 1) == 0
    run = only_run(tmp_path / "runs")
    assert (run / runs.FINAL).is_file()
    assert not (run / runs.BEST).exists()
    out, err = capsys.readouterr()
    assert "training tiny on cpu: 5 images, 4 classes; 1 iteration of 2 images" in out
    assert "warning: the warm-up of 1 iteration" in err
    assert f"python inference.py --checkpoint {run}" in out


@pytest.mark.one_engine
def test_the_warmup_of_a_recipe_is_shortened_for_a_short_run(go, tiny, tmp_path, capsys):
    """The user has chosen the number of epochs, not that of iterations to warm up."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"_BASE_: {tiny}\nSOLVER: {{WARMUP_EPOCHS: 20.0}}")  # 50 iterations
    assert go("--epochs", 1, model=("--config-file", recipe)) == 0
    run = only_run(tmp_path / "runs")
    out, err = capsys.readouterr()
    assert "SOLVER.WARMUP_ITERS 0 instead of 50, as the run has only 3 iterations" in out
    assert "warm-up" not in err
    cfg = config.load_config(run / runs.CONFIG)
    session.prepare(cfg)  # as --resume does
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (3, 0)


@pytest.mark.one_engine
def test_groups_are_not_split(go, cells, tmp_path):
    names = sorted(path.name for path in (cells / "train").iterdir())
    groups = tmp_path / "groups.csv"
    lines = ["image,group", *(f"{name},{n // 2}" for n, name in enumerate(names))]
    groups.write_text("\n".join(lines))
    assert go("--val_fraction", 0.5, "--groups", groups, "SOLVER.MAX_ITER", 1) == 0
    validation = runs.read_record(only_run(tmp_path / "runs"))["held_out"]
    assert validation
    for n in range(0, 5, 2):
        assert len({name in validation for name in names[n : n + 2]}) == 1


# --- stopping and resuming


def at_iteration(monkeypatch, number, act):
    """Call `act` with the trainer after `number` iterations."""
    step = Trainer.run_step

    def run_step(self):
        step(self)
        if self.iter + 1 == number:
            act(self)

    monkeypatch.setattr(Trainer, "run_step", run_step)


def stop_at(monkeypatch, number):
    """Stop the training after `number` iterations, as `kill` does."""
    at_iteration(monkeypatch, number, lambda _trainer: os.kill(os.getpid(), signal.SIGTERM))


def rates_of(monkeypatch):
    """Record the iterations and their learning rates in the returned list."""
    rates = []
    step = Trainer.run_step

    def run_step(self):
        rates.append((self.iter, self.step.optimizer.param_groups[0]["lr"]))
        step(self)

    monkeypatch.setattr(Trainer, "run_step", run_step)
    return rates


SIX = ["--val_fraction", 0.4, "SOLVER.MAX_ITER", 6, "SOLVER.WARMUP_ITERS", 2]
SIX += ["SOLVER.CHECKPOINT_PERIOD", 100, "TEST.EVAL_PERIOD", 2]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.one_engine)]
)
def test_a_stopped_run_is_resumed(go, tmp_path, monkeypatch, capsys, number):
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
    assert "stopped after iteration 3 of 6" in output.out
    assert output.out.endswith(f"python train.py --resume {run}\n")
    assert "stopping after this iteration" in output.err
    assert signal.getsignal(number) is handler
    assert not (run / runs.FINAL).exists()
    assert load(run / runs.LAST)["trainer"]["iteration"] == 3
    best = load(run / runs.BEST)

    # A best score that can't be exceeded shows that it is restored.
    torch.save({**best, "AP50": 0.995}, run / runs.BEST)
    last = load(run / runs.LAST)
    last["trainer"]["hooks"]["Validation"]["best"] = 0.995
    torch.save(last, run / runs.LAST)
    assert train.main(["--resume", "--output_dir", str(tmp_path / "runs"), "--device", "cpu"]) == 0
    assert load(run / runs.BEST)["AP50"] == 0.995
    assert parts == whole
    assert [n for n, _ in parts] == list(range(6))

    expected, last = (load(path / runs.LAST) for path in (only_run(tmp_path / "whole"), run))
    assert last["trainer"]["iteration"] == expected["trainer"]["iteration"]
    for part in ("schedule", "optimizer"):
        assert same(last["step"][part], expected["step"][part])
    assert same(last["model"], expected["model"])

    assert resume(run) == 0
    assert "6 iterations done" in capsys.readouterr().out


@pytest.mark.one_engine
def test_a_finished_run_without_its_checkpoint_is_not_trained_anew(go, tmp_path):
    assert go("SOLVER.MAX_ITER", 1) == 0
    run = only_run(tmp_path / "runs")
    (run / runs.LAST).unlink()
    weights = (run / runs.FINAL).read_bytes()
    assert f"{run / runs.LAST}: no such file" in refused(run, "SOLVER.MAX_ITER", 2)
    assert (run / runs.FINAL).read_bytes() == weights
    # One that was stopped before its first checkpoint has nothing to lose.
    (run / runs.FINAL).unlink()
    assert resume(run) == 0
    assert (run / runs.FINAL).is_file()


@pytest.mark.one_engine
def test_a_stopped_run_without_its_checkpoint_starts_anew(go, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        stop_at(patched, 1)
        assert go("SOLVER.MAX_ITER", 2) == 130
    run = only_run(tmp_path / "runs")
    (run / runs.LAST).unlink()
    capsys.readouterr()
    assert resume(run) == 0
    assert f"warning: {run}: without a checkpoint" in capsys.readouterr().err


@pytest.mark.one_engine
def test_curves_have_the_rate_of_their_iteration(go, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        assert go("SOLVER.MAX_ITER", 6) == 130
    run = only_run(tmp_path / "runs")
    rates = rates_of(monkeypatch)
    assert resume(run) == 0
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [3, 5]  # also the last before the stop
    assert lines[1]["lr"] == pytest.approx(dict(rates)[5])
    assert dict(rates)[5] != dict(rates)[4]


@pytest.mark.one_engine
@pytest.mark.parametrize("lost", ["", runs.CONFIG])
def test_a_run_folder_that_vanishes_is_an_error(go, tmp_path, monkeypatch, capsys, lost):
    def remove(trainer):
        run = Path(trainer.cfg.OUTPUT_DIR)
        (run / lost).unlink() if lost else run.rename(tmp_path / "elsewhere")

    at_iteration(monkeypatch, 2, remove)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(InputError, match=f"{lost}: .*removed"):
        go("SOLVER.MAX_ITER", 2)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "finished" not in capsys.readouterr().out
    assert bool(list(tmp_path.glob("runs/*/*"))) == bool(lost)


@pytest.mark.one_engine
def test_a_second_signal_stops_immediately(go, tmp_path, monkeypatch):
    def twice(_trainer):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_iteration(monkeypatch, 3, twice)
    with pytest.raises(KeyboardInterrupt):
        go("SOLVER.CHECKPOINT_PERIOD", 2)
    assert load(only_run(tmp_path / "runs") / runs.LAST)["trainer"]["iteration"] == 2


@pytest.mark.one_engine
def test_a_finished_run_can_be_made_longer(run, tmp_path):
    copy = tmp_path / "tiny" / "copy"
    shutil.copytree(run, copy)
    assert resume(copy, "SOLVER.MAX_ITER", 5) == 0
    assert load(copy / runs.FINAL)["iteration"] == 5


@pytest.mark.one_engine
def test_a_finished_run_that_is_not_trained_keeps_its_config(run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "tiny" / "copy"))
    before = {path: path.read_bytes() for path in copy.glob("*") if path.name != "log.txt"}
    assert resume(copy, "--lr", 0.5, "TEST.MASK_IOU", 0.3) == 0
    assert "nothing to do: 4 iterations done" in capsys.readouterr().out
    for words in (["SOLVER.MAX_ITER", 3], ["--epochs", 0.5]):  # of 3 images in batches of 2
        assert f"--resume {copy}: 4 iterations already done, but" in refused(copy, *words)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.one_engine
def test_epochs_that_give_no_more_iterations_keep_the_config(go, tmp_path, capsys):
    """The 4 iterations of SOLVER.MIN_ITER are more than those of 2 epochs of 2."""
    assert go("--val_fraction", 0.2, "SOLVER.EPOCHS", 1.0, "SOLVER.MIN_ITER", 4) == 0
    run = only_run(tmp_path / "runs")
    before = (run / runs.CONFIG).read_text()
    assert resume(run, "--epochs", 2) == 0
    assert "nothing to do: 4 iterations done" in capsys.readouterr().out
    line = refused(run, "--epochs", 1.5)
    assert "4 iterations already done, but the run now ends after 3" in line
    assert (run / runs.CONFIG).read_text() == before


def test_final_weights_that_were_deleted_are_written_again(go, tmp_path, capsys):
    assert go("SOLVER.MAX_ITER", 2, "SOLVER.EMA", 0.5) == 0
    run = only_run(tmp_path / "runs")
    final = load(run / runs.FINAL)
    (run / runs.FINAL).unlink()
    assert "2 iterations already done" in refused(run, "SOLVER.MAX_ITER", 1)
    assert not (run / runs.FINAL).exists()
    assert resume(run) == 0
    assert same(load(run / runs.FINAL), final)
    assert runs.FINAL in capsys.readouterr().out


@pytest.mark.one_engine
def test_a_run_killed_before_its_first_checkpoint_starts_again(run, tmp_path):
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


@pytest.mark.one_engine
@pytest.mark.parametrize("words", [["--val_fraction", 0.2], ["--seed", 1], ["--val_fraction", 0]])
def test_validation_images_stay_the_same(stopped, words):
    assert f"{stopped}: the validation set changed" in refused(stopped, *words)


@pytest.mark.one_engine
def test_the_data_must_be_the_same(stopped, cells, tmp_path):
    other = tmp_path / "other.json"
    other.write_text((cells / "train__annot.json").read_text() + "\n")
    assert f"{other}: not the annotations" in refused(stopped, "--annotations", other)


@pytest.mark.one_engine
@pytest.mark.parametrize("name", [runs.LAST, runs.BEST, runs.CONFIG, runs.RECORD])
def test_damaged_files_of_a_run(stopped, name):
    path = stopped / name
    path.write_bytes(path.read_bytes()[:1000] + b"\n}")
    assert str(path) in refused(stopped)


def test_a_network_that_can_not_be_built(stopped, engine):
    assert refused(stopped, "MODEL.RESNETS.NORM", "x").startswith("MODEL.RESNETS.NORM ")
    path = stopped / runs.CONFIG
    path.write_text(path.read_text().replace("NORM: BN", "NORM: x"))
    named = "MODEL.RESNETS.NORM " if engine == "torchvision" else f"the config of {stopped}: "
    assert refused(stopped).startswith(named)


def test_a_checkpoint_of_another_network(stopped):
    kept = (stopped / runs.CONFIG).read_bytes()
    message = refused(stopped, "MODEL.ROI_BOX_HEAD.FC_DIM", 16)
    assert f"{stopped / runs.LAST}: can't be loaded as weights" in message
    assert "another shape" in message
    assert (stopped / runs.LAST).is_file()
    assert (stopped / runs.CONFIG).read_bytes() == kept


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--optimizer", "Adagrad"], "--optimizer Adagrad: .* started with AdamW"),
        (["--batch_size", 1], "--batch_size 1: .* started with 2"),
    ],
)
def test_optimizer_and_batch_size_can_not_change(stopped, words, expected):
    assert re.match(expected, refused(stopped, *words))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("WEIGHT_DECAY", 0.25, marks=ONE),
        pytest.param("WEIGHT_DECAY", 0.0, marks=ONE),
        pytest.param("WEIGHT_DECAY_NORM", 0.25, marks=ONE),
        ("BIAS_LR_FACTOR", 2.0),
        ("BACKBONE_MULTIPLIER", 0.5),  # by the names of parameters
    ],
)
def test_rates_and_decays_can_change(stopped, key, value):
    words = ["SOLVER." + key, value, "SOLVER.BASE_LR", 0.005, "SOLVER.MAX_ITER", 5]
    assert resume(stopped, *words) == 0
    solver = config.load_config(stopped / runs.CONFIG).SOLVER
    assert (solver[key], solver.BASE_LR) == (value, 0.005)
    # A cosine from 1 at the end of the warm-up, which is over, to 0 after the last iteration.
    rate = 0.005 * (1 + math.cos(math.pi * 4 / 5)) / 2
    line = (stopped / "metrics.json").read_text().splitlines()[-1]
    assert json.loads(line)["lr"] == pytest.approx(rate)


def test_averaged_weights_can_begin(stopped, capsys):
    assert resume(stopped, "SOLVER.EMA", 0.9, "SOLVER.MAX_ITER", 5) == 0
    assert "SOLVER.EMA" in capsys.readouterr().err
    averaged, last = (load(stopped / name)["model"] for name in (runs.FINAL, runs.LAST))
    assert any(not torch.equal(averaged[name], last[name]) for name in last)


@pytest.mark.one_engine
def test_weights_are_not_a_checkpoint(stopped, run):
    shutil.copy(run / runs.FINAL, stopped / runs.LAST)
    assert "without step, trainer" in refused(stopped)


@ONE
def test_validation_scores_as_inference_and_evaluate_do(go, cells, tmp_path):
    """For images of two resolutions, at the scale of each."""
    coco = json.loads((cells / "train__annot.json").read_text())
    for n, image in enumerate(coco["images"]):
        image["mpp"] = (0.25, 0.5)[n % 2]
    file = tmp_path / "mixed.json"
    file.write_text(json.dumps(coco))
    words = ["--annotations", file, "--val_fraction", 0.6, "INPUT.ZOOM", 1, "SOLVER.MAX_ITER", 8]
    assert go(*words, "SOLVER.BASE_LR", 0.005, "SOLVER.IMS_PER_BATCH", 2) == 0
    run = only_run(tmp_path / "runs")
    last = json.loads((run / runs.METRICS).read_text().splitlines()[-1])
    results, scores = tmp_path / "val" / "val-results.json", tmp_path / "scores.json"
    words = ["--checkpoint", run, "--dataset", "val", "--output", results.parent, "--device", "cpu"]
    assert inference.main([*map(str, words), "--weight_name", runs.FINAL]) == 0
    truth = results.with_name("val-results-truth.json")
    words = [results, "--truth", truth, "--resamples", 0, "--json", scores]
    assert evaluate.main([str(word) for word in words]) == 0
    metrics = json.loads(scores.read_text())["metrics"]
    for name in ("AP", "AP50"):
        value = metrics[f"{name}@100"]["mean of classes"]["value"]
        assert last[f"validation/{name}"] == pytest.approx(value, abs=1e-6)
    assert last["validation/AP50"] > 0


# --- early stopping


def scores(monkeypatch, *ap50):
    """Replace the validation, with these scores one after the other."""
    coming = iter(ap50)

    def test(*_, **__):
        return scores_of(*[next(coming)] * 4)

    monkeypatch.setattr(Trainer, "test", classmethod(test))


PATIENT = ["--val_fraction", 0.4, "SOLVER.MAX_ITER", 9, "TEST.EVAL_PERIOD", 1]
PATIENT += ["TEST.PATIENCE", 2, "SOLVER.CHECKPOINT_PERIOD", 100]


@pytest.mark.one_engine
def test_early_stopping(go, tmp_path, monkeypatch, capsys):
    scores(monkeypatch, 0.1, 0.05, 0.2, 0.2, 0.15)
    assert go(*PATIENT) == 0
    run = only_run(tmp_path / "runs")
    out = capsys.readouterr().out
    assert "early stopping: AP50 has not improved in the last 2" in out
    assert f"python inference.py --checkpoint {run}" in out
    assert load(run / runs.BEST)["iteration"] == 3
    assert load(run / runs.FINAL)["iteration"] == 5
    assert load(run / runs.LAST)["trainer"]["iteration"] == 5
    lines = (run / runs.METRICS).read_text().splitlines()
    assert json.loads(lines[-1])["validation/AP50"] == pytest.approx(0.15)

    # It is continued only with more patience.
    assert resume(run) == 0
    assert "5 iterations done" in capsys.readouterr().out
    scores(monkeypatch, 0.1, 0.1)
    assert resume(run, "TEST.PATIENCE", 4) == 0
    assert load(run / runs.FINAL)["iteration"] == 7


@pytest.mark.one_engine
def test_early_stopping_counts_across_a_stop(go, tmp_path, monkeypatch):
    scores(monkeypatch, 0.3, 0.2, 0.1)
    with monkeypatch.context() as patched:
        stop_at(patched, 2)
        assert go(*PATIENT) == 130
    run = only_run(tmp_path / "runs")
    assert resume(run) == 0
    assert load(run / runs.FINAL)["iteration"] == 3


@pytest.mark.one_engine
def test_a_run_can_not_become_shorter_than_it_is(go, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 2)
        assert go("SOLVER.MAX_ITER", 4) == 130
    run = only_run(tmp_path / "runs")
    before = (run / runs.CONFIG).read_text()
    line = refused(run, "SOLVER.MAX_ITER", 2)
    assert f"--resume {run}: 2 iterations already done" in line
    assert "ends after 2; raise" in line
    assert (run / runs.CONFIG).read_text() == before
    assert resume(run) == 0
    assert load(run / runs.FINAL)["iteration"] == 4


@pytest.mark.one_engine
def test_validation_images_without_cells_choose_no_best_weights(go, tmp_path, monkeypatch, capsys):
    scores(monkeypatch, *[math.nan] * 3)
    words = ["--val_fraction", 0.4, "TEST.EVAL_PERIOD", 1, "TEST.PATIENCE", 1]
    assert go(*words, "SOLVER.MAX_ITER", 3) == 0
    run = only_run(tmp_path / "runs")
    assert load(run / runs.FINAL)["iteration"] == 3
    assert not (run / runs.BEST).exists()
    assert "iteration 3: no AP, the validation images have no cells" in capsys.readouterr().out


def test_a_trainer_is_freed_without_garbage_collection(go, monkeypatch):
    """A reference cycle would keep GPU memory that the next fold needs."""
    trainers = []
    init = Trainer.__init__

    def remembered(self, cfg, data):
        trainers.append(weakref.ref(self))
        init(self, cfg, data)

    monkeypatch.setattr(Trainer, "__init__", remembered)
    gc.disable()
    try:
        assert go("--val_fraction", 0.4, "SOLVER.MAX_ITER", 1) == 0
        (trainer,) = trainers
        assert trainer() is None
    finally:
        gc.enable()


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("message", "error", "expected"),
    [
        (
            "DataLoader worker (pid 3) is killed by signal: Bus error.",
            InputError,
            r"worker was killed.* shared memory .*--num_workers 0",
        ),
        (
            "Caught RuntimeError in DataLoader worker process 0.\n… shapes differ",
            RuntimeError,
            "shapes differ",
        ),
    ],
)
def test_only_a_killed_worker_is_the_machines_fault(go, monkeypatch, message, error, expected):
    """One line says what to do; an error in a worker is a bug of this program."""

    def failing(*_):
        raise RuntimeError(message)
        yield

    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(failing))
    with pytest.raises(error, match=expected):
        go("SOLVER.MAX_ITER", 1)


def test_a_note_on_random_frozen_layers(go, capsys):
    words = ["--weights", "none", "SOLVER.MAX_ITER", 1]
    assert go(*words) == 0
    assert "frozen layers" not in capsys.readouterr().err
    assert go(*words, "MODEL.BACKBONE.FREEZE_AT", 2) == 0
    assert "without initial weights the frozen layers stay random" in capsys.readouterr().err


# --- cross-validation


def folder_of_folds(root):
    (summary,) = root.glob(f"*/*/{runs.SUMMARY}")
    return summary.parent


@pytest.mark.one_engine
def test_cross_validation(go, cells, tmp_path, capsys):
    assert go("--folds", 2, "--seed", -1, "SOLVER.MAX_ITER", 1) == 0
    folder = folder_of_folds(tmp_path / "runs")
    both = runs.list_fold_runs(folder)
    assert [run.name for run in both] == ["fold1", "fold2"]
    validation = [runs.read_record(run)["held_out"] for run in both]
    assert sorted(map(len, validation)) == [2, 3]
    assert {*validation[0], *validation[1]} == {path.name for path in (cells / "train").iterdir()}
    assert all((run / runs.FINAL).is_file() for run in both)

    summary = json.loads((folder / runs.SUMMARY).read_text())
    scores = [load(run / runs.BEST)["AP50"] for run in both]  # the only scores
    assert [fold["AP50"] for fold in summary["folds"]] == pytest.approx(scores)
    assert summary["AP50"]["mean"] == pytest.approx(sum(scores) / 2)
    out = capsys.readouterr().out
    assert "AP50 of the final weights over 2 folds" in out
    assert "class4" in out


@pytest.mark.one_engine
def test_cross_validation_is_resumed(go, tmp_path, monkeypatch, capsys):
    folds = []

    def stop_in_the_second_fold(trainer):
        folds.append(trainer)
        if len(folds) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        at_iteration(patched, 1, stop_in_the_second_fold)
        assert go("--folds", 2, "SOLVER.MAX_ITER", 2) == 130
    folder = only_run(tmp_path / "runs")
    assert capsys.readouterr().out.endswith(f"python train.py --resume {folder}\n")
    first = (folder / "fold1" / runs.FINAL).stat().st_mtime_ns
    machines = refused(folder, "--num_machines", "2", "--dist_url", "tcp://a:1")
    assert f"{folder}: a cross-validation can be resumed on one machine only" in machines
    assert resume(folder, "--show-batch", tmp_path / "batch.png") == 0
    assert (tmp_path / "batch.png").is_file()
    assert not (folder / "fold2" / runs.FINAL).exists()  # nothing was trained
    words = ["--resume", "--output_dir", str(tmp_path / "runs"), "--device", "cpu"]
    assert train.main(words) == 0  # it is the newest
    assert folder_of_folds(tmp_path / "runs") == folder
    assert (folder / "fold1" / runs.FINAL).stat().st_mtime_ns == first
    assert "2 iterations done" in capsys.readouterr().out


@pytest.mark.one_engine
def test_a_stop_in_the_last_iteration_of_a_fold_stops_the_next(go, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 1)
        assert go("--folds", 2, "SOLVER.MAX_ITER", 1) == 130
        assert go("SOLVER.MAX_ITER", 1, root=tmp_path / "single") == 0  # already finished
    folder = only_run(tmp_path / "runs")
    assert [(run / runs.FINAL).is_file() for run in runs.list_fold_runs(folder)] == [True, False]
    assert resume(folder) == 0
    assert folder_of_folds(tmp_path / "runs") == folder


@pytest.mark.one_engine
def test_a_finished_fold_without_its_checkpoint_is_not_trained_again(go, tmp_path):
    assert go("--folds", 2, "SOLVER.MAX_ITER", 1) == 0
    folder = folder_of_folds(tmp_path / "runs")
    before = (folder / runs.SUMMARY).read_text()
    final = folder / "fold1" / runs.FINAL
    written = final.stat().st_mtime_ns
    for fold in runs.list_fold_runs(folder):
        (fold / runs.LAST).unlink()
    assert resume(folder) == 0
    assert final.stat().st_mtime_ns == written
    assert (folder / runs.SUMMARY).read_text() == before
    longer = refused(folder, "SOLVER.MAX_ITER", 2)
    assert f"{folder / 'fold1' / runs.LAST}: no such file" in longer
    assert final.stat().st_mtime_ns == written


@pytest.mark.one_engine
def test_a_fold_that_was_deleted_is_trained_again(go, tmp_path):
    assert go("--folds", 2, "SOLVER.MAX_ITER", 1) == 0
    folder = folder_of_folds(tmp_path / "runs")
    before = json.loads((folder / runs.SUMMARY).read_text())
    cfg = config.load_config(folder / "fold2" / runs.CONFIG)
    record = runs.read_record(folder / "fold2")
    assert "fold1 was started with 1" in refused(folder, "DATA.FOLD", 2)
    for name in ("fold2", "fold1"):
        shutil.rmtree(folder / name)
        # Not on another split than the remaining folds.
        assert "the validation set changed" in refused(folder, "--seed", 7)
        assert not (folder / name).exists()
        (folder / name).mkdir()  # as left by a kill before the config is written
        assert resume(folder) == 0
        assert json.loads((folder / runs.SUMMARY).read_text()) == before
    assert config.load_config(folder / "fold2" / runs.CONFIG) == cfg
    assert runs.read_record(folder / "fold2")["held_out"] == record["held_out"]


@pytest.mark.one_engine
@pytest.mark.parametrize("given", [[], ["DATA.MPP", 0.4]])
def test_a_fold_that_was_deleted_has_its_own_resolution_again(go, cells, tmp_path, given):
    """Unless one was given for all folds. With two, no image is in the training of both."""
    coco = json.loads((cells / "train__annot.json").read_text())
    for n, image in enumerate(coco["images"]):
        image["mpp"] = 0.2 + n / 10
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    words = ["--annotations", tmp_path / "annotations.json", "--folds", 2, "SOLVER.MAX_ITER", 1]
    assert go(*words, *given) == 0
    folder = folder_of_folds(tmp_path / "runs")
    before = [config.load_config(run / runs.CONFIG) for run in runs.list_fold_runs(folder)]
    assert (before[0].DATA.MPP == before[1].DATA.MPP) == bool(given)
    shutil.rmtree(folder / "fold2")
    assert resume(folder) == 0
    assert [config.load_config(run / runs.CONFIG) for run in runs.list_fold_runs(folder)] == before


@pytest.mark.one_engine
def test_a_single_fold(go, tmp_path):
    words = ["DATA.FOLDS", 2, "DATA.FOLD", 2, "SOLVER.MAX_ITER", 1]
    assert go(*words) == 0
    run = only_run(tmp_path / "runs")
    assert len(runs.read_record(run)["held_out"]) in (2, 3)
    assert (run / runs.FINAL).is_file()


# --- divergence


def change_losses(monkeypatch, change):
    """Replace the losses of each step by `change(losses, number of the step)`."""
    build = Trainer.build_model

    def build_model(_cls, cfg):
        network = build(cfg)
        forward, numbers = network.forward, itertools.count(1)
        network.forward = lambda samples: change(forward(samples), next(numbers))
        return network

    monkeypatch.setattr(Trainer, "build_model", classmethod(build_model))


def make_nan(monkeypatch, name, step):
    """Make a loss NaN at a step, counted from 1."""

    def change(losses, number):
        return losses | {name: losses[name] * math.nan} if number == step else losses

    change_losses(monkeypatch, change)


def test_a_nan_loss(go, tmp_path, monkeypatch):
    make_nan(monkeypatch, "loss_mask", 3)
    with pytest.raises(InputError) as caught:
        go("SOLVER.CHECKPOINT_PERIOD", 1)
    run = only_run(tmp_path / "runs")
    message = str(caught.value)
    assert "training diverged at iteration 3: loss_mask is nan; " in message
    assert f"checkpoint is {run / runs.LAST}; lower --lr (now 0.001)" in message
    last = load(run / runs.LAST)
    assert last["trainer"]["iteration"] == 2
    assert all(torch.isfinite(value).all() for value in last["model"].values())
    assert not (run / runs.FINAL).exists()
    monkeypatch.undo()
    assert resume(run) == 0


def test_divergence_before_any_checkpoint(go, monkeypatch):
    make_nan(monkeypatch, "loss_rpn_cls", 1)
    with pytest.raises(InputError, match=r"iteration 1: loss_rpn_cls is nan; no checkpoint"):
        go()


def test_divergence_by_a_high_learning_rate(go):
    with pytest.raises(InputError, match="training diverged at iteration"):
        go("-o", "SGD", "--lr", "1e30", "SOLVER.WARMUP_ITERS", 0)


@pytest.mark.parametrize("iterations", [2, 3])
def test_weights_that_are_not_finite_are_never_saved(go, tmp_path, monkeypatch, iterations):
    def ruin(trainer):
        with torch.no_grad():
            next(trainer.step.network.parameters())[0] = math.inf

    at_iteration(monkeypatch, 2, ruin)
    options = ["SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", iterations]
    with pytest.raises(InputError, match=r"iteration 2: .* backbone\.\S+ are not finite"):
        go("--val_fraction", 0.4, *options)
    run = only_run(tmp_path / "runs")
    for name in (runs.LAST, runs.BEST):
        state = load(run / name)["model"]
        assert all(torch.isfinite(value).all() for value in state.values())
    assert not (run / runs.FINAL).exists()


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "fail",
    [
        Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")),
        Mock(side_effect=RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …")),
        lambda *_: torch.empty(1 << 50, dtype=torch.uint8),
        lambda *_: np.empty(1 << 50, np.uint8),
    ],
    ids=["torch.cuda", "cublas", "torch", "numpy"],
)
def test_too_little_memory_is_one_line(go, monkeypatch, fail):
    change_losses(monkeypatch, fail)
    with pytest.raises(InputError, match=r"memory .* 2 images at once; .* SOLVER\.ACCUMULATE"):
        go()


@pytest.mark.one_engine
def test_full_disk(go, tmp_path):
    """A limit of 100 kB for any file fails in the middle of the checkpoint."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(InputError, match=r"last\.pth: the checkpoint .*\d+ MiB"):
            go("SOLVER.CHECKPOINT_PERIOD", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    run = only_run(tmp_path / "runs")
    assert not [path for path in run.iterdir() if "pth" in path.name]
    assert resume(run) == 0


# --- bad data


@pytest.fixture
def own(cells, tmp_path):
    """A copy of the data that a test may change."""
    return Path(shutil.copytree(cells, tmp_path / "own"))


def refusal(go, data, *words):
    with pytest.raises(InputError) as caught:
        go(*words, data=data)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


@pytest.mark.one_engine
def test_no_annotations(go, own):
    (own / "train__annot.json").unlink()
    assert re.search(r"train__annot\.json: .*annotation\.py", refusal(go, own))


@pytest.mark.one_engine
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": []}', "hello"])
def test_annotations_that_are_not_coco(go, own, text):
    (own / "train__annot.json").write_text(text)
    assert re.search(r"train__annot\.json: .*annotation\.py", refusal(go, own))


@pytest.mark.one_engine
@pytest.mark.parametrize("name", ["class1.tif", "CLASS4.TIF", "cells.geojson", "cells.xml"])
def test_annotations_older_than_the_masks(go, own, name):
    mask = next((own / "train").iterdir()) / name
    mask.touch()
    made = (own / "train__annot.json").stat().st_mtime
    os.utime(mask, (made + 10, made + 10))
    message = refusal(go, own)
    assert f"train__annot.json: older than {mask}" in message
    assert "annotation.py" in message
    os.utime(mask, (made - 10, made - 10))
    assert go("SOLVER.MAX_ITER", 1, data=own) == 0


@pytest.mark.one_engine
def test_images_that_moved(go, own):
    folder = sorted((own / "train").iterdir())[2]
    folder.rename(own / "elsewhere")
    message = refusal(go, own)
    assert f"{folder / 'image.tif'}: not found" in message
    assert "--data" in message


@pytest.mark.one_engine
def test_images_of_another_size(go, own):
    image = sorted((own / "train").iterdir())[1] / "image.tif"
    tifffile.imwrite(image, np.zeros((9, 8, 3), np.uint8))
    assert f"{image}: 9 x 8 pixels (height x width)" in refusal(go, own)


@pytest.mark.one_engine
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image(go, own, workers):
    """Its header is intact, so that the damage is detected only when the pixels are read."""
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


@pytest.mark.one_engine
def test_no_cell_at_all(go, make_cells, tmp_path):
    data = make_cells(tmp_path / "empty", n_train=2, n_test=1, n_empty=2)
    assert "train__annot.json: no cells" in refusal(go, data)


def test_images_without_cells_are_trained_on(go, make_cells, tmp_path):
    data = make_cells(tmp_path / "half", n_train=2, n_test=1, n_empty=1)
    assert go("SOLVER.MAX_ITER", 2, data=data) == 0
    options = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True", "SOLVER.MAX_ITER", 1]
    assert go("-b", 1, *options, data=data) == 0


@pytest.mark.one_engine
def test_classes_come_from_the_annotations(go, own, tmp_path, capsys):
    assert annotation.main(["--data", str(own), "--class_names", *"abcdefg"]) == 0
    assert go("SOLVER.MAX_ITER", 1, "MODEL.ROI_HEADS.NUM_CLASSES", 3, data=own) == 0
    assert "MODEL.ROI_HEADS.NUM_CLASSES 3: not used" in capsys.readouterr().err
    run = only_run(tmp_path / "runs")
    assert config.load_config(run / runs.CONFIG).MODEL.ROI_HEADS.NUM_CLASSES == 7
    shapes = {v.shape for v in load(run / runs.FINAL)["model"].values()}
    assert (8,) in shapes  # scores of 7 classes and the background
