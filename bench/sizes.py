"""Image sizes for the benchmarks, drawn after NYCU HW3's test list."""

from __future__ import annotations

import math
from statistics import NormalDist


def image_sizes(n: int = 101) -> list[tuple[int, int]]:
    """Return n image sizes, height and width in pixels: 101 of them, repeated.

    The real list has 101 images, heights 33…2500 (median 374), widths 35…1987 (median 464),
    42.9 Mpx in total, 3.1 Mpx the largest. These are deterministic and have heights 35…2500
    (374), widths 35…1987 (458), 42.3 and 3.0 Mpx.
    """
    z = [NormalDist().inv_cdf((i + 0.5) / 101) for i in range(101)]
    sizes = []
    for i in range(101):
        # Log-normal sides with a correlation of 0.3. Multiplying modulo the prime 101 permutes.
        z_width = 0.3 * z[i] + math.sqrt(1 - 0.3**2) * z[i * 44 % 101]
        height = round(374 * math.exp(0.918 * z[i]))
        width = round(464 * math.exp(0.918 * z_width))
        sizes.append((min(max(height, 33), 2500), min(max(width, 35), 1987)))
    shuffled = [sizes[i * 58 % 101] for i in range(101)]
    return [shuffled[i % 101] for i in range(n)]
