"""Bring images of any resolution to that of a run's training images: pyramid level and scale."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from fvcore.common.config import CfgNode

from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.messages import listed, plural, warn
from cellseg.read.names import short_name
from cellseg.read.resolution import is_about, magnification
from cellseg.read.window import WindowedImage, open_image


def set_resolution(
    images: Sequence[ImageRecord],
    cfgs: Sequence[CfgNode],
    mpp: float | None = None,
    level: int | None = None,
) -> tuple[list[ImageRecord], str]:
    """Choose the pyramid level of images, and add their size and micrometres per pixel.

    Parameters
    ----------
    images
        Images. The level of those with a listed size is 0. Those that can't be read stay as
        they are.
    cfgs
        Config of each run.
    mpp
        Micrometres per pixel of the images at full resolution; by default the listed value,
        else the file's.
    level
        Level; by default the coarsest one that is not coarser than the runs' resolution.

    Returns
    -------
    images, line
        The images, and a line that says what was read and assumed, and which scale and level
        follow. What is unusual about files is a warning.
    """
    records, kinds = [], Counter[str]()
    notes: defaultdict[str, list[str]] = defaultdict(list)
    for image in images:
        try:
            with open_image(image.path) as opened:
                record = _at_level(image, opened, cfgs, mpp, level)
                kinds[_kind(record, opened, cfgs, mpp or image.mpp)] += 1
                for note in opened.notes:
                    notes[note].append(short_name(image.file_name))
        except InputError:  # reported when it is predicted
            record = image if level is None else replace(image, level=level)
        records.append(record)
    if mpp and not any(cfg.DATA.MPP and _uses_resolution(cfg) for cfg in cfgs):
        why = (
            "the run's resolution is unknown; state it with DATA.MPP at the end"
            if any(map(_uses_resolution, cfgs))
            else "the run resizes all images to one size"
        )
        warn(f"--mpp {mpp:g} changes no scale: {why}")
    for note, names in notes.items():
        warn(f"{note}: {listed(names)}")
    return records, f"resolution: {_run_text(cfgs)}" + _kinds_text(kinds, cfgs)


def _uses_resolution(cfg: CfgNode) -> bool:
    """Return whether the size of an image in pixels doesn't determine its scale alone."""
    return bool(cfg.INPUT.ZOOM or not cfg.INPUT.MIN_SIZE_TEST)


def _at_level(
    image: ImageRecord,
    opened: WindowedImage,
    cfgs: Sequence[CfgNode],
    mpp: float | None,
    level: int | None,
) -> ImageRecord:
    """Return an image, opened at full resolution, with level, size and micrometres per pixel."""
    full = mpp or image.mpp or opened.mpp
    if image.size:
        return replace(image, mpp=full)
    area = math.prod(opened.levels[0])
    mpps = [full and full * math.sqrt(area / math.prod(size)) for size in opened.levels]
    if level is None:
        runs = [cfg.DATA.MPP if _uses_resolution(cfg) else 0 for cfg in cfgs]
        level = max(n for n, each in enumerate(mpps) if n == 0 or _suits(each, min(runs)))
    elif level >= len(mpps):
        return replace(image, level=level)
    return replace(image, level=level, size=opened.levels[level], mpp=mpps[level])


def _suits(mpp: float | None, run: float) -> bool:
    """Return whether pixels of `mpp` are not larger than those that a run needs."""
    return bool(mpp and run and (mpp <= run or is_about(mpp, run)))


def _kind(
    record: ImageRecord, opened: WindowedImage, cfgs: Sequence[CfgNode], stated: float | None
) -> str:
    """Return the resolution of an image, its source, and the scale and level that follow."""
    if not record.mpp:
        return "of unknown resolution, assumed to have the run's (--mpp states it), level 0"
    source = "stated" if stated else opened.resolution and opened.resolution.source
    factors = sorted({f"{magnification(record.mpp, cfg.DATA.MPP):.3g}" for cfg in cfgs})
    return f"of {record.mpp:.3g} µm ({source}), scale {' and '.join(factors)}, level {record.level}"


def _run_text(cfgs: Sequence[CfgNode]) -> str:
    if not any(map(_uses_resolution, cfgs)):
        return f"not used: the run resizes images to a short side of {cfgs[0].INPUT.MIN_SIZE_TEST}"
    known = sorted({cfg.DATA.MPP for cfg in cfgs if cfg.DATA.MPP})
    if not known:
        return "the run's is unknown, assumed to be that of the images (DATA.MPP states it)"
    more = ", unknown for others" if not all(cfg.DATA.MPP for cfg in cfgs) else ""
    return f"run {' and '.join(f'{mpp:g}' for mpp in known)} µm per pixel{more}; "


def _kinds_text(kinds: Counter[str], cfgs: Sequence[CfgNode]) -> str:
    """Return the kinds of images, the most frequent first, if they matter."""
    if not any(cfg.DATA.MPP and _uses_resolution(cfg) for cfg in cfgs):
        return ""
    texts = [f"{plural(count, 'image')} {kind}" for kind, count in kinds.most_common()]
    if len(texts) > 4:
        n_images = sum(count for _, count in kinds.most_common()[3:])
        texts[3:] = [f"{plural(n_images, 'image')} of {plural(len(texts) - 3, 'other kind')}"]
    return "; ".join(texts) or "no image can be read"
