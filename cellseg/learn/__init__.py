"""Train networks on annotated images, in run folders."""
