"""Several processes train like one process with the whole batch."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import train
import utils
from cellseg import runs
from cellseg.config import default_config, load_config
from cellseg.distributed import any_process, check_launch, launch, rank, world_size
from cellseg.errors import InputError
from cellseg.learn import session
from cellseg.learn.hooks import Validation
from cellseg.learn.mapper import build_stream
from cellseg.learn.optimizer import build_optimizer, build_schedule
from cellseg.learn.samples import load_training_data
from cellseg.learn.step import TrainingStep
from cellseg.messages import HANDLER, warn
from cellseg.network import build_network
from tests.training import TrainerStub, scores_of
from trainer import Trainer

pytestmark = pytest.mark.detectron2  # which starts the processes


class Regression(torch.nn.Module):
    """The loss is a mean over the samples, so the mean over processes is that of all samples."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )
        self.idle = torch.nn.Linear(1, 1)  # like a level of a pyramid that is not used

    def forward(self, samples):
        x = torch.stack([sample["x"] for sample in samples])
        return {"loss": (self.layers(x) - x.sum(1, keepdim=True)).square().mean()}


def batches():
    numbers = torch.randn((3, 8, 4), generator=torch.Generator().manual_seed(1))
    return [[{"x": x} for x in batch] for batch in numbers]


def take_steps(folder):
    """Run three steps, in one process or several; save the results."""
    cfg = default_config("torchvision")
    cfg.MODEL.DEVICE = "cpu"
    solver = cfg.SOLVER
    solver.BASE_LR, solver.WARMUP_ITERS, solver.STEPS = 0.1, 0, ()
    solver.EMA, solver.ACCUMULATE = 0.9, 2
    solver.CLIP_GRADIENTS.ENABLED, solver.CLIP_GRADIENTS.CLIP_TYPE = True, "full_model"
    net = Regression()
    optimizer = build_optimizer(cfg, net)
    step = TrainingStep(cfg, net, optimizer, build_schedule(cfg, optimizer))
    n = 8 // world_size()
    part = slice(rank() * n, (rank() + 1) * n)
    losses = [step.step(batch[part], 0)["loss"] for batch in batches()]
    result = {
        "losses": torch.tensor(losses),
        **net.state_dict(),
        **{f"average {n}": v for n, v in step.eval_network.state_dict().items()},
    }
    flags = [any_process(rank() == number, "cpu") for number in range(3)]
    torch.save({"result": result, "flags": flags}, folder / f"{world_size()}-{rank()}.pth")


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny, cells):
    """Folder with what two processes wrote, started once as this takes long."""
    folder = tmp_path_factory.mktemp("two")
    path = folder / "all.yaml"
    path.write_text(ALL_OF_THEM.format(tiny=tiny))
    for name in ("steps", "network", "resources"):
        (folder / name).mkdir()
    n_warnings = HANDLER.count
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setattr(torch, "get_num_threads", lambda: 5)
        launch(2, work, folder, path, tiny, cells)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert "OMP_NUM_THREADS" not in os.environ
    (folder / "warnings").write_text(str(HANDLER.count - n_warnings))
    return folder


def work(folder, path, tiny, data):
    warn("one of each")
    gpus, threads = os.environ["CUDA_VISIBLE_DEVICES"], torch.get_num_threads()
    (folder / "resources" / str(rank())).write_text(f"{gpus} {threads}")
    take_steps(folder / "steps")
    learn_from_two_images(folder / "network", path, data)
    train_and_list_threads(tiny, data, folder)
    validate_longer_than_the_timeout(folder)  # last, as it changes the timeout
    (folder / f"warnings-{rank()}").write_text(str(HANDLER.count))


