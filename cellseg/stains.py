"""The stains of tissue, haematoxylin and eosin, and how they absorb light."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# Optical density of one unit of each stain in red, green, blue (Ruifrok & Johnston).
HAEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.07, 0.99, 0.11)

# A row for each stain; the third takes what the two don't explain.
_STAINS = np.array([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
# Optical density of each intensity. Counting from 1 keeps black finite and white at 0.
_DENSITIES = -np.log(np.arange(1, 257) / 256).astype(np.float32)


def scale_stains(image: NDArray[np.uint8], haematoxylin: float, eosin: float) -> NDArray[np.uint8]:
    """Multiply the densities of the stains in an image by a factor each.

    Factors of 1 leave every pixel exactly as it is, and white stays white. The colours are
    separated by colour deconvolution (Ruifrok & Johnston 2001).

    Parameters
    ----------
    image
        `(h, w, 3)` uint8 RGB.
    haematoxylin, eosin
        The factors, 0 or more.
    """
    # To separate, multiply and mix again is one linear map. Written as what it adds to the
    # identity, factors of 1 leave no rounding.
    change = np.linalg.inv(_STAINS) @ np.diag([haematoxylin - 1, eosin - 1, 0]) @ _STAINS
    mix = (np.eye(3) + change).astype(np.float32)
    densities = cv2.transform(cv2.LUT(image, _DENSITIES), -mix.T)
    light: NDArray[np.float32] = np.asarray(cv2.exp(densities))
    # In place, as most of the time would go into new arrays.
    light *= 256
    light -= 1
    np.rint(light, out=light)
    return light.clip(0, 255, out=light).astype(np.uint8)
