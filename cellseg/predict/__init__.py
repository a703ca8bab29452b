"""From an image and a trained network to `Predictions`."""
