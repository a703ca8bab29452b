"""Metrics of results against annotations."""
