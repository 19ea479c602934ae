"""Adversarial training: closed forms of a linear classifier, and what its metrics must do."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from input_tasks import linear_task, own_task

import l2o
from l2o.evaluation.seen import is_seen
from l2o.tasks.digits import digits, digits_mlp
from l2o.tasks.quadratic import rotated_quadratic
from l2o.testing import check_task

KEY = jax.random.key(0)
DUAL = {"linf": 1, "l2": 2}
"""Order of the norm of the weights that a ball's norm goes with."""


def on_rows(task: l2o.Task, split="test", key=KEY):
    """Parameters, the batch of all rows, and the instance."""
    instance = task.sample(key)
    return task.init(key, instance), task.all_rows(instance, task.data, split), instance


@functools.cache
def trained() -> l2o.Networks:
    """Two small networks."""
    task = digits_mlp().evaluation[0]
    return l2o.trained_networks(task, optax.adam(0.01), KEY, number=2, steps=150)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("varied", [False, True])
def test_loss_and_accuracy_under_attack_are_those_of_a_linear_model(norm, varied):
    """The worst perturbation lowers each margin by the radius times the dual norm of the weights.

    Instances that are varied have a scale, by which parameters are multiplied before they are used.
    """
    radius, plain = 0.3, linear_task(varied=varied)
    task = l2o.robust(plain, norm=norm, radius=radius, steps=40, low=-9.0, high=9.0)
    params, batch, instance = on_rows(task)
    w = instance["scale"] * (params["w"][:, 1] - params["w"][:, 0])
    rows = batch.batch
    margin = (2 * rows.targets - 1) * (rows.inputs @ w)
    worst = margin - radius * np.linalg.norm(w, ord=DUAL[norm])
    metrics = jax.jit(task.metrics)(params, batch, instance)
    np.testing.assert_allclose(metrics["robust_accuracy"], np.mean(worst > 0), atol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(margin > 0), atol=1e-6)
    expected = np.mean(np.logaddexp(0.0, -worst))
    np.testing.assert_allclose(task.loss(params, batch, instance), expected, rtol=5e-3)
    np.testing.assert_allclose(metrics["robust_loss"], expected, rtol=5e-3)


def test_the_gradient_is_that_of_the_worst_loss():
    """By finite differences of the closed form, for the largest change of each number."""
    task = l2o.robust(linear_task(), radius=0.3, steps=10, low=-9.0, high=9.0)
    params, batch, instance = on_rows(task)
    direction = optax.tree.random_like(jax.random.key(3), params)
    loss = lambda t: float(
        task.loss(jax.tree.map(lambda p, d: p + t * d, params, direction), batch, instance)
    )
    gradient = jax.grad(task.loss)(params, batch, instance)
    slope = optax.tree.vdot(gradient, direction)
    np.testing.assert_allclose(slope, (loss(0.01) - loss(-0.01)) / 0.02, rtol=5e-3)


@pytest.fixture(scope="module")
def accuracy_under_attack():
    """Function of radius, steps and restarts, on test rows of the trained networks."""

    def measure(radius: float, steps: int, restarts: int = 1) -> np.ndarray:
        plain = digits_mlp().evaluation[0]
        task = l2o.robust(plain, radius=radius, eval_steps=steps, restarts=restarts)
        on_one = lambda params, instance, data: task.metrics(
            params, task.all_rows(instance, data, "test"), instance
        )
        found = jax.jit(jax.vmap(on_one, (0, 0, None)))(*trained(), task.data)
        assert np.all(found["robust_accuracy"] <= found["accuracy"])
        return np.asarray(found["robust_accuracy"])

    return measure


def test_accuracy_falls_with_the_radius(accuracy_under_attack):
    found = np.stack([accuracy_under_attack(radius, 10) for radius in (0.01, 0.05, 0.1, 0.2)])
    assert np.all(np.diff(found, axis=0) < 0)
    assert np.all(found[0] > 0.85) and np.all(found[-1] < 0.2)


def test_accuracy_falls_with_steps_and_restarts(accuracy_under_attack):
    found = [accuracy_under_attack(0.1, steps) for steps in (1, 3, 20)]
    found.append(accuracy_under_attack(0.1, 20, restarts=4))
    assert np.all(np.diff(np.stack(found), axis=0) <= 0)
    assert np.all(found[0] > found[-1] + 0.05)


def test_training_never_uses_the_attack_of_the_metric():
    """With one step and one start each, they differ in nothing but where they start."""
    task = l2o.robust(linear_task(), norm="l2", radius=0.5, steps=1, eval_steps=1, restarts=1)
    params, batch, instance = on_rows(task)
    loss = lambda key: task.loss(params, batch._replace(key=key), instance)
    keys = [jax.random.key(i) for i in range(3)]
    assert len({float(loss(key)) for key in keys}) == 3  # random starts, decided by the batch
    same = [task.loss(params, batch, instance) for _ in range(2)]
    assert same[0] == same[1]
    measured = lambda key: task.metrics(params, batch._replace(key=key), instance)["robust_loss"]
    assert len({float(x) for k in keys[:2] for x in (measured(k), loss(k))}) == 4


