"""From an image and trained networks to `Predictions`.

In the order of the data flow:

- `networks` are those of the runs, and their checks; `resolution` chooses the level of an image and
  its scale;
- `tiles` splits an image into tiles, `part` chooses those with tissue or in regions, `views` lists
  the scales, flips and rotations of a tile, `inputs` reads and resizes them;
- `predictor` runs the networks on the views, while it reads the next tiles and encodes the
  previous masks, in the `threads` that suit the machine; other programs need nothing else;
- `unusual` warns of what makes a network miss cells;
- `fuse` combines the detections of several views or networks, `masks` encodes them, `merge`
  combines the tiles;
- `tile_store` saves predicted tiles; `job` predicts many images, `workers` in several processes;
  `cohort` predicts the slides of a table.
"""
