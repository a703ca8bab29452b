"""Configuration: recipes, keys, ranges of values, values computed from the data."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from fvcore.common.config import CfgNode
from hypothesis import given
from hypothesis import strategies as st

from cellseg import config
from cellseg.errors import InputError
from cellseg.keys import SHARED_KEYS
from cellseg.learn.optimizer import set_schedule
from cellseg.learn.scale import set_keys_from_data
from cellseg.network import build_network, check_network
from tests.learn.cell_cases import image_of
from tests.read.refusal import refusal

MODELS = {  # millions of parameters, frozen ones included
    "demo": 5,
    "small_fpn": 6,
    "lite_fpn": 5,
    "lite_fpn_stains": 5,
    "mask_rcnn_R_50_DC5_3x": 172,
    "mask_rcnn_R_101_DC5_3x": 191,
    "mask_rcnn_R_50_FPN_3x": 44,
    "mask_rcnn_R_101_FPN_3x": 63,
    "mask_rcnn_X_101_32x8d_FPN_3x": 107,
}
DETECTRON2_MODELS = {  # with heads that torchvision lacks
    "cascade_mask_rcnn_R_50_FPN": 72,
    "cascade_mask_rcnn_convnextv2_tiny_FPN": 76,
    "cascade_mask_rcnn_convnextv2_base_FPN": 135,
}


def test_recipes():
    assert config.recipe_names() == sorted([*MODELS, *DETECTRON2_MODELS])


@pytest.mark.parametrize("name", MODELS)
def test_size_of_the_network_of_every_recipe(name, engine):
    check_size(name, engine, MODELS[name])


@pytest.mark.detectron2
@pytest.mark.parametrize("name", DETECTRON2_MODELS)
def test_size_of_the_network_of_every_cascade(name):
    check_size(name, "detectron2", DETECTRON2_MODELS[name])


def check_size(name, engine, expected):
    import torch

    cfg = config.load_recipe(name, engine)
    config.check_values(cfg)
    assert cfg.RECIPE == name
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4
    cfg.MODEL.DEVICE = "meta"  # shapes without memory
    with torch.device("meta"):
        model = build_network(cfg)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(millions) == expected
    assert millions < 200  # NYCU HW3's rule


def test_values_of_the_default_recipe():
    cfg = config.load_recipe("mask_rcnn_R_50_DC5_3x")
    assert cfg.SOLVER.OPTIMIZER == "Adagrad"
    assert cfg.SOLVER.BASE_LR == 0.001
    assert cfg.SOLVER.EPOCHS == 225
    assert cfg.SOLVER.IMS_PER_BATCH == 14
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"
    assert cfg.MODEL.WEIGHTS == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    assert cfg.MODEL.RESNETS.RES5_DILATION == 2


def test_dump_and_load(tmp_path):
    cfg = config.load_recipe("demo")
    config.merge_options(cfg, ["SEED", "7", "INPUT.BRIGHTNESS", "(0.5, 2.0)"])
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    again = config.load_config(path)
    # As YAML: nested tuples are loaded as lists.
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert again.RECIPE == "demo"  # not the name of the file


@pytest.mark.detectron2
def test_defaults_are_detectron2s():
    from detectron2.config import get_cfg

    theirs = config.flatten(get_cfg())
    assert theirs.items() <= config.flatten(config.default_config("detectron2")).items()
    shared = config.flatten(CfgNode(SHARED_KEYS))
    assert shared.items() <= theirs.items()


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("MODEL.RPN.CONV_DIMS", "(--engine detectron2 has more)"),
        ("MODEL.RETINANET", "(--engine detectron2 has more)"),  # a section
        ("SOLVER.BASELR", "did you mean SOLVER.BASE_LR?"),
    ],
)
def test_key_that_torchvision_lacks(key, remedy):
    with pytest.raises(InputError) as caught:
        config.merge_options(config.load_recipe("demo", "torchvision"), [key, "1"])
    assert str(caught.value).startswith(f"there is no key {key} for --engine torchvision ")
    assert remedy in str(caught.value)


def test_engine_set_in_a_config_file_or_its_base(tmp_path):
    base, own = tmp_path / "base.yaml", tmp_path / "own.yaml"
    base.write_text(config.load_recipe("demo", "torchvision").dump())
    own.write_text("_BASE_: base.yaml\nSEED: 3")
    cfg = config.load_config(own)
    assert (cfg.ENGINE, cfg.SEED) == ("torchvision", 3)
    with pytest.raises(InputError, match=r"own\.yaml: made with --engine torchvision, not det"):
        config.load_config(own, "detectron2")
    own.write_text("ENGINE: tensorflow")
    with pytest.raises(InputError, match=r"own\.yaml: ENGINE 'tensorflow': .*detectron2 or torch"):
        config.load_config(own)


def test_own_keys_of_every_engine(engine):
    keys = config.flatten(config.default_config(engine)).keys()
    assert {"ENGINE", "RECIPE", "INPUT.ZOOM", "SOLVER.OPTIMIZER", "TEST.EVAL_EPOCHS"} <= keys
    assert config.default_config(engine).ENGINE == engine


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mask_rcnn_R_50_DC5", "did you mean mask_rcnn_R_50_DC5_3x?"),
        ("DEMO", "did you mean demo?"),
        ("yolo", "there are "),
        ("../demo", "no such recipe"),
        ("base/cells", "no such recipe"),
    ],
)
def test_an_unknown_recipe(name, expected):
    with pytest.raises(InputError) as caught:
        config.load_recipe(name)
    assert f"--model {name}: no such recipe in configs/" in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"MODEL: [", "not YAML"),
        (b"\xff\xfe\x00\x01", "can't be read as a config file|not YAML"),
        (b"MODEL: !!python/object/apply:os.system [ls]", "not YAML"),
        (b"MODEL: {WEIGTHS: x}", "there is no key MODEL.WEIGTHS; did you mean MODEL.WEIGHTS?"),
        (b"NONSENSE: 1", "there is no key NONSENSE; "),
        (b"SEED: many", "not a config of this project"),
        (b"MODEL: 3", "not a config of this project"),
        (b"[1, 2]", r"c.yaml: not a config of this project \(a list\), expected keys"),
        (b"", r"c.yaml: not a config of this project \(empty\), expected keys"),
        (b"# nothing", r"c.yaml: not a config of this project \(empty\), expected keys"),
        (b"hello", r"not a config of this project \(a single value\), expected keys"),
        (b"3", "not a config of this project"),
        (b"VERSION: 9", "not a config of this project"),
        (b"VERSION: 9\nENGINE: torchvision", r"not a config of this .*VERSION 9, expected 2"),
        (b"_BASE_: nowhere.yaml", "nowhere.yaml: no such config file"),
        (b"_BASE_: c.yaml", r"c\.yaml: .*_BASE_"),
        (b"_BASE_: 3", "c.yaml: "),
        (b"SOLVER:\n  BASE_LR:", r"c\.yaml: SOLVER\.BASE_LR has no value"),
    ],
)
def test_invalid_config_file(tmp_path, text, expected):
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    with pytest.raises(InputError, match=expected):
        config.load_config(path)


def test_missing_config_file(tmp_path):
    with pytest.raises(InputError, match="no such config file"):
        config.load_config(tmp_path / "c.yaml")
    with pytest.raises(InputError, match="can't be read"):
        config.load_config(tmp_path)


def test_options():
    cfg = config.load_recipe("demo")
    options = "SEED 3 SOLVER.BASE_LR 1 MODEL.ROI_BOX_HEAD.FC_DIM 32 INPUT.MIN_SIZE_TRAIN (64,80)"
    config.merge_options(cfg, options.split())
    assert (cfg.SEED, cfg.SOLVER.BASE_LR, cfg.MODEL.ROI_BOX_HEAD.FC_DIM) == (3, 1.0, 32)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (64, 80)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["SEED"], "SEED: this has no value"),
        (["SEED", "1", "--lr", "3"], "--lr: flags must stand before the KEY VALUE pairs"),
        (["SOLVER.BASELR", "1"], "no key SOLVER.BASELR; did you mean SOLVER.BASE_LR?"),
        (["solver.base_lr", "1"], "no key solver.base_lr; "),
        (["SOLVER", "1"], "no key SOLVER; "),
        (["", "1"], "there is no key ; "),
        (["VERSION", "9"], "VERSION 9: can't be set"),
        (["ENGINE", "torchvision"], "ENGINE torchvision: can't be set"),
        (["SEED", "1.5"], "SEED 1.5: a value like"),
        (["SEED", "many"], "SEED many: a value like"),
        (["SEED", "None"], "SEED None: a value like"),
        (["SOLVER.STEPS", "None"], "SOLVER.STEPS None: a value like"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR fast: a value like"),
        (["MODEL.MASK_ON", "perhaps"], "MODEL.MASK_ON perhaps: a value like"),
        (["INPUT.MIN_SIZE_TRAIN", "(1,"], "INPUT.MIN_SIZE_TRAIN (1,: a value like"),
    ],
)
def test_bad_options(options, expected):
    with pytest.raises(InputError) as caught:
        config.merge_options(config.load_recipe("demo"), options)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("--optimizer (SOLVER.OPTIMIZER)", "adagrad", "Adam, AdamW, Adagrad .*you mean Adagrad"),
        ("--optimizer (SOLVER.OPTIMIZER)", "LBFGS", "one of SGD, Adam, AdamW, Adagrad [^;]*$"),
        ("--scheduler (SOLVER.LR_SCHEDULER_NAME)", "WarmupCosine", "did you mean WarmupCosineLR?"),
        ("--lr (SOLVER.BASE_LR)", "0 -0.1 nan inf", "a positive number"),
        ("--batch_size (SOLVER.IMS_PER_BATCH)", "0", "a positive number"),
        ("SOLVER.MAX_ITER", "-1", "a positive number"),
        ("SOLVER.CHECKPOINT_PERIOD", "0", "a positive number"),
        ("--epochs (SOLVER.EPOCHS)", "-1", "0 or more"),
        ("SOLVER.WARMUP_ITERS", "-1", "0 or more"),
        ("SOLVER.WEIGHT_DECAY", "nan", "0 or more"),
        ("SOLVER.STEPS", "(5,3) ('a',)", "a list of rising numbers .a positive number each"),
        ("SOLVER.STEP_FRACTIONS", "(0.5,0.5)", "a list of rising numbers"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "fullmodel", "one of value, norm, full_model "),
        ("--val_fraction (DATA.VAL_FRACTION)", "1 -0.1 nan", "from 0 to below 1"),
        ("DATA.LONGEST_CELL", "-5 nan inf", "a number of 0 or more"),
        ("--num_workers (DATALOADER.NUM_WORKERS)", "-1", "0 or more"),
        ("DATALOADER.REPEAT_THRESHOLD", "-1", "0 or more"),
        ("--seed (SEED)", "-2 4294967296", "from -1 to 4294967295"),
        ("INPUT.FORMAT", "YUV", "one of RGB, BGR "),
        ("INPUT.ZOOM", "-1 nan 1e9", "from 0 to 100 "),
        ("INPUT.MIN_SIZE_TEST", "-3", "from 0 to 100000 "),
        ("INPUT.MAX_SIZE_TEST", "0", "from 1 to 100000 "),
        ("INPUT.RANDOM_FLIP", "horizontl", "none, horizontal, .*did you mean horizontal?"),
        ("INPUT.BRIGHTNESS", "(1.1,0.9) (1.1,)", "two numbers, the lower one first"),
        ("INPUT.CONTRAST", "(-0.1,1.0) (0.1,1e999) ('a','b')", "two numbers"),
        ("INPUT.STAIN_JITTER", "1.5", "from 0 to 1 "),
        ("INPUT.STAIN_COLOUR_JITTER", "-0.1 nan", "from 0 to 1 "),
        ("INPUT.LIGHT_JITTER", "1.1", "from 0 to 1 "),
        ("INPUT.BLUR", "inf", "0 or more"),
        ("INPUT.MIN_SIZE_TRAIN", "() (1.5,)", "one or more numbers .a whole number"),
        ("INPUT.MAX_SIZE_TRAIN", "0", "a positive number"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "any", "one of choice, range "),
        ("INPUT.CROP.TYPE", "half", "one of relative"),
        ("INPUT.CROP.SIZE", "[0.5,1.5] [0.5]", "two numbers .a number above 0 and up to 1"),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "nan", "from 0 to 1 "),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "-0.5", "from 0 to 1 "),
        ("MODEL.ROI_HEADS.OBJECTNESS_POWER", "-0.1 10.1 nan", "from 0 to 10 "),
        ("MODEL.ROI_HEADS.FOREGROUND_POWER", "-0.1 1.1 nan", "from 0 to 1 "),
        ("TEST.EVAL_PERIOD", "-2", "0 or more"),
        ("TEST.SYMMETRIES", "3 0", "one of 1, 2, 4, 8 "),
        ("TEST.SCALES", "() (1.0,-1.0) (11,) ('1',)", "one or more numbers .a number from 0.1"),
        ("--batch (TEST.BATCH)", "0", "1 or more"),
        ("TEST.TILE", "-1", "0 or more"),
        ("TEST.OVERLAP", "-5", "0 or more"),
        ("TEST.DETECTIONS_PER_IMAGE", "-1", "from 0 to"),
        ("TEST.MASK_IOU", "0 1.5", "above 0 and up to 1"),
        ("INPUT.FORMAT", "x rgb", "one of RGB, BGR "),
        ("SOLVER.WEIGHT_DECAY_BIAS", "x -1", "0 or more"),
        (
            "MODEL.PIXEL_MEAN",
            "[1.0] [1.0,2.0,3.0,4.0]",
            "a list of three numbers .a finite number each.",
        ),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(1.0,)", "a list of four numbers .a positive"),
        ("MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.5,0.6]", "a list of one number .a number from 0"),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", "-1", "from 0 to"),
        ("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "-1 0", "1 to"),
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", "nan", "from 0 to 1 "),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "() ('x',)", "numbers .a positive number"),
        ("MODEL.ROI_MASK_HEAD.BOX_SCALE", "0.9 4.1 nan", "from 1 to 4 "),
        ("MODEL.ROI_MASK_HEAD.CONV_DIM", "0 1000000000", "1 to 100000 "),
        (
            "MODEL.ANCHOR_GENERATOR.SIZES",
            "[] [[]] [[8],[]] [[8],9] [[-8],[8]] [0] [['a']]",
            "one or more numbers .a positive number each., or one for each of MODEL.RPN.IN_FEATU",
        ),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[] [[0.0]]", "one or more numbers .a positive"),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "0 -1 nan", "a positive number"),
    ],
)
def test_values_out_of_range(name, values, expected):
    key = name.split()[-1].strip("()")
    for text in values.split():
        cfg = config.load_recipe("demo")
        config.merge_options(cfg, [key, text])
        start = re.escape(f"{name} {config.flatten(cfg)[key]}: ")
        with pytest.raises(InputError, match=f"^{start}.*{expected}"):
            config.check_values(cfg)


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("check", "key", "value", "expected"),
    [
        (config.check_values, "RPN.BBOX_REG_WEIGHTS", "(1,1,1)", "a list of four numbers"),
        (config.check_values, "RPN.BBOX_REG_LOSS_TYPE", "foo", "one of smooth_l1, giou"),
        (config.check_values, "ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "gious", "did you mean giou?"),
        (check_network, "RPN.CONV_DIMS", "[0]", "1 or more, or -1"),
        (check_network, "RPN.CONV_DIMS", "[-1,8,-2]", "1 or more, or -1"),
    ],
)
def test_values_of_detectron2_out_of_range(check, key, value, expected):
    cfg = config.load_recipe("demo", "detectron2")
    config.merge_options(cfg, [f"MODEL.{key}", value])
    with pytest.raises(InputError, match=f"^MODEL.{key} .*{re.escape(expected)}"):
        check(cfg)


def test_values_with_several_forms(engine):
    cfg = config.load_recipe("demo", engine)
    for sizes in ([8, 16.5], [[8, 16]], [[8], (16, 32)]):
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
        config.check_values(cfg)
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = math.inf  # the largest gradient
    config.check_values(cfg)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("MIN_SIZE_TRAIN (9,8) MIN_SIZE_TRAIN_SAMPLING range", r"TRAIN \(9, 8\): .* lower"),
        ("CROP.TYPE absolute", r"CROP.SIZE .*0\.5.* whole number .* with INPUT.CROP.TYPE absolute"),
        ("CROP.TYPE absolute_range CROP.SIZE [5,4]", r"CROP.SIZE \[5, 4\]: .* lower one first"),
        ("DATA.FOLDS -2", "DATA.FOLDS -2 and DATA.FOLD 0: "),
        ("DATA.FOLDS 1", "DATA.FOLDS 1 and DATA.FOLD 0: "),
        ("DATA.FOLD 3", "DATA.FOLDS 0 and DATA.FOLD 3: "),
        ("DATA.FOLDS 3 DATA.FOLD 4", "DATA.FOLDS 3 and DATA.FOLD 4: "),
        ("SOLVER.BASE_LR_END 1", "SOLVER.BASE_LR_END 1.0: "),
    ],
)
def test_values_that_contradict_another(options, expected):
    cfg = config.load_recipe("mask_rcnn_R_50_DC5_3x")
    config.merge_options(cfg, re.sub(r"\b(CROP\.|MIN_SIZE)", r"INPUT.\1", options).split())
    with pytest.raises(InputError, match=expected):
        config.check_values(cfg)


@pytest.mark.parametrize(
    "options", [["MODEL.MASK_ON", "False"], ["MODEL.META_ARCHITECTURE", "RetinaNet"]]
)
def test_network_without_masks(options):
    cfg = config.load_recipe("demo")
    config.merge_options(cfg, options)
    with pytest.raises(InputError, match=r"META_ARCHITECTURE .*GeneralizedRCNN with masks on"):
        check_network(cfg)


def scheduled(n_images, *options):
    cfg = config.load_recipe("mask_rcnn_R_50_DC5_3x")
    config.merge_options(cfg, options)
    set_schedule(cfg, n_images)
    return cfg


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("TEST.AUG.ENABLED", "True", "TEST.SYMMETRIES"),
        ("TEST.PRECISE_BN.ENABLED", "True", "SOLVER.EMA"),
        ("MODEL.LOAD_PROPOSALS", "True", "the network"),
        ("MODEL.KEYPOINT_ON", "True", "no keypoints"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "REPEAT_THRESHOLD"),
        ("MODEL.RPN.BOUNDARY_THRESH", "0", "trained too"),
        ("MODEL.RPN.IOU_LABELS", "[-1, 0, 1]", r"RPN\.IOU_THRESHOLDS"),
        ("MODEL.ROI_HEADS.IOU_LABELS", "[1, 0]", r"ROI_HEADS\.IOU_THRESHOLDS"),
        ("VIS_PERIOD", "1", "TensorBoard"),
        ("SOLVER.REFERENCE_WORLD_SIZE", "8", "--processes"),
        ("SOLVER.NUM_DECAYS", "7", r"SOLVER\.STEPS"),
        ("SOLVER.NESTEROV", "True", "with AdamW; use --optimizer SGD"),
        ("CUDNN_BENCHMARK", "True", "cuDNN"),
        ("FLOAT32_PRECISION", "medium", r"SOLVER\.AMP"),
    ],
)
def test_keys_without_effect(key, value, instead):
    cfg = config.load_recipe("demo", "detectron2")
    config.merge_options(cfg, [key, value])
    with pytest.raises(InputError, match=f"{key} {re.escape(value)}: has no effect .*{instead}"):
        config.check_unused_keys(cfg)
    config.check_given_keys(cfg, ["SEED"])  # of a run of an earlier version
    with pytest.raises(InputError, match=f"^{key} "):
        config.check_given_keys(cfg, [key, "SEED"])


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("OUTPUT_DIR", "./output", "--output_dir"),
        ("DATASETS.TRAIN", "('a',)", "--data"),
        ("DATASETS.TEST", "('a',)", "--val_fraction"),
        ("INPUT.MASK_FORMAT", "polygon", "bit masks"),
    ],
)
def test_keys_that_every_config_for_detectron2_has(key, value, instead):
    cfg = config.load_recipe("demo", "detectron2")
    config.merge_options(cfg, [key, value])
    config.check_unused_keys(cfg)
    with pytest.raises(InputError, match=f"{key} {re.escape(value)}: has no effect .*{instead}"):
        config.check_given_keys(cfg, [key])
    config.merge_options(cfg, ["INPUT.MASK_FORMAT", "bitmask"])
    config.check_given_keys(cfg, ["INPUT.MASK_FORMAT"])


def test_nesterov_momentum(engine):
    cfg = config.load_recipe("demo", engine)
    config.merge_options(cfg, ["SOLVER.NESTEROV", "True", "SOLVER.OPTIMIZER", "SGD"])
    config.check_unused_keys(cfg)
    config.check_given_keys(cfg, ["SOLVER.NESTEROV"])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("TEST.TILE MODEL.WEIGHTS SEED", "MODEL.WEIGHTS"),
        ("OUTPUT_DIR", "OUTPUT_DIR"),
        ("INPUT.MIN_SIZE_TEST", "INPUT.MIN_SIZE_TEST 1000"),
    ],
)
def test_keys_that_do_not_change_a_prediction(given, named):
    cfg = config.load_recipe("demo", "torchvision")
    cfg.INPUT.ZOOM = 2.0
    with pytest.raises(InputError, match=f"^{named}[ :]"):
        config.check_prediction_keys([cfg], given.split())
    resized = config.load_recipe("mask_rcnn_R_50_DC5_3x", "torchvision")
    config.check_prediction_keys([cfg, resized], ["INPUT.MIN_SIZE_TEST"])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (
            "SEED SOLVER.MAX_ITER TEST.TILE TEST.EVAL_PERIOD INPUT.WINDOW",
            "SEED, SOLVER.MAX_ITER, TEST.EVAL_PERIOD, INPUT.WINDOW",
        ),
        (
            "TEST.TILE MODEL.DEVICE DATA.MPP DATA.ROOT INPUT.ZOOM MODEL.RPN.NMS_THRESH "
            "TEST.LARGEST_PIECE",
            "",
        ),
    ],
)
def test_keys_of_training_in_a_prediction_are_a_warning(caplog, given, named):
    config.check_prediction_keys([config.load_recipe("demo", "torchvision")], given.split())
    warned = [text.rpartition(": ")[2] for text in caplog.messages]
    assert warned == ([named] if named else [])


def test_epochs_of_the_default_recipe():
    """225 epochs of 209 images in batches of 14: 14.93 iterations per epoch."""
    cfg = scheduled(209)
    assert cfg.SOLVER.MAX_ITER == 3359  # 225 * 209 / 14 = 3358.9
    assert cfg.SOLVER.CHECKPOINT_PERIOD == 75  # 74.6
    assert cfg.TEST.EVAL_PERIOD == 75
    assert cfg.SOLVER.STEPS == (2613, 3110)


@given(st.integers(1, 3000), st.integers(1, 64), st.integers(1, 300))
def test_epochs_use_every_image(n_images, batch, epochs):
    if batch > n_images:
        return
    cfg = scheduled(n_images, "SOLVER.IMS_PER_BATCH", str(batch), "SOLVER.EPOCHS", str(epochs))
    assert epochs * n_images <= cfg.SOLVER.MAX_ITER * batch < epochs * n_images + batch


def test_iterations_instead_of_epochs():
    options = "SOLVER.MAX_ITER 50 SOLVER.CHECKPOINT_PERIOD 7 TEST.EVAL_PERIOD 0 SOLVER.STEPS (9,)"
    cfg = scheduled(100, *options.split())
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (50, 7, 0)
    assert cfg.SOLVER.STEPS == (9,)
    # The last one is used.
    assert scheduled(140, *["SOLVER.MAX_ITER", "50", "SOLVER.EPOCHS", "1"]).SOLVER.MAX_ITER == 10
    assert scheduled(140, *["SOLVER.EPOCHS", "1", "SOLVER.MAX_ITER", "50"]).SOLVER.MAX_ITER == 50


def test_warmup_in_epochs():
    assert scheduled(28, "SOLVER.WARMUP_EPOCHS", "3").SOLVER.WARMUP_ITERS == 6


@pytest.mark.parametrize(
    ("iterations", "steps"), [(1, ()), (2, ()), (3, (2,)), (4, (3,)), (10, (8, 9))]
)
def test_learning_rate_steps_of_a_short_run(iterations, steps):
    assert scheduled(20, "SOLVER.MAX_ITER", str(iterations)).SOLVER.STEPS == steps


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 48 windows are 3 iterations, 15 epochs 45; epochs of 800 / 15 iterations have 800.
        ([], (800, 53, 27)),
        (["SOLVER.EPOCHS", "15"], (45, 3, 2)),
        (["SOLVER.MIN_ITER", "45"], (45, 3, 2)),
        (["SOLVER.MIN_ITER", "46"], (46, 3, 2)),
        (["SOLVER.MAX_ITER", "7"], (7, 3, 2)),
    ],
)
def test_epochs_of_few_windows_are_lengthened(options, expected):
    cfg = config.load_recipe("lite_fpn", "torchvision")
    config.merge_options(cfg, options)
    set_schedule(cfg, 48)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == expected


def test_batch_larger_than_the_data():
    assert scheduled(14).SOLVER.IMS_PER_BATCH == 14
    with pytest.raises(InputError, match=r"--batch_size 14: larger than the training set.*13 im"):
        scheduled(13)
    cfg = config.load_recipe("lite_fpn", "torchvision")
    with pytest.raises(InputError, match="--batch_size 16"):
        set_schedule(cfg, 1)
    cfg.INPUT.ZOOM = 1.5
    set_schedule(cfg, 1)  # windows of a batch may come from one image
    assert cfg.SOLVER.MAX_ITER == 800


@pytest.mark.detectron2
def test_library_errors_about_a_config_are_one_line():
    cfg = config.load_recipe("demo")
    cfg.MODEL.BACKBONE.NAME = "nonsense"
    error = pytest.raises(InputError, match=r"c\.yaml: .*can't be built .*nonsense")
    with error as caught, config.config_errors("c.yaml"):
        build_network(cfg)
    assert "\n" not in str(caught.value)


def test_input_errors_stay_unchanged():
    with pytest.raises(InputError, match=r"^mine$"), config.config_errors("x"):
        raise InputError("mine")


def cells_of(*sides):
    return [image_of([(0, 0, width, height) for width, height in sides])]


def test_values_from_the_data():
    """Ten cells of 20 px: 30 px on features of stride 4 is a scale of 1.5."""
    cfg = config.load_recipe("small_fpn", "torchvision")
    scale, anchors = set_keys_from_data(cfg, cells_of(*[(20, 20)] * 10))
    assert cfg.INPUT.ZOOM == 1.5
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[30.0], [60.0], [120.0]]
    assert cfg.DATA.LONGEST_CELL == 20
    assert "1.5: the median cell is 20 px" in scale
    assert "30, 60, 120 px" in anchors


def test_coarser_features_of_dc5_need_larger_cells():
    cfg = config.load_recipe("mask_rcnn_R_50_DC5_3x", "torchvision")
    cfg.INPUT.ZOOM_FROM_DATA = True
    set_keys_from_data(cfg, cells_of((28, 28)))
    assert cfg.INPUT.ZOOM == 2.0  # 56 px on features of stride 16, not 32: res5 is dilated


def test_set_values_are_not_computed_from_the_data():
    cfg = config.load_recipe("small_fpn", "torchvision")
    options = ["INPUT.ZOOM", "1.25", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8],[9],[10]]"]
    config.merge_options(cfg, options)
    assert set_keys_from_data(cfg, cells_of((20, 20))) == []
    assert cfg.INPUT.ZOOM == 1.25
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[8], [9], [10]]


def test_anchors_without_a_fixed_scale():
    """Crops of half of 400 x 600, resized to a short side of 608: a scale of 3.04."""
    cfg = config.load_recipe("small_fpn", "torchvision")
    half = ["INPUT.ZOOM", "0", "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", "[0.5,0.5]"]
    config.merge_options(cfg, [*half, "INPUT.MIN_SIZE_TRAIN", "(608,)"])
    (anchors,) = set_keys_from_data(cfg, cells_of((20, 20)))
    assert cfg.INPUT.ZOOM == 0
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[61.0], [122.0], [243.0]]
    assert anchors.endswith(" 3.04")


@pytest.mark.parametrize(
    ("text", "scale", "iterations"),
    [
        ("INPUT: {ZOOM: 1.25}", 1.25, 120),
        ("INPUT: {ZOOM: 1.25, ZOOM_FROM_DATA: True}", 1.5, 120),
        ("SOLVER: {MAX_ITER: 7}", 1.5, 7),
        ("SOLVER: {MAX_ITER: 7, EPOCHS: 2}", 1.5, 20),
    ],
)
def test_values_of_a_file_override_those_computed_in_its_base(tmp_path, text, scale, iterations):
    base = tmp_path / "base.yaml"
    base.write_text(f"_BASE_: {config.RECIPES / 'small_fpn.yaml'}\nSOLVER: {{EPOCHS: 12}}\n")
    for name, lines in {"mine": f"_BASE_: base.yaml\n{text}", "last": "_BASE_: mine.yaml"}.items():
        (tmp_path / f"{name}.yaml").write_text(lines + "\n")
        cfg = config.load_config(tmp_path / f"{name}.yaml", "torchvision")
        set_keys_from_data(cfg, cells_of((20, 20)))
        set_schedule(cfg, 80)  # in batches of 8
        assert (cfg.INPUT.ZOOM, cfg.SOLVER.MAX_ITER) == (scale, iterations)


def test_the_default_recipe_has_no_fixed_scale():
    cfg = config.load_recipe("mask_rcnn_R_50_DC5_3x", "torchvision")
    assert set_keys_from_data(cfg, cells_of((20, 20))) == []
    assert cfg.INPUT.ZOOM == 0
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[32, 64, 128, 256, 512]]


def laughs(levels):
    """Return YAML whose aliases stand for 10 ** levels values."""
    lines = ["a0: &a0 [0, 0]"]
    lines += [f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, levels + 1)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [laughs(9), "a: &a [*a]", "a: &a {b: *a}", 300_000 * "#", 3000 * "[", "INPUT: " + 900 * "{a: "],
    ids=["laughs", "endless list", "endless section", "long", "nested", "nested sections"],
)
@pytest.mark.parametrize("as_base", [False, True])
def test_config_files_that_cost_much(tmp_path, text, as_base):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    if as_base:
        path = tmp_path / "b.yaml"
        path.write_text("_BASE_: a.yaml")
    assert str(tmp_path) in refusal(config.load_config, path)


def test_aliases_of_few_values(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("MODEL: {PIXEL_MEAN: &mean [1, 2, 3], PIXEL_STD: *mean}\nVERSION: 2")
    assert list(config.load_config(path).MODEL.PIXEL_STD) == [1, 2, 3]


def test_a_device_is_no_config():
    assert "device" in refusal(config.load_config, Path("/dev/zero"))


@pytest.mark.parametrize(
    ("lists", "expected"), [((1000, 1000, 800), (0, 0, 0)), ((6000, 2000, 300), (0, 2000, 300))]
)
def test_former_runs_have_limits_that_follow_the_area(tmp_path, lists, expected):
    """Where theirs were the recipe's; others were the user's, as are those of a user's file."""
    cfg = config.load_recipe("small_fpn", "torchvision")
    rpn = "MODEL.RPN"
    keys = (f"{rpn}.PRE_NMS_TOPK_TEST", f"{rpn}.POST_NMS_TOPK_TEST", "TEST.DETECTIONS_PER_IMAGE")
    config.merge_options(
        cfg, [str(word) for pair in zip(keys, lists, strict=True) for word in pair]
    )

    def limits(path):
        flat = config.flatten(config.load_config(path, "torchvision"))
        return tuple(flat[key] for key in keys)

    run, file = tmp_path / "config.yaml", tmp_path / "mine.yaml"
    run.write_text(cfg.dump())
    assert limits(run) == lists
    del cfg.DATA["CELLS_PER_MEGAPIXEL"]
    run.write_text(cfg.dump())
    assert limits(run) == expected
    del cfg["ENGINE"]
    file.write_text(cfg.dump())
    assert limits(file) == lists


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ([], []),
        (["TEST.EVAL_PERIOD", "0"], []),
        (["TEST.EVAL_PERIOD", "9"], ["TEST.EVAL_PERIOD"]),
        (["TEST.EVAL_EPOCHS", "9", "SEED", "1"], ["TEST.EVAL_EPOCHS"]),
        (["TEST.EVAL_PERIOD", "9", "DATA.VAL_FRACTION", "0.1"], []),
        (["TEST.EVAL_PERIOD", "9", "DATA.FOLDS", "3"], []),
        (["TEST.EVAL_PERIOD", "9", "DATA.VAL_IMAGES", "['a']"], []),
        (["INPUT.ZOOM", "0", "INPUT.CROP.SIZE", "[0.5,0.5]", "INPUT.MIN_SIZE_TRAIN", "(9,)"], []),
        (["INPUT.ZOOM", "2", "INPUT.WINDOW", "99", "DATA.MPP", "0.5"], []),
    ],
)
def test_given_keys(options, warned, caplog):
    cfg = config.load_recipe("demo", "torchvision")
    config.merge_options(cfg, options)
    config.check_given_keys(cfg, options[::2])
    for key, record in zip(warned, caplog.records, strict=True):
        assert key in record.getMessage()
