"""Data sets and pretrained weights: where they come from, and where they lie."""
