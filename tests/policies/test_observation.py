"""Knobs do what they are acted to, and what an agent sees is what there was, by value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2o.policies.observation import (
    NUM_RUN_FEATURES,
    NUM_TENSOR_FEATURES,
    identity_features,
)
from l2o.policies.optimizer_selector import optimizer_selector
from l2o.policies.per_tensor_controller import per_tensor_controller
from l2o.policies.scheduler import scheduler

PARAMS = {"a": jnp.array([0.5, -2.0]), "b": jnp.array([[1.0, 2.0, -1.0], [0.3, 0.1, -3.0]])}
GRADS = [
    {"a": jnp.array([1.0, -3.0]), "b": jnp.array([[1.0, 0.2, 3.0], [-0.5, 1.0, 2.0]])},
    {"a": jnp.array([0.2, -0.1]), "b": jnp.array([[0.2, 0.1, 0.3], [0.0, -0.2, 0.1]])},
    {"a": jnp.array([0.5, -0.2]), "b": jnp.array([[0.7, -2.0, 0.4], [1.0, 1.5, -0.3]])},
]
LOSSES = (4.0, 2.0, 1.0)
LEARNING_RATE = 0.1


def trained(controlled, state, grads=GRADS):
    """Updates at one point by these gradients, and the state after them."""
    steps = []
    for grad, loss in zip(grads, LOSSES, strict=True):
        step, state = controlled.update(grad, state, PARAMS, jnp.float32(loss))
        steps.append(step)
    return steps, state


# Knobs


def plain_sgdm(rate, momentum, weight_decay, max_norm):
    return optax.chain(
        optax.clip_by_global_norm(max_norm),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(rate, momentum=momentum),
    )


def plain_adam(rate, b1, b2, weight_decay, max_norm):
    return optax.chain(
        optax.clip_by_global_norm(max_norm), optax.adamw(rate, b1, b2, weight_decay=weight_decay)
    )


PLAIN = {
    "sgdm": (plain_sgdm, ("momentum", "weight_decay", "max_norm")),
    "adam": (plain_adam, ("b1", "b2", "weight_decay", "max_norm")),
}

TURNED = {
    "momentum": lambda action: 1.0 - 0.1 * np.exp(0.3 * action),
    "b1": lambda action: 1.0 - 0.1 * np.exp(0.3 * action),
    "b2": lambda action: 1.0 - 0.001 * np.exp(0.3 * action),
    "weight_decay": lambda action: 1e-4 * np.exp(0.5 * action),
    "max_norm": lambda action: 10.0 * np.exp(0.5 * action),
}
"""Where an action takes each hyperparameter from its start."""

ACTIONS = {"momentum": 3.0, "b1": 2.0, "b2": 17.0, "weight_decay": 15.0, "max_norm": -5.0}
"""The first agent's; a later one turns each a little further."""


def expected_steps(base, actions, params, grads):
    """Of plain optax with everything at the value to which it is acted."""
    make, names = PLAIN[base]
    values = [TURNED[name](action) for name, action in zip(names, actions[1:], strict=True)]
    tx = make(LEARNING_RATE * np.exp(0.3 * actions[0]), *values)
    state, steps = tx.init(params), []
    for grad in grads:
        step, state = tx.update(grad, state, params)
        steps.append(step)
    return steps


def agree(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", PLAIN)
def test_controlled_hyperparameters_of_a_network_train_as_optax_does_at_their_values(base):
    names = PLAIN[base][1]
    actions = np.array([1.0, *(ACTIONS[name] for name in names)])
    controlled = scheduler(base, LEARNING_RATE, hyperparameters=names).policy.controlled
    found, _ = trained(
        controlled, controlled.apply_action(controlled.init(PARAMS, 100), jnp.array(actions)[None])
    )
    agree(found, expected_steps(base, actions, PARAMS, GRADS))


@pytest.mark.parametrize("base", PLAIN)
def test_controlled_hyperparameters_of_a_tensor_train_as_optax_does_at_their_values(base):
    """Each tensor at values of its own, clipped by a norm of its own."""
    names = PLAIN[base][1]
    actions = np.outer([1.0, 1.2], [1.0, *(ACTIONS[name] for name in names)])
    controlled = per_tensor_controller(base, names, LEARNING_RATE).policy.controlled
    found, _ = trained(
        controlled, controlled.apply_action(controlled.init(PARAMS, 100), jnp.array(actions))
    )
    for row, leaf in zip(actions, PARAMS, strict=True):
        of_leaf = lambda tree, leaf=leaf: {leaf: tree[leaf]}
        expected = expected_steps(base, row, of_leaf(PARAMS), [of_leaf(g) for g in GRADS])
        agree([of_leaf(step) for step in found], expected)


# Observations


def statistics(grads, params, update):
    """Of one tensor, in the order of `tensor_features`."""
    square = agreement = momentum = 0.0
    for g in grads:
        square = 0.99 * square + 0.01 * np.mean(g**2)
        agreement = 0.9 * agreement + 0.1 * np.mean(g * momentum)
        momentum = 0.9 * momentum + 0.1 * g
    steps = len(grads)
    grad = square / (1.0 - 0.99**steps)
    average = np.mean(momentum**2) / (1.0 - 0.9**steps) ** 2
    agreement /= 1.0 - 0.9**steps
    size = np.mean(params**2)
    return [
        0.1 * np.log(grad / size),
        0.1 * np.log(average / size),
        0.1 * np.log(np.mean(update**2) / size),
        average / grad,
        agreement / np.sqrt(grad * average),
        0.1 * np.log(size),
    ]


def test_statistics_of_each_tensor_by_value():
    controlled = per_tensor_controller().policy.controlled
    steps, state = trained(controlled, controlled.init(PARAMS, 100))
    seen = controlled.observe(state)[:, NUM_RUN_FEATURES : NUM_RUN_FEATURES + NUM_TENSOR_FEATURES]
    for row, leaf in zip(seen, PARAMS, strict=True):
        tensors = [np.asarray(tree[leaf]) for tree in (*GRADS, PARAMS, steps[-1])]
        expected = statistics(tensors[:3], *tensors[3:])
        np.testing.assert_allclose(row, expected, rtol=1e-4)


@pytest.mark.parametrize("make", [scheduler, optimizer_selector])
def test_statistics_of_a_network_are_those_of_its_tensors_laid_end_to_end(make):
    controlled = make().policy.controlled
    steps, state = trained(controlled, controlled.init(PARAMS, 100))
    seen = controlled.observe(state)[0, NUM_RUN_FEATURES : NUM_RUN_FEATURES + NUM_TENSOR_FEATURES]
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (*GRADS, PARAMS, steps[-1])
    ]
    np.testing.assert_allclose(seen, statistics(flat[:3], *flat[3:]), rtol=1e-4)


