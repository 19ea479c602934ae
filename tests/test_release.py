import json
import math
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import l2o
from l2o import release, release_file
from l2o.learned_optimizer import LearnedOptimizer
from l2o.optimizers.learnable import learnable_adam
from l2o.optimizers.mlp_lopt import mlp_lopt
from l2o.registry import DESIGNS
from l2o.runs.folder import RunFolder

NEEDS_A_RELEASE_FILE = r"`name_or_path` must be a release file of l2o; .*theta\.safetensors: "


def perturbed(lopt: LearnedOptimizer):
    key = jax.random.key(3)
    return optax.tree.add(lopt.init(key), optax.tree.random_like(key, lopt.init(key)))


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def path(tmp_path):
    lopt = learnable_adam()
    release.save(tmp_path / "theta.safetensors", lopt, lopt.init(jax.random.key(0)), {"steps": 3})
    return tmp_path / "theta.safetensors"


def rewrite(path, *, tensors=None, sign=True, **changes) -> None:
    """Writes what a hostile author could: any header, with a sha256 that fits."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["l2o"])
    arrays = safetensors.numpy.load(content)
    arrays = {k: v for k, v in (arrays | (tensors or {})).items() if v is not None}
    header = {k: v for k, v in (header | changes).items() if v is not ...}
    if sign:
        header["sha256"] = release_file.digest(
            {k: v for k, v in header.items() if k != "sha256"}, arrays
        )
    path.write_bytes(safetensors.numpy.save(arrays, {"l2o": json.dumps(header)}))


QUICK = {"celo", "learnable_adam", "scheduler"}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DESIGNS]
)
def test_round_trip_of_every_design(tmp_path, name):
    lopt = DESIGNS[name]()
    theta = perturbed(lopt)
    release.save(tmp_path / "a.safetensors", lopt, theta, {"task": "digits", "losses": [1, 2.5]})
    loaded, again = release.load(tmp_path / "a.safetensors")
    assert_same(again, theta)
    assert loaded.name == name and loaded.config == lopt.config
    release.save(tmp_path / "b.safetensors", loaded, again, {"losses": [1, 2.5], "task": "digits"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_run_folder_and_the_one_liner(path):
    run = RunFolder(path.parent)
    assert_same(release.load(run.path)[1], release.load(str(path))[1])
    params, grads = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, -2.0, 3.0])}
    tx, adam = release.optimizer(path, horizon=100), optax.adam(1e-3)
    update = tx.update(grads, tx.init(params), params, value=jnp.float32(1.0))[0]
    expected = adam.update(grads, adam.init(params), params)[0]
    np.testing.assert_allclose(update["w"], expected["w"], rtol=1e-4)


def own_design(widths=(2, 3), dtype="bfloat16", name="mine") -> LearnedOptimizer:
    def init(key):
        return {"layers": [{"w": jnp.ones(n, dtype)} for n in widths], "scale": jnp.float32(2.0)}

    config = {"widths": list(widths), "dtype": dtype}
    return LearnedOptimizer(name, init, lambda theta, *, horizon=None: optax.sgd(0.1), config)


PARAMS = {"w": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.array([2.0, -1.0])}
GRADS = {"w": jnp.array([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]]), "b": jnp.array([0.1, 0.2])}


def first_updates(path, **arguments):
    tx = l2o.optimizer(path, horizon=10, **arguments)
    return tx.update(GRADS, tx.init(PARAMS), PARAMS, value=jnp.float32(1.0))[0]


@pytest.fixture
def muon_path(tmp_path):
    lopt = l2o.muon_mlp(rate=0.01)
    path = tmp_path / "muon.safetensors"
    l2o.save(path, lopt, lopt.init(jax.random.key(0)))
    return path


def test_a_rate_multiplier_scales_updates_and_may_be_traced(muon_path):
    once, twice = first_updates(muon_path), first_updates(muon_path, rate_multiplier=2)
    traced = jax.jit(lambda x: first_updates(muon_path, rate_multiplier=x))(jnp.float32(2.0))
    for name in PARAMS:
        np.testing.assert_allclose(twice[name], 2.0 * once[name], rtol=1e-6)
        np.testing.assert_allclose(traced[name], twice[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("multiplier", [True, 1j, np.ones(2)])
def test_a_traced_multiplier_is_a_real_scalar(muon_path, multiplier):
    with pytest.raises(ValueError, match="`rate_multiplier` must be one positive"):
        jax.jit(lambda x: first_updates(muon_path, rate_multiplier=x))(multiplier)


def test_a_rate_multiplier_keeps_the_state_and_the_type_of_updates(muon_path):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    states = []
    for multiplier in (1.0, 0.5, np.float64(0.5), jnp.float32(0.5)):
        tx = l2o.optimizer(muon_path, horizon=10, rate_multiplier=multiplier)
        updates, state = tx.update(params, tx.init(params), params, value=jnp.float32(1.0))
        assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
        states.append(jax.tree.structure(state))
    assert len(set(states)) == 1


def test_weight_decay_replaces_that_of_the_release(muon_path):
    none, some = (first_updates(muon_path, weight_decay=decay) for decay in (0.0, 0.5))
    np.testing.assert_allclose(
        some["w"] - none["w"], -0.01 * np.sqrt(1000 / 10) * 0.5 * PARAMS["w"], rtol=1e-4
    )
    np.testing.assert_array_equal(some["b"], none["b"])
    own = l2o.optimizer(muon_path, horizon=10, weight_decay=0.5, design=l2o.muon_mlp)
    updates, _ = own.update(GRADS, own.init(PARAMS), PARAMS, value=jnp.float32(1.0))
    np.testing.assert_array_equal(updates["w"], some["w"])


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("muon", {"rate_multiplier": 0.0}, "`rate_multiplier` must be one positive.* got 0.0"),
        ("muon", {"rate_multiplier": math.nan}, "`rate_multiplier` must be one .* got nan"),
        ("muon", {"rate_multiplier": "2"}, "`rate_multiplier` must be one positive.* got '2'"),
        ("muon", {"rate_multiplier": jnp.float32(-1)}, "`rate_multiplier` must be one positive"),
        ("muon", {"rate_multiplier": np.ones(2)}, "`rate_multiplier` must be one positive"),
        ("muon", {"rate_multiplier": jax.random.key(0)}, "`rate_multiplier` must be one positive"),
        ("muon", {"weight_decay": -0.1}, "`weight_decay` must not be negative; got -0.1"),
        ("digits", {"weight_decay": 0.1}, "`weight_decay` goes with .* got 0.1 for nominal_mlp"),
    ],
)
def test_arguments_of_a_release_that_cannot_be(muon_path, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        l2o.optimizer(muon_path if name == "muon" else name, horizon=10, **arguments)


def test_a_run_whose_design_is_not_there_says_what_to_pass(tmp_path):
    lopt = own_design((4, 1))
    release.save(tmp_path / "theta.safetensors", lopt, lopt.init(jax.random.key(0)))
    (tmp_path / "config.json").write_text('{"optimizer": ["gone:design"]}')
    with pytest.raises(ValueError, match=r"^`name_or_path` needs design=: .*gone:design.*$"):
        release.load(tmp_path)
    assert release.load(tmp_path, design=own_design)[0].name == "mine"


def test_a_design_of_ones_own_is_passed(tmp_path):
    path = tmp_path / "theta.safetensors"
    lopt = own_design((4, 1))
    release.save(path, lopt, lopt.init(jax.random.key(0)))
    assert set(safetensors.numpy.load_file(path)) == {"layers/0/w", "layers/1/w", "scale"}
    loaded, theta = release.load(path, design=own_design)
    assert_same(theta, lopt.init(jax.random.key(0)))
    assert loaded.config == lopt.config
    with pytest.raises(ValueError, match=r"its design is 'mine', which .* pass its constructor"):
        release.load(path)
    with pytest.raises(
        ValueError, match=r"configuration does not fit mine: it takes no (widths|dtype)"
    ):
        release.load(path, design=mlp_lopt)
    with pytest.raises(ValueError, match=r"design is 'mine', not 'other'\. Pass its own `design`"):
        release.load(path, design=lambda **config: own_design(**config, name="other"))
    with pytest.raises(ValueError, match=r"mine cannot be made .*it made a int"):
        release.load(path, design=lambda **config: 3)


def test_the_wrong_design(path):
    with pytest.raises(
        ValueError,
        match=r"`design` must be that of the file, learnable_adam, .*; got learnable_sgd",
    ):
        release.load(path, design=DESIGNS["learnable_sgd"])


@pytest.mark.parametrize("name", ["no_such_one", "learnable_adam"])
def test_a_name_that_does_not_come_with_l2o(name):
    with pytest.raises(ValueError, match=rf"comes with l2o, or a path; got '{name}'\. Try .*\./"):
        release.load(name)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"a release file or a run folder; got .*/none, which"):
        release.load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"must be a finished run; .*Continue .* with --resume"):
        release.load(tmp_path)


def test_every_truncation_is_noticed(path):
    content = path.read_bytes()
    for size in {*range(0, len(content), 13), *range(12), len(content) - 1}:
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=NEEDS_A_RELEASE_FILE + "truncated, damaged or no"):
            release.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=NEEDS_A_RELEASE_FILE):
        release.load(path)


def test_a_flipped_bit_never_gives_other_numbers(path):
    content = path.read_bytes()
    _, theta = release.load(path)
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            lopt, found = release.load(path)
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert lopt.config == learnable_adam().config
            assert_same(found, theta)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "theta.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=NEEDS_A_RELEASE_FILE):
        release.load(path)


def test_not_safetensors_and_no_header(path):
    path.write_bytes(b"\x80\x04\x95 a pickle, say")
    with pytest.raises(ValueError, match=NEEDS_A_RELEASE_FILE + r"truncated, .* fresh copy"):
        release.load(path)
    for metadata in (None, {"format": "pt"}):
        path.write_bytes(safetensors.numpy.save({"a": np.ones(2, np.float32)}, metadata))
        with pytest.raises(ValueError, match=r"it has no l2o header\. Use a file written by"):
            release.load(path)
    for text in ("{", "[" * 100_000, '{"format": NaN}'):
        path.write_bytes(safetensors.numpy.save({"a": np.ones(2, np.float32)}, {"l2o": text}))
        with pytest.raises(ValueError, match="its l2o header is no JSON"):
            release.load(path)
    path.write_bytes(safetensors.numpy.save({"a": np.ones(2, np.float32)}, {"l2o": "[]"}))
    with pytest.raises(ValueError, match="its l2o header is no JSON object"):
        release.load(path)


CONFIG = dict(learnable_adam().config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"design": ...}, "header has no design of type str"),
        ({"design": 3}, "header has no design of type str"),
        ({"config": []}, "header has no config of type dict"),
        ({"format": True}, "header has no format of type int"),
        ({"format": 2}, r"its format is 2, not 1\. Install a newer l2o"),
        ({"feature_contract": 2}, r"its feature_contract is 2, not 1\. Install a newer l2o"),
        ({"design": "learnable_adan"}, r"\(nearest: learnable_adam.*\)\. For a design of your own"),
        ({"design": "os:system"}, "its design is 'os:system', which does not come with l2o"),
        ({"design": "learnable_sgd"}, "does not fit learnable_sgd: it takes no b1"),
        ({"design": "learnable_sgd", "config": {}}, "log_eps is .*, not absent"),
        ({"config": {"rate": 1.0}}, r"it takes no rate \(but learning_rate, b1, b2, eps\)"),
        ({"config": {"b1": "0.9"}}, "b1='0.9' is not of type float"),
        ({"config": {"b1": True}}, "b1=True is not of type float"),
        ({"config": {"b1": None}}, "b1 is of type NoneType"),
        ({"config": {"b1": {"a": 1}}}, "b1 is of type dict"),
        ({"config": {"b1": [0.9]}}, r"b1=\[0.9\] is not of type float"),
        ({"config": {"b1": 2.0}}, "learnable_adam cannot be made .*`b1` must be in"),
        ({"config": {"b1": -(10**40)}}, "absurd size, b1=-1000"),
        ({"design": "mlp_lopt", "config": {"hidden_size": 10**9}}, "absurd size, hidden_size="),
        ({"design": "mlp_lopt", "config": {"hidden_layers": 10**9}}, "absurd size, hidden_layers="),
        ({"design": "mlp_lopt", "config": {"hidden_size": 2.5}}, "hidden_size=2.5 is not of type"),
        ({"design": "mlp_lopt", "config": {"hidden_size": -1}}, "mlp_lopt"),
        ({"design": "mlp_lopt", "config": {}}, "its weights do not fit mlp_lopt: b0 is absent"),
        ({"tensors": {"log_eps": np.ones(1, np.float32)}}, r"log_eps is float32\[1\], not float32"),
        ({"tensors": {"log_eps": np.ones((), np.float16)}}, r"log_eps is float16\[\], not float32"),
        ({"tensors": {"more": np.ones((), np.float32)}}, r"more is float32\[\], not absent"),
        ({"tensors": {"log_eps": None}}, "log_eps is absent, not float32"),
        ({"tensors": {"log_eps": np.ones((), np.int32)}}, "it holds I32, not floating-point"),
        ({"tensors": {"log_eps": np.array(np.nan, np.float32)}}, "log_eps holds NaN or infinity"),
        ({"sign": False, "summary": {"steps": 4}}, "its content does not match its sha256"),
    ],
)  # fmt: skip
def test_hostile_headers(path, changes, message):
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=NEEDS_A_RELEASE_FILE + ".*" + message) as error:
        release.load(path)
    assert "\n" not in str(error.value)


def test_a_size_is_compared_before_it_is_allocated(path):
    big = np.zeros((5000,), np.float32)
    rewrite(path, design="mlp_lopt", config={"hidden_size": 5000}, tensors={"b0": big})
    tracemalloc.start()
    with pytest.raises(ValueError, match="its weights do not fit mlp_lopt"):
        release.load(path)
    assert tracemalloc.get_traced_memory()[1] < 30e6  # one hidden matrix would take 100 MB
    tracemalloc.stop()


def test_save_refuses_what_load_would(tmp_path):
    lopt, path = learnable_adam(), tmp_path / "theta.safetensors"
    theta = lopt.init(jax.random.key(0))
    with pytest.raises(ValueError, match="`theta` must be finite; got log_eps holds NaN"):
        release.save(path, lopt, theta | {"log_eps": jnp.float32(jnp.nan)})
    with pytest.raises(ValueError, match="`theta` must be what learnable_adam takes; got log_eps"):
        release.save(path, lopt, theta | {"log_eps": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"`summary` and the configuration .* JSON-able"):
        release.save(path, lopt, theta, {"loss": float("nan")})
    with pytest.raises(ValueError, match=r"`path` must be a file that can be written; .*No such"):
        release.save(tmp_path / "none" / "theta.safetensors", lopt, theta)
    clash = LearnedOptimizer("x", lambda key: {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, ...)
    with pytest.raises(ValueError, match="leaves must have one name each; got a/b twice"):
        release.save(path, clash, clash.init(None))
    assert list(tmp_path.iterdir()) == []
