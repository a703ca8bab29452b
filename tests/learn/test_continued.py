"""train.py --weights RUN: former classes, scale and validation images, AP50 before and after."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

import annotation
import train
from cellseg import config, runs
from cellseg.learn.continued import warn_of_seen_images
from cellseg.learn.samples import load_training_data, split_data
from cellseg.read.corrected_store import (
    Cell,
    Corrected,
    Source,
    add_windows,
    load_store,
    write_store,
)
from cellseg.read.window import read_image
from cellseg.rle import encode, label_map_to_runs
from tests.read.refusal import refusal


def correction(data, name, path, pixels, square=(5, 5, 20, 20)):
    """A corrected window of a whole image with one cell of the second class."""
    mask = np.zeros(pixels.shape[:2], np.uint8)
    left, top, right, bottom = square
    mask[top:bottom, left:right] = 1
    (rle,) = encode(label_map_to_runs(mask)[1])
    source = Source(name, str(path), 0, 0, mask.shape[1], mask.shape[0])
    region = np.ones(mask.shape, bool)
    window = Corrected(name, source, pixels, region, [Cell("", 1, rle)], None)
    windows = add_windows(load_store(data, CLASSES), [window], data)
    write_store(data, windows, CLASSES)


CLASSES = ["class1", "class2", "class3", "class4"]


@pytest.fixture
def corrected(cells, tmp_path):
    """The data folder with two more training images, which are corrected windows."""
    data = tmp_path / "data"
    shutil.copytree(cells, data)
    rng = np.random.default_rng(0)
    for n in range(2):
        pixels = rng.integers(0, 255, (40, 50, 3), np.uint8)
        correction(data, f"slide{n}", tmp_path / f"slide{n}.png", pixels)
    assert annotation.main(["--data", str(data)]) == 0
    return data


def load(data):
    return load_training_data(str(data), str(data / "train__annot.json"))


def names(samples):
    return {sample.name for sample in samples}


def test_corrected_windows_never_enter_the_validation_set(cells, corrected):
    for how in (
        {"val_fraction": 0.4, "seed": 3},
        {"n_folds": 2, "fold": 1},
        {"n_folds": 5, "fold": 5},
    ):
        before, after = split_data(load(cells), **how), split_data(load(corrected), **how)
        assert names(after.validation) == names(before.validation)
        assert names(after.train) == names(before.train) | {"slide0", "slide1"}


def test_windows_of_a_group_in_the_validation_set_are_left_out(corrected, tmp_path, caplog):
    data = load(corrected)
    groups = {name: name for name in names(data.train)}
    (held_out,) = names(split_data(data, 0.2).validation)
    groups["slide0"] = held_out
    path = tmp_path / "groups.json"
    path.write_text(json.dumps(groups))
    split = split_data(data, 0.2, groups=str(path))
    assert names(split.validation) == {held_out}
    assert "slide1" in names(split.train)
    assert "slide0" not in names(split.train)
    assert "slide0" in caplog.text


def test_the_validation_images_of_another_run(corrected):
    data = load(corrected)
    some = sorted(names(data.train) - {"slide0", "slide1"})[:2]
    split = split_data(data, val_images=some)
    assert names(split.validation) == {*some}
    assert "gone" in refusal(split_data, data, val_images=[*some, "gone"])


def test_annotations_older_than_a_correction_are_refused(corrected, tmp_path):
    correction(corrected, "later", tmp_path / "later.png", np.zeros((40, 50, 3), np.uint8))
    assert "run python annotation.py again" in refusal(load, corrected)


def go_on(run, root, *words):
    argv = ["--weights", run, "--output_dir", root, "--device", "cpu", *words]
    assert train.main([str(word) for word in [*argv, "SOLVER.MAX_ITER", 2]]) == 0
    return runs.find_newest_run(root)


def test_a_run_goes_on(run, corrected, tmp_path, capsys):
    former = config.load_config(run / runs.CONFIG)
    new = go_on(run, tmp_path / "runs", "--data", corrected)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("AP50 of the same")]
    before = float(re.findall(r"[0-9.]+ before", line)[0].split()[0])
    metrics = [json.loads(text) for text in (run / runs.METRICS).read_text().splitlines()]
    scores = [m["validation/AP50"] for m in metrics if "validation/AP50" in m]
    assert before == pytest.approx(max(scores), abs=0.002)  # of the best weights
    record, old = runs.read_record(new), runs.read_record(run)
    assert record["held_out"] == old["held_out"]
    assert {*record["train"]} == {*old["train"], "slide0", "slide1"}
    cfg = config.load_config(new / runs.CONFIG)
    assert (cfg.RECIPE, cfg.ENGINE, cfg.INPUT.ZOOM) == (
        former.RECIPE,
        former.ENGINE,
        former.INPUT.ZOOM,
    )
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == former.MODEL.ANCHOR_GENERATOR.SIZES


def test_other_classes_are_refused(run, cells, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(cells, data)
    words = ["--data", str(data), "--class_names", "a", "b", "c", "d"]
    assert annotation.main(words) == 0
    argv = ["--weights", run, "--data", data, "--output_dir", tmp_path, "--device", "cpu"]
    message = refusal(train.main, [str(word) for word in argv])
    assert "class1, class2" in message
    assert "a, b" in message


def test_flags_that_choose_other_validation_images(run):
    for flags in (["--val_fraction", "0.2"], ["--folds", "3"]):
        assert "--val_fraction" in refusal(train.main, ["--weights", str(run), *flags])


@pytest.mark.parametrize("key", ["DATA.VAL_FRACTION", "DATA.FOLDS", "DATA.FOLD"])
def test_keys_that_choose_other_validation_images(run, key):
    assert key in refusal(train.main, ["--weights", str(run), key, "0"])


def test_validation_images_that_the_initial_weights_were_trained_on(run, corrected, caplog):
    cfg = config.load_config(run / runs.CONFIG)
    seen = sorted(runs.read_record(run)["train"])
    everything = load(corrected).train
    for weights, validation, n in (
        ("", everything, 0),
        (run / runs.FINAL, [], 0),
        (run / runs.FINAL, [s for s in everything if s.name not in seen], 0),
        (run / runs.FINAL, everything, 3),
        (run, everything, 3),
    ):
        caplog.clear()
        cfg.MODEL.WEIGHTS = str(weights)
        warn_of_seen_images(cfg, validation)
        assert len(caplog.records) == (n > 0)
        for record in caplog.records:
            assert "trained on 3 of the 7 validation images" in record.getMessage()
            assert all(name in record.getMessage() for name in seen)


def test_without_validation_images(cells, tiny, tmp_path, capsys):
    argv = ["--config-file", tiny, "--data", cells, "--output_dir", tmp_path / "one"]
    argv += ["--device", "cpu", "--engine", "torchvision", "SOLVER.MAX_ITER", 1]
    assert train.main([str(word) for word in argv]) == 0
    go_on(runs.find_newest_run(tmp_path / "one"), tmp_path / "two")
    assert "AP50 before and after: not known" in capsys.readouterr().out


def test_a_corrected_validation_image_stays_in_validation(cells, tmp_path):
    """Its correction replaces its cells; no copy of it enters the training set."""
    data = tmp_path / "data"
    shutil.copytree(cells, data)
    (held_out,) = split_data(load(data), 0.2).validation
    image = data / held_out.file_name
    pixels = read_image(image)
    correction(data, held_out.file_name, image, pixels)
    assert annotation.main(["--data", str(data)]) == 0
    after = split_data(load(data), 0.2)
    assert names(after.train) == names(split_data(load(cells), 0.2).train)
    assert [sample.name for sample in after.validation] == [held_out.name]
    assert after.validation[0].boxes.tolist() == [[5, 5, 20, 20]]
