"""One box regression and one mask for all classes, and the objectness in the scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import inference
import train
from cellseg import config, runs
from cellseg.network import build_network
from tests.network.network_cases import CELLS, LIMITS, picture, sample
from tests.test_former_runs import SAVED
from tests.training import load

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # Detectron2's

AGNOSTIC_BOX = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"
AGNOSTIC = {
    AGNOSTIC_BOX: "True",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": "True",
}
POWER = "MODEL.ROI_HEADS.OBJECTNESS_POWER"
NO_NMS = {"MODEL.ROI_HEADS.NMS_THRESH_TEST": "1.0"}
DIRECTION = torch.tensor([1.0, 7.0, 31.0, 101.0])  # gives boxes an order


@pytest.fixture
def build(tiny, engine):
    """Build the tiny network with some keys."""

    def build(**keys) -> Any:
        cfg = config.load_config(tiny, engine)
        options = {"MODEL.DEVICE": "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0", **keys}
        config.merge_options(cfg, [str(word) for item in options.items() for word in item])
        torch.manual_seed(0)
        return build_network(cfg)

    return build


def detect_all(network):
    """Return the detections of an untrained network, normalised by the statistics of an image."""
    network.eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    (detections,) = network.detect([picture(64, 96)], LIMITS)
    return detections


def test_the_weights_of_the_heads(build):
    """Classes have a score each (and the background), but no box and no mask of their own."""
    shapes = {
        name: tuple(value.shape)
        for name, value in build(**AGNOSTIC).state_dict().items()
        if name.startswith("roi_heads.")
    }
    (scores,) = (s for n, s in shapes.items() if n.endswith("cls_score.weight"))
    (boxes,) = (s for n, s in shapes.items() if n.endswith("bbox_pred.weight"))
    (masks,) = (s for n, s in shapes.items() if n.endswith(("predictor.weight", "logits.weight")))
    assert (scores[0], boxes[0], masks[0]) == (5, 4, 1)


@pytest.mark.parametrize("cells", [CELLS, ()], ids=len)
def test_training_lowers_the_losses_of_boxes_and_masks(build, cells):
    network = build(**AGNOSTIC).train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    gt = sample(cells=cells)
    steps = []
    for _ in range(12):
        losses = _losses(network, gt)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        steps.append({name: loss.item() for name, loss in losses.items()})
    first, last = ({n: sum(s[n] for s in some) for n in losses} for some in (steps[:3], steps[-3:]))
    assert last["loss_cls"] < 0.9 * first["loss_cls"]
    if cells:
        assert last["loss_mask"] < 0.95 * first["loss_mask"]
        assert first["loss_box_reg"] > 0
    else:
        assert first["loss_mask"] == first["loss_box_reg"] == 0
    for detections in network.eval().detect([picture(64, 96), picture(33, 35)], LIMITS):
        assert len(detections) > 0
        assert detections.masks.shape == (len(detections), 28, 28)


def _losses(network, gt):
    if hasattr(network, "rpn"):
        return network([gt])
    from detectron2.utils.events import EventStorage

    with EventStorage():
        return network([gt])


def test_classes_share_boxes_and_masks(build):
    """Without NMS, each proposal is detected in each of four classes: same box, same mask."""
    detections = detect_all(build(**AGNOSTIC, **NO_NMS))
    by_class = [detections[detections.classes == k] for k in range(4)]
    assert len({len(cells) for cells in by_class}) == 1
    assert len(by_class[0]) > 10
    first, *others = (cells[torch.argsort(cells.boxes @ DIRECTION)] for cells in by_class)
    for cells in others:
        torch.testing.assert_close(cells.boxes, first.boxes)
        torch.testing.assert_close(cells.masks, first.masks)
        assert not torch.equal(cells.scores, first.scores)


@pytest.mark.parametrize("agnostic", [True, False])
def test_each_mask_is_predicted_once(build, agnostic):
    """Class-agnostic masks of a box are one, those of four classes are four."""
    network = build(**NO_NMS, **(AGNOSTIC if agnostic else {AGNOSTIC_BOX: "True"}))
    predicted = []
    head = network.roi_heads.mask_head
    head.register_forward_pre_hook(lambda _, inputs: predicted.append(len(inputs[0])))
    detections = detect_all(network)
    n_boxes = len(torch.unique(detections.boxes, dim=0))
    assert len(detections) == 4 * n_boxes > 40
    assert sum(predicted) == (n_boxes if agnostic else len(detections))
    of_box = (detections.boxes == detections.boxes[0]).all(1)
    masks = {tuple(mask.flatten().tolist()) for mask in detections.masks[of_box]}
    assert len(masks) == (1 if agnostic else 4)


def test_the_scores_are_products_of_probability_and_objectness(build):
    scores = {}
    for power in (0.0, 0.5, 1.0):
        cells = detect_all(build(**NO_NMS, **{POWER: power}))
        scores[power] = cells.scores[torch.argsort(cells.boxes @ DIRECTION)]
    assert len(scores[0.0]) > 40
    torch.testing.assert_close(scores[0.5], (scores[0.0] * scores[1.0]).sqrt())
    assert (scores[1.0] < scores[0.0]).all()


def test_a_run_with_such_heads(tiny, cells, tmp_path, engine, forked):
    """It is trained, initialises class-specific heads, and predicts; a bad power is one line."""
    keys = [word for item in AGNOSTIC.items() for word in item] + [POWER, "0.5"]
    words = ["--config-file", tiny, "--data", cells, "--output_dir", tmp_path, "--device", "cpu"]
    argv = [str(word) for word in [*words, "--engine", engine, *keys, "SOLVER.MAX_ITER", 2]]
    assert train.main(argv) == 0
    run = runs.find_newest_run(tmp_path)
    cfg = config.load_config(run / runs.CONFIG)
    assert cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG
    assert cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
    assert cfg.MODEL.ROI_HEADS.OBJECTNESS_POWER == 0.5
    # Its weights fit class-specific heads but for their last layers.
    final = run / runs.FINAL
    argv = [*map(str, words), "--engine", engine, "--weights", str(final), "SOLVER.MAX_ITER", "1"]
    assert train.main(argv) == 0
    specific = load(runs.find_newest_run(tmp_path) / runs.FINAL)["model"]
    agnostic = load(final)["model"]
    different = {n.rsplit(".", 2)[1] for n in agnostic if agnostic[n].shape != specific[n].shape}
    assert len(different) == 2
    words = ["--checkpoint", run, "--data", cells, "--device", "cpu"]
    argv = [str(word) for word in words]
    assert inference.main([*argv, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]) == 0
    done = forked("inference.py", *argv, POWER, "11")
    assert done.returncode == 2
    message = f"inference.py: error: {POWER} 11.0: a number from 0 to 10 is expected"
    assert done.stderr.splitlines() == [message]


def test_runs_that_lack_the_key_have_none(engine):
    path = SAVED / engine / runs.CONFIG
    assert "OBJECTNESS" not in path.read_text()
    assert config.load_config(path).MODEL.ROI_HEADS.OBJECTNESS_POWER == 0
