"""The keys of Detectron2's config: those that every engine understands, and the others."""

from __future__ import annotations

from typing import Any

# With Detectron2's default values.
SHARED: dict[str, Any] = {
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

# The names of the others, which `--engine detectron2` alone takes, by section.
_OTHERS = {
    "MODEL": "LOAD_PROPOSALS KEYPOINT_ON",
    "MODEL.FPN": "FUSE_TYPE",
    "MODEL.ANCHOR_GENERATOR": "ANGLES",
    "MODEL.RPN": "BOUNDARY_THRESH IOU_LABELS BBOX_REG_LOSS_TYPE BBOX_REG_LOSS_WEIGHT "
    "BBOX_REG_WEIGHTS SMOOTH_L1_BETA LOSS_WEIGHT CONV_DIMS",
    "MODEL.ROI_HEADS": "IOU_LABELS PROPOSAL_APPEND_GT",
    "MODEL.ROI_BOX_HEAD": "BBOX_REG_LOSS_TYPE BBOX_REG_LOSS_WEIGHT SMOOTH_L1_BETA "
    "TRAIN_ON_PRED_BOXES USE_FED_LOSS USE_SIGMOID_CE FED_LOSS_FREQ_WEIGHT_POWER "
    "FED_LOSS_NUM_CLASSES",
    "MODEL.ROI_BOX_CASCADE_HEAD": "BBOX_REG_WEIGHTS IOUS",
    "MODEL.ROI_MASK_HEAD": "CLS_AGNOSTIC_MASK",
    "MODEL.ROI_KEYPOINT_HEAD": "NAME POOLER_RESOLUTION POOLER_SAMPLING_RATIO POOLER_TYPE "
    "CONV_DIMS NUM_KEYPOINTS MIN_KEYPOINTS_PER_IMAGE NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS "
    "LOSS_WEIGHT",
    "MODEL.SEM_SEG_HEAD": "NAME IN_FEATURES IGNORE_VALUE NUM_CLASSES CONVS_DIM COMMON_STRIDE "
    "NORM LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN": "INSTANCE_LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.COMBINE": "ENABLED OVERLAP_THRESH STUFF_AREA_LIMIT "
    "INSTANCES_CONFIDENCE_THRESH",
    "MODEL.RETINANET": "NUM_CLASSES IN_FEATURES NUM_CONVS IOU_THRESHOLDS IOU_LABELS PRIOR_PROB "
    "SCORE_THRESH_TEST TOPK_CANDIDATES_TEST NMS_THRESH_TEST BBOX_REG_WEIGHTS FOCAL_LOSS_GAMMA "
    "FOCAL_LOSS_ALPHA SMOOTH_L1_LOSS_BETA BBOX_REG_LOSS_TYPE NORM",
    "MODEL.RESNETS": "DEFORM_ON_PER_STAGE DEFORM_MODULATED DEFORM_NUM_GROUPS",
    "DATASETS": "TRAIN PROPOSAL_FILES_TRAIN PRECOMPUTED_PROPOSAL_TOPK_TRAIN TEST "
    "PROPOSAL_FILES_TEST PRECOMPUTED_PROPOSAL_TOPK_TEST",
    "DATALOADER": "SAMPLER_TRAIN REPEAT_SQRT",
    "SOLVER": "NUM_DECAYS REFERENCE_WORLD_SIZE",
    "TEST": "EXPECTED_RESULTS KEYPOINT_OKS_SIGMAS",
    "TEST.AUG": "ENABLED MIN_SIZES MAX_SIZE FLIP",
    "TEST.PRECISE_BN": "ENABLED NUM_ITER",
    "GLOBAL": "HACK",
    "": "CUDNN_BENCHMARK FLOAT32_PRECISION VIS_PERIOD",
}
DETECTRON2_ALONE = frozenset(
    f"{section}.{name}".lstrip(".") for section, names in _OTHERS.items() for name in names.split()
)
