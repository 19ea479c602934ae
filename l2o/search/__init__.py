"""Search over the settings of meta-training."""
