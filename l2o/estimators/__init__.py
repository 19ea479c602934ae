"""Meta-gradient estimators, one a file."""

from l2o.estimators.es_single import es_single
from l2o.estimators.estimator import Estimator, mean_of
from l2o.estimators.full_es import full_es
from l2o.estimators.full_grad import full_grad
from l2o.estimators.nres import nres
from l2o.estimators.pes import pes
from l2o.estimators.truncated_es import truncated_es
from l2o.estimators.truncated_grad import truncated_grad
from l2o.estimators.variance_weighted import variance_weighted

__all__ = [
    "Estimator",
    "es_single",
    "full_es",
    "full_grad",
    "mean_of",
    "nres",
    "pes",
    "truncated_es",
    "truncated_grad",
    "variance_weighted",
]
