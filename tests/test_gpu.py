"""On a GPU: training, mixed precision, resuming, prediction and what happens without memory.

`TEST_GPU=cpu pytest -m gpu` rehearses all but the memory on the CPU.
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
from cellseg.read.tiff import read_image
from trainer import Trainer

DEVICE = os.environ.get("TEST_GPU", "cuda")
REAL = DEVICE.startswith("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        REAL and not torch.cuda.is_available(), reason="there is no CUDA GPU that torch can use"
    ),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # Detectron2's
    # The thread of the backward pass begins with a product of matrices.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning"),
]
needs_memory = pytest.mark.skipif(not REAL, reason="no GPU, whose memory could be too small")
# As exact as the CPU, lest the two differ by more than the order of their sums.
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


@pytest.fixture(autouse=True)
def storage():
    """Detectron2's heads write scalars to one as they learn."""
    if detectron2_problem():
        yield
        return
    from detectron2.utils.events import EventStorage

    with EventStorage():
        yield


@pytest.fixture
def configured(tiny, cells, engine, tmp_path):
    """Call this with KEY VALUE pairs for the config and the data of a training on the GPU."""

    def configure(*options, device=DEVICE):
        flags = ["--config-file", tiny, "--data", cells, "--engine", engine, "--weights", "none"]
        argv = [*flags, "--device", device, "--num_workers", 1, *options]
        cfg = train.setup(train.parse([str(word) for word in argv]))
        data = session.prepare(cfg).data
        cfg.OUTPUT_DIR = str(tmp_path)
        return cfg, data

    return configure


def take_steps(trainer, n, start=0):
    """Take n steps; return the losses of each."""
    batches = trainer.build_train_loader(trainer.cfg, trainer.data, start)
    return [trainer.step.step(next(batches), seed) for seed in range(start, start + n)]


def weights(network):
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def on_device(tensors):
    return {tensor.device.type for tensor in tensors} == {torch.device(DEVICE).type}


