"""The estimated memory of a training step, compared with what a real step keeps."""

from __future__ import annotations

import pytest
import torch

from cellseg import config
from cellseg.learn import memory
from cellseg.learn.mapper import build_stream
from cellseg.learn.samples import load_training_data
from cellseg.network import build_network


@pytest.fixture(scope="module")
def cfg(tiny, cells, engine):
    cfg = config.load_config(tiny, engine)
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATA.ROOT, cfg.DATA.ANNOTATIONS = str(cells), str(cells / "train__annot.json")
    return cfg


@pytest.fixture(scope="module")
def stream(cfg):
    return build_stream(cfg, load_training_data(cfg.DATA.ROOT, cfg.DATA.ANNOTATIONS))


def kept_by_a_step(network, samples):
    """Return the bytes that a real forward pass keeps for the backward pass."""
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            alive.append(storage)
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sum(network(samples).values())
    return sum(kept.values())


def test_what_layers_keep_is_within_a_third_of_a_real_step(cfg, stream):
    network = build_network(cfg)
    samples = [stream[position] for position in range(2)]
    height, width = (max(s["image"].shape[side] for s in samples) for side in (1, 2))
    if cfg.ENGINE == "detectron2":
        from detectron2.utils.events import EventStorage

        with EventStorage():
            real = kept_by_a_step(network, samples)
    else:
        real = kept_by_a_step(network, samples)
    estimated, largest = memory._count_kept(cfg, memory._without_data(network), (2, height, width))
    assert estimated == pytest.approx(real, rel=0.3)
    assert 0 < largest < estimated


@pytest.mark.parametrize("free", [1e12, 1e8])
def test_the_report(cfg, stream, monkeypatch, capsys, caplog, free):
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    memory.report_memory(cfg, build_network(cfg), stream, 1)
    text = capsys.readouterr().out if free > 1e9 else caplog.text
    assert "GB" in text
    assert ("SOLVER.ACCUMULATE" in text) == (free < 1e9)


def test_the_largest_batch_of_a_process(cfg, stream):
    cfg = cfg.clone()
    cfg.SOLVER.IMS_PER_BATCH = 4
    whole = memory.largest_batch(cfg, stream, 1)
    assert whole[0] == 4
    assert memory.largest_batch(cfg, stream, 2) == (2, *whole[1:])
    cfg.SOLVER.ACCUMULATE = 4
    assert memory.largest_batch(cfg, stream, 1) == (1, *whole[1:])
    assert 64 <= min(whole[1:])
