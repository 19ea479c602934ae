"""A meta-trained policy: it starts uniform, learns, and comes back from its file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_trained import schemes, trained_mlp

import l2o
from l2o.compression.policy import CompressionPolicy, make_actor
from l2o.compression.problem import compression_problem


@pytest.fixture(scope="module")
def problems():
    first = compression_problem(trained_mlp(), schemes(trained_mlp())["keep"])
    return [first, first.of(trained_mlp(1))]


@pytest.fixture(scope="module")
def trained(problems):
    gains = []
    policy = l2o.train_compression_policy(
        [problems], steps=40, learning_rate=0.01, report=lambda step, gain: gains.append(gain)
    )
    return policy, gains


def test_before_training_it_is_uniform(problems, key):
    policy = CompressionPolicy(make_actor().init(key), "weights", {})
    found = policy.allocate(problems[0])
    np.testing.assert_array_equal(found.counts, problems[0].project(np.zeros(3)))
    assert found.evaluations == problems[0].num_groups + 3


def test_it_gives_the_uniform_allocation_where_its_own_is_worse(problems, key):
    far = jax.tree.map(lambda x: 5.0 * jnp.ones_like(x), make_actor().init(key))
    unlike = CompressionPolicy(far, "weights", {})
    uniform = problems[0].project(np.zeros(3))
    found = unlike.allocate(problems[0])
    assert found.score >= problems[0].score(uniform) and found.evaluations == 6


def test_training_gains_also_on_a_network_that_it_has_not_seen(trained, problems):
    policy, gains = trained
    assert np.mean(gains[-5:]) > np.mean(gains[:5]) + 0.03
    unseen = problems[0].of(trained_mlp(2))
    uniform = unseen.score(unseen.project(np.zeros(3)))
    assert policy.allocate(unseen).score > uniform + 0.03


def test_files(trained, problems, tmp_path):
    policy, path = trained[0], tmp_path / "policy.safetensors"
    policy.save(path)
    again = l2o.load_compression_policy(path)
    np.testing.assert_array_equal(
        again.allocate(problems[1]).counts, policy.allocate(problems[1]).counts
    )
    assert again.scheme == "weights" and again.summary["networks"] == [2]
    result = l2o.compress(trained_mlp(), keep=0.2, policy=path)
    assert result.search == "policy" and result.found.evaluations == 6
    with pytest.raises(ValueError, match="`policy` must be one for bits; got one for weights"):
        l2o.compress(trained_mlp(), bits=3, policy=path)
    with pytest.raises(ValueError, match="`path` must be a release file"):
        other = tmp_path / "other.safetensors"
        sgd = l2o.learnable_sgd()
        l2o.save(other, sgd, sgd.init(None))
        l2o.load_compression_policy(other)


def test_mistakes(problems):
    with pytest.raises(ValueError, match="`problems` must hold networks of each architecture"):
        l2o.train_compression_policy([])
    bits = compression_problem(trained_mlp(), schemes(trained_mlp())["bits"])
    with pytest.raises(ValueError, match="`problems` must be of one scheme; got bits and weights"):
        l2o.train_compression_policy([problems, [bits]])
    with pytest.raises(ValueError, match="`steps` must be at least 1; got 0"):
        l2o.train_compression_policy([problems], steps=0)
