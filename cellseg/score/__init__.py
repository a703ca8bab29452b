"""From results and annotations to numbers."""
