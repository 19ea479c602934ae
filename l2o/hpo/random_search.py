"""Random search (Bergstra and Bengio 2012)."""

from pathlib import Path

import numpy as np

from l2o.hpo.schedule import SPACE, Hyperparameters, schedule
from l2o.hpo.search import Search


def random_search(search: Search, seed: int, folder: Path) -> None:
    """Draw points log-uniformly from the space."""
    del folder
    rng = np.random.default_rng(seed)
    while search.has_budget:
        drawn = {name: np.exp(rng.uniform(*np.log(ends))) for name, ends in SPACE.items()}
        search.train(schedule(Hyperparameters(**drawn), search.trainer.horizon))
