"""Learned optimizers as optax transformations, and their meta-training.

`__init__.pyi` lists the public names and where they live; each is imported when it is first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
