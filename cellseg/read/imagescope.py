"""Outlines from the XML of Aperio ImageScope, the format of MoNuSAC."""

from __future__ import annotations

import xml.parsers.expat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.files import check_ordinary, file_start
from cellseg.limits import XML_DEPTH, XML_TOKEN
from cellseg.read.outlines import POINTS, Outline, to_ring
from cellseg.read.resolution import imagescope_mpp
from cellseg.text import show

_CHUNK = 1 << 16  # bytes parsed at a time
_REMEDY = "save the annotations in ImageScope again, as XML"


def read_imagescope(path: Path) -> list[Outline]:
    """Read the regions of an ImageScope XML file.

    `Annotations/Annotation` has the regions of one class, named in `Attributes/Attribute` or
    the annotation itself; `Regions/Region/Vertices/Vertex` has X and Y in pixels, integers
    being pixel centres, as in NYCU HW3's masks. Rectangles and ellipses may have two corners of
    their box. Negative regions (`NegativeROA`), arrows, rulers and regions of fewer than 3
    vertices give outlines without polygons, regions with broken vertices their error.

    Raises InputError if the file is missing, damaged or something else.
    """
    reader, size = _Reader(path), 0
    # A document type could define entities of any size and external files.
    parser = xml.parsers.expat.ParserCreate()
    parser.StartDoctypeDeclHandler = reader.refuse_doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    try:
        check_ordinary(path)
        with open(path, "rb") as file:
            while data := file.read(_CHUNK):
                size += len(data)
                parser.Parse(data, False)
                if size - parser.CurrentByteIndex > XML_TOKEN:
                    raise InputError(f"{path}: a tag of over {XML_TOKEN} bytes; {_REMEDY}")
            parser.Parse(b"", True)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); {_REMEDY}") from None
    except (xml.parsers.expat.ExpatError, ValueError, LookupError) as error:
        # ValueError and LookupError: an encoding that Python can't decode.
        raise InputError(f"{path}: not XML ({error}); {_REMEDY}") from None
    return reader.outlines


def read_mpp(path: Path) -> float | None:
    """Return the micrometres per pixel that a file of outlines says its image has, None if none.

    Only ImageScope's has an element `Annotations`, whose attribute it is.
    """
    start = file_start(path, _CHUNK) or b""
    return imagescope_mpp(start.replace(b"\0", b"").decode("latin-1"))  # also UTF-16


_RECTANGLE, _ELLIPSE = "1", "2"  # a region's Type; outlines have 0
_MARKS = ("3", "4")  # arrows and rulers


def _rectangle(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _ellipse(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ellipse in a box as a polygon; it deviates by less than 1/1000 of its size."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    ring: NDArray[np.float64] = (low + high) / 2 + (high - low) / 2 * circle
    return ring


class _Reader:
    """Handlers for expat that collect outlines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outlines: list[Outline] = []
        self._inside: list[str] = []
        self._class_name: str | None = None
        self._vertices: list[tuple[float, float]] = []
        self._type = ""
        self._negative = False
        self._error = ""
        self._n_regions = 0

    def refuse_doctype(self, *_: object) -> None:
        raise InputError(f"{self.path}: unexpected document type; {_REMEDY}")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._inside and tag != "Annotations":
            raise InputError(f"{self.path}: begins with <{tag}>, expected <Annotations>; {_REMEDY}")
        self._inside.append(tag)
        if len(self._inside) > XML_DEPTH:
            raise InputError(f"{self.path}: over {XML_DEPTH} nested elements; {_REMEDY}")
        place = self._inside[1:]
        if place == ["Annotation"]:
            self._class_name = attributes.get("Name")
        elif place == ["Annotation", "Attributes", "Attribute"]:
            # "Description" is ImageScope's default column.
            name = attributes.get("Name")
            name = attributes.get("Value") if name == "Description" else name
            self._class_name = name or self._class_name
        elif place == ["Annotation", "Regions", "Region"]:
            self._n_regions += 1
            self._vertices, self._error = [], ""
            self._type = attributes.get("Type", "").strip()
            self._negative = attributes.get("NegativeROA", "0").strip() == "1"
        elif place == ["Annotation", "Regions", "Region", "Vertices", "Vertex"]:
            self._add_vertex(attributes)

    def end(self, _: str) -> None:
        if self._inside[1:] == ["Annotation", "Regions", "Region"]:
            where = f"region {self._n_regions}"
            ring = self._ring(f"{self.path}: {where}")
            if self._type in (_RECTANGLE, _ELLIPSE) and len(ring) in (2, 4):
                ring = _ellipse(ring) if self._type == _ELLIPSE else _rectangle(ring)
            kind = ""
            if self._negative:
                kind = "negative regions"
            elif self._type in _MARKS:
                kind = "arrows and rulers"
            elif len(ring) < 3:
                kind = POINTS
            polygons = [] if kind or self._error else [[ring]]
            self.outlines.append(
                Outline(where, self._class_name, polygons, kind, error=self._error)
            )
        self._inside.pop()

    def _add_vertex(self, attributes: dict[str, str]) -> None:
        try:
            self._vertices.append((float(attributes["X"]), float(attributes["Y"])))
        except (KeyError, ValueError):
            self._error = (
                f"{self.path}: region {self._n_regions}: vertex {show(attributes)}, expected "
                f"numbers X and Y; {_REMEDY}"
            )

    def _ring(self, where: str) -> NDArray[np.float64]:
        try:
            return to_ring(where, self._vertices)
        except InputError as error:
            self._error = str(error)
            return np.zeros((0, 2))
