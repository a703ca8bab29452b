"""Training step: gradients, averaged weights, mixed precision, losses that are not finite."""

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
from tests.training import TrainerStub, load, scores_of


class Squares(nn.Module):
    """The loss is the mean over samples (x, y) of (w x − y)²."""

    calls: torch.Tensor

    def __init__(self, weight=1.0):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        nn.init.constant_(self.layer.weight, weight)

    def forward(self, samples):
        self.calls += 1
        x, y = torch.tensor(samples, dtype=torch.float32).T[:, :, None]
        return {"loss": (self.layer(x) - y).square().mean()}


def build(net=None, **solver):
    """Build a step of plain SGD with learning rate 0.1, without warm-up."""
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


# With w = 1 the errors w x − y are 1, 1 and −3; the gradient is 2/3 (1·1 + 1·2 − 3·3) = −4.
SAMPLES = [(1.0, 0.0), (2.0, 1.0), (3.0, 6.0)]


def test_a_step_by_hand():
    step = build()
    assert step.step(SAMPLES, 0) == {"loss": pytest.approx(11 / 3)}
    assert weight(step.network) == pytest.approx(1.4)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    step = build(ACCUMULATE=parts)
    assert step.step(SAMPLES, 0) == {"loss": pytest.approx(11 / 3)}
    assert weight(step.network) == pytest.approx(1.4)
    assert step.network.calls == min(parts, 3)  # no part is empty


def test_clipping():
    step = build(**{"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_VALUE": 0.5})
    step.step(SAMPLES, 0)
    assert weight(step.network) == pytest.approx(1.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_loss_that_is_not_finite_changes_nothing(bad, parts):
    def state():
        momentum = step.optimizer.state_dict()["state"][0]["momentum_buffer"].item()
        return momentum, weight(step.network), weight(step.eval_network), step.scheduler.last_epoch

    step = build(ACCUMULATE=parts, EMA=0.9, MOMENTUM=0.9)
    step.step(SAMPLES, 0)
    before = state()
    with pytest.raises(FloatingPointError, match=f"loss is {bad}"):
        step.step([*SAMPLES[:2], (bad, 0.0)], 1)
    assert state() == before
    # The next step is as without the failed one.
    other = build(EMA=0.9, MOMENTUM=0.9)
    for _ in range(2):
        other.step(SAMPLES, 0)
    step.step(SAMPLES, 0)
    assert weight(step.network) == pytest.approx(weight(other.network))


# --- averaged weights


def averages(weights, decay):
    """Return the moving average after each step; after n, the decay is up to (1 + n) / (10 + n)."""
    result = [weights[0]]
    for n, new in enumerate(weights[1:], 1):
        kept = min(decay, (1 + n) / (10 + n))
        result.append(kept * result[-1] + (1 - kept) * new)
    return result


@pytest.mark.parametrize("decay", [0.2, 0.25, 0.9])  # reached after 2 or 3 steps, or not
def test_the_average_and_the_warm_up_of_its_decay(decay):
    step = build(EMA=decay)
    weights, kept = [], []
    for _ in range(5):
        step.step(SAMPLES, 0)
        weights.append(weight(step.network))
        kept.append(weight(step.eval_network))
    assert kept == pytest.approx(averages(weights, decay))
    assert len(set(weights)) == 5
    assert step.eval_network.calls == step.network.calls == 5  # integers are copied
    assert not step.eval_network.training


def test_the_first_average_is_of_the_loaded_weights():
    step = build(EMA=0.9)
    nn.init.constant_(step.network.layer.weight, 7.0)  # like loaded weights
    step.step(SAMPLES, 0)
    assert weight(step.eval_network) == weight(step.network)


def test_without_an_average_the_network_is_evaluated():
    step = build()
    assert step.eval_network is step.network
    assert "average" not in step.state_dict()


def test_a_resumed_run_has_the_learning_rate_of_its_config():
    first, slower = build(), build(BASE_LR=0.01)
    first.step(SAMPLES, 0)
    slower.network.load_state_dict(first.network.state_dict())
    slower.load_state_dict(first.state_dict())
    before = weight(slower.network)
    for each in (first, slower):
        each.step(SAMPLES, 0)
    expected = (weight(first.network) - before) / 10
    assert weight(slower.network) - before == pytest.approx(expected, rel=1e-4)


def test_averaged_weights_are_saved_and_all_state_is_restored(tmp_path):
    step = build(EMA=0.9, MOMENTUM=0.9)
    checkpointer = RunCheckpointer(step.network, tmp_path, step=step)
    scores = map(scores_of, (0.1, 0.2, 0.05))
    hooks = [
        Validation(lambda: next(scores), checkpointer, ["a"], 1),
        CheckpointSaver(checkpointer, 3),
    ]
    trainer, kept = TrainerStub(3, step=step), []
    for trainer.iter in range(3):
        step.step(SAMPLES, trainer.iter)
        kept.append(weight(step.eval_network))
        for hook in hooks:
            hook.trainer = trainer
            hook.after_step()

    def saved(name):
        return float(load(tmp_path / name)["model"]["layer.weight"])

    assert saved(runs.BEST) == kept[1]  # the second has the best score
    assert saved(runs.FINAL) == kept[2]
    assert saved(runs.LAST) == weight(step.network) != kept[2]

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
    def is_bf16_supported(including_emulation=True):  # GPUs without bfloat16 emulate it
        return including_emulation or bfloat16

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    has = {"avx2": True, "avx512_bf16": bfloat16}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert autocast_dtype(device, enabled) is expected


def test_a_torch_without_cpu_capabilities(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert autocast_dtype("cpu", True) is None


def build_float16(monkeypatch, net=None, **solver):
    """Build a step with a scale at which the gradients do not overflow."""
    monkeypatch.setattr(step_module, "autocast_dtype", lambda *_: torch.float16)
    step = build(net, **solver)
    assert step.scaler.is_enabled()
    step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 128.0})
    return step


