"""Mixtures: whose tasks they have, what each weighs, and mistakes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import bowl_task

import l2o
from l2o.cli.methods.method import Ingredients
from l2o.estimators.estimator import Estimator
from l2o.tasks.random_mlp import random_digits_mlp

BOWL = bowl_task()


def bowl(name: str, size: int = 2) -> l2o.Task:
    init = lambda key, instance: {"x": jnp.zeros(size)}
    return dataclasses.replace(BOWL, name=name, init=init)


def family(name: str, number: int, weights: tuple[float, ...] = ()) -> l2o.TaskFamily:
    return l2o.TaskFamily(
        name=name,
        train=tuple(bowl(f"{name}_{i}") for i in range(number)),
        evaluation=(bowl(f"{name}_test"),),
        weights=weights,
    )


def coin(key) -> l2o.Task:
    """One of two tasks, the second three times as likely."""
    size = 1 + int(jax.random.uniform(key) > 0.25)
    return bowl(f"coin_{size}", size)


A, B = family("a", 4), family("b", 2)


def test_a_family_with_many_variants_does_not_count_for_more():
    mixed = l2o.mixture({A: 1.0, B: 3.0, bowl("c"): 4.0})
    assert [task.name for task in mixed.train] == ["a_0", "a_1", "a_2", "a_3", "b_0", "b_1", "c"]
    expected = [1 / 32] * 4 + [3 / 16] * 2 + [1 / 2]
    np.testing.assert_allclose(mixed.weights, expected)
    np.testing.assert_allclose([*mixed.task_weights(2.0).values()], 2.0 * np.array(expected))
    assert [task.name for task in mixed.evaluation] == ["a_test", "b_test"]


@pytest.mark.parametrize(
    ("num_tasks", "counts"), [(2, (1, 1)), (3, (1, 2)), (4, (2, 2)), (6, (4, 2)), (9, (4, 2))]
)
def test_the_number_of_tasks_is_bounded_and_weights_stay(num_tasks, counts):
    mixed = l2o.mixture({A: 1.0, B: 3.0}, num_tasks=num_tasks)
    shares = mixed.task_weights()
    names = list(shares)
    assert tuple(sum(n.startswith(f) for n in names) for f in "ab") == counts
    assert names == sorted(set(names))
    assert sum(w for n, w in shares.items() if n.startswith("a")) == pytest.approx(0.25)


def test_the_expected_share_of_a_task_of_a_weighted_family_is_its_weight():
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    weighted = family("a", 4, tuple(100.0 * weights))
    for num_tasks in (1, 2, 3):
        shares = np.zeros((400, 4))
        for seed in range(len(shares)):
            found = l2o.mixture({weighted: 1.0}, num_tasks=num_tasks, seed=seed).task_weights()
            assert len(found) <= num_tasks and sum(found.values()) == pytest.approx(1.0)
            shares[seed] = [found.get(f"a_{i}", 0.0) for i in range(4)]
        error = (weights * (1 - weights) / num_tasks / len(shares)) ** 0.5  # at most
        assert np.all(np.abs(shares.mean(axis=0) - weights) < 4 * error)
    whole = l2o.mixture({weighted: 1.0}, num_tasks=4).task_weights()
    np.testing.assert_allclose([*whole.values()], weights)


def test_families_may_share_evaluation_tasks():
    other = dataclasses.replace(A, name="other", train=(bowl("c"),))
    mixed = l2o.mixture({A: 1.0, other: 1.0})
    assert [task.name for task in mixed.evaluation] == ["a_test"]


def test_draws_depend_on_the_seed_and_on_the_part_alone():
    names = lambda *args, **kw: [task.name for task in l2o.mixture(*args, **kw).train]
    many = family("many", 20)
    first = names({many: 1.0}, num_tasks=3)
    assert first == names({many: 1.0}, num_tasks=3)
    assert first != names({many: 1.0}, num_tasks=3, seed=1)
    with_other = names({B: 0.1, many: 1.0}, num_tasks=4)
    assert with_other[1:] == first


def test_tasks_that_are_drawn_twice_are_one_with_twice_the_weight():
    mixed = l2o.mixture({coin: 2.0, BOWL: 2.0}, num_tasks=41)
    assert [task.name for task in mixed.train] == ["coin_1", "coin_2", "bowl"] or [
        task.name for task in mixed.train
    ] == ["coin_2", "coin_1", "bowl"]
    shares = mixed.task_weights()
    assert shares["bowl"] == pytest.approx(0.5)
    assert abs(2 * shares["coin_2"] - 0.75) < 4 * (0.75 * 0.25 / 40) ** 0.5


def test_weights_of_a_family_that_is_mixed_are_kept_within_it():
    mixed = l2o.mixture({family("a", 2, (3.0, 1.0)): 1.0, B: 1.0})
    np.testing.assert_allclose(mixed.weights, [3 / 8, 1 / 8, 1 / 4, 1 / 4])


def constant(gradient: float) -> Estimator:
    """An estimator whose meta-gradient and meta-loss are a number."""
    metrics = {"meta_loss": jnp.float32(gradient), "valid": jnp.float32(1.0)}
    estimate = lambda key, theta, state, data: (jnp.float32(gradient), state, metrics)
    return Estimator(init=lambda key, theta: (), estimate=estimate, steps=1)


def test_the_meta_gradient_is_the_weighted_mean():
    mixed = l2o.mixture({A: 1.0, B: 3.0})
    names = [task.name for task in mixed.train]
    gradients = dict(zip(names, (1.0, 2.0, 3.0, 6.0, 10.0, 20.0), strict=True))
    mean = l2o.average_estimators(
        {name: constant(g) for name, g in gradients.items()}, weights=mixed.task_weights()
    )
    state = mean.init(jax.random.key(0), jnp.float32(0.0))
    gradient, _, metrics = mean.estimate(jax.random.key(0), jnp.float32(0.0), state, mean.data)
    expected = 0.25 * 3.0 + 0.75 * 15.0
    assert gradient == pytest.approx(expected) and metrics["meta_loss"] == pytest.approx(expected)


def test_a_run_shares_out_the_weight_of_a_family():
    """Equal weights are the numbers that they were before families had any."""
    rest = dict.fromkeys(f.name for f in dataclasses.fields(Ingredients))
    weights = lambda families, given: (
        Ingredients(**{**rest, "families": families, "weights": given}).task_weights
    )
    for weight in (1.0, 0.7, 3.0):
        found = weights((family("a", 7), B), (weight, 1.0))
        assert [found[f"a_{i}"] for i in range(7)] == [weight / 7] * 7 and found["b_0"] == 0.5
    weighted = weights((family("a", 2, (3.0, 1.0)), B), (2.0, 1.0))
    assert weighted == {"a_0": 1.5, "a_1": 0.5, "b_0": 0.5, "b_1": 0.5}


def test_random_architectures_of_mlps():
    tasks = [random_digits_mlp(jax.random.key(i)) for i in range(12)]
    depths = {task.name.count("x") for task in tasks}
    assert len({task.name for task in tasks}) > 6 and max(depths) <= 3
    shapes = jax.eval_shape(
        lambda: tasks[0].init(jax.random.key(0), tasks[0].sample(jax.random.key(0)))
    )
    assert shapes["w0"].shape[0] == 64 and {t.family for t in tasks} == {"digits_mlp"}


sizes = iter(range(1, 100))


def changing(key) -> l2o.Task:
    return bowl("same", next(sizes))


def draws_a_name(key) -> str:
    return "bowl"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: l2o.mixture({}), r"`parts` must have positive, finite weights, at least one"),
        (lambda: l2o.mixture({A: 0.0}), r"positive, finite weights, at least one; got {'a': 0.0}"),
        (lambda: l2o.mixture({A: 1.0, B: 1.0}, num_tasks=1), r"number of parts, 2; got 1\. Try"),
        (lambda: l2o.mixture({coin: 1.0}), r"`num_tasks` must be given .* coin; got None\. Try"),
        (lambda: l2o.mixture({A: 1.0, family("a", 1): 1.0}), r"names of their own; got a twice"),
        (lambda: l2o.mixture({A: 1.0, bowl("a_1"): 1.0}), r"tasks that differ; got a_1 in two"),
        (lambda: l2o.mixture({changing: 1.0}, num_tasks=3), r"got same of other shapes"),
        (lambda: l2o.mixture({"digit_mlp": 1.0}), r"`task` must be a known name; got digit_mlp"),
        (
            lambda: l2o.mixture({A: 1.0, family("a", 1): 1.0}),
            r'Drop one, or try dataclasses.replace\(part, name="a_b"\)\.$',
        ),
        (lambda: l2o.mixture({A: 1.0, bowl("a_1"): 1.0}), r'\(task, name="a_1_b"\)\.$'),
        (
            lambda: l2o.mixture({coin: 1.0, bowl("coin_1"): 1.0, bowl("coin_2"): 1.0}, num_tasks=3),
            r"got coin_[12] in two\. Drop one, or .*, or seed=1\.$",
        ),
        (
            lambda: l2o.mixture({A: 1.0, dataclasses.replace(family("a", 4), name="b"): 1.0}),
            r"tasks that differ; got a_0 in two",
        ),
        (
            lambda: l2o.mixture(
                {
                    B: 1.0,
                    dataclasses.replace(
                        B, name="c", train=A.train, evaluation=family("b", 1).evaluation
                    ): 1.0,
                }
            ),
            r"evaluation tasks that differ; got b_test in two .*replace\(family, evaluation=\(\)\)",
        ),
        (lambda: l2o.mixture({family("none", 0): 1.0}), r"got none, whose `train` is empty\. Drop"),
        (lambda: l2o.mixture(["digits_mlp"]), r"`parts` must be a mapping .*; got list\. Try"),
        (lambda: l2o.mixture({A: "2"}), r"positive, finite weights, .*; got {'a': '2'}\. Try"),
        (lambda: l2o.mixture({A: 1.0}, num_tasks="3"), r"`num_tasks` must be an integer; got '3'"),
        (
            lambda: l2o.mixture({A: 1.0}, seed=0.5),
            r"`seed` must be an integer; got 0.5\. Try",
        ),
        (lambda: l2o.mixture({3: 1.0}, num_tasks=1), r"functions that draw tasks; got int 3\. Try"),
        (lambda: l2o.mixture({l2o.celo(): 1.0}, num_tasks=1), r"got LearnedOptimizer celo\. Try"),
        (
            lambda: l2o.mixture({"l2o.tasks.random_mlp:random_digits_mlp": 1.0}, num_tasks=1),
            r"itself and not its path; got l2o.* Import it and try {random_digits_mlp: 1.0}",
        ),
        (lambda: l2o.mixture({A: 1.0}, seed=-1), r"`seed` must be between"),
        (
            lambda: l2o.mixture({draws_a_name: 1.0}, num_tasks=1),
            r"return a Task; got draws_a_name, which returns str",
        ),
        (lambda: family("a", 2, (1.0,)), r"`weights` of family a must be one number .* got 1 for"),
        (lambda: family("a", 2, (1.0, -1.0)), r"must be positive and finite; got \(1.0, -1.0\)"),
    ],
)
def test_mistakes_are_one_line_errors(make, message):
    with pytest.raises(ValueError, match=message) as found:
        make()
    assert "\n" not in str(found.value)