def same(one, other):
    """Whether two states are equal, bit for bit, wherever they are."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one.cpu(), other.cpu()) if isinstance(one, torch.Tensor) else one == other


def learned(step):
    """What a step carries on; that a CPU's optimizer is fused and a GPU's is not is its own."""
    state = step.state_dict()
    groups = [
        {key: value for key, value in group.items() if key != "fused"}
        for group in state["optimizer"]["param_groups"]
    ]
    return state | {"optimizer": state["optimizer"] | {"param_groups": groups}}


# --- training


def test_samples_come_in_memory_that_is_copied_from_fast(configured):
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
    trainer = Trainer(*configured("SOLVER.WARMUP_ITERS", 0))
    network = trainer.step.network
    assert trainer.step.scaler.is_enabled() == (type_ is torch.float16)
    if type_ is torch.float16:  # a scale that no gradient overflows with
        state = trainer.step.scaler.state_dict()
        trainer.step.scaler.load_state_dict(state | {"scale": 128.0})
    seen = set()
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    before = weights(network)
    for losses in take_steps(trainer, 3):
        assert np.isfinite(list(losses.values())).all()
    assert seen == {type_}
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
    for name in average:  # one step in, 2/11 of the former average is kept
        expected = first[name] * 2 / 11 + second[name] * 9 / 11
        assert torch.allclose(average[name], expected, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("device", [DEVICE, "cpu"])
def test_a_run_goes_on_from_its_checkpoint(configured, device):
    """Here, or on the CPU, with all that it had."""
    keys = ("SOLVER.EMA", 0.9, "SOLVER.OPTIMIZER", "Adagrad")
    trainer = Trainer(*configured(*keys))
    take_steps(trainer, 2)
    trainer.iter = 1
    trainer.checkpointer.save_last()
    other = Trainer(*configured(*keys, device=device))
    other.resume_or_load(resume=True)
    assert other.start_iter == 2
    assert same(other.step.network.state_dict(), trainer.step.network.state_dict())
    assert same(learned(other.step), learned(trainer.step))
    sums = [state["sum"] for state in other.step.optimizer.state.values()]
    assert {value.device.type for value in sums} == {torch.device(device).type}
    (expected,), (losses,) = take_steps(trainer, 1, start=2), take_steps(other, 1, start=2)
    if device == DEVICE:  # elsewhere, other anchors are drawn
        assert losses == pytest.approx(expected, rel=1e-3)
    assert np.isfinite(list(losses.values())).all()


# --- prediction


@pytest.fixture
def image(cells):
    return read_image(next(cells.glob("test_release/*.tif")))


def found_again(cells, others):
    """Count the cells that others have too: the class, nearly the mask, nearly the score."""
    overlap = pycocotools.mask.iou(cells.masks, others.masks, [0] * len(others))
    alike = (overlap >= 0.9) & (cells.classes[:, None] == others.classes)
    alike &= np.abs(cells.scores[:, None] - others.scores) < 0.01
    return int(alike.any(1).sum())


@pytest.mark.parametrize("views", [1, 8])
def test_a_gpu_finds_what_the_cpu_finds(run, image, views):
    keys = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.SYMMETRIES", str(views)]
    keys += ["TEST.BATCH", "3", "TEST.SCALES", "(1.0,)" if views == 1 else "(1.0, 1.25)"]
    there, here = (Predictor.from_run(run, device=d, options=keys) for d in (DEVICE, "cpu"))
    assert on_device(there.networks[0].parameters())
    found, expected = there.predict(image), here.predict(image)
    assert len(expected) > 10
    # Where two boxes score or overlap alike, the last bit decides which one stays.
    assert found_again(expected, found) >= 0.9 * len(expected)
    assert found_again(found, expected) >= 0.9 * len(found)


@pytest.mark.parametrize("type_", [torch.bfloat16, torch.float16])
def test_prediction_in_mixed_precision(run, image, monkeypatch, type_):
    monkeypatch.setattr("cellseg.predict.predictor.autocast_dtype", lambda *_: type_)
    keys = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.SYMMETRIES", "4"]
    found = Predictor.from_run(run, device=DEVICE, options=keys).predict(image)
    assert len(found) > 10
    assert np.isfinite(found.scores).all()
    assert found.scores.dtype == found.boxes.dtype == np.float32


# --- memory


@contextlib.contextmanager
def memory(n_bytes=None):
    """Let torch have so much of the GPU's memory, if not said hardly more than it has."""
    gc.collect()
    torch.cuda.empty_cache()
    n_bytes = n_bytes or torch.cuda.memory_reserved() + 2**20
    torch.cuda.set_per_process_memory_fraction(n_bytes / torch.cuda.mem_get_info()[1])
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def least_memory(predictor, image):
    """Predict; return the bytes that it took, and what was found."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found = predictor.predict(image)
    return torch.cuda.max_memory_reserved(), found


ENLARGED = ["INPUT.MIN_SIZE_TEST", "1000", "INPUT.MAX_SIZE_TEST", "1500", "TEST.SYMMETRIES", "8"]


@needs_memory
def test_less_memory_is_smaller_batches(run, image, capsys):
    one, eight = (
        Predictor.from_run(run, device=DEVICE, options=[*ENLARGED, "TEST.BATCH", n]) for n in "18"
    )
    little, expected = least_memory(one, image)
    much, _ = least_memory(eight, image)
    with memory((little + much) // 2):
        found = eight.predict(image)
    assert eight.batch < 8
    assert re.search(r"too small for [48] views at once: going on with", capsys.readouterr().err)
    assert found_again(expected, found) >= 0.9 * len(expected)


@needs_memory
def test_too_little_memory_for_a_view_is_one_line(run, image):
    predictor = Predictor.from_run(run, device=DEVICE, options=ENLARGED)
    with (
        memory(),
        pytest.raises(InputError, match="are too many for the GPU's memory"),
    ):
        predictor.predict(image)
    assert predictor.predict(image).size == image.shape[:2]  # and it goes on when there is


@needs_memory
def test_too_little_memory_to_train_is_one_line(configured):
    trainer = Trainer(*configured("INPUT.MIN_SIZE_TRAIN", "(1000,)", "INPUT.MAX_SIZE_TRAIN", 1500))
    trainer._batches = trainer.build_train_loader(trainer.cfg, trainer.data, 0)
    with (
        memory(),
        pytest.raises(InputError, match="too small for 2 images at once; split the batch"),
    ):
        trainer.run_step()
