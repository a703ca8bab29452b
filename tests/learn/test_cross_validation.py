"""Cross-validation: intervals against tables and scipy, folds that hold out each image once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from cellseg import runs
from cellseg.errors import InputError
from cellseg.learn import cross_validation
from cellseg.learn.samples import TrainingData, split_data
from cellseg.read.split import split_folds
from tests.learn.cell_cases import image_of


def data_of(names):
    return TrainingData({}, [], [image_of(name=name) for name in names], [])


def names_of(samples):
    return [sample.name for sample in samples]


NAMES = list("abcdefg")


def test_each_image_is_in_validation_once(tmp_path):
    (tmp_path / "g.json").write_text(
        json.dumps({name: "xyyzzzw"[n] for n, name in enumerate(NAMES)})
    )
    for groups in ("", str(tmp_path / "g.json")):
        held = []
        for fold in (1, 2, 3):
            split = split_data(data_of(NAMES), 0, 3, fold, groups, 5)
            assert split.validation
            assert sorted(names_of(split.validation) + names_of(split.train)) == NAMES
            held.append(names_of(split.validation))
        assert sorted(name for fold in held for name in fold) == NAMES
    assert ["d", "e", "f"] in held  # the group z
    group_of = dict(zip(NAMES, "xyyzzzw", strict=True))
    assert held == split_folds(NAMES, 3, 5, group_of)


def test_fold_zero_has_no_validation():
    split = split_data(data_of(NAMES), 0, 3, 0, "", 5)
    assert names_of(split.train) == NAMES
    assert split.validation == []


def test_the_interval_by_hand():
    """Of 1, 2 and 3: mean 2, deviation 1, t of 2 degrees of freedom 4.3027 (any table)."""
    found = cross_validation.estimate([1, 2, 3])
    assert (found.mean, found.folds) == (2, 3)
    assert found.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    assert found.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert str(found) == "2.0  [-0.5, 4.5]"


@pytest.mark.parametrize("n", [2, 5, 10])
def test_the_interval_is_scipys(n):
    values = np.random.default_rng(n).normal(50, 10, n)
    found = cross_validation.estimate(values.tolist(), 0.9)
    expected = stats.t.interval(0.9, n - 1, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_one_number_has_no_interval():
    assert cross_validation.estimate([7.5]) == cross_validation.Estimate(7.5, None, None, 1)
    assert str(cross_validation.estimate([7.5])) == "7.5"


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [
        cross_validation.estimate(values) for values in rng.normal(3.0, 2.0, (1000, 4)).tolist()
    ]
    inside = sum(e.low <= 3.0 <= e.high for e in found if e.low is not None and e.high is not None)
    assert inside == pytest.approx(950, abs=30)  # four standard deviations


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
        "  all classes  45.0  [-18.5, 108.5]",
        "  a            50.0  [-77.1, 177.1]",
        "  b            40.0",
    ]


def test_no_class_has_a_number():
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
    assert cross_validation.read_last_scores(tmp_path) == {"": 4.0, "a b": 4.0}


@pytest.mark.parametrize("text", [None, "", "[1]\n", '{"iteration"', '{"validation/AP50": null}'])
def test_damaged_curves(tmp_path, text):
    if text is not None:
        (tmp_path / runs.METRICS).write_text(text)
    with pytest.raises(InputError, match="not the curves of a finished run"):
        cross_validation.read_last_scores(tmp_path)


def test_fold_runs_are_sorted_by_number(tmp_path):
    for name in ("fold10", "fold2", "fold1", "folder1", "fold3"):
        (tmp_path / name).mkdir()
        if name != "fold3":  # not a run
            (tmp_path / name / runs.CONFIG).touch()
    assert [run.name for run in runs.list_fold_runs(tmp_path)] == ["fold1", "fold2", "fold10"]
    assert runs.list_fold_runs(tmp_path / "nowhere") == []
