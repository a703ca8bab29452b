"""From results and annotations to pictures."""
