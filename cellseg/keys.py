"""Config keys with defaults and ranges: those of Detectron2 that all engines support, and `OWN`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

# Keys of Detectron2, with its defaults.
# fmt: off
SHARED_KEYS: dict[str, Any] = {
    "VERSION": 2, "OUTPUT_DIR": "./output", "SEED": -1,
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN", "MASK_ON": False, "DEVICE": "cuda", "WEIGHTS": "",
        "PIXEL_MEAN": [103.53, 116.28, 123.675], "PIXEL_STD": [1.0, 1.0, 1.0],
        "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
        "RESNETS": {
            "DEPTH": 50, "OUT_FEATURES": ["res4"], "NUM_GROUPS": 1, "NORM": "FrozenBN",
            "WIDTH_PER_GROUP": 64, "STRIDE_IN_1X1": True, "RES5_DILATION": 1,
            "RES2_OUT_CHANNELS": 256, "STEM_OUT_CHANNELS": 64,
        },
        "FPN": {"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": ""},
        "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
        "ANCHOR_GENERATOR": {
            "NAME": "DefaultAnchorGenerator", "SIZES": [[32, 64, 128, 256, 512]],
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]], "OFFSET": 0.0,
        },
        "RPN": {
            "HEAD_NAME": "StandardRPNHead", "IN_FEATURES": ["res4"], "IOU_THRESHOLDS": [0.3, 0.7],
            "BATCH_SIZE_PER_IMAGE": 256, "POSITIVE_FRACTION": 0.5, "PRE_NMS_TOPK_TRAIN": 12000,
            "PRE_NMS_TOPK_TEST": 6000, "POST_NMS_TOPK_TRAIN": 2000, "POST_NMS_TOPK_TEST": 1000,
            "NMS_THRESH": 0.7,
        },
        "ROI_HEADS": {
            "NAME": "Res5ROIHeads", "NUM_CLASSES": 80, "IN_FEATURES": ["res4"],
            "IOU_THRESHOLDS": [0.5], "BATCH_SIZE_PER_IMAGE": 512, "POSITIVE_FRACTION": 0.25,
            "SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5,
        },
        "ROI_BOX_HEAD": {
            "NAME": "", "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0), "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2", "NUM_FC": 0, "FC_DIM": 1024,
            "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "", "CLS_AGNOSTIC_BBOX_REG": False,
        },
        "ROI_MASK_HEAD": {
            "NAME": "MaskRCNNConvUpsampleHead", "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2", "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "",
            "CLS_AGNOSTIC_MASK": False,
        },
    },
    "INPUT": {
        "FORMAT": "BGR", "MASK_FORMAT": "polygon", "MIN_SIZE_TRAIN": (800,),
        "MIN_SIZE_TRAIN_SAMPLING": "choice", "MAX_SIZE_TRAIN": 1333, "MIN_SIZE_TEST": 800,
        "MAX_SIZE_TEST": 1333, "RANDOM_FLIP": "horizontal",
        "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
    },
    "DATALOADER": {
        "NUM_WORKERS": 4, "FILTER_EMPTY_ANNOTATIONS": True, "ASPECT_RATIO_GROUPING": True,
        "REPEAT_THRESHOLD": 0.0,
    },
    "SOLVER": {
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "MAX_ITER": 40000, "BASE_LR": 0.001,
        "BASE_LR_END": 0.0, "MOMENTUM": 0.9, "NESTEROV": False, "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0, "WEIGHT_DECAY_BIAS": None, "BIAS_LR_FACTOR": 1.0, "GAMMA": 0.1,
        "STEPS": (30000,), "WARMUP_FACTOR": 1.0 / 1000, "WARMUP_ITERS": 1000,
        "WARMUP_METHOD": "linear", "RESCALE_INTERVAL": False, "CHECKPOINT_PERIOD": 5000,
        "IMS_PER_BATCH": 16,
        "CLIP_GRADIENTS": {
            "ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0,
        },
        "AMP": {"ENABLED": False},
    },
    "TEST": {"EVAL_PERIOD": 0, "DETECTIONS_PER_IMAGE": 100},
}
# fmt: on

# Keys of this project, with their defaults.
OWN: dict[str, Any] = {
    # detectron2 or torchvision.
    "ENGINE": "",
    # Name of the run's recipe in configs/.
    "RECIPE": "",
    "DATA": {
        # Data folder; file names in the annotations are relative to it.
        "ROOT": "",
        # COCO file from annotation.py.
        "ANNOTATIONS": "",
        # Fraction of the images in the validation set, which is scored during training.
        "VAL_FRACTION": 0.0,
        # Names of the images in the validation set, instead of a fraction of all.
        "VAL_IMAGES": [],
        # Folder of the run whose weights this one goes on from, with its classes and scale.
        "CONTINUES": "",
        # Number of folds of a cross-validation, 0 for none, …
        "FOLDS": 0,
        # … and the fold, from 1 on, that is the validation set; 0 trains a run for each.
        "FOLD": 0,
        # File with the group (patient, slide) of each image; a group is never split.
        "GROUPS": "",
        # Length of the longest cells in pixels of MPP; tiles overlap by a little more. Computed
        # from the training data: the 99.9th percentile.
        "LONGEST_CELL": 0.0,
        # Micrometres per pixel that images of another known resolution are scaled to, with a ZOOM
        # in training and prediction. 0 for the median of the training images, if known; it is one
        # that images have.
        "MPP": 0.0,
        # Cells that have room side by side in a million pixels of MPP; limits the proposals and
        # detections of an image. Computed from the training data: 1e6 / 25th percentile of the
        # areas. 0 for 10,000.
        "CELLS_PER_MEGAPIXEL": 0.0,
    },
    "INPUT": {
        # Scale in training and prediction: network pixels per pixel of DATA.MPP. 0 scales to the
        # short side MIN_SIZE_TRAIN or MIN_SIZE_TEST, as Detectron2 does.
        "ZOOM": 0.0,
        # Compute ZOOM from the sizes of the training cells, and of WINDOW. Setting only ZOOM turns
        # this off.
        "ZOOM_FROM_DATA": False,
        # With a ZOOM, side of the training crops in network pixels …
        "WINDOW": 512,
        # … of which an epoch has as many of an image as fit on its area, cut to the image, at least
        # one, so that the cells of large images are drawn as often as others. Else one of each.
        "WINDOWS_BY_AREA": False,
        # The scales are drawn from ZOOM / (1 + this) to ZOOM * (1 + this).
        "ZOOM_JITTER": 0.0,
        # Probability of a crop around a cell of a random class, instead of a random place. All
        # classes are equally probable.
        "CROP_ON_CLASS": 0.0,
        # Rotate by quarter turns. INPUT.RANDOM_FLIP may also be "both".
        "QUARTER_TURNS": False,
        # Ranges of the factors of brightness and contrast.
        "BRIGHTNESS": (1.0, 1.0),
        "CONTRAST": (1.0, 1.0),
        # Maximum sigma of a Gaussian blur, in network pixels.
        "BLUR": 0.0,
        # The densities of haematoxylin and eosin are multiplied by 1 - this to 1 + this.
        "STAIN_JITTER": 0.0,
        # … and those in red, green and blue, the stains' colours, by 1 - this to 1 + this.
        "STAIN_COLOUR_JITTER": 0.0,
        # Red, green and blue are multiplied by 1 - this to 1, as in other light.
        "LIGHT_JITTER": 0.0,
        # Probability that cells of another image are pasted into a sample.
        "COPY_PASTE": 0.0,
    },
    "MODEL": {
        # timm's name of the network of the backbone build_timm_fpn_backbone: convnextv2_base, …
        "TIMM": {"NAME": ""},
        # SHA-256 sums, separated by commas, of the pickles (.pkl) that MODEL.WEIGHTS may load;
        # without any, only those from the address of Detectron2's zoo.
        "TRUSTED_SHA256": "",
        # Compute the anchor sizes from the training cells. Setting only SIZES turns this off.
        "ANCHOR_GENERATOR": {"FROM_DATA": False},
        # Powers c of the objectness and w of the foreground, the probability of all classes, in the
        # score: class probability^(1 - w) * foreground^w * objectness^c.
        "ROI_HEADS": {"OBJECTNESS_POWER": 0.0, "FOREGROUND_POWER": 0.0},
        "ROI_MASK_HEAD": {
            # Maximum number of cells per image that train the head, drawn at random; 0 for all.
            "BATCH_SIZE_PER_IMAGE": 0,
            # Factor by which boxes are enlarged for the head, in training and prediction, so that
            # cells whose boxes are too small are whole.
            "BOX_SCALE": 1.0,
        },
        # Weight of the losses of a head that learns the class of each pixel, and its position in
        # its cell, from the first features of the RoI heads; in training only. 0 for no such head.
        "AUXILIARY_HEAD": {"LOSS_WEIGHT": 0.0},
    },
    "SOLVER": {
        # SGD, Adam, AdamW or Adagrad.
        "OPTIMIZER": "SGD",
        # Multiplies the learning rate of the backbone, as in Mask2Former, where a feature pyramid
        # does not belong to it either.
        "BACKBONE_MULTIPLIER": 1.0,
        # Number of parts of a batch, which go through the network one after the other. Losses that
        # are means over cells or boxes are means of the parts', as those of several processes.
        "ACCUMULATE": 1,
        # Decay of the moving average of the weights, which is then scored and saved; 0 for none.
        "EMA": 0.0,
        # If EPOCHS have fewer iterations, all epochs are longer, so that the run has this number.
        # Setting only EPOCHS turns this off.
        "MIN_ITER": 0,
        # Lengths in epochs, which set Detectron2's keys in iterations unless 0: MAX_ITER,
        # WARMUP_ITERS, CHECKPOINT_PERIOD, TEST.EVAL_PERIOD. Setting only those turns these off.
        # With a given MAX_ITER, the two periods are at least a 40th of it.
        "EPOCHS": 0.0,
        "WARMUP_EPOCHS": 0.0,
        "CHECKPOINT_EPOCHS": 0.0,
        # The same for SOLVER.STEPS, as fractions of the run's length.
        "STEP_FRACTIONS": (),
    },
    "TEST": {
        "EVAL_EPOCHS": 0.0,
        # Side and overlap of tiles in image pixels; 0 is computed from LONGEST_CELL. Without a
        # ZOOM there are no tiles unless TILE is set.
        "TILE": 0,
        "OVERLAP": 0,
        # Test-time augmentation: detections are fused from views at these multiples of ZOOM …
        "SCALES": (1.0,),
        # … each unchanged (1), also flipped left to right (2), flipped in both directions (4),
        # or rotated by quarter turns too (8).
        "SYMMETRIES": 1,
        # Views per batch.
        "BATCH": 1,
        # Mixed precision, on a GPU or a CPU with bfloat16 instructions.
        "AMP": False,
        # The same on such a CPU only: two thirds of the time at the same AP.
        "BFLOAT16_ON_CPU": True,
        # Of cells with masks of at least this IoU, only the one with the highest score is kept …
        "MASK_IOU": 0.5,
        # … per class, or in all classes.
        "ACROSS_CLASSES": False,
        # Of a mask in several pieces, keep only the largest: others are mostly parts of neighbours.
        "LARGEST_PIECE": False,
        # Stop training after this number of scores without a new best; 0 for never.
        "PATIENCE": 0,
    },
}


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; `above` and `below` exclude the ends."""

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
            if self.low == -math.inf:
                return f"a finite {number}"
            if self.above and self.low == 0:
                return f"a positive {number}"
            return f"a {number} of {self.low} or more"
        if self.above:
            return f"a {number} above {self.low} and up to {self.high}"
        return f"a {number} from {self.low} to {'below ' if self.below else ''}{self.high}"


