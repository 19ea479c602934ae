"""All estimators, by what they are worth on a problem with a known meta-gradient."""

import jax
from analytic import THETA

from l2o.estimators.es_single import es_single
from l2o.estimators.full_es import full_es
from l2o.estimators.full_grad import full_grad
from l2o.estimators.nres import nres
from l2o.estimators.pes import pes
from l2o.estimators.truncated_es import truncated_es
from l2o.estimators.truncated_grad import truncated_grad
from l2o.estimators.variance_weighted import variance_weighted

UNBIASED = {
    "full_es": (full_es, {"num_pairs": 32, "std": 0.1}),
    "pes": (pes, {"num_pairs": 32, "std": 0.1}),
    "nres": (nres, {"num_pairs": 32, "std": 0.1}),
    "es_single": (es_single, {"num_pairs": 32, "std": 0.1}),
    "full_grad": (full_grad, {"num_members": 8}),
}
BIASED = {
    "truncated_es": (truncated_es, {"num_pairs": 32, "std": 0.1}),
    "truncated_grad": (truncated_grad, {"num_members": 32}),
    "variance_weighted": (variance_weighted, {"num_pairs": 32, "std": 0.1}),
}
EVERY = {**UNBIASED, **BIASED}
EVOLUTION = ("full_es", "pes", "nres", "es_single", "truncated_es")
PERSISTENT = ("pes", "nres", "es_single")


def make(name, problem, **changes):
    constructor, options = EVERY[name]
    if "num_members" in options and "num_pairs" in changes:
        changes["num_members"] = changes.pop("num_pairs")
    return constructor(problem, **(options | changes))


def once(estimator, key, theta=THETA, state=None):
    state = jax.jit(estimator.init)(key, theta) if state is None else state
    return jax.jit(estimator.estimate)(key, theta, state, estimator.data)
