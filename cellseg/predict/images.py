"""Which images to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellseg.errors import InputError
from cellseg.learn.samples import name_images
from cellseg.read.coco import load_coco
from cellseg.read.layout import list_images, read_test_list
from cellseg.read.tiff import image_size
from cellseg.read.window import open_image


@dataclass(frozen=True)
class ListedImage:
    """An image to predict.

    Attributes
    ----------
    id
        Its id in the results.
    file_name
        Its name there.
    path
        Its place.
    size
        Its height and width where they are listed, in pixels of the level.
    level
        Which level of a file's pyramid.
    """

    id: int
    file_name: str
    path: Path
    size: tuple[int, int] | None
    level: int = 0

    def read_size(self) -> tuple[int, int]:
        """Give its height and width; from its header, if they aren't listed.

        Raises
        ------
        InputError
            If the header can't be read, or has no such level.
        """
        if self.size:
            return self.size
        if not self.level:
            return image_size(self.path)
        with open_image(self.path, self.level) as image:
            return image.size

    def entry(self) -> dict[str, int | str]:
        """Give it in the form of the test list, with the level if it isn't the finest."""
        height, width = self.read_size()
        level = {"level": self.level} if self.level else {}
        return {
            "file_name": self.file_name,
            "id": self.id,
            "height": height,
            "width": width,
            **level,
        }


def list_test_images(data: Path) -> list[ListedImage]:
    """List the images of a data folder's test list."""
    return [
        ListedImage(image.id, image.file_name, image.path, (image.height, image.width))
        for image in read_test_list(data)
    ]


def list_annotated_images(
    data: Path, annotations: Path, names: Sequence[str] | None = None
) -> list[ListedImage]:
    """List the images of an annotation file, or those of them that `names` has.

    Raises
    ------
    InputError
        If one of `names` is not in the file.
    """
    listed = load_coco(annotations)["images"]
    its_names = name_images([image["file_name"] for image in listed])
    missing = sorted(set(names or ()) - set(its_names))
    if missing:
        raise InputError(
            f"{annotations}: has no image {missing[0]}, which the run held out; name the file "
            "that it was trained with by --annotations"
        )
    return [
        ListedImage(
            image["id"],
            image["file_name"],
            data / image["file_name"],
            (image["height"], image["width"]),
        )
        for name, image in zip(its_names, listed, strict=True)
        if names is None or name in names
    ]


def list_any_images(paths: Sequence[Path], level: int = 0) -> list[ListedImage]:
    """List images, and the images in folders, with the ids 1, 2, … in that order.

    Their names are absolute paths. One that is named twice, by itself and by its folder
    perhaps, is listed once.

    Raises
    ------
    InputError
        If there is no such file, or a folder has no image.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += list_images(path)
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"--images {path}: no such file; an image or a folder is expected")
    once = {path.resolve(): path for path in files}
    return [
        ListedImage(n, str(_from_anywhere(path)), path, None, level)
        for n, path in enumerate(once.values(), 1)
    ]


def _from_anywhere(path: Path) -> Path:
    """Give a path that holds in any folder, without `..`, which may lead out of a link."""
    return (path.parent.resolve() if ".." in path.parts else path.parent.absolute()) / path.name