@dataclass(frozen=True)
class Numbers:
    """List of `shortest` to `longest` numbers in `each`; `ordered` ascending, `rising` strictly."""

    each: Range
    shortest: int = 0
    longest: float = math.inf
    rising: bool = False
    ordered: bool = False

    def __contains__(self, values: Any) -> bool:
        values = list(values)
        return (
            self.shortest <= len(values) <= self.longest
            and all(value in self.each for value in values)
            and (not self.rising or values == sorted(set(values)))
            and (not self.ordered or values == sorted(values))
        )

    def __str__(self) -> str:
        counts = {1: "one", 2: "two", 3: "three", 4: "four"}
        count = f"{counts[self.shortest]} " if self.shortest else ""
        if self.shortest and self.shortest != self.longest:
            count += "or more "
        order = "rising " if self.rising else ""
        last = ", the lower one first" if self.ordered else ""
        numbers = "number" if self.longest == 1 else "numbers"
        return f"a list of {count}{order}{numbers}{last} ({self.each} each)"


@dataclass(frozen=True)
class PerFeature:
    """`Numbers` for all feature maps, or a list of them for each."""

    numbers: Numbers

    def __contains__(self, values: Any) -> bool:
        nested = any(isinstance(value, list | tuple) for value in values)
        lists = values if nested else [values]
        return all(isinstance(each, list | tuple) and each in self.numbers for each in lists)

    def __str__(self) -> str:
        return f"{self.numbers}, or one for each of MODEL.RPN.IN_FEATURES"


OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adagrad")
SCHEDULERS = ("WarmupCosineLR", "WarmupMultiStepLR")

Allowed = Range | Numbers | PerFeature | tuple[Any, ...]  # a tuple lists all allowed values

_FRACTION = Range(0, 1)
_POSITIVE = Range(0, above=True)
_NOT_NEGATIVE = Range(0)
_SIDE = Range(0, 100_000)  # network pixels
_FACTORS = Numbers(_NOT_NEGATIVE, 2, 2, ordered=True)

_COUNT = Range(1, 1_000_000, whole=True)
_LIMIT = Range(0, 1_000_000, whole=True)
_LAYERS = Range(0, 100, whole=True)
_CHANNELS = Range(1, 100_000, whole=True)
_GRID = Range(1, 256, whole=True)  # pixels

# Keys of the network, which training and prediction read. The engines check names.
NETWORK_RANGES: dict[str, Allowed] = {
    "MODEL.PIXEL_MEAN": Numbers(Range(-math.inf), 3, 3),
    "MODEL.PIXEL_STD": Numbers(_POSITIVE, 3, 3),
    "MODEL.RESNETS.NUM_GROUPS": _CHANNELS,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _CHANNELS,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _CHANNELS,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _CHANNELS,
    "MODEL.FPN.OUT_CHANNELS": _CHANNELS,
    "MODEL.ANCHOR_GENERATOR.SIZES": PerFeature(Numbers(_POSITIVE, 1)),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": PerFeature(Numbers(_POSITIVE, 1)),
    "MODEL.RPN.IOU_THRESHOLDS": Numbers(_FRACTION, 2, 2, ordered=True),
    "MODEL.RPN.NMS_THRESH": _FRACTION,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.RPN.POSITIVE_FRACTION": _FRACTION,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _COUNT,
    "MODEL.ROI_HEADS.NUM_CLASSES": _CHANNELS,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": Numbers(_FRACTION, 1, 1),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _FRACTION,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": Numbers(_POSITIVE, 4, 4),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": _GRID,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": _LAYERS,
    "MODEL.ROI_BOX_HEAD.NUM_FC": _LAYERS,
    "MODEL.ROI_BOX_HEAD.FC_DIM": _CHANNELS,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": _LAYERS,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _CHANNELS,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": _GRID,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": _LAYERS,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": _LAYERS,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": _CHANNELS,
}

