"""Learned-optimizer designs, one a file, and what they share."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=("accumulators", "features", "nets", "per_tensor")
)
