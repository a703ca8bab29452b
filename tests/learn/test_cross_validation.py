"""Cross-validation: confidence intervals by tables and scipy, each image in one fold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from cellseg import runs
from cellseg.errors import InputError
from cellseg.learn import cross_validation
from cellseg.learn.samples import TrainingData, split_data
from cellseg.learn.split import split_folds
from tests.learn.cell_cases import image_of


def data_of(names):
    return TrainingData({}, [], [image_of(name=name) for name in names], [])


def names_of(samples):
    return [sample.name for sample in samples]


NAMES = list("abcdefg")


def test_each_image_is_in_validation_once(tmp_path):
    group_of = dict(zip(NAMES, "xyyzzzw", strict=True))
    (tmp_path / "g.json").write_text(json.dumps(group_of))
    for groups in ("", str(tmp_path / "g.json")):
        folds = []
        for fold in (1, 2, 3):
            split = split_data(data_of(NAMES), 0, 3, fold, groups, 5)
            assert split.validation
            assert sorted(names_of(split.validation) + names_of(split.train)) == NAMES
            folds.append(names_of(split.validation))
        assert sorted(name for fold in folds for name in fold) == NAMES
    assert ["d", "e", "f"] in folds  # the group z
    assert folds == split_folds(NAMES, 3, 5, group_of)


def test_fold_zero_has_no_validation():
    split = split_data(data_of(NAMES), 0, 3, 0, "", 5)
    assert names_of(split.train) == NAMES
    assert split.validation == []


def test_the_interval_by_hand():
    """1, 2 and 3: mean 2, standard deviation 1, t of 2 degrees of freedom 4.3027 (any table)."""
    result = cross_validation.estimate([1, 2, 3])
    assert (result.mean, result.folds) == (2, 3)
    assert result.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    assert result.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert str(result) == "2.000  [-0.484, 4.484]"


@pytest.mark.parametrize("n", [2, 5, 10])
def test_the_interval_is_scipys(n):
    values = np.random.default_rng(n).normal(50, 10, n)
    result = cross_validation.estimate(values.tolist(), 0.9)
    expected = stats.t.interval(0.9, n - 1, np.mean(values), stats.sem(values))
    assert (result.low, result.high) == pytest.approx(expected)


def test_one_value_has_no_interval():
    assert cross_validation.estimate([7.5]) == cross_validation.Estimate(7.5, None, None, 1)
    assert str(cross_validation.estimate([7.5])) == "7.500"


def test_the_interval_covers_the_mean_in_95_percent():
    samples = np.random.default_rng(0).normal(3.0, 2.0, (1000, 4)).tolist()
    estimates = map(cross_validation.estimate, samples)
    low, high = np.array([(e.low, e.high) for e in estimates], float).T
    covered = ((low <= 3.0) & (high >= 3.0)).sum()
    assert covered == pytest.approx(950, abs=30)  # four standard deviations


def test_a_class_may_be_missing_from_folds():
    scores = [{"": 40.0, "a": 40.0}, {"": 50.0, "a": 60.0, "b": 40.0}]
    summary = cross_validation.summarise_folds(scores, ["a", "b", "c"])
    assert summary["AP50"]["mean"] == 45
    assert summary["classes"]["a"]["mean"] == 50
    assert summary["classes"]["b"] == {"mean": 40, "low": None, "high": None, "folds": 1}
    assert "c" not in summary["classes"]
    assert summary["folds"][0] == {"AP50": 40.0, "classes": {"a": 40.0}}
    json.dumps(summary, allow_nan=False)
    assert cross_validation.as_text(summary).splitlines()[1:] == [
        "  all classes  45.000  [-18.531, 108.531]",
        "  a            50.000  [-77.062, 177.062]",
        "  b            40.000",
    ]


@pytest.mark.parametrize(("cap", "expected"), [(None, "all detections"), (100, "at most 100")])
def test_the_summary_says_which_detections_ap_has(cap, expected):
    summary = cross_validation.summarise_folds([{"": 0.5, "a": 0.5}], ["a"])
    first, *_ = cross_validation.as_text({"max_detections": cap, **summary}).splitlines()
    assert expected in first


def test_no_class_has_a_value():
    summary = cross_validation.summarise_folds([{}, {}], ["a"])
    assert summary["AP50"] is None
    assert len(cross_validation.as_text(summary).splitlines()) == 1


def test_the_last_scores(tmp_path):
    lines = [
        {"iteration": 1, "validation/AP50": 3.0, "validation/AP50 b": 1.0},
        {"iteration": 2, "lr": 1.0, "validation/AP50": 4.0, "validation/AP50 a b": 4.0,
         "validation/AP": 2.0},
    ]  # fmt: skip
    (tmp_path / runs.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cross_validation.read_last_scores(tmp_path) == {
        "": 0.04,
        "a b": 0.04,
    }  # of an earlier version
    with (tmp_path / runs.METRICS).open("a") as file:
        file.write('{"iteration": 3, "validation/AP50": 0.5, "full_score": 1.0}\n')
    assert cross_validation.read_last_scores(tmp_path) == {"": 0.5}


@pytest.mark.parametrize("text", [None, "", "[1]\n", '{"iteration"', '{"validation/AP50": null}'])
def test_damaged_curves(tmp_path, text):
    if text is not None:
        (tmp_path / runs.METRICS).write_text(text)
    with pytest.raises(InputError, match=runs.METRICS):
        cross_validation.read_last_scores(tmp_path)


def test_fold_runs_are_sorted_by_number(tmp_path):
    for name in ("fold10", "fold2", "fold1", "folder1", "fold3"):
        (tmp_path / name).mkdir()
        if name != "fold3":  # not a run
            (tmp_path / name / runs.CONFIG).touch()
    assert [run.name for run in runs.list_fold_runs(tmp_path)] == ["fold1", "fold2", "fold10"]
    assert runs.list_fold_runs(tmp_path / "nowhere") == []
