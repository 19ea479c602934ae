"""Image data sets: where they come from, and where they lie."""