@pytest.mark.parametrize("type_", [torch.bfloat16, torch.float16])
def test_a_step_in_mixed_precision(monkeypatch, type_):
    dtypes = []
    net = Squares()
    net.layer.register_forward_hook(lambda _module, _inputs, output: dtypes.append(output.dtype))
    if type_ is torch.float16:
        step = build_float16(monkeypatch, net)
    else:
        monkeypatch.setattr(step_module, "autocast_dtype", lambda *_: type_)
        step = build(net)
        assert not step.scaler.is_enabled()
    step.step(SAMPLES, 0)
    assert dtypes == [type_]
    assert net.layer.weight.dtype == torch.float32
    assert weight(net) == pytest.approx(1.4)  # small whole numbers are exact


def test_gradients_are_unscaled_before_they_are_clipped(monkeypatch):
    clip = {"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_VALUE": 100.0}
    step = build_float16(monkeypatch, **clip)
    step.step(SAMPLES, 0)
    assert weight(step.network) == pytest.approx(1.4)


def test_the_scale_of_float16_is_restored(monkeypatch):
    step = build_float16(monkeypatch)
    step.step(SAMPLES, 0)
    # The loss is a finite float32, but its scaled gradient overflows, and the step is skipped.
    step.step([(1.0, 30_000.0)], 0)
    assert weight(step.network) == pytest.approx(1.4)
    assert step.scaler.get_scale() == 64
    other = build()
    other.load_state_dict(step.state_dict())
    assert other.scaler.get_scale() == 64


def test_a_bfloat16_run_is_resumed_in_float16(monkeypatch):
    monkeypatch.setattr(step_module, "autocast_dtype", lambda *_: torch.bfloat16)
    first = build()
    first.step(SAMPLES, 0)
    step = build_float16(monkeypatch)
    step.load_state_dict(first.state_dict())
    assert step.scaler.is_enabled()
    assert step.scheduler.last_epoch == 1
