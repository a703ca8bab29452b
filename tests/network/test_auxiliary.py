"""The head that learns from all pixels: its targets by hand, and what it leaves alone."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch.nn import functional

from cellseg import config
from cellseg.network import build_network
from cellseg.network.auxiliary import AuxiliaryHead
from tests.bitmasks import from_bitmasks
from tests.network.network_cases import LIMITS, picture, sample

N_CLASSES, STRIDE = 4, 4
BACKGROUND = N_CLASSES


class Constant(AuxiliaryHead):
    """A head with a given output."""

    def __init__(self, logits, positions, weight=1.0):
        super().__init__(8, STRIDE, N_CLASSES, weight)
        self.output = logits, positions

    def forward(self, _features):
        return self.output


def losses(samples, logits, positions, **options):
    n, _, h, w = logits.shape
    cells = [sample["masks"] for sample in samples], [sample["classes"] for sample in samples]
    found = Constant(logits, positions, **options).losses(torch.zeros(n, 8, h, w), *cells)
    return found["loss_auxiliary_cls"], found["loss_auxiliary_position"]


def square(cells, height=20, width=24):
    """Return a sample with rectangular cells, given by their boxes and classes."""
    of = sample(height, width, cells)
    full = torch.zeros((len(cells), height, width), dtype=torch.bool)
    for n, (left, top, right, bottom, _) in enumerate(cells):
        full[n, top:bottom, left:right] = True
    masks = from_bitmasks(full)
    return of | {"masks": masks, "boxes": masks.boxes}


def test_classes_of_pixels():
    """The grid's pixels are 2, 6, 10, …; a small cell lies above a large one."""
    cells = [(4, 4, 16, 12, 1), (9, 5, 12, 7, 3)]
    expected = torch.full((5, 6), BACKGROUND)
    expected[1:3, 1:4] = 1
    expected[1, 2] = 3
    logits = functional.one_hot(expected, N_CLASSES + 1).permute(2, 0, 1)[None].float()
    sure = losses([square(cells)], 100 * logits, torch.zeros(1, 2, 5, 6))[0]
    assert sure < 1e-6
    wrong = logits.clone()
    wrong[0, :, 1, 2] = wrong[0, :, 1, 1]  # the small cell's only pixel
    loss = losses([square(cells)], 100 * wrong, torch.zeros(1, 2, 5, 6))[0]
    assert loss == pytest.approx(100 / 30)


def test_positions_in_cells():
    """−1 to 1 from side to side of the box: 12 x 8 px, with its centre at (10, 8)."""
    x = torch.tensor([6, 10, 14]) + 0.0
    y = torch.tensor([6, 10]) + 0.0
    true = torch.zeros(1, 2, 5, 6)
    true[0, 0, 1:3, 1:4] = (x - 10) / 6
    true[0, 1, 1:3, 1:4] = ((y - 8) / 4)[:, None]
    logits = torch.zeros(1, N_CLASSES + 1, 5, 6)
    cells = [square([(4, 4, 16, 12, 1)])]
    assert losses(cells, logits, true)[1] == 0
    true[0, :, 0] = 5  # outside of the cell
    assert losses(cells, logits, true)[1] == 0
    true[0, 0, 1, 1] += 0.6
    # Linear beyond 0.2, half a 0.2 less; the mean of 6 pixels and 2 directions.
    assert losses(cells, logits, true)[1] == pytest.approx((0.6 - 0.1) / 12)
    assert losses(cells, logits, true, weight=0.5)[1] == pytest.approx((0.6 - 0.1) / 24)


def test_padding_is_ignored():
    logits = torch.zeros(2, N_CLASSES + 1, 5, 6)
    logits[:, BACKGROUND] = 100
    logits[1, :, 3:] = logits[1, :, :, 4:] = 0  # a sample of 12 x 16 px in a batch of 20 x 24
    empty = [square([]), square([], 12, 16)]
    assert losses(empty, logits, torch.ones(2, 2, 5, 6)) == (0, 0)
    tiny = [square([], 2, 2)]  # no pixel on the grid
    assert losses(tiny, logits[:1], torch.ones(1, 2, 5, 6)) == (0, 0)


def event_storage(engine):
    """Detectron2's networks record values, which needs a place."""
    if engine == "torchvision":
        return contextlib.nullcontext()
    from detectron2.utils.events import EventStorage

    return EventStorage()


@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_in_training_only(tiny, tmp_path, engine):
    path = tmp_path / "fpn.yaml"
    path.write_text(tiny.read_text().replace("dilated_c5", "fpn"))
    networks: list[Any] = []
    for weight in (0.0, 1.0):
        cfg = config.load_config(path, engine)
        options = ["MODEL.DEVICE", "cpu", "MODEL.AUXILIARY_HEAD.LOSS_WEIGHT", str(weight)]
        options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0"]
        config.merge_options(cfg, options)
        torch.manual_seed(0)  # some random networks detect nothing
        networks.append(build_network(cfg))
    without, with_head = networks
    state = with_head.state_dict()
    own = {name for name in state if name.startswith("auxiliary.")}
    assert own
    assert state.keys() - own == without.state_dict().keys()
    without.load_state_dict({name: state[name] for name in state.keys() - own})
    found, expected = (
        network.eval().detect([picture()], LIMITS)[0] for network in (with_head, without)
    )
    assert len(found) > 0
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.masks, expected.masks)
    with event_storage(engine):
        results = with_head.train()([sample(), sample(48, 80, ())])
        former = without.train()([sample()])
    assert results.keys() - former.keys() == {"loss_auxiliary_cls", "loss_auxiliary_position"}
    (results["loss_auxiliary_cls"] + results["loss_auxiliary_position"]).backward()
    for name in ("auxiliary.conv.weight", "backbone"):
        gradients = [p.grad for n, p in with_head.named_parameters() if n.startswith(name)]
        assert any(g is not None and g.abs().sum() > 0 for g in gradients)
