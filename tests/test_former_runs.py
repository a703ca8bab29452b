"""A run saved by a version before 0.1.0 still loads, predicts the same and is resumed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import inference
import train

SAVED = Path(__file__).parent / "data" / "run_v0"


@pytest.fixture
def saved(tmp_path, engine):
    """Copies of the saved run and its data folder."""
    shutil.copytree(SAVED / "data", tmp_path / "data")
    run = tmp_path / "runs" / "tiny" / "20250401-120000"
    shutil.copytree(SAVED / engine, run)
    return run, tmp_path / "data"


def predict(run, data):
    words = ["--checkpoint", run, "--data", data, "--device", "cpu"]
    words += ["TEST.BFLOAT16_ON_CPU", "False"]  # as it was then
    assert inference.main([str(word) for word in words]) == 0
    return json.loads((run / "test-results.json").read_text())


def test_a_saved_run_predicts_the_same(saved):
    run, data = saved
    results = predict(run, data)
    expected = json.loads((run / "expected-results.json").read_text())
    # Rounding depends on the processor and moves single pixels.
    assert len(results) == len(expected) > 20
    scores, old = (sorted(r["score"] for r in one) for one in (results, expected))
    np.testing.assert_allclose(scores, old, atol=1e-4)
    ious = coco_mask.iou(
        *([r["segmentation"] for r in one] for one in (results, expected)), [0] * len(expected)
    )
    assert (ious.max(axis=0) > 0.95).all()


def test_a_saved_run_resumes_and_predicts(saved, engine):
    run, data = saved
    assert train.main(["--resume", str(run), "--data", str(data), "--device", "cpu"]) == 0
    assert (run / "model_final.pth").is_file()
    lines, expected = (
        [json.loads(line) for line in (run / name).read_text().splitlines()]
        for name in ("metrics.json", "expected-metrics.json")
    )
    assert [line["iteration"] for line in lines] == [1, 3]
    # That of the last iteration; it was the median since the former line.
    assert lines[1]["lr"] == pytest.approx(0.001 * (1 + math.cos(math.pi * 3 / 4)) / 2)
    for now, old in zip(lines, expected, strict=True):
        if engine == "torchvision":
            exact, near = old.keys() - {"lr"}, set()
        else:  # of the anchors and proposals, others were drawn then
            exact, near = {"iteration"}, {name for name in old if "loss" in name}
        for name in exact:
            assert now[name] == pytest.approx(old[name], rel=1e-3, abs=1e-6), name
        for name in near:
            assert old[name] / 3 < now[name] < 3 * old[name], name
    assert predict(run, data)