@pytest.mark.parametrize("make", [scheduler, per_tensor_controller, optimizer_selector])
def test_progress_and_descent_by_value(make):
    """The descent is of the average over ten steps, from the first loss."""
    controlled = make().policy.controlled
    _, state = trained(controlled, controlled.init(PARAMS, 100))
    seen = controlled.observe(state)
    centres = np.array([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1])
    weights = np.exp([-0.2, -0.1, 0.0])
    recent = np.sum(weights * LOSSES) / np.sum(weights)
    for row in seen:
        np.testing.assert_allclose(row[:9], np.tanh(10.0 * (0.03 - centres)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            row[NUM_RUN_FEATURES - 1], 0.3 * np.log(recent / LOSSES[0]), rtol=1e-4
        )


def test_an_agent_observes_its_hyperparameters():
    """From -1 to 1 in logarithms; at the start the rate is 3 of 4 decades up, and so on."""
    controlled = per_tensor_controller(lowest=1e-4, highest=1.0).policy.controlled
    state = controlled.init(PARAMS, 100)
    ends = NUM_RUN_FEATURES + NUM_TENSOR_FEATURES + np.array([0, 4])
    seen = lambda state: controlled.observe(state)[:, slice(*ends)]
    start = np.array([2 * 3 / 4 - 1, 2 * 2 / 3 - 1, 2 * 4 / 8 - 1, 2 * 4 / 6 - 1])
    np.testing.assert_allclose(seen(state), [start, start], rtol=1e-5, atol=1e-6)
    acted = controlled.apply_action(
        state, jnp.array([[1.0, -1.0, 2.0, -3.0], [0.0, 0.0, 0.0, 0.0]])
    )
    moved = np.array([0.3, -0.3, 1.0, -1.5]) * 2 / (np.log(10) * np.array([4, 3, 8, 6]))
    np.testing.assert_allclose(seen(acted), [start + moved, start], rtol=1e-5, atol=1e-6)
    single = scheduler(lowest=1e-4, highest=1.0).policy.controlled
    seen = single.observe(single.init(PARAMS, 100))[0, ends[0] :]
    np.testing.assert_allclose(seen, start[:1], rtol=1e-5)


def test_an_agent_sees_the_shape_of_its_tensor():
    tree = [jnp.ones(shape) for shape in ((), (3,), (5, 7), (2, 4, 6))]
    rank, inputs, outputs = [-1, 0, 1, 2], [1, 1, 5, 4], [1, 3, 7, 6]
    expected = np.stack([rank, 0.2 * np.log1p(inputs), 0.2 * np.log1p(outputs)], axis=1)
    np.testing.assert_allclose(identity_features(tree), expected, rtol=1e-6)
    controlled = per_tensor_controller(hyperparameters=[]).policy.controlled
    seen = controlled.observe(controlled.init(tree, 100))
    np.testing.assert_allclose(seen[:, -3:], expected, rtol=1e-6)


def test_a_selector_observes_its_choice():
    controlled = optimizer_selector(["sgdm", "adam", "sgdm"], [0.1, 0.01, 0.001]).policy.controlled
    state = controlled.init(PARAMS, 100)
    for choice in range(3):
        seen = controlled.observe(controlled.apply_action(state, jnp.array([[1.0 * choice]])))
        np.testing.assert_array_equal(seen[0, -3:], np.eye(3)[choice])
