"""The config's keys: Detectron2's that every engine understands and the project's own.

And which values they may have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

# Keys of Detectron2, with its default values.
SHARED_KEYS: dict[str, Any] = {
    "VERSION": 2,
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "MASK_ON": False,
        "DEVICE": "cuda",
        "WEIGHTS": "",
        "PIXEL_MEAN": [103.530, 116.280, 123.675],
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
        "RESNETS": {
            "DEPTH": 50,
            "OUT_FEATURES": ["res4"],
            "NUM_GROUPS": 1,
            "NORM": "FrozenBN",
            "WIDTH_PER_GROUP": 64,
            "STRIDE_IN_1X1": True,
            "RES5_DILATION": 1,
            "RES2_OUT_CHANNELS": 256,
            "STEM_OUT_CHANNELS": 64,
        },
        "FPN": {"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": ""},
        "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
        "ANCHOR_GENERATOR": {
            "NAME": "DefaultAnchorGenerator",
            "SIZES": [[32, 64, 128, 256, 512]],
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
            "OFFSET": 0.0,
        },
        "RPN": {
            "HEAD_NAME": "StandardRPNHead",
            "IN_FEATURES": ["res4"],
            "IOU_THRESHOLDS": [0.3, 0.7],
            "BATCH_SIZE_PER_IMAGE": 256,
            "POSITIVE_FRACTION": 0.5,
            "PRE_NMS_TOPK_TRAIN": 12000,
            "PRE_NMS_TOPK_TEST": 6000,
            "POST_NMS_TOPK_TRAIN": 2000,
            "POST_NMS_TOPK_TEST": 1000,
            "NMS_THRESH": 0.7,
        },
        "ROI_HEADS": {
            "NAME": "Res5ROIHeads",
            "NUM_CLASSES": 80,
            "IN_FEATURES": ["res4"],
            "IOU_THRESHOLDS": [0.5],
            "BATCH_SIZE_PER_IMAGE": 512,
            "POSITIVE_FRACTION": 0.25,
            "SCORE_THRESH_TEST": 0.05,
            "NMS_THRESH_TEST": 0.5,
        },
        "ROI_BOX_HEAD": {
            "NAME": "",
            "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
            "NUM_FC": 0,
            "FC_DIM": 1024,
            "NUM_CONV": 0,
            "CONV_DIM": 256,
            "NORM": "",
            "CLS_AGNOSTIC_BBOX_REG": False,
        },
        "ROI_MASK_HEAD": {
            "NAME": "MaskRCNNConvUpsampleHead",
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
            "NUM_CONV": 0,
            "CONV_DIM": 256,
            "NORM": "",
        },
    },
    "INPUT": {
        "FORMAT": "BGR",
        "MASK_FORMAT": "polygon",
        "MIN_SIZE_TRAIN": (800,),
        "MIN_SIZE_TRAIN_SAMPLING": "choice",
        "MAX_SIZE_TRAIN": 1333,
        "MIN_SIZE_TEST": 800,
        "MAX_SIZE_TEST": 1333,
        "RANDOM_FLIP": "horizontal",
        "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "FILTER_EMPTY_ANNOTATIONS": True,
        "ASPECT_RATIO_GROUPING": True,
        "REPEAT_THRESHOLD": 0.0,
    },
    "SOLVER": {
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "MAX_ITER": 40000,
        "BASE_LR": 0.001,
        "BASE_LR_END": 0.0,
        "MOMENTUM": 0.9,
        "NESTEROV": False,
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0,
        "WEIGHT_DECAY_BIAS": None,
        "BIAS_LR_FACTOR": 1.0,
        "GAMMA": 0.1,
        "STEPS": (30000,),
        "WARMUP_FACTOR": 1.0 / 1000,
        "WARMUP_ITERS": 1000,
        "WARMUP_METHOD": "linear",
        "RESCALE_INTERVAL": False,
        "CHECKPOINT_PERIOD": 5000,
        "IMS_PER_BATCH": 16,
        "CLIP_GRADIENTS": {
            "ENABLED": False,
            "CLIP_TYPE": "value",
            "CLIP_VALUE": 1.0,
            "NORM_TYPE": 2.0,
        },
        "AMP": {"ENABLED": False},
    },
    "TEST": {"EVAL_PERIOD": 0, "DETECTIONS_PER_IMAGE": 100},
}

# The project's own keys, with their default values.
OWN: dict[str, Any] = {
    # The engine: detectron2 or torchvision.
    "ENGINE": "",
    # The recipe that the run began with: the name of a file in configs/.
    "RECIPE": "",
    "DATA": {
        # Data folder; the annotations' file names are relative to it.
        "ROOT": "",
        # COCO file that annotation.py wrote.
        "ANNOTATIONS": "",
        # Part of the training images that is held out and scored during training.
        "VAL_FRACTION": 0.0,
        # Cross-validation: the images are split into so many folds, 0 for none, …
        "FOLDS": 0,
        # … of which this one, from 1 on, is held out; 0 trains a run for each.
        "FOLD": 0,
        # File that names each image's group (patient, slide); a group is never split.
        "GROUPS": "",
        # The longest cell to expect, in pixels of the image: tiles overlap by a little more.
        # Set by the training data; all but one in a thousand of its cells are shorter.
        "LONGEST_CELL": 0.0,
    },
    "INPUT": {
        # The network's pixels for each pixel of the image, in training and prediction alike;
        # 0 scales as Detectron2 does, until the short side is as in MIN_SIZE_TRAIN or _TEST.
        "ZOOM": 0.0,
        # Choose ZOOM by the training cells' own sizes. Giving ZOOM alone sets this to False.
        "ZOOM_FROM_DATA": False,
        # With a ZOOM, training sees windows of this side, in the network's pixels …
        "WINDOW": 512,
        # … at a zoom drawn from ZOOM / (1 + this) to ZOOM * (1 + this).
        "ZOOM_JITTER": 0.0,
        # How likely a window is laid around a cell of a class drawn for it, rare ones as often
        # as frequent ones, and not anywhere.
        "CROP_ON_CLASS": 0.0,
        # INPUT.RANDOM_FLIP may be "both" beside Detectron2's choices.
        "QUARTER_TURNS": False,
        # Brightness and contrast are multiplied by numbers drawn from here. (1, 1) leaves them.
        "BRIGHTNESS": (1.0, 1.0),
        "CONTRAST": (1.0, 1.0),
        # The largest sigma of a Gaussian blur, in the network's pixels.
        "BLUR": 0.0,
        # The densities of haematoxylin and eosin are multiplied by numbers from 1 - this to
        # 1 + this.
        "STAIN_JITTER": 0.0,
        # How likely cells of another image are pasted into a sample.
        "COPY_PASTE": 0.0,
    },
    "MODEL": {
        # The network of timm that the backbone build_timm_fpn_backbone takes: convnextv2_base, …
        "TIMM": {"NAME": ""},
        # SHA-256 sums, with commas between them, of the pickles (.pkl) that MODEL.WEIGHTS may
        # be; without any, only those from the address of Detectron2's zoo.
        "TRUSTED_SHA256": "",
        # Choose the anchors' sizes by the training cells'. Giving SIZES alone sets this to False.
        "ANCHOR_GENERATOR": {"FROM_DATA": False},
    },
    "SOLVER": {
        # One of SGD, Adam, AdamW, Adagrad.
        "OPTIMIZER": "SGD",
        # The batch goes through the network in so many parts, one after the other.
        "ACCUMULATE": 1,
        # Decay of the moving average of the weights, which is then what is scored and kept;
        # 0 for none.
        "EMA": 0.0,
        # Lengths in passes over the training images. Where one is not 0, it sets Detectron2's
        # key in iterations: MAX_ITER, WARMUP_ITERS, CHECKPOINT_PERIOD and TEST.EVAL_PERIOD.
        # Giving that key alone sets this one to 0.
        "EPOCHS": 0.0,
        "WARMUP_EPOCHS": 0.0,
        "CHECKPOINT_EPOCHS": 0.0,
        # The same for SOLVER.STEPS, in parts of the run's length.
        "STEP_FRACTIONS": (),
    },
    "TEST": {
        "EVAL_EPOCHS": 0.0,
        # Sides of the tiles and of their overlap, in pixels of the image; 0 follows from
        # LONGEST_CELL. Without a ZOOM there are no tiles unless TILE is given.
        "TILE": 0,
        "OVERLAP": 0,
        # What is detected in several views is fused: at these scales, times the zoom …
        "SCALES": (1.0,),
        # … each as it is (1), flipped left to right (2), flipped both ways (4) or turned by
        # quarters as well (8).
        "SYMMETRIES": 1,
        # Views that go through the network at once.
        "BATCH": 1,
        # Mixed precision, on a GPU or a processor that computes in bfloat16.
        "AMP": False,
        # Of cells whose masks have at least this IoU, only the best stays …
        "MASK_IOU": 0.5,
        # … in a class, or whatever their class.
        "ACROSS_CLASSES": False,
        # So many scores in a row without a better one end the training; 0 for never.
        "PATIENCE": 0,
    },
}


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`, both included unless `above` or `below`."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        return (
            isinstance(value, int | float)
            and (self.low < value if self.above else self.low <= value)
            and (value < self.high if self.below else value <= self.high)
            and math.isfinite(value)
            and (not self.whole or value == int(value))
        )

    def __str__(self) -> str:
        number = "whole number" if self.whole else "number"
        if self.high == math.inf:
            if self.above and self.low == 0:
                return f"a positive {number}"
            return f"a {number} of {self.low} or more"
        if self.above:
            return f"a {number} above {self.low} and up to {self.high}"
        return f"a {number} from {self.low} to {'below ' if self.below else ''}{self.high}"


@dataclass(frozen=True)
class Numbers:
    """A list of at least `least` and at most `most` numbers, each of them in `each`.

    With `rising`, each is larger than the one before; with `ordered`, none is smaller.
    """

    each: Range
    least: int = 0
    most: float = math.inf
    rising: bool = False
    ordered: bool = False

    def __contains__(self, values: Any) -> bool:
        values = list(values)
        return (
            self.least <= len(values) <= self.most
            and all(value in self.each for value in values)
            and (not self.rising or values == sorted(set(values)))
            and (not self.ordered or values == sorted(values))
        )

    def __str__(self) -> str:
        count = {(2, 2): "two ", (1, math.inf): "one or more "}.get((self.least, self.most), "")
        order = "rising " if self.rising else ""
        last = ", the lower one first" if self.ordered else ""
        return f"a list of {count}{order}numbers{last} ({self.each} each)"


OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adagrad")
SCHEDULERS = ("WarmupCosineLR", "WarmupMultiStepLR")

Allowed = Range | Numbers | tuple[Any, ...]  # a tuple has all values that there are

_SHARE = Range(0, 1)
_POSITIVE = Range(0, above=True)
_NOT_NEGATIVE = Range(0)
_SIDE = Range(0, 100_000)  # px of what the network sees
_FACTORS = Numbers(_NOT_NEGATIVE, 2, 2, ordered=True)

# What predicting reads.
PREDICTION_RANGES: dict[str, Allowed] = {
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.ZOOM": Range(0, 100),
    "INPUT.MIN_SIZE_TEST": _SIDE,
    "INPUT.MAX_SIZE_TEST": Range(1, 100_000),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "TEST.DETECTIONS_PER_IMAGE": Range(1),
    "TEST.TILE": _NOT_NEGATIVE,
    "TEST.OVERLAP": _NOT_NEGATIVE,
    "TEST.SCALES": Numbers(Range(0.1, 10), 1),
    "TEST.SYMMETRIES": (1, 2, 4, 8),
    "TEST.BATCH": Range(1),
    "TEST.MASK_IOU": Range(0, 1, above=True),
}

# What training reads besides.
TRAINING_RANGES: dict[str, Allowed] = {
    "SEED": Range(-1, 2**32 - 1),  # numpy's; -1 draws one
    "DATA.VAL_FRACTION": Range(0, 1, below=True),
    "DATALOADER.NUM_WORKERS": _NOT_NEGATIVE,
    "DATALOADER.REPEAT_THRESHOLD": _NOT_NEGATIVE,
    "INPUT.WINDOW": _POSITIVE,
    "INPUT.ZOOM_JITTER": _NOT_NEGATIVE,
    "INPUT.MIN_SIZE_TRAIN": Numbers(Range(0, whole=True), 1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": _POSITIVE,
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.CROP_ON_CLASS": _SHARE,
    "INPUT.RANDOM_FLIP": ("none", "horizontal", "vertical", "both"),
    "INPUT.BRIGHTNESS": _FACTORS,
    "INPUT.CONTRAST": _FACTORS,
    "INPUT.BLUR": _NOT_NEGATIVE,
    "INPUT.STAIN_JITTER": _SHARE,
    "INPUT.COPY_PASTE": _SHARE,
    "SOLVER.OPTIMIZER": OPTIMIZERS,
    "SOLVER.LR_SCHEDULER_NAME": SCHEDULERS,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.BASE_LR_END": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY": _NOT_NEGATIVE,
    "SOLVER.IMS_PER_BATCH": _POSITIVE,
    "SOLVER.ACCUMULATE": _POSITIVE,
    "SOLVER.EMA": _SHARE,
    "SOLVER.EPOCHS": _NOT_NEGATIVE,
    "SOLVER.MAX_ITER": _POSITIVE,
    "SOLVER.WARMUP_EPOCHS": _NOT_NEGATIVE,
    "SOLVER.WARMUP_ITERS": _NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_EPOCHS": _NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": _POSITIVE,
    "SOLVER.STEPS": Numbers(_POSITIVE, rising=True),
    "SOLVER.STEP_FRACTIONS": Numbers(_POSITIVE, rising=True),
    "TEST.EVAL_EPOCHS": _NOT_NEGATIVE,
    "TEST.EVAL_PERIOD": _NOT_NEGATIVE,
    "TEST.PATIENCE": _NOT_NEGATIVE,
}

# INPUT.CROP.SIZE, height and width or least and greatest side, by INPUT.CROP.TYPE.
_PARTS = Numbers(Range(0, 1, above=True), 2, 2)
CROP_SIZES = {
    "relative": _PARTS,
    "relative_range": _PARTS,
    "absolute": Numbers(Range(1, whole=True), 2, 2),
    "absolute_range": Numbers(Range(1, whole=True), 2, 2, ordered=True),
}
# INPUT.MIN_SIZE_TRAIN where a side is drawn from a range.
SIDE_RANGE = Numbers(Range(1, whole=True), 2, 2, ordered=True)

# Keys that have a flag.
FLAGS = {
    "DATA.VAL_FRACTION": "--val_fraction",
    "DATALOADER.NUM_WORKERS": "--num_workers",
    "SEED": "--seed",
    "SOLVER.BASE_LR": "--lr",
    "SOLVER.EPOCHS": "--epochs",
    "SOLVER.IMS_PER_BATCH": "--batch_size",
    "SOLVER.LR_SCHEDULER_NAME": "--scheduler",
    "SOLVER.OPTIMIZER": "--optimizer",
    "TEST.BATCH": "--batch",
}
