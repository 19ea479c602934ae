"""A problem to search on."""

import jax
import pytest
from hpo_search import STEPS

from l2o.evaluation.starts import draw_starts
from l2o.hpo.search import Trainer
from l2o.registry import tasks_to_evaluate
from l2o.rng import stream


@pytest.fixture(scope="module")
def trainer():
    (task,) = tasks_to_evaluate(["digits_mlp_32"])
    starts = draw_starts(stream(3, "evaluation"), task, 2)
    return Trainer(task, jax.tree.map(lambda x: x[1], starts), STEPS), starts