def test_two_processes_take_the_steps_of_one(two):
    folder = two / "steps"
    take_steps(folder)
    single, *both = (torch.load(folder / f"{n}.pth") for n in ("1-0", "2-0", "2-1"))
    before = Regression().state_dict()
    for name, value in single["result"].items():
        for one in both:
            # Sums in another order: a few units in the last place of float32.
            torch.testing.assert_close(one["result"][name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(both[0]["result"][name], both[1]["result"][name])
        if name in before and not name.startswith("idle"):
            assert not torch.allclose(value, before[name], atol=1e-3)
    assert single["flags"] == [True, False, False]
    assert both[0]["flags"] == both[1]["flags"] == [True, True, False]


ALL_OF_THEM = """\
_BASE_: "{tiny}"
MODEL:
  RESNETS: {{NORM: FrozenBN}}  # batch statistics are per process
  RPN: {{BATCH_SIZE_PER_IMAGE: 1024, POST_NMS_TOPK_TRAIN: 0}}
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 64, POSITIVE_FRACTION: 1.0}}
INPUT: {{CROP: {{ENABLED: False}}}}
SOLVER: {{OPTIMIZER: SGD, BASE_LR: 0.1, WARMUP_ITERS: 0}}
"""


def learn_from_two_images(folder, config_file, data):
    """Run a step of a Mask R-CNN in one process, or one for each image; save its weights.

    Nothing is drawn: all anchors count, and the ground-truth boxes are the proposals. Both images
    have the same number of cells, so that the means over boxes are comparable.
    """
    from detectron2.utils.events import EventStorage

    utils.quiet_libraries()
    cfg = load_config(config_file)
    cfg.DATA.ROOT, cfg.DATA.ANNOTATIONS = str(data), str(data / "train__annot.json")
    cfg.MODEL.DEVICE = "cpu"
    stream = build_stream(cfg, load_training_data(cfg.DATA.ROOT, cfg.DATA.ANNOTATIONS))
    samples = sorted((stream[n] for n in range(5)), key=lambda sample: sample["image"].shape)
    first, second = samples[:2]
    assert first["image"].shape == second["image"].shape
    assert first["name"] != second["name"]
    n = min(len(first["boxes"]), len(second["boxes"]))
    for sample in (first, second):
        for key in ("boxes", "classes", "masks"):
            sample[key] = sample[key][torch.arange(n)]
    torch.manual_seed(0)
    network = build_network(cfg)
    optimizer = build_optimizer(cfg, network)
    step = TrainingStep(cfg, network, optimizer, build_schedule(cfg, optimizer))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    part = [first, second] if world_size() == 1 else [[first], [second]][rank()]
    with EventStorage():  # required by Detectron2's networks
        losses = step.step(part, 0)
    moved = {name: p.detach() - before[name] for name, p in network.named_parameters()}
    torch.save({"losses": losses, "moved": moved}, folder / f"{world_size()}-{rank()}.pth")


def test_two_processes_take_the_step_of_one_with_a_network(two, cells):
    folder = two / "network"
    learn_from_two_images(folder, two / "all.yaml", cells)
    single, *both = (torch.load(folder / f"{n}.pth") for n in ("1-0", "2-0", "2-1"))
    assert both[0]["losses"] == both[1]["losses"] == pytest.approx(single["losses"], rel=1e-4)
    for name, moved in single["moved"].items():
        assert torch.equal(both[0]["moved"][name], both[1]["moved"][name])
        # To a thousandth of the largest step of its parameter: sums in another order.
        bound = 1e-3 * float(moved.abs().max())
        torch.testing.assert_close(both[0]["moved"][name], moved, rtol=0, atol=bound)
    assert sum(bool(moved.any()) for moved in single["moved"].values()) > 20


def test_a_run_of_two_processes_finishes_and_is_resumed(tiny, cells, tmp_path, capsys):
    words = ["--config-file", tiny, "--data", cells, "--output_dir", tmp_path, "--device", "cpu"]
    words += ["--processes", 2, "--val_fraction", 0.4, "SOLVER.MAX_ITER", 2]
    assert train.main([str(word) for word in words]) == 0
    (run,) = tmp_path.glob("*/*")
    assert torch.load(run / runs.FINAL)["iteration"] == 2
    assert (run / runs.BEST).is_file()
    assert len(list(run.glob("events.*"))) == 1  # written by rank 0 only
    capsys.readouterr()
    longer = ["--resume", str(run), "--device", "cpu"]
    assert train.main([*longer, "SOLVER.MAX_ITER", "3"]) == 0
    assert "2 processes" in capsys.readouterr().out
    assert list(tmp_path.glob("*/*")) == [run]
    assert torch.load(run / runs.LAST)["trainer"]["iteration"] == 3
    assert train.main([*longer, "--processes", "1", "SOLVER.MAX_ITER", "4"]) == 0
    assert "--processes 2, now 1" in capsys.readouterr().out


TIMEOUT, LONG = 4, 6  # seconds


def test_other_processes_wait_for_a_long_validation(two):
    for number in range(2):
        assert float((two / f"waited-{number}").read_text()) > TIMEOUT


def validate_longer_than_the_timeout(folder):
    group: Any = torch.distributed.group.WORLD
    group._get_backend(torch.device("cpu"))._set_default_timeout(timedelta(seconds=TIMEOUT))

    def score():
        time.sleep(LONG)
        return scores_of(math.nan)

    no_checkpointer: Any = None
    hook = Validation(score, no_checkpointer, ["a"], 1)
    hook.trainer = TrainerStub(2)
    hook.before_train()
    start = time.monotonic()
    hook.after_step()
    (folder / f"waited-{rank()}").write_text(str(time.monotonic() - start))
    assert any_process(rank() == 1, "cpu")


def test_a_batch_that_two_can_not_share(tiny, cells, tmp_path):
    words = ["--config-file", tiny, "--data", cells, "--output_dir", tmp_path, "--device", "cpu"]
    with pytest.raises(InputError, match=r"--batch_size 3: .*2 processes"):
        train.main([str(word) for word in [*words, "--num_gpus", 2, "-b", 3]])
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_killed_is_one_line():
    with pytest.raises(InputError, match=r"--processes: .*process"):
        launch(2, die)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed on Linux")
def test_no_thread_of_a_process_group_is_left_when_the_interpreter_ends(two):
    # Such a thread sometimes aborts the process.
    for number in range(2):
        during, after = json.loads((two / f"{number}.json").read_text())
        assert "pt_gloo_runloop" in during
        assert "pt_gloo_runloop" not in after


def train_and_list_threads(config_file, data, folder):
    number = rank()
    cfg = load_config(config_file)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 2, 2
    cfg.DATA.ROOT, cfg.DATA.ANNOTATIONS = str(data), str(data / "train__annot.json")
    cfg.OUTPUT_DIR = str(folder / "run")
    cfg.MODEL.DEVICE = "cpu"
    trainer = Trainer(cfg, load_training_data(cfg.DATA.ROOT, cfg.DATA.ANNOTATIONS))
    trainer.resume_or_load(resume=False)
    trainer.train()
    lists = [threads()]

    def write():
        lists.append(threads())
        (folder / f"{number}.json").write_text(json.dumps(lists))

    atexit.register(write)


def threads():
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            names.append((task / "comm").read_text().strip())
    return names


def test_a_process_that_waits_for_one_that_has_ended_is_one_line():
    with pytest.raises(InputError, match=r"--processes: .*process"):
        launch(2, wait_for_rank_1)


def wait_for_rank_1():
    if rank() == 1:
        os._exit(0)
    any_process(True, "cpu")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_on_the_cpu_see_no_gpu_and_share_the_cores(two):
    assert [path.read_text() for path in (two / "resources").iterdir()] == [" 2", " 2"]


def test_warnings_of_all_processes_are_counted(two):
    counts = [int((two / f"warnings-{number}").read_text()) for number in range(2)]
    assert min(counts) >= 1
    assert int((two / "warnings").read_text()) == sum(counts)


@pytest.mark.parametrize(("n_processes", "device"), [(3, "cuda"), (2, "cuda:1")])
def test_each_process_needs_a_gpu(n_processes, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_launch(2, "cuda")
    check_launch(3, "cpu")
    with pytest.raises(InputError, match=rf"--processes {n_processes}: .*{device}.*2"):
        launch(n_processes, die, device=device)


@pytest.mark.parametrize(
    ("threads", "batch", "iterations", "device", "expected"),
    [
        (2, 8, 1000, "cpu", 2),
        (2, 4, 1000, "cpu", 2),
        (2, 5, 1000, "cpu", 1),
        (2, 2, 1000, "cpu", 1),
        (1, 8, 1000, "cpu", 1),
        (6, 8, 1000, "cpu", 2),
        (6, 24, 1000, "cpu", 6),
        (4, 14, 1000, "cpu", 2),
        (2, 8, 20, "cpu", 1),
        (2, 8, 1000, "cuda", 1),
    ],
)
def test_processes_on_a_cpu(threads, batch, iterations, device, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    cfg = default_config("torchvision")
    cfg.MODEL.DEVICE = device
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = batch, iterations
    assert session.choose_processes(cfg) == expected
