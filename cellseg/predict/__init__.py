"""From an image and a trained network to `Predictions`.

To be read in the order in which things happen:

- `tiles` cuts an image up, `views` zooms, flips and turns tiles;
- `predictor` shows the views to the networks, while the next tiles are read and the masks of
  the former ones encoded; it is all that other programs need;
- `fuse` makes one answer of what several views or networks find, `masks` encodes it, `merge`
  puts the tiles together;
- `tile_store` keeps what is done tile by tile; `job` is the whole of it for many images, in
  one process or several, from the list of images to what is written.
"""
