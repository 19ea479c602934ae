"""Parity with the original implementations.

Numbers printed here and the arrays in `tests/golden/` are outputs of the originals, found at
the repositories and commits that `tests/golden/README.md` names.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from analytic import inclusive_credit, pes_pair, replicate

from l2o.estimators.pes import credit_window, pes
from l2o.estimators.population import loss_difference
from l2o.estimators.truncated_es import truncated_es
from l2o.optimizers.adafac_mlp import adafac_mlp
from l2o.optimizers.celo import celo, run_features
from l2o.optimizers.learnable import learnable_sgd
from l2o.optimizers.mlp_lopt import mlp_lopt
from l2o.optimizers.nets import mlp_apply
from l2o.optimizers.nominal_mlp import nominal_mlp
from l2o.problem import Window, inner_problem
from l2o.task import Task

TRACES = Path(__file__).parents[1] / "golden" / "reference_traces.npz"


def mlp_leaves(num_layers: int, biases_first: bool) -> list[tuple[str, ...]]:
    """Leaf order of the originals: by layer, or all biases and then all weights."""
    if biases_first:
        return [(f"{kind}{i}",) for kind in "bw" for i in range(num_layers)]
    return [(f"{kind}{i}",) for i in range(num_layers) for kind in "bw"]


ADAFAC_LEAVES = [
    ("factored_decays",),
    ("momentum_decays",),
    *[("mlp", *path) for path in mlp_leaves(3, biases_first=True)],
    ("rms_decays",),
]


NOMINAL_LEAVES = [
    (net, *path) for net in ("direction", "schedule") for path in mlp_leaves(3, biases_first=True)
]


def filled_theta(lopt, paths):
    """Every leaf `filled`."""
    theta = jax.tree.map(np.asarray, lopt.init(jax.random.key(0)))
    assert len(jax.tree.leaves(theta)) == len(paths)
    for i, (*outer, last) in enumerate(paths):
        node = theta
        for name in outer:
            node = node[name]
        node[last] = filled(i, node[last].shape)
    return theta


def filled(i: int, shape: tuple[int, ...]) -> np.ndarray:
    """Leaf i; element j: 0.3 sin(1 + 0.7 i + 0.37 j)."""
    j = np.arange(np.prod(shape)).reshape(shape)
    return (0.3 * np.sin(1 + 0.7 * i + 0.37 * j)).astype(np.float32)


@pytest.mark.parametrize(
    ("lopt", "paths", "b", "w"),
    [
        (
            mlp_lopt(),
            mlp_leaves(3, biases_first=False),
            [0.00275134, -0.00159273, 0.00175876],
            [-0.00040613, 0.00149992, 0.00045371, 0.00099109, 0.00181705, 0.00101772],
        ),
        (
            adafac_mlp(),
            ADAFAC_LEAVES,
            [0.00056556, 0.00056094, 0.00056067],
            [0.00055052, 0.00057399, 0.00057843, 0.00055841, 0.00055593, 0.00054565],
        ),
        (  # our own design: what it gave when its weights were released
            nominal_mlp(),
            NOMINAL_LEAVES,
            # The first number, whose first gradient is zero, moves from the second update on.
            [-0.00045072, -0.00079920, -0.00050609],
            [-0.00101116, -0.00092739, 0.00103340, 0.00103967, 0.00095820, -0.00100154],
        ),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_three_updates(lopt, paths, b, w):
    """What the originals moved the parameters by in three updates, to eight decimals."""
    check_three_updates(lopt, filled_theta(lopt, paths), b, w)


CELO_SIZES = {
    **{f"['ff_mod_stack']['~']['b{i}']": (n,) for i, n in enumerate((4, 4, 3))},
    **{
        f"['ff_mod_stack']['~']['w0__{i}']": ((3 if i in (3, 5, 7, *range(9, 14)) else 1), 4)
        for i in sorted(range(14), key=str)
    },
    "['ff_mod_stack']['~']['w1']": (4, 4),
    "['ff_mod_stack']['~']['w2']": (4, 3),
    "['lstm_init_state'].hidden": (8,),
    "['lstm_init_state'].cell": (8,),
    **{
        f"['rnn_params']['{layer}']['{kind}']": shape[-1:] if kind == "b" else shape
        for layer, shape in {
            "linear": (18, 8),
            "linear_1": (18, 8),
            "linear_2": (18, 8),
            "rnn/linear": (16, 32),
            "rnn_to_controls": (8, 1),
            "step_size": (8, 1),
        }.items()
        for kind in "bw"
    },
}
"""Leaves of the original Celo in their order, with 8 units in its LSTM."""


def celo_theta(stored: dict[str, np.ndarray]):
    """The original's meta-parameters under our names, without those that reach no output."""
    mlp = {name: stored[f"['ff_mod_stack']['~']['{name}']"] for name in ("b0", "b1", "w1")}
    groups = [stored[f"['ff_mod_stack']['~']['w0__{i}']"] for i in range(14)]
    width = mlp["b0"].size
    mlp |= {"w0": np.concatenate([g.reshape(-1, width) for g in groups])}
    mlp |= {k: stored[f"['ff_mod_stack']['~']['{k}']"][..., :2] for k in ("b2", "w2")}
    layer = lambda name: {k: stored[f"['rnn_params']['{name}']['{k}']"] for k in "wb"}
    dense = lambda name: {f"{k}0": value for k, value in layer(name).items()}
    theta = {
        "mlp": {k: v.reshape(v.shape[-2:] if k[0] == "w" else -1) for k, v in mlp.items()},
        "schedule": {
            "max": dense("linear_1"),
            "inputs": dense("linear_2"),
            "lstm": layer("rnn/linear"),
            "hidden": np.ravel(stored["['lstm_init_state'].hidden"]),
            "cell": np.ravel(stored["['lstm_init_state'].cell"]),
            "rate": dense("step_size"),
        },
    }
    return jax.tree.map(jnp.asarray, theta)


