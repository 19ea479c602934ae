import pytest

from l2o.evaluation.seen import source_signature
from l2o.tasks.general import general, held_out


@pytest.mark.parametrize("entry", held_out(), ids=lambda entry: entry.name)
def test_recipes_are_chosen_on_kinds_that_none_trains_on(entry):
    mixture = general()
    seen = {source_signature(task) for task in mixture.train}
    assert source_signature(entry.make()) not in seen
    assert entry.make().family not in {task.family for task in mixture.train}


def test_what_is_reported_is_not_trained_on():
    mixture = general()
    trained = {task.name for task in mixture.train}
    assert trained.isdisjoint(task.name for task in mixture.evaluation)
