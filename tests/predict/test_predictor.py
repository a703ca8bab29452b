"""The network at work: the same predictions as Detectron2's, on any shape of image."""

from __future__ import annotations

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch

from cellseg import runs
from cellseg.errors import InputError
from cellseg.learn import config
from cellseg.learn.checkpoint import load_weights
from cellseg.network import build_network
from cellseg.predict.predictor import Predictor, load_network
from cellseg.read.tiff import read_image
from cellseg.view import shortest_edge


@pytest.fixture(scope="module")
def cfg(run):
    cfg = config.load_config(run / runs.CONFIG)
    config.merge_options(cfg, ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"])
    return cfg


def loaded(cfg, run):
    return Predictor([load_network(cfg, run / runs.FINAL)], [cfg])


@pytest.fixture(scope="module")
def predictor(run, cfg):
    return loaded(cfg, run)


@pytest.mark.detectron2
def test_equals_detectron2s_own_steps(run, cfg, predictor, cells, engine):
    """Its zoom, its network and its pasting of masks into the whole image."""
    if engine != "detectron2":
        pytest.skip("of Detectron2's network alone")
    from detectron2.modeling import build_model

    image = read_image(next(cells.glob("test_release/*.tif")))
    model = build_model(cfg).eval()
    load_weights(model, run / runs.FINAL)
    height, width = shortest_edge((image.shape[0], image.shape[1]), 64, 100)
    zoomed = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    tensor = torch.as_tensor(zoomed[:, :, ::-1].astype("float32").transpose(2, 0, 1))
    inputs = {"image": tensor, "height": image.shape[0], "width": image.shape[1]}
    with torch.no_grad():
        expected = model([inputs])[0]["instances"]

    found = predictor.predict(image)
    assert len(found) == len(expected) > 0
    order = torch.argsort(expected.scores, descending=True, stable=True)
    assert np.allclose(found.boxes, expected.pred_boxes.tensor[order].numpy(), atol=1e-4)
    assert np.allclose(found.scores, expected.scores[order].numpy(), atol=1e-6)
    assert np.array_equal(found.classes, expected.pred_classes[order].numpy())
    for mask, pasted in zip(found.masks, expected.pred_masks[order].numpy(), strict=True):
        rle = pycocotools.mask.encode(np.asfortranarray(pasted.astype(np.uint8)))
        assert mask == {"size": rle["size"], "counts": rle["counts"].decode()}


def test_what_is_promised(predictor, cells):
    image = read_image(next(cells.glob("test_release/*.tif")))
    found = predictor.predict(image)
    height, width = image.shape[:2]
    assert found.size == (height, width)
    assert found.boxes.dtype == np.float32
    assert found.scores.dtype == np.float32
    assert found.classes.dtype == np.int64
    assert (np.diff(found.scores) <= 0).all()
    assert (found.classes >= 0).all()
    assert (found.classes < 4).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [width, height, width, height]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert all(mask["size"] == [height, width] for mask in found.masks)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 5000), (65, 64)])
def test_any_shape(predictor, shape):
    found = predictor.predict(np.full((*shape, 3), 200, np.uint8))
    assert found.size == shape
    assert len(found.masks) == len(found)


def test_no_zoom(cfg, run, cells):
    image = read_image(next(cells.glob("test_release/*.tif")))
    own = cfg.clone()
    config.merge_options(own, ["INPUT.MIN_SIZE_TEST", "0"])
    assert loaded(own, run).predict(image).size == image.shape[:2]


def test_a_model_in_training_goes_on_in_training(cfg):
    model = build_network(cfg).train()
    Predictor([model], [cfg]).predict(np.zeros((20, 20, 3), np.uint8))
    assert model.training


def test_weights_of_another_network(cfg, run):
    own = cfg.clone()
    config.merge_options(own, ["MODEL.ROI_BOX_HEAD.FC_DIM", "16"])
    with pytest.raises(InputError, match=r"model_final\.pth: can't be loaded .*another shape"):
        loaded(own, run)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["MODEL.MASK_ON", "False"], "with masks on is expected"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "GeneralizedRCNN"),
        (
            ["MODEL.BACKBONE.NAME", "x"],
            "nothing can be built from it|MODEL.BACKBONE.NAME 'x': only Det",
        ),
    ],
)
def test_a_config_of_no_mask_rcnn(cfg, run, options, expected):
    own = cfg.clone()
    config.merge_options(own, options)
    with pytest.raises(InputError, match=expected):
        loaded(own, run)


def test_a_gpu_without_memory(predictor, monkeypatch):
    def find(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predictor.networks[0], "find", find)
    with pytest.raises(
        InputError, match="96 x 64 pixels, as the network sees it, are"
    ):
        predictor.predict(np.zeros((30, 20, 3), np.uint8))
