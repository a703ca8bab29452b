"""Optimizers and schedules, compared with Detectron2's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cellseg import config
from cellseg.keys import OPTIMIZERS, SCHEDULERS
from cellseg.learn.optimizer import (
    build_optimizer,
    build_schedule,
    clip_gradients,
    load_optimizer_state,
    optimizer_state,
    set_schedule,
)
from cellseg.learn.step import TrainingStep
from cellseg.network import build_network

TYPES = {name: getattr(torch.optim, name) for name in OPTIMIZERS}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 1)
        self.norm = torch.nn.BatchNorm2d(2)
        self.frozen = torch.nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


def configured(*options):
    cfg = config.default_config("torchvision")
    cfg.MODEL = config.load_recipe("demo", "torchvision").MODEL
    config.merge_options(cfg, options)
    return cfg


def decay_of(optimizer):
    return {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_steps_are_those_of_the_plain_optimizer(name):
    """Fused kernels need restored moments to have the memory layout of their parameters."""
    cfg = configured("SOLVER.OPTIMIZER", name, "SOLVER.MOMENTUM", "0.9")
    ends = []
    for fused in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Conv2d(6, 8, 3)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = build_optimizer(cfg, net)
        for group in optimizer.param_groups:
            assert group["fused"]
            group["fused"] = fused
        for step in range(4):
            optimizer.zero_grad()
            net(torch.randn(2, 6, 5, 5)).square().sum().backward()
            optimizer.step()
            if step == 1:
                state = {
                    parameter: {key: value.contiguous() for key, value in moments.items()}
                    for parameter, moments in optimizer_state(optimizer, net).items()
                }
                load_optimizer_state(optimizer, net, state)
        ends.append(net.weight.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "changed",
    [
        (), ("SOLVER.BIAS_LR_FACTOR", "2"), ("SOLVER.WEIGHT_DECAY_NORM", "0.5"),
        ("SOLVER.WEIGHT_DECAY", "0.25", "SOLVER.WEIGHT_DECAY_NORM", "0.25"),
    ],
)  # fmt: skip
def test_moments_return_to_their_parameters_with_other_rates_and_decays(name, changed):
    """So their groups, and the order of the parameters in these, are others."""
    options = ("SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", "0.25")
    nets, optimizers = [], []
    for also in ((), changed):
        nets.append(Net())
        optimizers.append(build_optimizer(configured(*options, *also), nets[-1]))
    first, second = optimizers
    for n, parameter in enumerate(nets[0].parameters()):
        parameter.grad = torch.full_like(parameter, n + 1)
    first.step()
    rates_and_decays = [(g["lr"], g["weight_decay"]) for g in second.param_groups]
    load_optimizer_state(second, nets[1], optimizer_state(first, nets[0]))
    assert [(g["lr"], g["weight_decay"]) for g in second.param_groups] == rates_and_decays
    expected, moments = optimizer_state(first, nets[0]), optimizer_state(second, nets[1])
    assert set(moments) == set(expected)
    for weight, values in expected.items():
        assert set(moments[weight]) == set(values)
        assert all(torch.equal(moments[weight][key], value) for key, value in values.items())
    assert len({float(list(values.values())[-1].sum()) for values in expected.values()}) == 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_earlier_checkouts(name):
    """It has numbers, in the order of the groups, which must be the same."""
    options = ("SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", "0.25")
    old, new, other = Net(), Net(), Net()
    first, second = (build_optimizer(configured(*options), net) for net in (old, new))
    for n, parameter in enumerate(old.parameters()):
        parameter.grad = torch.full_like(parameter, n + 1)
    first.step()
    load_optimizer_state(second, new, first.state_dict())
    moments, expected = optimizer_state(second, new), optimizer_state(first, old)
    assert set(moments) == set(expected) == {"conv.weight", "conv.bias", "norm.weight", "norm.bias"}
    for weight, values in expected.items():
        assert set(moments[weight]) == set(values)
        assert all(torch.equal(moments[weight][key], value) for key, value in values.items())
    third = build_optimizer(configured(*options, "SOLVER.BIAS_LR_FACTOR", "2"), other)
    with pytest.raises(ValueError, match="earlier checkout"):
        load_optimizer_state(third, other, first.state_dict())


def test_moments_of_another_network():
    net, other = Net(), Net()
    other.conv = torch.nn.Conv2d(1, 3, 1)
    optimizers = [build_optimizer(configured("SOLVER.OPTIMIZER", "Adam"), n) for n in (net, other)]
    for parameter in other.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[1].step()
    state = optimizer_state(optimizers[1], other)
    with pytest.raises(ValueError, match="another shape"):
        load_optimizer_state(optimizers[0], net, state)
    with pytest.raises(ValueError, match=r"head\.weight"):
        load_optimizer_state(optimizers[0], net, {"head.weight": state["conv.weight"]})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_type_rate_and_decay(name):
    net = Net()
    options = ["SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.WEIGHT_DECAY_NORM", "0.125"]
    cfg = configured("SOLVER.OPTIMIZER", name, "SOLVER.BASE_LR", "0.25", *options)
    optimizer = build_optimizer(cfg, net)
    assert type(optimizer) is TYPES[name]
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
    expected = {id(p): 0.5 for p in net.conv.parameters()}
    assert decay_of(optimizer) == expected | {id(p): 0.125 for p in net.norm.parameters()}


def test_biases_have_their_own_rate_and_decay():
    net = Net()
    cfg = configured("SOLVER.BIAS_LR_FACTOR", "2", "SOLVER.WEIGHT_DECAY_BIAS", "0.0")
    optimizer = build_optimizer(cfg, net)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[id(net.conv.bias)] == pytest.approx(2 * rate[id(net.conv.weight)])
    assert decay_of(optimizer)[id(net.conv.bias)] == 0


def test_sgd_has_momentum():
    cfg = configured("SOLVER.MOMENTUM", "0.7", "SOLVER.NESTEROV", "True")
    (group,) = {(g["momentum"], g["nesterov"]) for g in build_optimizer(cfg, Net()).param_groups}
    assert group == (0.7, True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_clipped(name):
    """With SGD and no momentum, a step is the learning rate times the clipped gradient."""
    net = torch.nn.Linear(1, 1, bias=False)
    options = ["SOLVER.OPTIMIZER", name, "SOLVER.CLIP_GRADIENTS.ENABLED", "True"]
    options += ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "2"]
    options += ["SOLVER.BASE_LR", "0.5", "SOLVER.MOMENTUM", "0", "SOLVER.WEIGHT_DECAY", "0"]
    cfg = configured(*options)
    optimizer = build_optimizer(cfg, net)
    before = net.weight.item()
    net.weight.grad = torch.tensor([[100.0]])
    clip_gradients(cfg, list(net.parameters()))
    optimizer.step()
    assert net.weight.grad.item() == 2
    if name == "SGD":
        assert net.weight.item() == pytest.approx(before - 0.5 * 2)


@pytest.mark.parametrize(
    ("clip_type", "expected"),
    [("norm", [[3, 4], [0.6, 0.8]]), ("full_model", [[3 / 2**0.5, 4 / 2**0.5]] * 2)],
)
def test_norms_of_gradients_are_clipped(clip_type, expected):
    """Gradients of norms 5 and 1 (or 5), clipped to 5 each or together."""
    layers: list[Any] = [torch.nn.Linear(2, 1, bias=False) for _ in range(2)]
    for layer, gradient in zip(layers, ([3.0, 4.0], [0.6, 0.8]), strict=True):
        layer.weight.grad = torch.tensor([gradient])
    if clip_type == "full_model":
        layers[1].weight.grad *= 5
    options = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "5"]
    cfg = configured(*options, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip_type)
    clip_gradients(cfg, [layer.weight for layer in layers])
    gradients = [layer.weight.grad[0].tolist() for layer in layers]
    assert gradients == [pytest.approx(row, rel=1e-5) for row in expected]


def test_norm_layers_of_a_whole_network(tiny, engine):
    cfg = config.load_config(tiny, engine)
    config.merge_options(cfg, ["MODEL.DEVICE", "cpu", "SOLVER.WEIGHT_DECAY_NORM", "0.5"])
    model = build_network(cfg)
    decay = decay_of(build_optimizer(cfg, model))
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for p in module.parameters()
    }
    assert len(norms) > 50
    assert {p for p, value in decay.items() if value == 0.5} == norms
    assert set(decay) == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("lite_fpn", "TimmBackbone"), ("demo", "TimmBackbone"), ("mask_rcnn_R_50_DC5_3x", "ResNet")],
)
def test_the_backbone_has_its_own_rate(recipe, kind, engine):
    """All of it, but neither its feature pyramid nor the heads, at every step."""
    cfg = config.load_recipe(recipe, engine)
    options = "SOLVER.BASE_LR 0.5 SOLVER.BIAS_LR_FACTOR 2 SOLVER.BACKBONE_MULTIPLIER 0.25"
    config.merge_options(cfg, ["MODEL.DEVICE", "cpu", *options.split()])
    set_schedule(cfg, 100)
    model = build_network(cfg)
    kinds = ({t.__name__ for t in type(m).__mro__} for m in model.modules())
    (backbone,) = (m for m, names in zip(model.modules(), kinds, strict=True) if kind in names)
    slow = {id(p) for p in backbone.parameters() if p.requires_grad}
    optimizer = build_optimizer(cfg, model)
    schedule = build_schedule(cfg, optimizer)
    step = TrainingStep(cfg, model, optimizer, schedule)
    for _ in range(3):
        optimizer.step()
        schedule.step()
        of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                factor = 0.25 if id(parameter) in slow else 1
                factor *= 2 if name.endswith("bias") else 1
                assert of[id(parameter)] == pytest.approx(factor * step.rate)


@pytest.mark.parametrize(
    ("options", "periods"),
    [
        # Epochs of 2 iterations; the recipe validates and saves every 5.
        (["SOLVER.EPOCHS", "300"], (10, 10)),
        (["SOLVER.MAX_ITER", "3"], (10, 10)),
        (["SOLVER.MAX_ITER", "400"], (10, 10)),
        (["SOLVER.MAX_ITER", "401"], (11, 11)),
        (["SOLVER.MAX_ITER", "4000"], (100, 100)),
        (["SOLVER.MAX_ITER", "4000", "TEST.EVAL_PERIOD", "3"], (3, 100)),
        (["SOLVER.MAX_ITER", "4000", "SOLVER.CHECKPOINT_PERIOD", "4"], (100, 4)),
    ],
)
def test_periods_of_validation_and_checkpoints(options, periods):
    cfg = config.load_recipe("mask_rcnn_R_50_FPN_3x", "torchvision")
    config.merge_options(cfg, ["SOLVER.IMS_PER_BATCH", "4", *options])
    set_schedule(cfg, 8)
    assert (cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD) == periods


def record_rates(cfg, build, n):
    """Return the learning rates of n steps with a schedule."""
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    scheduler = build(cfg, optimizer)
    rates = []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(n, *options):
    cfg = configured("SOLVER.BASE_LR", "8", "SOLVER.MAX_ITER", str(n), *options)
    set_schedule(cfg, 1000)
    return record_rates(cfg, build_schedule, n)


def test_cosine_by_hand():
    options = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.WARMUP_ITERS", "0"]
    expected = [4 * (1 + math.cos(math.pi * n / 8)) for n in range(8)]
    assert rates(8, *options) == pytest.approx(expected)


def test_cosine_ends_at_base_lr_end():
    options = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", "2"]
    expected = [2 + 3 * (1 + math.cos(math.pi * n / 1000)) for n in range(1000)]
    assert rates(1000, *options, "SOLVER.WARMUP_ITERS", "0") == pytest.approx(expected)


def test_warmup_by_hand():
    """Linear, from a thousandth of the learning rate to the cosine after the warm-up."""
    options = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.WARMUP_ITERS", "4"]
    start, end = 0.008, 4 * (1 + math.cos(math.pi * 4 / 8))
    expected = [start + (end - start) * n / 4 for n in range(4)]
    expected += [4 * (1 + math.cos(math.pi * n / 8)) for n in range(4, 8)]
    assert rates(8, *options) == pytest.approx(expected)


def test_steps_by_hand():
    options = "SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR SOLVER.WARMUP_ITERS 0 SOLVER.GAMMA 0.5"
    result = rates(10, *options.split(), "SOLVER.STEP_FRACTIONS", "(0.5, 0.8)")
    assert result == pytest.approx([8] * 5 + [4] * 3 + [2] * 2)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_runs_too_short_for_their_schedule(name, n):
    options = ["SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.STEP_FRACTIONS", "(0.7778, 0.9259)"]
    result = rates(n, *options)  # the warm-up of 1000 iterations is longer
    assert len(result) == n
    assert all(0 <= rate <= 8 for rate in result)


@pytest.mark.detectron2
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize(
    ("rescaled", "warmup"),
    # With rescaling, Detectron2 divides by zero if the run is all warm-up.
    [("True", "0"), ("True", "7"), ("False", "0"), ("False", "7"), ("False", "500")],
)
def test_the_same_rates_as_detectron2(name, method, rescaled, warmup):
    from detectron2.solver import build_lr_scheduler

    cfg = configured(
        "SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.WARMUP_METHOD", method, "SOLVER.WARMUP_ITERS",
        warmup, "SOLVER.RESCALE_INTERVAL", rescaled, "SOLVER.MAX_ITER", "100", "SOLVER.STEPS",
        "(30, 60)",
    )  # fmt: skip
    expected = record_rates(cfg, build_lr_scheduler, 100)
    assert record_rates(cfg, build_schedule, 100) == expected
