"""On a GPU: training, mixed precision, resuming, prediction, and too little memory.

`TEST_GPU=cpu pytest -m gpu` runs all but the memory tests on the CPU.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re

import numpy as np
import pycocotools.mask
import pytest
import torch

import train
from cellseg.cellmasks import CellMasks
from cellseg.device import detectron2_problem
from cellseg.errors import InputError
from cellseg.learn import session
from cellseg.learn import step as step_module
from cellseg.predict.predictor import Predictor
from cellseg.read.window import read_image
from tests.training import same
from trainer import Trainer

DEVICE = os.environ.get("TEST_GPU", "cuda")
REAL = DEVICE.startswith("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        REAL and not torch.cuda.is_available(), reason="there is no CUDA GPU that torch can use"
    ),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # Detectron2's
    # The thread of the backward pass starts with a matrix product.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning"),
]
needs_memory = pytest.mark.skipif(not REAL, reason="needs a GPU's memory")
# As exact as the CPU.
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


@pytest.fixture(autouse=True)
def storage():
    """The storage for scalars that Detectron2's heads need in training."""
    if detectron2_problem():
        yield
        return
    from detectron2.utils.events import EventStorage

    with EventStorage():
        yield


@pytest.fixture
def configured(tiny, cells, engine, tmp_path):
    """A function of KEY VALUE pairs that returns config and data of a training on the GPU."""

    def configure(*options, device=DEVICE):
        flags = ["--config-file", tiny, "--data", cells, "--engine", engine, "--weights", "none"]
        argv = [*flags, "--device", device, "--num_workers", 1, *options]
        cfg = train.setup(train.parse([str(word) for word in argv]))
        data = session.prepare(cfg).data
        cfg.OUTPUT_DIR = str(tmp_path)
        return cfg, data

    return configure


def take_steps(trainer, n, start=0):
    """Run n steps; return the losses of each."""
    batches = trainer.build_train_loader(trainer.cfg, trainer.data, start)
    return [trainer.step.step(next(batches), seed) for seed in range(start, start + n)]


def weights(network):
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def on_device(tensors):
    return {tensor.device.type for tensor in tensors} == {torch.device(DEVICE).type}


# --- training


