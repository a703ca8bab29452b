"""Ids of cells that stay the same between exports."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence

from cellseg.rle import RLE


def cell_ids(image: str, masks: Sequence[RLE]) -> list[str]:
    """Return the id of each cell, a UUID of the image's name and the cell's mask.

    It stays the same whatever other cells the image has. Of several cells with the same mask, the
    later ones are numbered.
    """
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, image)
    seen = Counter[str]()
    ids = []
    for mask in masks:
        text = mask["counts"]
        text = text if isinstance(text, str) else text.decode("ascii")
        ids.append(str(uuid.uuid5(namespace, f"{text} {seen[text]}" if seen[text] else text)))
        seen[text] += 1
    return ids
