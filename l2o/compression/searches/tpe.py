"""Tree-structured Parzen estimator over actions, by Optuna, after the uniform allocation."""

import numpy as np

from l2o.compression.problem import CompressionProblem
from l2o.compression.searches.search import Found, Search, check_evaluations


def tpe(problem: CompressionProblem, evaluations: int, seed: int) -> Found:
    """Search actions by Optuna's TPE, multivariate; needs `pip install 'l2o[tune]'`.

    Raises:
        ValueError: If Optuna is not installed.
    """
    check_evaluations(evaluations, 1)
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "`search` must be one that is installed; got tpe without Optuna. "
            "Try pip install 'l2o[tune]'."
        ) from error
    from optuna.distributions import BaseDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = [f"a{i}" for i in range(problem.num_groups)]
    space: dict[str, BaseDistribution] = {name: FloatDistribution(-1.0, 1.0) for name in names}
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(dict.fromkeys(names, 0.0))
    search = Search(problem, evaluations)
    while search.left:
        trial = study.ask(space)
        action = np.array([trial.params[name] for name in names])
        study.tell(trial, search.score(problem.project(action)))
    return search.found()
