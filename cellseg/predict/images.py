"""Which images to predict, and reading them while the network is busy with the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.learn.samples import name_images
from cellseg.read.coco import load_coco
from cellseg.read.layout import list_images, read_test_list
from cellseg.read.tiff import image_size, read_image


@dataclass(frozen=True)
class ListedImage:
    """An image to predict: its id in the results, its name, place, and size where listed."""

    id: int
    file_name: str
    path: Path
    size: tuple[int, int] | None

    def entry(self) -> dict[str, int | str]:
        """Give it in the form of the test list; the size is read if it isn't listed."""
        height, width = self.size or image_size(self.path)
        return {"file_name": self.file_name, "id": self.id, "height": height, "width": width}


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


def list_any_images(paths: Sequence[Path]) -> list[ListedImage]:
    """List images, and the images in folders, with the ids 1, 2, … in that order.

    One that is named twice, by itself and by its folder perhaps, is listed once.

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
    return [ListedImage(n, str(path), path, None) for n, path in enumerate(once.values(), 1)]


def read_ahead(
    images: Sequence[ListedImage],
) -> Iterator[tuple[ListedImage, NDArray[np.uint8] | InputError]]:
    """Read the images in their order, the next one while the caller works on this one.

    What can't be read, or has another size than listed, comes as the error that says so.
    """
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(_read, images[0]) if images else None
        for index, image in enumerate(images):
            assert ahead is not None
            result = ahead.result()
            if index + 1 < len(images):
                ahead = pool.submit(_read, images[index + 1])
            yield image, result


def _read(image: ListedImage) -> NDArray[np.uint8] | InputError:
    try:
        pixels = read_image(image.path)
    except InputError as error:
        return error
    if image.size and pixels.shape[:2] != image.size:
        return InputError(
            f"{image.path}: {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width), but it "
            f"is listed with {image.size[0]} x {image.size[1]}; take the image that the list means"
        )
    return pixels
