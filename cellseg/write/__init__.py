"""Writers of predictions and annotations: submission, GeoJSON, label maps, sidecar files."""