@pytest.mark.parametrize(
    ("scheduled", "b", "w"),
    [
        (
            False,
            [-6.75097e-5, -6.72676e-5, -6.83405e-5],
            [-3.5441e-4, -3.8031e-4, -3.9765e-4, -3.3504e-4, -3.5143e-4, -3.3695e-4],
        ),
        (
            True,
            [-5.946e-6, -5.934e-6, -6.028e-6],
            [-3.123e-5, -3.353e-5, -3.505e-5, -2.949e-5, -3.096e-5, -2.968e-5],
        ),
    ],
)
def test_three_updates_of_celo(scheduled, b, w):
    theta = celo_theta({name: filled(i, n) for i, (name, n) in enumerate(CELO_SIZES.items())})
    # Printed to four digits at least; φ up to 0.5 rounds to 3e-8, a thousandth of what it moved.
    check_three_updates(celo(8, scheduled=scheduled), theta, b, w, rtol=2e-3)


def check_three_updates(lopt, theta, b, w, rtol=1e-5):
    tx = lopt.transform(theta, horizon=100)
    start = {
        "b": jnp.asarray(0.1 * np.cos(np.arange(3)), jnp.float32),
        "w": jnp.asarray(0.5 * np.sin(0.5 + np.arange(6)).reshape(2, 3), jnp.float32),
    }
    params, state, update = start, tx.init(start), jax.jit(tx.update)
    for t, loss in enumerate([2.0, 1.5, 1.7]):
        grads = {
            "b": jnp.asarray(0.2 * np.sin(t + np.arange(3)), jnp.float32),
            "w": jnp.asarray(0.05 * np.cos(0.3 * t + np.arange(6)).reshape(2, 3), jnp.float32),
        }
        updates, state = update(grads, state, params, value=jnp.float32(loss))
        params = optax.apply_updates(params, updates)
    moved = jax.tree.map(lambda x, y: np.ravel(x - y), params, start)
    # 5e-8: half of the last printed digit, and float32 rounding of φ₃ - φ₀ with φ up to 0.5.
    np.testing.assert_allclose(moved["b"], b, rtol=rtol, atol=5e-8)
    np.testing.assert_allclose(moved["w"], w, rtol=rtol, atol=7e-8)


def traces(prefix: str) -> dict[str, np.ndarray]:
    """Arrays whose name starts with `prefix`, which is cut off."""
    with np.load(TRACES) as stored:
        return {
            name.removeprefix(prefix): stored[name]
            for name in stored.files
            if name.startswith(prefix)
        }


