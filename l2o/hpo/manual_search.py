"""What a patient person does: a cosine at rates from the middle of a grid outwards, then closer."""

from pathlib import Path

from l2o.evaluation.baseline import half_decades
from l2o.hpo.schedule import SPACE, Hyperparameters, schedule
from l2o.hpo.search import Search

RATES = half_decades(-8, 0)
"""Nine, from 1e-4 to 1."""

MOMENTA = (0.95, 0.8, 0.98, 0.5, 0.99, 0.0)
"""Tried at the best rate, after 0.9 at all of them."""

WIDEST = 2.0
"""Factor of the best rate and friction that is tried then, both ways; then its root, and so on."""


def manual_search(search: Search, seed: int, folder: Path) -> None:
    """Try a cosine to zero at nine rates, other momenta at the best, then closer and closer."""
    del seed, folder
    horizon = search.trainer.horizon
    tried: dict[tuple[float, float], float] = {}

    def attempt(rate: float, friction: float) -> None:
        point = clip("learning_rate", rate), clip("friction", friction)
        if search.has_budget and point not in tried:
            tried[point] = search.train(schedule(Hyperparameters(*point, end=0.0), horizon))

    def best() -> tuple[float, float]:
        return min(tried, key=tried.__getitem__)

    middle = len(RATES) // 2
    for i in sorted(range(len(RATES)), key=lambda i: (abs(i - middle), -i)):
        attempt(RATES[i], 0.1)
    for momentum in MOMENTA:
        attempt(best()[0], 1.0 - momentum)
    factor, num_tried = WIDEST, 0
    while search.has_budget and len(tried) > num_tried:
        num_tried = len(tried)
        for rate_factor, friction_factor in (
            (1 / factor, 1.0),
            (factor, 1.0),
            (1.0, 1 / factor),
            (1.0, factor),
        ):
            rate, friction = best()
            attempt(rate_factor * rate, friction_factor * friction)
        factor = factor**0.5


def clip(name: str, value: float) -> float:
    """Clip a value to what other engines may try, rounded so that equal ones are known as such."""
    low, high = SPACE[name]
    return float(f"{min(max(value, low), high):.6g}")
