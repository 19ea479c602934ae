"""What a patient person does: a cosine at rates from the middle of a grid outwards, then more."""

from pathlib import Path

from l2o.baselines import LEARNING_RATES
from l2o.hpo.recipe import Hyperparameters, recipe
from l2o.hpo.search import Search

MOMENTA = (0.95, 0.8, 0.98, 0.5, 0.99, 0.0)
"""Tried at the best rate, after 0.9 at all of them."""

FINER = (0.7, 1.4, 0.5, 2.0)
"""Then factors of the best rate, at the best momentum."""


def cosine(search: Search, seed: int, folder: Path) -> None:
    """A cosine to zero at nine rates, other momenta at the best, then rates between."""
    del seed, folder
    num_steps = search.trainer.num_steps
    tried: dict[tuple[float, float], float] = {}

    def attempt(rate: float, momentum: float) -> None:
        if search.has_budget and (rate, momentum) not in tried:
            point = Hyperparameters(rate, 1.0 - momentum, end=0.0)
            tried[rate, momentum] = search.train(recipe(point, num_steps))

    middle = len(LEARNING_RATES) // 2
    for i in sorted(range(len(LEARNING_RATES)), key=lambda i: (abs(i - middle), -i)):
        attempt(LEARNING_RATES[i], 0.9)
    for momentum in MOMENTA:
        attempt(min(tried, key=tried.__getitem__)[0], momentum)
    for factor in FINER:
        rate, momentum = min(tried, key=tried.__getitem__)
        attempt(factor * rate, momentum)
