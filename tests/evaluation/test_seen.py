"""Which tasks count as meta-trained on."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from l2o import release
from l2o.evaluation.compare import compare
from l2o.evaluation.seen import (
    check_held_out,
    is_seen,
    names_and_signatures,
    task_signature,
)
from l2o.registry import TASKS, task_family
from l2o.task import Task
from l2o.tasks.digits import digits, digits_mlp, imbalanced_digits
from l2o.tasks.image_mlp import image_mlp


def task(**changes) -> Task:
    found = Task(
        name="a",
        sample=lambda key: jax.random.normal(key, (2,)),
        init=lambda key, instance: {"x": jnp.zeros(2), "y": jnp.zeros(3)},
        batch=lambda key, instance, data, split: data["rows"],
        loss=lambda params, batch, instance: jnp.sum(params["x"]),
        loss_cap=1.0,
        data={"rows": jnp.arange(4.0), "labels": jnp.arange(4)},
        family="f",
    )
    return dataclasses.replace(found, **changes)


def test_the_signature_goes_by_family_data_and_shapes_and_by_nothing_else():
    same = [
        task(name="b"),
        task(loss_cap=2.0, loss=lambda params, batch, instance: 2.0 * jnp.sum(params["x"])),
        task(
            sample=lambda key: (), init=lambda key, instance: {"u": jnp.ones(2), "v": jnp.ones(3)}
        ),
        task(data={"rows": jnp.arange(4.0), "labels": jnp.arange(4)}),
        task(init=lambda key, instance: {"x": jnp.zeros(2, jnp.bfloat16), "y": jnp.zeros(3)}),
    ]
    others = [
        task(family="g"),
        task(family=""),
        task(init=lambda key, instance: {"x": jnp.zeros(2), "y": jnp.zeros(4)}),
        task(init=lambda key, instance: {"x": jnp.zeros((2, 1)), "y": jnp.zeros(3)}),
        task(data={"rows": jnp.arange(4.0).at[3].set(9.0), "labels": jnp.arange(4)}),
        task(data={"rows": jnp.arange(4.0).reshape(2, 2), "labels": jnp.arange(4)}),
        task(data={"rows": jnp.arange(4), "labels": jnp.arange(4)}),
        task(data=()),
    ]
    assert {task_signature(t) for t in same} == {task_signature(task())}
    assert len({task_signature(t) for t in (task(), *others)}) == 1 + len(others)
    assert task_signature(task(family="", name="f")) == task_signature(task())


def test_a_signature_is_the_same_in_every_process():
    """It is in release files."""
    expected = "769b96b0cfc2"
    assert task_signature(task()).startswith(expected)


def test_data_may_hold_keys_and_bfloat16():
    keys = [task(data=(jax.random.key(i), jnp.ones(3, jnp.bfloat16))) for i in range(2)]
    assert len(set(map(task_signature, keys))) == 2


def test_a_shape_that_was_meta_trained_on_in_varied_instances_is_seen():
    family = digits_mlp()
    for seen in (names_and_signatures(family.train), [t.name for t in family.train]):
        marked = [t.name for t in family.evaluation if is_seen(t, frozenset(seen))]
        assert marked == ["digits_mlp_32", "digits_mlp_32x32", "digits_mlp_64x32"]
    signatures = frozenset(map(task_signature, family.train))
    renamed = image_mlp("mine", digits(), (32,), family="digits_mlp")
    assert is_seen(renamed, signatures)
    assert not is_seen(image_mlp("mine", digits(), (32,)), signatures)
    assert not is_seen(image_mlp("mine", digits(), (48,), family="digits_mlp"), signatures)
    other_images = image_mlp("mine", imbalanced_digits(), (32,), family="digits_mlp")
    assert not is_seen(other_images, signatures)


def test_no_task_is_seen_before_meta_training():
    assert not is_seen(task(), frozenset())


def test_release_files_with_names_alone_still_tell_what_was_seen():
    seen = frozenset(release.summary("digits")["trained_on"])
    marked = [t.name for t in digits_mlp().evaluation if is_seen(t, seen)]
    assert marked == ["digits_mlp_32", "digits_mlp_32x32", "digits_mlp_64x32"]


DOWNLOADED = ("mnist", "fashion", "emoji", "union", "moby", "minilm")
QUICK = ("digits_mlp", "digits_conv", "python_gru", "wine", "factorisation", "poisson", "bbob")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n.startswith((*QUICK, "quadratic")) else pytest.mark.slow)
        for n in TASKS
        if not n.startswith(DOWNLOADED)
    ],
)
def test_built_in_tasks_name_their_family(name):
    family = task_family(name)
    assert family.name in (name, "quadratic_10")
    tasks = (*family.train, *family.evaluation)
    expected = "quadratic" if name == "quadratic" else family.name
    # BBOB's functions are no variants of each other.
    assert {t.family or t.name for t in tasks} == {expected} or name == "bbob"
    assert all(task.name == name or task.name.startswith(f"{name}_") for task in tasks)
    has_data = bool(jax.tree.leaves(tasks[0].data))
    assert bool(family.source) == bool(family.licence) == has_data
    trained = {task.name.removesuffix("_varied") for task in family.train}
    assert trained <= {task.name for task in tasks}


def test_a_variant_of_what_was_meta_trained_on_is_refused_or_marked():
    shape = task(loss=lambda params, batch, instance: jnp.sum(jnp.square(params["x"] - 1.0)))
    seen = {task_signature(task(name="varied"))}
    sizes = dict(horizon=3, num_seeds=8, num_random=0, baselines=("sgdm",))
    with pytest.raises(ValueError, match="`task` must not be one that was meta-trained on; got a"):
        compare(jax.random.key(0), shape, optax.sgd(0.1), seen=seen, **sizes)
    with pytest.raises(ValueError, match="`task` must not be one that was validated on; got a"):
        compare(jax.random.key(0), shape, optax.sgd(0.1), validated=seen, **sizes)
    found = compare(jax.random.key(0), shape, optax.sgd(0.1), seen=seen, allow_seen=True, **sizes)
    assert found.summary["seen"] is True and found.summary["validated"] is False


def test_what_is_validated_on_is_of_another_family_or_data_than_what_is_meta_trained_on():
    train = [task()]
    other_data = task(name="b", data={"rows": jnp.zeros(4), "labels": jnp.arange(4)})
    apart = [task(name="b", family="g"), other_data]
    check_held_out(apart, train, frozenset(), "validate_on")
    wider = task(name="b", init=lambda key, instance: {"x": jnp.zeros(9), "y": jnp.zeros(3)})
    assert not is_seen(wider, frozenset(names_and_signatures(train)))
    seen_before = frozenset({task_signature(apart[0])})
    cases = ((wider, frozenset()), (task(name="b"), frozenset()), (apart[0], seen_before))
    for refused, seen in cases:
        with pytest.raises(ValueError, match="`validate_on` must name held-out tasks; got b, of a"):
            check_held_out([other_data, refused], train, seen, "validate_on")