def test_plain_training_is_as_it_was():
    plain = linear_task(varied=True)
    task = l2o.robust(plain, radius=0.3, adversarial_training=False)
    instance = task.sample(KEY)
    params = task.init(KEY, instance)
    on = lambda task, split: task.loss(
        params, task.batch(KEY, instance, task.data, split), instance
    )
    assert on(task, "train") == on(plain, "train")
    assert on(task, "valid") > on(plain, "valid")


def test_it_is_a_variant_of_the_plain_task():
    plain = linear_task()
    task = l2o.robust(plain, radius=0.3)
    assert (task.name, task.family) == ("linear_robust", "linear")
    assert is_seen(task, frozenset(["linear"])) and is_seen(plain, frozenset([task.name]))
    assert task.is_differentiable and not l2o.robust(plain, norm="l2", radius=1.0).is_differentiable


def dropout_net(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Sequential(
        nnx.Linear(64, 16, rngs=rngs),
        nnx.relu,
        nnx.Dropout(0.2, rngs=rngs),
        nnx.Linear(16, 10, rngs=rngs),
    )


def batchnorm_net(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Sequential(
        nnx.Linear(64, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)
    )


def regression() -> l2o.Task:
    inputs = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    split = inputs, inputs @ np.ones((4, 1), np.float32)
    return l2o.supervised(
        "regression",
        dict.fromkeys(("train", "valid", "test"), split),
        init=lambda key: {"w": 0.1 * jax.random.normal(key, (4, 1))},
        apply=lambda params, inputs: inputs @ params["w"],
        criterion=l2o.squared_error(),
        batch_size=16,
    )


FEW = {"radius": 0.05, "steps": 2, "eval_steps": 2, "restarts": 2}
ROBUST = {
    "euclidean": lambda: l2o.robust(linear_task(), norm="l2", **FEW),
    "plain_training": lambda: l2o.robust(linear_task(), adversarial_training=False, **FEW),
    "dropout": lambda: l2o.robust(l2o.supervised_nnx("dropout", digits(), dropout_net), **FEW),
    "batchnorm": lambda: l2o.robust(
        l2o.supervised_nnx("batchnorm", digits(), batchnorm_net), **FEW
    ),
    "regression": lambda: l2o.robust(regression(), **FEW),
    "own": lambda: l2o.robust(own_task(), low=-9.0, high=9.0, **FEW),
    "augmented": lambda: l2o.noisy_gradients(
        l2o.robust(l2o.reduced_batch(linear_task(varied=True)), **FEW)
    ),
}


SLOW = {"euclidean", "plain_training", "dropout", "batchnorm", "augmented"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ROBUST]
)
def test_a_robust_task_behaves_as_meta_training_expects(name):
    check_task(ROBUST[name](), num_steps=30)


MISTAKES = {
    "radius": ({"radius": 0.0}, "`radius` must be above 0 and finite; got 0"),
    "infinite": ({"radius": np.inf}, "`radius` must be above 0 and finite; got inf"),
    "text": ({"radius": "0.1"}, "`radius` must be a number; got '0.1'"),
    "norm": ({"norm": "l1"}, "`norm` must be one of linf, l2; got 'l1'"),
    "steps": ({"steps": 0}, "`steps` must be a whole number above 0; got 0"),
    "eval_steps": ({"eval_steps": 2.5}, "`eval_steps` must be a whole number above 0; got 2.5"),
    "restarts": ({"restarts": 0}, "`restarts` must be a whole number above 0; got 0"),
    "range": ({"low": 1.0, "high": 0.0}, "`low` and `high` must be the range of the inputs"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line(name):
    options, text = MISTAKES[name]
    with pytest.raises(ValueError) as caught:
        l2o.robust(linear_task(), **{"radius": 0.1, **options})
    assert text in str(caught.value) and "Try " in str(caught.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (rotated_quadratic, "`task` must have batches whose `inputs`"),
        (lambda: l2o.noisy_gradients(linear_task()), "before augmentations of gradients"),
        (digits_mlp, "`task` must be a Task; got TaskFamily digits_mlp"),
        (own_task, "`low` and `high` must be given for own"),
    ],
)
def test_a_task_without_inputs_is_refused_in_one_line(make, text):
    with pytest.raises(ValueError) as caught:
        l2o.robust(make(), radius=0.1)
    assert text in str(caught.value)
