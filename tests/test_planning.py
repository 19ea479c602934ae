from dataclasses import replace

import pytest

from l2o.planning.plan import resolve
from l2o.planning.population import check_divides
from l2o.settings import PRESETS, MetaTraining


@pytest.mark.parametrize(
    ("estimator", "num_pairs", "unit", "nearest"),
    [("pes", 5, 4, 4), ("pes", 7, 4, 8), ("CMA_ES", 5, 2, 4), ("full_grad", 7, 2, 8)],
)
def test_pairs_that_devices_cannot_share(estimator, num_pairs, unit, nearest):
    """A candidate of a strategy, like a member that backpropagates, is half a pair."""
    settings = MetaTraining(estimator=estimator, num_pairs=num_pairs)
    message = (
        f"`num_pairs` must be a multiple of {unit} on 4 devices; got {num_pairs}. "
        f"Try num_pairs={nearest}."
    )
    with pytest.raises(ValueError, match=message):
        check_divides(settings, 4)
    check_divides(replace(settings, num_pairs=nearest), 4)


def test_groups_that_devices_cannot_share():
    settings = MetaTraining(
        optimizer="scheduler", estimator="reinforce", baseline="leave_one_out", num_pairs=6
    )
    with pytest.raises(ValueError, match=r"multiple of 8 on 4 devices; got 6. Try num_pairs=8"):
        check_divides(settings, 4)
    check_divides(replace(settings, num_pairs=8), 4)


@pytest.mark.parametrize(
    ("steps", "log_every", "of_chunk", "between_checkpoints"),
    [(1000, 10, 10, 100), (1001, 10, 7, 98), (6, 10, 6, 96), (13, 10, 1, 100)],
)
def test_chunks_divide_the_run(steps, log_every, of_chunk, between_checkpoints):
    settings = replace(
        PRESETS["smoke"], steps=steps, log_every=log_every, checkpoint_every=100, devices=1
    )
    plan = resolve(settings)
    assert (plan.log_every, plan.checkpoint_every) == (of_chunk, between_checkpoints)


def test_what_cannot_be_evaluated_is_told_before_meta_training():
    settings = MetaTraining(
        task=("user_module:shrinks_in_training",),
        optimizer="user_module:saves_examples",
        estimator="ppo",
        horizon=(50,),
        num_pairs=4,
        devices=1,
    )
    with pytest.raises(ValueError, match=r"`task` must have `shrink` .*; got bowl, which has none"):
        resolve(settings)
    assert resolve(replace(settings, evaluate=False)).learner.steps > 0
