"""Learned optimizers as what a policy controls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_policies import (
    HORIZON,
    small_policy,
    tiny_task,
)

import l2o
from l2o import release


@pytest.fixture(scope="module")
def task():
    return tiny_task()


def test_a_learned_base_at_a_rate_of_one_is_itself(task):
    lopt = small_policy(base="digits", learning_rate=1.0)
    learned, theta = l2o.load("digits")
    params = task.init(jax.random.key(2), task.sample(jax.random.key(1)))
    grads = jax.tree.map(lambda p: p + 0.1, params)
    found = []
    for tx in (
        lopt.transform(lopt.init(jax.random.key(0)), horizon=HORIZON),
        learned.transform(theta, horizon=HORIZON),
    ):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        found.append(updates)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5), *found))


def test_a_released_policy_refuses_another_base(tmp_path):
    lopt = small_policy(base="digits")
    path = tmp_path / "policy.safetensors"
    l2o.save(path, lopt, lopt.init(jax.random.key(0)))
    loaded, _ = l2o.load(path)
    assert loaded.config["base_sha256"] == release.checksum("digits")
    with pytest.raises(
        ValueError, match=r"`base` must be the digits .* of sha256 0123; got one of"
    ):
        small_policy(base="digits", base_sha256="0123")
    assert small_policy().config["base_sha256"] == ""
