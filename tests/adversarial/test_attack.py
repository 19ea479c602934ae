"""Attacks as tasks: what they minimise, where perturbations end, and who is attacked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from input_tasks import linear_task, own_task

import l2o
from l2o.adversarial.attack import placing
from l2o.adversarial.ball import Ball
from l2o.tasks.digits import digits_mlp
from l2o.tasks.quadratic import rotated_quadratic
from l2o.testing import check_task

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def task():
    return linear_task(batch_size=16, varied=True)


@pytest.fixture(scope="module")
def networks(task):
    return l2o.trained_networks(task, optax.adam(0.05), KEY, number=4, steps=30)


def begin(task: l2o.Task, key=KEY):
    instance = task.sample(key)
    return task.init(key, instance), task.batch(key, instance, task.data, "train"), instance


def descend(task: l2o.Task, tx: optax.GradientTransformation, steps: int, key=KEY):
    params, batch, instance = begin(task, key)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(task.loss)(params, batch, instance)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, batch, instance


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_gradient_descent_finds_the_worst_of_a_linear_model(task, networks, norm):
    """For the largest change the worst perturbation is a corner, else along the weights."""
    radius = 0.3
    attack = l2o.attack(task, networks, norm=norm, radius=radius, low=-9.0, high=9.0)
    tx = optax.sign_sgd(0.05) if norm == "linf" else optax.adam(0.02)
    params, victim, instance = descend(attack, tx, 60)
    w = victim.params["w"] * victim.instance["scale"]
    b = victim.params["b"] * victim.instance["scale"]
    sign = 2 * victim.batch.targets - 1
    margin = sign * ((victim.batch.inputs @ w + b) @ jnp.array([-1.0, 1.0]))
    dual = np.linalg.norm(w[:, 1] - w[:, 0], ord=1 if norm == "linf" else 2)
    worst = margin - radius * dual
    found = attack.metrics(params, victim, instance)
    np.testing.assert_allclose(found["success"], np.mean(worst < 0), atol=1e-6)
    size = victim.batch.size
    losses = np.logaddexp(0.0, -worst)[:size]
    np.testing.assert_allclose(found["task_loss"], np.mean(losses), rtol=0.01)


def test_the_loss_is_bounded_and_falls_as_rows_are_fooled(task, networks):
    attack = l2o.attack(task, networks, radius=5.0, low=-9.0, high=9.0)
    start = begin(attack)
    end = descend(attack, optax.sign_sgd(0.2), 60)
    assert 0.0 <= attack.loss(*end) < 0.01 < attack.loss(*start) < attack.loss_cap
    assert attack.metrics(*end)["success"] == 1.0
    _, victim, _ = start
    by_hand = []
    for i in range(16):
        inputs, targets = victim.batch.inputs[i : i + 1], victim.batch.targets[i : i + 1]
        one = victim.batch._replace(inputs=inputs, targets=targets, size=jnp.int32(1))
        units = task.loss(victim.params, one, victim.instance) / np.log(2.0)
        by_hand.append(-np.log1p(-np.exp(-units)))
    np.testing.assert_allclose(attack.loss(*start), np.mean(by_hand), rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_gradient_is_the_true_one_inside_and_leads_back_from_outside(norm):
    place = placing(Ball(norm, 0.5, -1.0, 1.0))
    inputs, target = jnp.array([[0.2, -0.1]]), jnp.array([[0.3, 0.4]])
    loss = lambda d: jnp.sum(jnp.square(place(d, inputs) - target))
    inside = jnp.array([[0.1, -0.2]])
    np.testing.assert_allclose(jax.grad(loss)(inside), 2 * (inputs + inside - target), rtol=1e-6)
    outside = jnp.array([[3.0, 0.0]])
    assert jax.grad(loss)(outside)[0, 0] > 0.0  # descent leads back
    away = lambda d: -jnp.sum(place(d, inputs)[:, 0])
    np.testing.assert_allclose(jax.grad(away)(outside)[0, 0], 0.0, atol=1e-6)  # no further out


def test_every_batch_of_an_instance_is_the_same_network_and_rows(task, networks):
    attack = l2o.attack(task, networks, radius=0.1, rows=5)
    instance = attack.sample(KEY)
    first = attack.batch(KEY, instance, attack.data, "train")
    other = attack.batch(jax.random.key(7), instance, attack.data, "test")
    whole = attack.all_rows(instance, attack.data, "valid")
    for batch in (other, whole):
        assert jax.tree.all(jax.tree.map(lambda x, y: jnp.all(x == y), first, batch))
    network = jax.tree.map(lambda x: x[instance.network], networks)
    assert jax.tree.all(jax.tree.map(lambda x, y: jnp.all(x == y), first[:2], tuple(network)))
    assert first.batch.inputs.shape == (5, 6) and first.batch.size == 5
    drawn = [attack.sample(jax.random.key(i)) for i in range(20)]
    assert {int(x.network) for x in drawn} == {0, 1, 2, 3}
    assert len({int(x.seed) for x in drawn}) == 20


def test_a_family_keeps_networks_and_rows_apart(task, networks):
    distinct = {
        split: (np.full((20, 6), value, np.float32), np.arange(20) % 2)
        for value, split in enumerate(("train", "valid", "test"))
    }
    apart = l2o.supervised(
        "apart", distinct, lambda key: {"w": jnp.zeros((6, 2))}, lambda p, x: x @ p["w"]
    )
    stacked = {"w": jnp.arange(3.0)[:, None, None] * jnp.ones((3, 6, 2))}
    sample = apart.sample(KEY)
    instances = jax.tree.map(lambda x: jnp.stack([x] * 3), sample)
    family = l2o.attack_family(
        apart, l2o.Networks(stacked, instances), radius=0.1, held_out=1, high=9.0
    )
    (trained_on,), (judged,) = family.train, family.evaluation
    assert family.name == "apart_attack"
    for attack, weights, value in ((trained_on, {0.0, 1.0}, 1.0), (judged, {2.0}, 2.0)):
        victims = [begin(attack, jax.random.key(i))[1] for i in range(12)]
        assert {float(v.params["w"][0, 0]) for v in victims} == weights
        assert {float(v.batch.inputs[0, 0]) for v in victims} == {value}


def test_an_attack_behaves_as_meta_training_expects(task, networks):
    check_task(l2o.attack(task, networks, radius=0.5, rows=8), num_steps=30)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_on_digits_behaves_as_meta_training_expects(norm):
    plain = digits_mlp().train[0]
    found = l2o.trained_networks(plain, optax.adam(0.003), KEY, number=3, steps=200)
    check_task(l2o.attack(plain, found, norm=norm, radius=0.2), num_steps=30)


@pytest.mark.parametrize("make", [l2o.learnable_adam, l2o.adafac_mlp, l2o.scheduler])
def test_designs_and_policies_are_attackers(task, networks, make):
    """A member of a population each, on attacks of their own."""
    attack, lopt = l2o.attack(task, networks, radius=0.5, rows=8), make()
    tx = lopt.transform(lopt.init(KEY), horizon=5)

    def run(key, data):
        instance = attack.sample(key)
        params, batch = attack.init(key, instance), attack.batch(key, instance, data, "train")

        def step(carry, _):
            params, state = carry
            loss, grads = jax.value_and_grad(attack.loss)(params, batch, instance)
            updates, state = tx.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), None, length=5)
        return params, losses

    params, losses = jax.jit(jax.vmap(run, (0, None)))(jax.random.split(KEY, 3), attack.data)
    assert params["perturbation"].shape == (3, 8, 6)
    assert np.all(np.isfinite(losses)) and np.all(np.any(params["perturbation"] != 0, axis=(1, 2)))


def test_networks_are_trained_and_differ(task, networks):
    assert networks.params["w"].shape == (4, 6, 2)
    on_one = lambda params, instance, data: task.metrics(
        params, task.all_rows(instance, data, "test"), instance
    )["accuracy"]
    accuracy = jax.vmap(on_one, (0, 0, None))(*networks, task.data)
    assert np.mean(accuracy) > 0.75
    assert len(set(np.asarray(networks.instances["scale"]).tolist())) == 4


def mistakes():
    """Arguments that are wrong, and what the error says."""
    digits = digits_mlp().evaluation[0]
    yield {"radius": 0.0}, "`radius` must be above 0"
    yield {"norm": "l0"}, "`norm` must be one of linf, l2"
    yield {"rows": 17}, "`rows` must be at most those of a batch of linear, 16; got 17"
    yield {"rows": 0}, "`rows` must be a whole number above 0; got 0"
    yield {"split": "train"}, "`split` must be valid or test; got 'train'"
    yield {"networks": {"w": jnp.zeros((4, 6, 2))}}, "`networks` must be l2o.Networks of task"
    yield {"task": digits}, "`networks` must be l2o.Networks of task digits_mlp_32"
    yield {"task": rotated_quadratic()}, "`task` must have batches whose `inputs`"
    yield {"task": own_task()}, "`low` and `high` must be given for own"


@pytest.mark.parametrize(("options", "text"), list(mistakes()))
def test_a_mistake_gets_one_line(task, networks, options, text):
    arguments = {"task": task, "networks": networks, "radius": 0.1, **options}
    with pytest.raises(ValueError) as caught:
        l2o.attack(**arguments)
    assert text in str(caught.value)


def test_a_family_needs_networks_of_both_kinds(task, networks):
    for held_out, text in ((4, "less than the number of networks, 4"), (0, "whole number")):
        with pytest.raises(ValueError, match=text):
            l2o.attack_family(task, networks, radius=0.1, held_out=held_out)


@pytest.mark.parametrize("option", ["number", "steps"])
def test_networks_need_numbers_above_zero(task, option):
    with pytest.raises(ValueError, match=f"`{option}` must be a whole number above 0"):
        l2o.trained_networks(task, optax.sgd(0.1), KEY, **{"number": 2, "steps": 2, option: 0})