_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")

# More keys of the network, of Detectron2 only.
DETECTRON2_RANGES: dict[str, Allowed] = {
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RPN.BBOX_REG_WEIGHTS": Numbers(_POSITIVE, 4, 4),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
}

# Keys that prediction reads.
PREDICTION_RANGES: dict[str, Allowed] = {
    "DATA.MPP": Range(0, 5),
    "DATA.LONGEST_CELL": _NOT_NEGATIVE,
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.ZOOM": Range(0, 100),
    "INPUT.MIN_SIZE_TEST": _SIDE,
    "INPUT.MAX_SIZE_TEST": Range(1, 100_000),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _FRACTION,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _FRACTION,
    "MODEL.ROI_HEADS.OBJECTNESS_POWER": Range(0, 10),
    "MODEL.ROI_HEADS.FOREGROUND_POWER": Range(0, 1),
    "MODEL.ROI_MASK_HEAD.BOX_SCALE": Range(1, 4),
    "DATA.CELLS_PER_MEGAPIXEL": Range(0, 1e6),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _LIMIT,
    "MODEL.RPN.POST_NMS_TOPK_TEST": _LIMIT,
    "TEST.DETECTIONS_PER_IMAGE": _LIMIT,
    "TEST.TILE": _NOT_NEGATIVE,
    "TEST.OVERLAP": _NOT_NEGATIVE,
    "TEST.SCALES": Numbers(Range(0.1, 10), 1),
    "TEST.SYMMETRIES": (1, 2, 4, 8),
    "TEST.BATCH": Range(1),
    "TEST.MASK_IOU": Range(0, 1, above=True),
}

