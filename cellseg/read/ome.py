"""The images that OME-XML describes, which need not be valid."""

from __future__ import annotations

import re
from typing import NamedTuple

_PHOTO = re.compile(r"(label|macro|overview|preview|thumbnail)( image)?", re.IGNORECASE)


class OmeImage(NamedTuple):
    """An image: its name, height and width in pixels (0 if unknown), and its tag `Pixels`."""

    name: str
    size: tuple[int, int]
    pixels: str

    @property
    def is_photo(self) -> bool:
        """Whether it is a scanner's photo of the whole slide, as its name says."""
        return bool(_PHOTO.fullmatch(self.name.strip()))


def ome_images(xml: str) -> list[OmeImage]:
    """Return the images in OME-XML, in its order."""
    images, name = [], ""
    for element, tag in re.findall(r"(?s)<(?:\w+:)?(Image|Pixels)\b([^>]*)>", xml):
        if element == "Image":
            name = attribute(tag, "Name")
            continue
        height, width = (attribute(tag, f"Size{side}").strip() for side in "YX")
        is_known = re.fullmatch(r"\d{1,9} \d{1,9}", f"{height} {width}", re.ASCII)
        size = (int(height), int(width)) if is_known else (0, 0)
        images.append(OmeImage(name, size, tag))
    return images


def attribute(tag: str, name: str) -> str:
    """Return the value of an attribute of a tag, empty if it has none."""
    found = re.search(rf"\b{name}\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", tag)
    return (found[1] or found[2] or "") if found else ""
