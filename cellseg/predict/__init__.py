"""From an image and trained networks to `Predictions`.

In the order of the data flow:

- `tiles` splits an image into tiles, `views` lists the scales, flips and rotations of a tile;
- `predictor` runs the networks on the views, while it reads the next tiles and encodes the
  previous masks; other programs need nothing else;
- `fuse` combines the detections of several views or networks, `masks` encodes them, `merge`
  combines the tiles;
- `tile_store` saves predicted tiles; `job` predicts many images, in one process or several.
"""