# More keys that training reads.
TRAINING_RANGES: dict[str, Allowed] = {
    "SEED": Range(-1, 2**32 - 1),  # -1 for a random one
    "DATA.VAL_FRACTION": Range(0, 1, below=True),
    "DATALOADER.NUM_WORKERS": _NOT_NEGATIVE,
    "DATALOADER.REPEAT_THRESHOLD": _NOT_NEGATIVE,
    "INPUT.WINDOW": _POSITIVE,
    "MODEL.ROI_MASK_HEAD.BATCH_SIZE_PER_IMAGE": _NOT_NEGATIVE,
    "MODEL.AUXILIARY_HEAD.LOSS_WEIGHT": _NOT_NEGATIVE,
    "INPUT.ZOOM_JITTER": _NOT_NEGATIVE,
    "INPUT.MIN_SIZE_TRAIN": Numbers(Range(0, whole=True), 1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": _POSITIVE,
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.CROP_ON_CLASS": _FRACTION,
    "INPUT.RANDOM_FLIP": ("none", "horizontal", "vertical", "both"),
    "INPUT.BRIGHTNESS": _FACTORS,
    "INPUT.CONTRAST": _FACTORS,
    "INPUT.BLUR": _NOT_NEGATIVE,
    "INPUT.STAIN_JITTER": _FRACTION,
    "INPUT.STAIN_COLOUR_JITTER": _FRACTION,
    "INPUT.LIGHT_JITTER": _FRACTION,
    "INPUT.COPY_PASTE": _FRACTION,
    "SOLVER.OPTIMIZER": OPTIMIZERS,
    "SOLVER.LR_SCHEDULER_NAME": SCHEDULERS,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _NOT_NEGATIVE,
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.BASE_LR_END": _NOT_NEGATIVE,
    "SOLVER.BACKBONE_MULTIPLIER": _POSITIVE,
    "SOLVER.BIAS_LR_FACTOR": _NOT_NEGATIVE,
    "SOLVER.MOMENTUM": _FRACTION,
    "SOLVER.WEIGHT_DECAY": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": _NOT_NEGATIVE,
    "SOLVER.IMS_PER_BATCH": _POSITIVE,
    "SOLVER.ACCUMULATE": _POSITIVE,
    "SOLVER.EMA": _FRACTION,
    "SOLVER.EPOCHS": _NOT_NEGATIVE,
    "SOLVER.MIN_ITER": _NOT_NEGATIVE,
    "SOLVER.MAX_ITER": _POSITIVE,
    "SOLVER.WARMUP_EPOCHS": _NOT_NEGATIVE,
    "SOLVER.WARMUP_ITERS": _NOT_NEGATIVE,
    "SOLVER.WARMUP_FACTOR": _NOT_NEGATIVE,
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.GAMMA": _NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_EPOCHS": _NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": _POSITIVE,
    "SOLVER.STEPS": Numbers(_POSITIVE, rising=True),
    "SOLVER.STEP_FRACTIONS": Numbers(_POSITIVE, rising=True),
    "TEST.EVAL_EPOCHS": _NOT_NEGATIVE,
    "TEST.EVAL_PERIOD": _NOT_NEGATIVE,
    "TEST.PATIENCE": _NOT_NEGATIVE,
}

# INPUT.CROP.SIZE (height and width, or minimum and maximum side) by INPUT.CROP.TYPE.
_FRACTIONS = Numbers(Range(0, 1, above=True), 2, 2)
CROP_SIZES = {
    "relative": _FRACTIONS,
    "relative_range": _FRACTIONS,
    "absolute": Numbers(Range(1, whole=True), 2, 2),
    "absolute_range": Numbers(Range(1, whole=True), 2, 2, ordered=True),
}
# INPUT.MIN_SIZE_TRAIN as a range of sides.
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
