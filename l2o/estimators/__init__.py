"""Meta-gradient estimators, one a file."""

from l2o.estimators.estimator import Estimator, mean_of
from l2o.estimators.pes import pes
from l2o.estimators.truncated_es import truncated_es

__all__ = ["Estimator", "mean_of", "pes", "truncated_es"]
