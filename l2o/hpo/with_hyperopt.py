"""Hyperopt's tree-structured Parzen estimator."""

import functools
import warnings
from pathlib import Path

import numpy as np

from l2o.hpo.schedule import SPACE, Hyperparameters, schedule
from l2o.hpo.search import Search


def hyperopt_tpe(search: Search, seed: int, folder: Path) -> None:
    """Search by a tree-structured Parzen estimator, every trial to its end."""
    import hyperopt

    del folder
    horizon = search.trainer.horizon
    with warnings.catch_warnings():
        # Hyperopt 0.3.0 sets shapes of arrays, which NumPy 2.5 warns of.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="hyperopt")
        hyperopt.fmin(
            lambda point: search.train(schedule(Hyperparameters(**point), horizon)),
            {name: hyperopt.hp.loguniform(name, *np.log(ends)) for name, ends in SPACE.items()},
            algo=functools.partial(hyperopt.tpe.suggest, n_startup_jobs=search.num_random),
            max_evals=search.budget // horizon,
            rstate=np.random.default_rng(seed),
            show_progressbar=False,
            verbose=False,
        )