def theta_of_original(name: str, stored: dict[str, np.ndarray]):
    """The original's meta-parameters under our names."""
    if name == "celo":
        return celo_theta(stored)
    if name == "mlp_lopt":
        parts = [
            (f"{kind}{i}", f"['mlp/~/linear_{i}']['{kind}']") for i in range(3) for kind in "wb"
        ]
        return {ours: jnp.asarray(stored[theirs]) for ours, theirs in parts}
    mlp = {f"{kind}{i}": f"['nn']['~']['{kind}{i}']" for i in range(3) for kind in "wb"}
    return {
        "momentum_decays": jnp.asarray(stored["['momentum_decays']"]),
        "rms_decays": jnp.asarray(stored["['rms_decays']"]),
        "factored_decays": jnp.asarray(stored["['adafactor_decays']"]),
        "mlp": {ours: jnp.asarray(stored[theirs]) for ours, theirs in mlp.items()},
    }


@pytest.mark.parametrize(
    ("name", "lopt", "atol"),
    [
        ("mlp_lopt", mlp_lopt(), 2e-6),
        ("adafac_mlp_lopt", adafac_mlp(), 3e-7),
        ("adafac_mlp_lopt_h32", adafac_mlp(hidden_size=32, step_mult=0.01), 3e-7),
        ("celo", celo(), 2e-6),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_twelve_steps_of_the_original(name, lopt, atol):
    theta = theta_of_original(name, traces(f"{name}/theta"))
    tx = lopt.transform(theta, horizon=50)
    inputs = traces("A/in/")
    leaves = {leaf: f"['{leaf}']" for leaf in ("b", "conv", "w")}
    start = {k: jnp.asarray(inputs[f"params0{path}"]) for k, path in leaves.items()}
    grads = {k: jnp.asarray(inputs[f"grads{path}"]) for k, path in leaves.items()}

    def step(carry, inputs):
        params, state = carry
        grads, loss = inputs
        updates, state = tx.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    scan = jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs))
    _, found = scan((start, tx.init(start)), (grads, jnp.asarray(inputs["loss"])))
    expected = traces(f"{name}/A/out/params")
    for leaf, path in leaves.items():
        np.testing.assert_allclose(
            found[leaf] - start[leaf][None],
            expected[path] - start[leaf][None],
            rtol=1e-4,
            atol=atol,
            err_msg=leaf,
        )


def test_what_the_scheduler_of_celo_sees():
    stored = traces("celo/")
    theta = celo_theta({k.removeprefix("theta"): v for k, v in stored.items()})
    tx, params = celo().transform(theta, horizon=50), {"w": jnp.ones((2, 3))}
    update = jax.jit(lambda state, loss: tx.update(params, state, params, value=loss)[1])
    state = tx.init(params)
    for t, loss in enumerate(traces("A/in/loss")[""]):
        before, state = state, update(state, loss)
        seen = run_features(state.run_state.losses, before.count, 50)
        # A difference of averages over another: the last bit of a loss moves them by a thousandth.
        np.testing.assert_allclose(seen, stored["A/aux/lstm_features"][t], atol=2e-3)
        (log_rate,) = mlp_apply(theta["schedule"]["rate"], state.run_state.hidden)
        rates = stored["A/aux/lr_mult"][t]
        np.testing.assert_allclose(0.1 * jnp.exp(log_rate) * np.ones(3), rates, rtol=1e-4)


def over_pairs(delta, done, mask, accumulated, perturbation, std, credit):
    """`pes_pair` of every pair: arrays of shape (steps, pairs) and (pairs, meta-parameters)."""
    one = lambda *args: pes_pair(*args, std, credit)
    gradients, carried = jax.vmap(one)(delta.T, done.T, mask.T, accumulated, perturbation)
    return jnp.mean(gradients, axis=0), carried


PRINTED = {
    "plus": jnp.array([[1.0, 2.0], [0.9, 1.8], [0.0, 1.7], [2.0, 1.6]]),
    "minus": jnp.array([[1.1, 2.1], [1.2, 1.75], [0.0, 1.9], [2.4, 1.5]]),
    "done": jnp.zeros((4, 2), bool).at[1, 0].set(True),
    "mask": jnp.ones((4, 2), bool).at[2, 0].set(False),
    "accumulated": jnp.array([[0.02, -0.01], [0.005, 0.03]]),
    "perturbation": jnp.array([[0.01, 0.02], [-0.01, 0.01]]),
}


def test_printed_pes_values():
    """Gradient and accumulators that the PES of google/learned_optimization gives."""
    p = PRINTED
    gradient, carried = over_pairs(
        p["plus"] - p["minus"],
        p["done"],
        p["mask"],
        p["accumulated"],
        p["perturbation"],
        0.01,
        inclusive_credit,
    )
    np.testing.assert_allclose(gradient, [-7.8645864, -16.25], rtol=1e-5)
    np.testing.assert_allclose(carried, [[0.01, 0.02], [-0.005, 0.04]], rtol=1e-5)


