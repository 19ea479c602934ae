import jax
import pytest

from l2o.evaluation.seen import source_signature
from l2o.tasks.general import general, held_out


@pytest.mark.parametrize("entry", held_out(), ids=lambda entry: entry.name)
def test_recipes_are_chosen_on_kinds_that_none_trains_on(entry):
    seen = {source_signature(task) for task in general().train}
    assert source_signature(entry.make()) not in seen


def test_all_that_is_trained_on_varies(key):
    for task in general().train:
        first, second = (task.sample(k) for k in jax.random.split(key))
        same = jax.tree.map(lambda a, b: bool((a == b).all()), first, second)
        assert not all(jax.tree.leaves(same)), task.name
