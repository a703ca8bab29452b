"""The stains haematoxylin and eosin: optical densities and colour deconvolution."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

# Optical density of one unit of each stain in red, green, blue (Ruifrok & Johnston).
HAEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.07, 0.99, 0.11)

# A row for each stain; the third is the residual.
_STAINS = np.array([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
# Optical density of the intensities 0…255. Counting from 1 keeps black finite and white at 0.
_DENSITIES = -np.log(np.arange(1, 257) / 256).astype(np.float32)


def scale_stains(
    image: NDArray[np.uint8], haematoxylin: ArrayLike, eosin: ArrayLike
) -> NDArray[np.uint8]:
    """Return an image with the optical density of each stain multiplied by a factor.

    Colour deconvolution (Ruifrok & Johnston 2001). Factors of 1 change no pixel; white stays
    white. `image` is `(h, w, 3)` uint8 RGB; the factors are 0 or more, one of a stain, or three of
    its density in red, green and blue, which change its colour.
    """
    # Unmixing, scaling and mixing are one linear map. As identity plus a change, factors of 1
    # cause no rounding.
    factors = np.stack([np.broadcast_to(factor, 3) for factor in (haematoxylin, eosin, 1.0)])
    change = np.linalg.inv(_STAINS) @ ((factors - 1) * _STAINS)
    mix = (np.eye(3) + change).astype(np.float32)
    densities = cv2.transform(cv2.LUT(image, _DENSITIES), -mix.T)
    light: NDArray[np.float32] = np.asarray(cv2.exp(densities))
    # In place: allocating new arrays would take most of the time.
    light *= 256
    light -= 1
    np.rint(light, out=light)
    return light.clip(0, 255, out=light).astype(np.uint8)


def stain_densities(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the optical density of haematoxylin and eosin in each pixel, `(h, w, 2)` float32.

    Colour deconvolution (Ruifrok & Johnston 2001) of decimal optical densities, 0 for white; noise
    and other colours give values below 0. `image` is `(h, w, 3)` uint8 RGB.
    """
    unmix = np.linalg.inv(_STAINS)[:, :2] / np.log(10)
    densities: NDArray[np.float32] = cv2.transform(
        cv2.LUT(image, _DENSITIES), unmix.T.astype(np.float32)
    )
    return densities
