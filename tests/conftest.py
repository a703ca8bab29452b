"""Shared fixtures: a small annotated data set, a tiny network, a finished run."""

from __future__ import annotations

import contextlib
import os
from collections import Counter

import hypothesis
import pytest

# Before torch is imported: the networks are too small for several threads.
os.environ["OMP_NUM_THREADS"] = "1"

from bench.tiny import write_tiny
from cellseg.device import ENGINES, detectron2_problem
from cellseg.messages import print_warnings
from tests.fork_server import forks

print_warnings()  # as the commands do

# No deadlines, since the machine may be busy.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

NO_DETECTRON2 = (
    f"Detectron2 can't be used here: {detectron2_problem()}" if detectron2_problem() else ""
)


def pytest_configure(config):
    config.addinivalue_line("markers", "detectron2: needs Detectron2, if only as an oracle")
    config.addinivalue_line("markers", "one_engine: the engine makes no difference")
    if NO_DETECTRON2 and os.environ.get("CI"):
        pytest.exit(f"{NO_DETECTRON2}; CI must have it", returncode=2)


def pytest_collection_modifyitems(config, items):
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        other = item.get_closest_marker("one_engine") and (
            item.callspec.params["engine"] != "torchvision"  # which can always be used
        )
        (others if other else chosen).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = chosen
    for item in items:
        if NO_DETECTRON2 and item.get_closest_marker("detectron2"):
            item.add_marker(pytest.mark.skip(reason=NO_DETECTRON2))


def pytest_terminal_summary(terminalreporter):
    """List the tests that are skipped without Detectron2."""
    skipped = Counter(
        report.nodeid.partition("[")[0]
        for report in terminalreporter.stats.get("skipped", ())
        if NO_DETECTRON2 and NO_DETECTRON2 in str(report.longrepr)
    )
    if not skipped:
        return
    terminalreporter.section(f"{skipped.total()} skipped tests need Detectron2")
    terminalreporter.write_line(NO_DETECTRON2)
    for name, count in skipped.items():
        terminalreporter.write_line(name + (f" ({count} cases)" if count > 1 else ""))


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=pytest.mark.detectron2 if name == "detectron2" else ())
        for name in ENGINES
    ],
)
def engine(request):
    """Each engine in turn."""
    return request.param


@pytest.fixture(scope="session")
def forked(tmp_path_factory):
    """Function that runs Python in another process, as `subprocess.run` does."""
    with forks(tmp_path_factory.mktemp("forked")) as run:
        yield run


# In float32: exact, to compare with others.
SETTINGS = """\
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 100}
TEST: {BFLOAT16_ON_CPU: False}
SOLVER: {OPTIMIZER: AdamW, IMS_PER_BATCH: 2, MAX_ITER: 4, EPOCHS: 0.0, WARMUP_ITERS: 1}
"""


@contextlib.contextmanager
def counted_once():
    """Count what a network keeps for the backward pass once, as this takes half a second."""
    from cellseg.learn import memory

    count, counted = memory._count_kept, {}

    def count_kept(cfg, network, size):
        key = cfg.ENGINE, str(cfg.MODEL), size
        if key not in counted:
            counted[key] = count(cfg, network, size)
        return counted[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_count_kept", count_kept)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Config file of a tiny network that trains in seconds."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    write_tiny(path, SETTINGS)
    with counted_once():
        yield path


@pytest.fixture(scope="session")
def make_cells():
    """Function that writes a small annotated data set to a new folder."""
    import annotation
    from cellseg.synthetic import write_dataset

    def make(folder, n_train=5, n_test=3, **keywords):
        write_dataset(
            folder,
            n_train=n_train,
            n_test=n_test,
            sizes=[(60, 70), (72, 50)],
            cells_per_megapixel=3000,
            scale=0.6,
            **keywords,
        )
        assert annotation.main(["--data", str(folder)]) == 0
        return folder

    return make


@pytest.fixture(scope="session")
def cells(tmp_path_factory, make_cells):
    """Data folder of 5 training and 3 test images. Tests must not change it."""
    return make_cells(tmp_path_factory.mktemp("cells") / "data")


@pytest.fixture(scope="session")
def run(tmp_path_factory, cells, tiny, engine):
    """Folder of a run of 4 iterations, scored twice. Tests must not change it."""
    import train
    from cellseg import runs

    root = tmp_path_factory.mktemp("runs")
    argv = ["--config-file", tiny, "--data", cells, "--output_dir", root, "--device", "cpu"]
    argv += ["--engine", engine]
    argv += ["--val_fraction", 0.4, "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 3]
    assert train.main([str(word) for word in argv]) == 0
    return runs.find_newest_run(root)
