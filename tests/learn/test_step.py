"""One step: the gradient of the whole batch, averaged weights, precision, and no bad loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cellseg import runs
from cellseg.config import default_config
from cellseg.device import autocast_dtype
from cellseg.learn import step as step_module
from cellseg.learn.checkpoint import RunCheckpointer
from cellseg.learn.hooks import CheckpointSaver, Validation
from cellseg.learn.optimizer import build_optimizer, build_schedule
from cellseg.learn.step import TrainingStep
from cellseg.score.ap import AveragePrecision


class Squares(nn.Module):
    """Its loss is the mean over the samples of (w x − y)², so that gradients are known."""

    seen: torch.Tensor

    def __init__(self, weight=1.0):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        nn.init.constant_(self.layer.weight, weight)

    def forward(self, samples):
        self.seen += 1
        x, y = torch.tensor(samples, dtype=torch.float32).T[:, :, None]
        return {"loss": (self.layer(x) - y).square().mean()}


def build(net=None, **solver):
    """Build a step of plain SGD at the rate 0.1, without warm-up."""
    cfg = default_config("torchvision")
    cfg.MODEL.DEVICE = "cpu"
    keys = {
        "OPTIMIZER": "SGD", "BASE_LR": 0.1, "MOMENTUM": 0.0, "WEIGHT_DECAY": 0.0,
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "STEPS": (), "WARMUP_ITERS": 0, "MAX_ITER": 100,
    }  # fmt: skip
    for key, value in (keys | solver).items():
        cfg.merge_from_list([f"SOLVER.{key}", value])
    net = net or Squares()
    optimizer = build_optimizer(cfg, net)
    return TrainingStep(cfg, net, optimizer, build_schedule(cfg, optimizer))


def weight(net):
    return float(net.layer.weight.detach())


# For w = 1 the errors w x − y are 1, 1 and −3; the gradient is 2/3 (1·1 + 1·2 − 3·3) = −4.
SAMPLES = [(1.0, 0.0), (2.0, 1.0), (3.0, 6.0)]


def test_a_step_by_hand():
    step = build()
    assert step.step(SAMPLES, 0) == {"loss": pytest.approx(11 / 3)}
    assert weight(step.network) == pytest.approx(1.4)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_of_a_batch_give_the_step_of_the_whole(parts):
    step = build(ACCUMULATE=parts)
    losses = step.step(SAMPLES, 0)
    assert losses == {"loss": pytest.approx(11 / 3)}
    assert weight(step.network) == pytest.approx(1.4)
    assert step.network.seen == min(parts, 3)  # no part is empty


def test_clipping():
    step = build(**{"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_VALUE": 0.5})
    step.step(SAMPLES, 0)
    assert weight(step.network) == pytest.approx(1.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_loss_that_is_not_finite_leaves_all_as_it_was(bad, parts):
    step = build(ACCUMULATE=parts, EMA=0.9, MOMENTUM=0.9)
    step.step(SAMPLES, 0)
    before = weight(step.network), weight(step.eval_network), step.scheduler.last_epoch
    momentum = step.optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    with pytest.raises(FloatingPointError, match=f"loss is {bad}"):
        step.step([*SAMPLES[:2], (bad, 0.0)], 1)
    after = weight(step.network), weight(step.eval_network), step.scheduler.last_epoch
    assert after == before
    assert step.optimizer.state_dict()["state"][0]["momentum_buffer"] == momentum
    # And the next step is as if there had been no bad one.
    other = build(EMA=0.9, MOMENTUM=0.9)
    for _ in range(2):
        other.step(SAMPLES, 0)
    step.step(SAMPLES, 0)
    assert weight(step.network) == pytest.approx(weight(other.network))


# --- averaged weights


def averages(weights, decay):
    """The moving average after each step; n steps in, its decay is at most (1 + n) / (10 + n)."""
    average, seen = weights[0], [weights[0]]
    for n, new in enumerate(weights[1:], 1):
        kept = min(decay, (1 + n) / (10 + n))
        average = kept * average + (1 - kept) * new
        seen.append(average)
    return seen


@pytest.mark.parametrize("decay", [0.2, 0.25, 0.9])  # reached after 2 or 3 steps, or not at all
def test_the_average_and_the_warm_up_of_its_decay(decay):
    step = build(EMA=decay)
    weights, kept = [], []
    for _ in range(5):
        step.step(SAMPLES, 0)
        weights.append(weight(step.network))
        kept.append(weight(step.eval_network))
    assert kept == pytest.approx(averages(weights, decay))
    assert len(set(weights)) == 5
    assert step.eval_network.seen == step.network.seen == 5  # counts are copied, not averaged
    assert not step.eval_network.training


def test_the_first_average_is_of_the_weights_that_were_loaded():
    step = build(EMA=0.9)
    nn.init.constant_(step.network.layer.weight, 7.0)  # as initial weights are
    step.step(SAMPLES, 0)
    assert weight(step.eval_network) == weight(step.network)


def test_without_an_average_the_network_itself_is_best():
    step = build()
    assert step.eval_network is step.network
    assert "average" not in step.state_dict()


def test_a_resumed_run_steps_at_the_rate_that_it_is_given():
    begun, slower = build(), build(BASE_LR=0.01)
    begun.step(SAMPLES, 0)
    slower.network.load_state_dict(begun.network.state_dict())
    slower.load_state_dict(begun.state_dict())
    before = weight(slower.network)
    begun.step(SAMPLES, 0)
    slower.step(SAMPLES, 0)
    assert weight(slower.network) - before == pytest.approx(
        (weight(begun.network) - before) / 10, rel=1e-4
    )


class Run:
    """What the hooks see of a trainer."""

    def __init__(self, step):
        self.step, self.cfg = step, step.cfg
        self.iter, self.start_iter, self.max_iter = 0, 0, 3
        self.storage = self

    def put_scalar(self, name, value):
        """Pass over the scores."""


def test_averaged_weights_are_what_is_kept_and_all_comes_back(tmp_path):
    step = build(EMA=0.9, MOMENTUM=0.9)
    checkpointer = RunCheckpointer(step.network, tmp_path, step=step)
    rising = iter((0.1, 0.2, 0.05))

    def score():
        ap50 = next(rising)
        return AveragePrecision(100, ap50, ap50, ap50, *(torch.tensor([ap50]).numpy(),) * 3)

    hooks = [Validation(score, checkpointer, ["a"], 1), CheckpointSaver(checkpointer, 3)]
    trainer, kept = Run(step), []
    for trainer.iter in range(3):
        step.step(SAMPLES, trainer.iter)
        kept.append(weight(step.eval_network))
        for hook in hooks:
            hook.trainer = trainer
            hook.after_step()

    def saved(name):
        return torch.load(tmp_path / name, weights_only=True)

    assert float(saved(runs.BEST)["model"]["layer.weight"]) == kept[1]  # the second scored best
    assert float(saved(runs.FINAL)["model"]["layer.weight"]) == kept[2]
    assert float(saved(runs.LAST)["model"]["layer.weight"]) == weight(step.network) != kept[2]

    other = build(EMA=0.9, MOMENTUM=0.9)
    RunCheckpointer(other.network, tmp_path, step=other).resume()
    for each in (step, other):
        each.step(SAMPLES, 3)
    assert weight(other.network) == weight(step.network)
    assert weight(other.eval_network) == weight(step.eval_network)
    assert other.scheduler.last_epoch == step.scheduler.last_epoch == 4


# --- mixed precision


@pytest.mark.parametrize(
    ("enabled", "device", "bfloat16", "expected"),
    [
        (True, "cuda", True, torch.bfloat16),
        (True, "cuda", False, torch.float16),
        (True, "cpu", True, torch.bfloat16),
        (True, "cpu", False, None),
        (False, "cuda", True, None),
        (False, "cpu", True, None),
    ],
)
def test_the_type_of_mixed_precision(monkeypatch, enabled, device, bfloat16, expected):
    # Without instructions for bfloat16, a GPU imitates it.
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or bfloat16,
    )
    has = {"avx2": True, "avx512_bf16": bfloat16}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert autocast_dtype(device, enabled) is expected


def test_a_torch_that_does_not_tell_what_the_processor_can(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert autocast_dtype("cpu", True) is None


def build_float16(monkeypatch, net=None, **solver):
    """With a scale that the small gradients here don't overflow."""
    monkeypatch.setattr(step_module, "autocast_dtype", lambda *_: torch.float16)
    step = build(net, **solver)
    assert step.scaler.is_enabled()
    step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 128.0})
    return step


