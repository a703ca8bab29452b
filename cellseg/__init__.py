"""Outlines and classes the cells of H&E microscope images, with Mask R-CNN.

The rooms follow the way of the data: `read`, `learn`, `predict`, `write`,
`score`, `look`. Each knows the one before it through plain data alone.
"""