def test_samples_are_in_pinned_memory(configured):
    (sample, _) = next(Trainer.build_train_loader(*configured()))
    assert isinstance(sample["masks"], CellMasks)
    assert len(sample["masks"]) == len(sample["boxes"]) > 0
    parts = (sample["image"], sample["boxes"], sample["classes"], sample["masks"]._pixels)
    assert all(part.is_pinned() is REAL for part in parts)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_a_step_of_each_optimizer(configured, optimizer):
    keys = ("SOLVER.OPTIMIZER", optimizer, "SOLVER.WARMUP_ITERS", 0, "SOLVER.ACCUMULATE", 2)
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model")
    trainer = Trainer(*configured(*keys, *clip))
    before = weights(trainer.step.network)
    (losses,) = take_steps(trainer, 1)
    assert set(losses) >= {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    after = weights(trainer.step.network)
    assert on_device(after.values())
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert len(changed) > 0.9 * len(after)


@pytest.mark.parametrize("type_", [torch.bfloat16, torch.float16])
def test_steps_in_mixed_precision(configured, monkeypatch, type_):
    monkeypatch.setattr(step_module, "autocast_dtype", lambda *_: type_)
    auxiliary = ("MODEL.AUXILIARY_HEAD.LOSS_WEIGHT", 1.0)
    trainer = Trainer(*configured("SOLVER.WARMUP_ITERS", 0, *auxiliary))
    network = trainer.step.network
    assert trainer.step.scaler.is_enabled() == (type_ is torch.float16)
    if type_ is torch.float16:  # a scale at which no gradient overflows
        state = trainer.step.scaler.state_dict()
        trainer.step.scaler.load_state_dict(state | {"scale": 128.0})
    dtypes = set()
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype))
    before = weights(network)
    for losses in take_steps(trainer, 3):
        assert np.isfinite(list(losses.values())).all()
    assert dtypes == {type_}
    after = weights(network)
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_the_moving_average(configured):
    trainer = Trainer(*configured("SOLVER.EMA", 0.5, "SOLVER.WARMUP_ITERS", 0))
    batches = trainer.build_train_loader(trainer.cfg, trainer.data, 0)
    trainer.step.step(next(batches), 0)
    first = weights(trainer.step.network)
    trainer.step.step(next(batches), 1)
    second, average = weights(trainer.step.network), weights(trainer.step.eval_network)
    assert on_device(average.values())
    for name in average:  # after one step, the decay is 2/11
        expected = first[name] * 2 / 11 + second[name] * 9 / 11
        assert torch.allclose(average[name], expected, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("device", [DEVICE, "cpu"])
def test_a_checkpoint_is_resumed_on_gpu_or_cpu(configured, device):
    keys = ("SOLVER.EMA", 0.9, "SOLVER.OPTIMIZER", "Adagrad")
    trainer = Trainer(*configured(*keys))
    take_steps(trainer, 2)
    trainer.iter = 1
    trainer.checkpointer.save_last()
    other = Trainer(*configured(*keys, device=device))
    other.resume_or_load(resume=True)
    assert other.start_iter == 2
    assert same(other.step.network.state_dict(), trainer.step.network.state_dict())
    assert same(other.step.state_dict(), trainer.step.state_dict())
    sums = [state["sum"] for state in other.step.optimizer.state.values()]
    assert {value.device.type for value in sums} == {torch.device(device).type}
    (expected,), (losses,) = take_steps(trainer, 1, start=2), take_steps(other, 1, start=2)
    if device == DEVICE:  # on another device, other anchors are drawn
        assert losses == pytest.approx(expected, rel=1e-3)
    assert np.isfinite(list(losses.values())).all()


# --- prediction


@pytest.fixture
def image(cells):
    return read_image(next(cells.glob("test_release/*.tif")))


def count_common(detections, others):
    """Count the detections with the same class and nearly the same mask and score in others."""
    overlap = pycocotools.mask.iou(detections.masks, others.masks, [0] * len(others))
    common = (overlap >= 0.9) & (detections.classes[:, None] == others.classes)
    common &= np.abs(detections.scores[:, None] - others.scores) < 0.01
    return int(common.any(1).sum())


@pytest.mark.parametrize("views", [1, 8])
def test_a_gpu_detects_what_the_cpu_detects(run, image, views):
    keys = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.SYMMETRIES", str(views)]
    keys += ["TEST.BATCH", "3", "TEST.SCALES", "(1.0,)" if views == 1 else "(1.0, 1.25)"]
    gpu, cpu = (Predictor.from_run(run, device=d, options=keys) for d in (DEVICE, "cpu"))
    assert on_device(gpu.networks[0].parameters())
    detections, expected = gpu.predict(image), cpu.predict(image)
    assert len(expected) > 10
    # Of two boxes with nearly the same score or overlap, rounding decides which one is kept.
    assert count_common(expected, detections) >= 0.9 * len(expected)
    assert count_common(detections, expected) >= 0.9 * len(detections)


@pytest.mark.parametrize("type_", [torch.bfloat16, torch.float16])
def test_prediction_in_mixed_precision(run, image, monkeypatch, type_):
    monkeypatch.setattr("cellseg.predict.predictor.autocast_dtype", lambda *_: type_)
    keys = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.SYMMETRIES", "4"]
    detections = Predictor.from_run(run, device=DEVICE, options=keys).predict(image)
    assert len(detections) > 10
    assert np.isfinite(detections.scores).all()
    assert detections.scores.dtype == detections.boxes.dtype == np.float32


# --- memory


@contextlib.contextmanager
def memory(n_bytes=None):
    """Limit the GPU memory of torch, by default to hardly more than it has."""
    gc.collect()
    torch.cuda.empty_cache()
    n_bytes = n_bytes or torch.cuda.memory_reserved() + 2**20
    torch.cuda.set_per_process_memory_fraction(n_bytes / torch.cuda.mem_get_info()[1])
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def predict_and_measure(predictor, image):
    """Return the bytes that a prediction needs, and the detections."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    detections = predictor.predict(image)
    return torch.cuda.max_memory_allocated(), detections


ENLARGED = ["INPUT.MIN_SIZE_TEST", "1000", "INPUT.MAX_SIZE_TEST", "1500", "TEST.SYMMETRIES", "8"]


@needs_memory
def test_less_memory_is_smaller_batches(run, image, capsys):
    one, eight = (
        Predictor.from_run(run, device=DEVICE, options=[*ENLARGED, "TEST.BATCH", n]) for n in "18"
    )
    little, expected = predict_and_measure(one, image)
    much, _ = predict_and_measure(eight, image)
    with memory((little + much) // 2):
        detections = eight.predict(image)
    assert eight.batch < 8
    assert re.search(r"memory .*\b[48] views", capsys.readouterr().err)
    assert count_common(expected, detections) >= 0.9 * len(expected)


@needs_memory
def test_too_little_memory_for_a_view_is_one_line(run, image):
    predictor = Predictor.from_run(run, device=DEVICE, options=ENLARGED)
    with memory(), pytest.raises(InputError, match="GPU's memory"):
        predictor.predict(image)
    assert predictor.predict(image).size == image.shape[:2]  # with enough memory it works again


@needs_memory
def test_too_little_memory_to_train_is_one_line(configured):
    trainer = Trainer(*configured("INPUT.MIN_SIZE_TRAIN", "(1000,)", "INPUT.MAX_SIZE_TRAIN", 1500))
    trainer._batches = trainer.build_train_loader(trainer.cfg, trainer.data, 0)
    with memory(), pytest.raises(InputError, match=r"2 images at once.*SOLVER\.ACCUMULATE"):
        trainer.run_step()
