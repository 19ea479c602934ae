"""The suite that comes with l2o: what is in it, and what it is kept apart from."""

import re

import jax
import pytest

from l2o import registry
from l2o.cli.presets import PRESETS
from l2o.datasets.fetch import SOURCES, data_rows
from l2o.evaluation.seen import names_and_signatures, shares_source
from l2o.suite.suite_task import check_names
from l2o.tasks.suite import beyond_usual_training, suite_1

PRESENT = {"", *(row.name for row in data_rows() if row.is_present)}


def test_it_has_many_tasks_of_many_kinds_and_every_axis():
    suite = suite_1()
    check_names(suite)
    assert len([entry for entry in suite if not entry.axis]) >= 24
    assert len({entry.kind for entry in suite}) >= 10
    assert len({entry.kind for entry in suite if entry.is_quick}) >= 6
    axes = " ".join(entry.axis for entry in suite)
    for axis in ("width x8", "depth x5", "horizon x25", "batch x1/8", "batch x8", "other data"):
        assert axis in axes
    assert "bfloat16" in axes
    assert {entry.dataset for entry in suite} <= {"", *SOURCES}


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(e, id=e.name, marks=() if not e.dataset else pytest.mark.slow)
        for e in suite_1()
    ],
)
def test_no_preset_trains_on_the_family_and_data_of_a_task(entry):
    if entry.dataset not in PRESENT:
        pytest.skip(f"no {entry.dataset}")
    families = {name for preset in PRESETS.values() for name in preset.task}
    tasks = [task for name in families for task in registry.task_family(name).train]
    assert tasks
    assert not shares_source(entry.make(), frozenset(names_and_signatures(tasks)))


@pytest.mark.skipif("fashion_mnist" not in PRESENT, reason="no Fashion-MNIST")
def test_axes_are_what_their_names_say():
    usual = {"width": 32, "depth": 2, "batch": 64, "horizon": 200}
    for entry in beyond_usual_training():
        task = entry.make()
        k_sample, k_init = jax.random.split(jax.random.key(0))
        instance = task.sample(k_sample)
        params = task.init(k_init, instance)
        kernels = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
        batch = task.batch(k_init, instance, task.data, "train")
        rows = {leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.ndim}
        found = {
            "width": kernels[0][1],
            "depth": len(kernels) - 1,
            "batch": min(rows),
            "horizon": entry.horizon,
        }
        changed = {k: found[k] / usual[k] for k in usual if found[k] != usual[k]}
        named = re.fullmatch(r"(\w+) x(\d+)(?:/(\d+))?", entry.axis)
        expected = {named[1]: int(named[2]) / int(named[3] or 1)} if named else {}
        assert changed == expected, entry.name
        is_low = {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
        assert is_low == (entry.axis == "bfloat16")
