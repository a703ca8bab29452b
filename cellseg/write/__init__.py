"""From `Predictions` to the files that others take."""
