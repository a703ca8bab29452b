"""A network so small that it trains in seconds, where its quality does not matter."""

from __future__ import annotations

from pathlib import Path

_BASE = Path(__file__).resolve().parents[1] / "configs" / "base" / "dilated_c5.yaml"

_CONFIG = f"""\
_BASE_: "{_BASE}"
MODEL:
  WEIGHTS: ""
  BACKBONE: {{FREEZE_AT: 0}}
  RESNETS: {{NORM: BN, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 4}}
  ANCHOR_GENERATOR: {{SIZES: [[16, 32]]}}
  RPN:
    PRE_NMS_TOPK_TRAIN: 100
    POST_NMS_TOPK_TRAIN: 20
    PRE_NMS_TOPK_TEST: 100
    POST_NMS_TOPK_TEST: 20
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 16}}
  ROI_BOX_HEAD: {{FC_DIM: 32}}
  ROI_MASK_HEAD: {{CONV_DIM: 16, NUM_CONV: 1}}
DATALOADER: {{NUM_WORKERS: 0}}
"""


def write_tiny(path: Path, more: str) -> None:
    """Write the config file; `more` is YAML with the sections INPUT, TEST and SOLVER."""
    path.write_text(_CONFIG + more)
