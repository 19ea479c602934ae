"""`l2o.compress`: from a user's network to files, and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from small_trained import conv_net, trained_mlp

import l2o
from l2o.compression.compress import num_parameters
from l2o.compression.files import pack, unpack, write_compressed
from l2o.compression.fine_tuning import fine_tune
from l2o.compression.layers import leaves_by_name
from l2o.compression.problem import compression_problem
from l2o.compression.pruning import prune_weights


@pytest.fixture(scope="module")
def results():
    options = {
        "weights": {"keep": 0.15},
        "bits": {"bits": 3},
        "units": {"flops": 0.4, "units": True},
    }
    return {
        name: l2o.compress(
            trained_mlp(), **budget, search="random_search", evaluations=10, fine_tune=150
        )
        for name, budget in options.items()
    }


@pytest.mark.parametrize("scheme", ["weights", "bits", "units"])
def test_files_hold_what_was_made(results, scheme, tmp_path):
    result, model = results[scheme], trained_mlp()
    report = write_compressed(tmp_path, result)
    loaded = l2o.load_compressed(tmp_path, like=model.params)
    for mine, theirs in zip(jax.tree.leaves(result.params), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    rows = model.data["test"]
    accuracy = float(model.measure(loaded, rows)["accuracy"])
    assert accuracy == pytest.approx(result.after_fine_tuning["test"]["accuracy"], abs=1e-6)
    assert report == json.loads((tmp_path / "compress.json").read_text())
    written = {path.name for path in tmp_path.iterdir()}
    table = "bits.json" if scheme == "bits" else "masks.safetensors"
    assert written == {"compressed.safetensors", "compress.json", table}
    size = (tmp_path / "compressed.safetensors").stat().st_size
    assert size == report["bytes"]["after"] < 0.7 * report["bytes"]["before"]
    assert report["budget"]["cost"] <= report["budget"]["limit"]


def test_fine_tuning_gains_and_masks_hold(results):
    for result in results.values():
        before, after = result.after["test"]["loss"], result.after_fine_tuning["test"]["loss"]
        assert after < before
    result = results["weights"]
    assert num_parameters(result) <= 0.15 * trained_mlp().size
    leaves = leaves_by_name(result.params)
    for name, mask in result.masks.items():
        assert not np.any(np.asarray(leaves[name])[~mask]) and mask.sum() == result.counts[name]
        was = leaves_by_name(trained_mlp().params)[name]
        assert np.any(np.asarray(leaves[name])[mask] != np.asarray(was)[mask])
    quantized = results["bits"]
    for name, bits in quantized.bits.items():
        columns = np.asarray(leaves_by_name(quantized.params)[name]).T
        assert max(len(np.unique(column)) for column in columns) <= 2**bits
    smaller = results["units"]
    assert smaller.params["first"]["kernel"].shape == (64, smaller.counts["first/kernel"])
    assert min(smaller.seconds) > 0


def test_bits_take_their_bytes(results, tmp_path):
    write_compressed(tmp_path, results["bits"])
    arrays = safetensors.numpy.load_file(tmp_path / "compressed.safetensors")
    for name, bits in results["bits"].bits.items():
        size = leaves_by_name(trained_mlp().params)[name].size
        assert arrays[f"{name}.packed"].nbytes == -(-size * bits // 8)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packing(bits):
    values = np.random.default_rng(bits).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 37)
    np.testing.assert_array_equal(unpack(pack(values, bits), bits, 37), values)


def test_learned_optimizers_fine_tune_and_statistics_stay():
    model = conv_net()
    problem = compression_problem(model, prune_weights(model, keep=0.5))
    counts = problem.project(np.zeros(4))
    learned = l2o.optimizer("digits", horizon=3)
    tuned = fine_tune(problem, counts, learned, steps=3, batch_size=8)
    before, after = leaves_by_name(model.params), leaves_by_name(problem.compressed(counts, tuned))
    assert {n for n in before if np.array_equal(before[n], after[n])} == {"norm/mean", "norm/var"}


def test_what_sgd_does_is_its_formula():
    model = trained_mlp()
    problem = compression_problem(model, prune_weights(model, keep=0.3))
    counts = problem.project(np.zeros(3))
    pruned = problem.compressed(counts)
    rows = jax.tree.map(lambda x: x[:1], model.data["train"])
    one = l2o.trained_model("one", model.params, model.apply, dict.fromkeys(model.data, rows))
    tuned = fine_tune(problem.of(one), counts, optax.sgd(0.1), steps=1, batch_size=1)

    def loss(params):
        masked = problem.scheme.compress(params, problem.network.guide, counts)
        return -jax.nn.log_softmax(model.apply(masked, rows.inputs))[0, rows.targets[0]]

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, pruned, jax.grad(loss)(pruned))
    for mine, theirs in zip(jax.tree.leaves(tuned), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of `keep`, `flops` and `bits` must be given; got none"),
        ({"keep": 0.1, "bits": 3}, "exactly one of `keep`, `flops` and `bits` must be given; got"),
        ({"keep": 0.5, "units": {"w": []}}, "`units` must be True or False; got dict"),
        ({"bits": 3, "units": True}, "`units` must be left out with bits; got both"),
        ({"keep": 0.1, "search": "tpee"}, "`search` must be a known name; got tpee. Try tpe"),
        ({"keep": 0.1, "fine_tune": -1}, "`fine_tune` must be a whole number, at least 0; got -1"),
        (
            {"keep": 0.1, "fine_tune": 2.5},
            "`fine_tune` must be a whole number, at least 0; got 2.5",
        ),
        ({"keep": "0.3"}, "`keep` must be above 0 and below 1; got '0.3'. Try keep=0.1."),
        ({"bits": "3"}, "`bits` must be between 2 and 8; got '3'. Try bits=4."),
        ({"keep": 0.1, "evaluations": 1.5}, "`evaluations` must be a whole number, at least 1"),
        ({"keep": 0.1, "batch_size": 0}, "`batch_size` must be a whole number, at least 1; got 0"),
        ({"keep": 0.1, "search": "uniform", "seed": -1}, "`seed` must be between 0 and"),
        ({"keep": 0.1, "policy": "nothing.safetensors"}, "`policy` must be a release file"),
        ({"keep": 0.1, "policy": len}, "`policy` must be a CompressionPolicy or its file; got b"),
        (
            {"keep": 0.1, "search": "uniform", "fine_tune": 1, "optimizer": "adam"},
            "`optimizer` must be an optax transformation; got 'adam'",
        ),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError) as error:
        l2o.compress(trained_mlp(), **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_network_must_be_described():
    with pytest.raises(ValueError, match="`model` must be a TrainedModel; got Linear"):
        l2o.compress(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), keep=0.5)


@pytest.mark.parametrize("content", [b"", b"nothing", safetensors.numpy.save({"a": np.ones(2)})])
def test_files_that_are_none(tmp_path, content):
    path = tmp_path / "compressed.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="`path` must be a file of a compressed model") as error:
        l2o.load_compressed(path)
    assert "\n" not in str(error.value)


def test_files_of_another_model(results, tmp_path):
    write_compressed(tmp_path, results["weights"])
    with pytest.raises(ValueError, match="`like` must have the arrays of"):
        l2o.load_compressed(tmp_path, like={"w": jnp.ones(2)})
    wider = jax.tree.map(lambda x: x[..., :1], results["weights"].model.params)
    with pytest.raises(ValueError, match="`like` must be the parameters that were compressed; got"):
        l2o.load_compressed(tmp_path, like=wider)
    assert set(l2o.load_compressed(tmp_path)) == set(leaves_by_name(trained_mlp().params))