def test_printed_pes_values_with_exclusive_credit():
    """By hand: the losses of pair 0 are -0.4/3 before its end and after it; pair 1 never ends."""
    p = PRINTED
    gradient, _ = over_pairs(
        p["plus"] - p["minus"],
        p["done"],
        p["mask"],
        p["accumulated"],
        p["perturbation"],
        0.01,
        credit_window,
    )
    felt = p["accumulated"] + p["perturbation"]
    first = -0.4 / 3 * felt[0] - 0.4 / 3 * p["perturbation"][0]
    second = (-0.1 + 0.05 - 0.2 + 0.1) / 4 * felt[1]
    np.testing.assert_allclose(gradient, (first + second) / 2 / (2 * 0.01**2), rtol=1e-4)


def stored_losses():
    inputs = traces("es_pes/in/")
    delta = jnp.asarray(inputs["loss_pos"] - inputs["loss_neg"])
    accumulated, perturbation = vectors(inputs, "accumulator_"), vectors(inputs, "vec_pos_")
    return inputs, delta, accumulated, perturbation


def vectors(arrays, name):
    """The tensors a and b of theta as one vector, along the last axis."""
    batch = np.shape(arrays[f"{name}b"])
    return jnp.concatenate([jnp.reshape(arrays[name + k], (*batch, -1)) for k in "ab"], axis=-1)


def test_estimators_on_stored_losses():
    """Three unrolls of four steps: one window of twelve to the original."""
    inputs, delta, accumulated, perturbation = stored_losses()
    done, mask = (inputs[k].reshape(-1, 6) for k in ("is_done", "mask"))
    delta, std = delta.reshape(-1, 6), float(inputs["std"])
    gradient, carried = over_pairs(
        delta,
        jnp.asarray(done),
        jnp.asarray(mask),
        accumulated,
        perturbation,
        std,
        inclusive_credit,
    )
    expected = traces("pes/out/")
    np.testing.assert_allclose(gradient, vectors(expected, "grad_"), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(carried, vectors(expected, "new_accumulator_"), rtol=1e-5)

    def one(d, m, e):  # as in truncated ES; the losses of a pair are its difference and 0
        both = jnp.stack([m, m])
        window = Window(jnp.stack([d, jnp.zeros_like(d)]), both, both, both, ~both)
        return 0.5 * jnp.sum(loss_difference(window, std, "none", None)) * e / std**2

    gradients = jax.vmap(one)(delta.T, jnp.asarray(mask).T, perturbation)
    expected = vectors(traces("es/out/"), "grad_")
    np.testing.assert_allclose(jnp.mean(gradients, axis=0), expected, rtol=1e-4, atol=1e-5)


def test_meta_gradient_of_a_learning_rate():
    """SGD with a learned log rate on a fixed quadratic: d(mean loss)/d(log rate) = -0.07360."""
    stored = traces("stat/")
    curvature, start = (jnp.asarray(stored[f"in/{k}"]) for k in ("H", "x0"))
    task = Task(
        name="fixed_quadratic",
        sample=lambda key: (),
        init=lambda key, instance: {"x": start},
        batch=lambda key, instance, data, split: (),
        loss=lambda params, batch, instance: 0.5 * params["x"] @ curvature @ params["x"],
        loss_cap=100.0,
    )
    lopt = learnable_sgd(learning_rate=float(np.exp(stored["in/log_lr"])))
    problem = inner_problem(task, lopt, horizon=20, window=5)
    theta = lopt.init(jax.random.key(0))
    truth = float(stored["true_per_step"])
    results = {}
    for name, make in {"pes": pes, "es": truncated_es}.items():
        estimator = make(problem, num_pairs=16, std=0.01)
        results[name] = replicate(estimator, theta, num_replicates=32, skip=4, take=8)
    mean, error = (tree["log_learning_rate"] for tree in results["pes"])
    assert abs(mean - truth) < 4 * error
    assert error < 0.05 * abs(truth)
    mean, error = (tree["log_learning_rate"] for tree in results["es"])
    assert abs(mean - truth) > 10 * error
    np.testing.assert_allclose(mean, np.mean(stored["es_grads"]), atol=4 * error + 0.004)
