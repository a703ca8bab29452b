"""One HTML page that shows results or annotations without network or server."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg import rle
from cellseg.colours import class_colour
from cellseg.files import write_atomic
from cellseg.images import EvalImage
from cellseg.look import gallery, parts
from cellseg.look.gallery import Example, MatchedDetections
from cellseg.look.parts import ReportContent
from cellseg.look.tiles import TileFolder, n_levels, tile_sizes, write_cells, write_pyramid
from cellseg.outline import trace
from cellseg.png import encode_jpeg
from cellseg.read.window import WindowedImage, from_array, open_image_of_size
from cellseg.score.bootstrap import FEW

PICTURES_MB = 36  # of all images together; outlines and plots are added
SLIDE_PX = 4096  # longest side that the page itself contains, and the browser of a phone draws

_FOLDER = Path(__file__).parent
_SCRIPTS = ("counts.js", "tiles.js", "viewer.js", "report.js")  # in one scope, in this order


OWN = rb"<!doctype html>.*Content-Security-Policy.*img-src data:; style-src 'unsafe-inline'"
"""Regular expression for the beginning of a page."""


@dataclass(frozen=True)
class Written:
    """What was written: images at reduced resolution, slides, and the folder of their tiles."""

    n_reduced: int
    n_slides: int
    tiles: Path | None


def write_report(path: str | os.PathLike[str], content: ReportContent) -> Written:
    """Write the page atomically, and beside it the tiles of images above `SLIDE_PX` a side.

    Raises InputError if an image can't be read or has another size than its cells, or the page
    can't be written.
    """
    path = Path(path)
    images = [[gallery.sort_detections(one) for one in image] for image in content.images]
    content = replace(content, images=images)
    matches = [
        [gallery.match_detections(one) for one in image]
        for image in tqdm(images, desc="matching", unit="image", leave=False, disable=None)
    ]
    index = _index(content, matches)
    groups = parts.examples(content, matches)
    examples = [example for _, some in groups for example in some]

    total = sum(math.prod(image[0].size) for image in images if not _is_slide(image[0]))
    blocks = []
    pictures: dict[Example, str] = {}
    with TileFolder(path) as tiles:
        bar = tqdm(images, desc="drawing", unit="image", leave=False, disable=None)
        for i, image in enumerate(bar):
            first = image[0]
            with open_image_of_size(first.path, first.size, first.level) as pixels:
                index[i]["mpp"] = first.mpp or pixels.mpp
                allowed = PICTURES_MB * 1e6 * 3 / 4 * math.prod(first.size) / max(total, 1)
                block, source, small = _block(tiles, str(i), image, pixels, int(allowed), index[i])
                blocks.append(_for_script(block))
                index[i]["thumb"] = gallery.data_uri(gallery.thumbnail(small))
                sides = _sides(image, content.threshold)
                for example in (one for one in examples if one.image == i):
                    other = 0 if example.result >= 0 else len(content.results)
                    picture = gallery.example_picture(
                        source,
                        sides[example.result + 1],
                        example.cell,
                        sides[other] if content.results and content.has_ground_truth else None,
                    )
                    pictures[example] = gallery.data_uri(picture)
        folder = tiles.finish()
        page = {
            "classes": content.classes,
            "colours": [f"rgb{class_colour(k)}" for k in range(len(content.classes))],
            "results": content.results,
            "has_ground_truth": content.has_ground_truth,
            "threshold": content.threshold,
            "images": index,
            "tiles": folder,
            "tile_sizes": tile_sizes(),
        }
        n_reduced = sum(entry["reduced"] > 1 for entry in index)
        text = _render(content, groups, pictures, page, blocks, n_reduced)
        with write_atomic(path, "wb") as file:
            # A file name may contain bytes that are not valid text.
            file.write(text.encode("utf-8", "replace"))
        tiles.remove_former()
    n_slides = sum(_is_slide(image[0]) for image in images)
    return Written(n_reduced, n_slides, path.parent / folder if folder else None)


def _index(
    content: ReportContent, matches: Sequence[Sequence[MatchedDetections]]
) -> list[dict[str, Any]]:
    """Return what the page has of all images: tables, sorting, and without results odd cells."""
    images = content.images
    index = [gallery.image_data(*pair) for pair in zip(images, matches, strict=True)]
    if not content.results:
        first = [image[0] for image in images]
        matched = [of_image[0] for of_image in matches]
        unusual = gallery.unusual_cells(first, matched, len(content.classes))
        for entry, cells in zip(index, unusual, strict=True):
            entry["unusual"] = cells
    return index


def _is_slide(image: EvalImage) -> bool:
    return max(image.size) > SLIDE_PX


def _sides(image: Sequence[EvalImage], threshold: float) -> list[gallery.Side]:
    """Return the ground truth of an image, then the detections of each of the results."""
    masks = [(image[0].gt_runs, image[0].gt_classes, ~image[0].crowd)]
    masks += [(one.mask_runs, one.classes, one.scores >= threshold) for one in image]
    return [
        gallery.Side(runs, classes, rle.boxes_xyxy(runs), is_shown)
        for runs, classes, is_shown in masks
    ]


def _block(
    tiles: TileFolder,
    name: str,
    image: Sequence[EvalImage],
    pixels: WindowedImage,
    max_bytes: int,
    entry: dict[str, Any],
) -> tuple[dict[str, Any], WindowedImage, NDArray[np.uint8]]:
    """Return what the page itself has of an image, its pixels to read, and a small picture.

    A slide's tiles are written, and described in `entry`, its part of the index.
    """
    sides = [image[0].gt_runs, *(one.mask_runs for one in image)]
    if _is_slide(image[0]):
        small = write_pyramid(tiles, name, pixels)
        numbers = write_cells(tiles, name, sides)
        entry["slide"] = {"levels": n_levels(image[0].size), "cells": numbers}
        entry["reduced"] = 1
        return {"picture": gallery.data_uri(encode_jpeg(small, 88))}, pixels, small
    whole = pixels.read_all()
    picture, side = gallery.encode_picture(whole, max_bytes, SLIDE_PX)
    entry["reduced"] = round(max(image[0].size) / side, 2)
    cells = [{"outlines": gallery.encode_outlines(trace(masks))} for masks in sides]
    return {"picture": gallery.data_uri(picture), "cells": cells}, from_array(whole), whole


def _render(
    content: ReportContent,
    groups: Sequence[tuple[str, list[Example]]],
    pictures: dict[Example, str],
    page: dict[str, Any],
    blocks: Sequence[str],
    n_reduced: int,
) -> str:
    """Return the page as HTML; `page` is its index, `blocks` the content of each image."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    texts = [(_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(texts) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    images, mpp = content.images, [entry["mpp"] for entry in page["images"]]
    return environment.get_template("report.html.jinja").render(
        content=content,
        n_cells=sum(int((~image[0].crowd).sum()) for image in images),
        n_detections=[
            sum(len(image[r].scores) for image in images) for r in range(len(content.results))
        ],
        cards=(cards := parts.cards(content)),
        has_intervals=any(value["interval"] for card in cards for value in card["values"]),
        compositions=parts.compositions(content, mpp),
        is_tissue=any(one.tissue_px is not None for image in images for one in image),
        few=FEW,
        n_hidden=parts.n_hidden(content),
        groups=[(title, some) for title, some in groups if some],
        pictures=pictures,
        figures=parts.figures(content),
        tables=parts.tables(content),
        n_reduced=n_reduced,
        tiles=page["tiles"],
        style=(_FOLDER / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=digest,
        index=_for_script(page),
        blocks=blocks,
        first=parts.first_image(content, page["images"]),
    )


def _for_script(value: Any) -> str:
    """Return JSON for a <script> element, in which no text can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
