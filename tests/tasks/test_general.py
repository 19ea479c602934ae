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


def test_what_falls_slowly_counts_more():
    weights = general().task_weights()
    assert sum(weights.values()) == pytest.approx(1.0)
    for text in ("python_transformer_16x1_varied", "python_gru_16_varied"):
        assert weights[text] == pytest.approx(16 * weights["digits_mlp_64x32_varied"])
