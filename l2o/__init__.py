"""Learned optimizers as optax transformations, and their meta-training."""

from l2o import features, nets, optimizers, policies
from l2o.batches import batch_fraction
from l2o.comparison import compare
from l2o.estimators import (
    Estimator,
    es_single,
    full_es,
    full_grad,
    mean_of,
    nres,
    pes,
    truncated_es,
    truncated_grad,
    variance_weighted,
)
from l2o.evaluate import evaluate
from l2o.evolution import evolution_learner
from l2o.fit import fit
from l2o.learned_optimizer import LearnedOptimizer
from l2o.learner import Learner, MetaState, gradient_learner
from l2o.objective import Objective
from l2o.problem import InnerState, Problem, Window, inner_problem, unroll_run
from l2o.release import load, optimizer, save
from l2o.run_folder import RunError, RunFolder
from l2o.streams import stream
from l2o.task import Task, TaskFamily

__all__ = [
    "Estimator",
    "InnerState",
    "LearnedOptimizer",
    "Learner",
    "MetaState",
    "Objective",
    "Problem",
    "RunError",
    "RunFolder",
    "Task",
    "TaskFamily",
    "Window",
    "batch_fraction",
    "compare",
    "es_single",
    "evaluate",
    "evolution_learner",
    "features",
    "fit",
    "full_es",
    "full_grad",
    "gradient_learner",
    "inner_problem",
    "load",
    "mean_of",
    "nets",
    "nres",
    "optimizer",
    "optimizers",
    "pes",
    "policies",
    "save",
    "stream",
    "truncated_es",
    "truncated_grad",
    "unroll_run",
    "variance_weighted",
]