@pytest.mark.parametrize("type_", [torch.bfloat16, torch.float16])
def test_a_step_in_mixed_precision(monkeypatch, type_):
    seen = []
    net = Squares()
    net.layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    if type_ is torch.float16:
        step = build_float16(monkeypatch, net)
    else:
        monkeypatch.setattr(step_module, "autocast_dtype", lambda *_: type_)
        step = build(net)
        assert not step.scaler.is_enabled()
    step.step(SAMPLES, 0)
    assert seen == [type_]
    assert net.layer.weight.dtype == torch.float32
    assert weight(net) == pytest.approx(1.4)  # small whole numbers are exact in either


def test_gradients_are_unscaled_before_they_are_clipped(monkeypatch):
    clip = {"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_VALUE": 100.0}
    step = build_float16(monkeypatch, **clip)
    step.step(SAMPLES, 0)
    assert weight(step.network) == pytest.approx(1.4)


def test_the_scale_of_float16_comes_back(monkeypatch):
    step = build_float16(monkeypatch)
    step.step(SAMPLES, 0)
    # The loss is a finite float32, but its scaled gradient overflows: the step is left out.
    step.step([(1.0, 30_000.0)], 0)
    assert weight(step.network) == pytest.approx(1.4)
    assert step.scaler.get_scale() == 64
    other = build()
    other.load_state_dict(step.state_dict())
    assert other.scaler.get_scale() == 64


def test_a_run_goes_on_where_there_is_no_bfloat16(monkeypatch):
    monkeypatch.setattr(step_module, "autocast_dtype", lambda *_: torch.bfloat16)
    began = build()
    began.step(SAMPLES, 0)
    step = build_float16(monkeypatch)
    step.load_state_dict(began.state_dict())
    assert step.scaler.is_enabled()
    assert step.scheduler.last_epoch == 1
