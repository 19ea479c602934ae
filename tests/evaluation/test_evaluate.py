"""Training runs against loops by hand."""

import dataclasses
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parabolas import KEY, SEEDS, nan_after, noisy, parabola
from sklearn.metrics import f1_score

from l2o.evaluation.evaluate import evaluate
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import train_steps
from l2o.optimizers.learnable import learnable_sgd
from l2o.optimizers.nominal_mlp import nominal_mlp
from l2o.rng import TAGS, stream
from l2o.tasks.digits import digits_mlp, imbalanced_digits_mlp


def test_sgd_agrees_with_a_loop_by_hand():
    task = parabola()
    rate, horizon = 0.05, 7
    curves = evaluate(KEY, task, {"sgd": optax.sgd(rate)}, horizon=horizon, probe_every=3, **SEEDS)
    assert curves["sgd"].steps.tolist() == [0, 3, 6, 7]
    starts = np.asarray(draw_starts(KEY, task, 3).params["x"])
    for seed, x in enumerate(starts.astype(np.float64)):
        losses = []
        for _ in range(horizon):
            losses.append((x - 1.0) ** 2)
            x -= rate * 2.0 * (x - 1.0)
        losses.append((x - 1.0) ** 2)
        np.testing.assert_allclose(curves["sgd"].train_loss[seed], losses[:-1], rtol=1e-6)
        np.testing.assert_allclose(
            curves["sgd"].probe_loss[seed], [losses[i] for i in (0, 3, 6, 7)], rtol=1e-6
        )
        np.testing.assert_allclose(curves["sgd"].final_loss[seed], losses[-1], rtol=1e-6)
        np.testing.assert_allclose(curves["sgd"].test["loss"][seed], losses[-1] + 1.0, rtol=1e-6)
        np.testing.assert_allclose(curves["sgd"].test["x"][seed], x, rtol=1e-6)
    assert not curves["sgd"].diverged.any()
    assert curves["sgd"].seconds_per_step > 0


def test_every_optimizer_sees_the_same_starts_and_batches():
    task = noisy()
    optimizers = {"a": optax.adam(0.1), "still": optax.sgd(0.0), "b": optax.adam(0.1)}
    curves = evaluate(KEY, task, optimizers, horizon=20, probe_every=5, **SEEDS)
    for field in ("probe_loss", "train_loss", "final_loss", "diverged"):
        np.testing.assert_array_equal(getattr(curves["a"], field), getattr(curves["b"], field))
    np.testing.assert_array_equal(curves["a"].probe_loss[:, 0], curves["still"].probe_loss[:, 0])
    np.testing.assert_array_equal(curves["a"].train_loss[:, 0], curves["still"].train_loss[:, 0])
    # Probes are fixed; batches are drawn anew at every step, and differ between seeds.
    assert np.ptp(curves["still"].probe_loss, axis=1) == pytest.approx(0.0)
    assert np.all(np.std(curves["still"].train_loss, axis=1) > 0)
    assert len(set(curves["still"].probe_loss[:, 0])) == 3


def test_a_seed_is_the_same_whatever_the_number_of_seeds_and_probes():
    task = noisy()
    few = evaluate(KEY, task, {"a": optax.sgd(0.1)}, horizon=12, num_seeds=2, probe_every=12)["a"]
    many = evaluate(KEY, task, {"a": optax.sgd(0.1)}, horizon=12, num_seeds=5, probe_every=5)["a"]
    np.testing.assert_allclose(few.final_loss, many.final_loss[:2], rtol=1e-5)
    np.testing.assert_allclose(few.train_loss, many.train_loss[:2], rtol=1e-5)


def test_probes_default_to_fifty_and_always_end_with_the_run():
    curves = evaluate(KEY, parabola(), {"a": optax.sgd(0.1)}, horizon=105, num_seeds=1)["a"]
    assert curves.steps.tolist() == [*range(0, 105, 2), 105]


def test_a_function_of_the_horizon_and_a_loss_driven_design_are_optimizers():
    lopt = nominal_mlp()
    theta = lopt.init(jax.random.key(0))
    sgd = learnable_sgd(0.05)
    optimizers = {
        "learned": partial(lopt.transform, theta),
        "learnable_sgd": partial(sgd.transform, sgd.init(jax.random.key(0))),
        "sgd": optax.sgd(0.05),
    }
    curves = evaluate(KEY, parabola(), optimizers, horizon=10, **SEEDS)
    assert np.all(curves["learned"].final_loss < curves["learned"].probe_loss[:, 0])
    np.testing.assert_allclose(
        curves["learnable_sgd"].probe_loss, curves["sgd"].probe_loss, rtol=1e-5
    )


def test_data_reaches_the_compiled_functions_as_an_argument():
    def batch(key, instance, data, split):
        assert isinstance(data, jax.core.Tracer | jax.ShapeDtypeStruct)
        return data[int(split == "test")]

    task = dataclasses.replace(parabola(), data=jnp.arange(2.0), batch=batch)
    kept = evaluate(KEY, parabola(), {"a": optax.sgd(0.05)}, horizon=5, **SEEDS)["a"]
    moved = evaluate(KEY, task, {"a": optax.sgd(0.05)}, horizon=5, **SEEDS)["a"]
    np.testing.assert_allclose(kept.probe_loss, moved.probe_loss, rtol=1e-6)
    np.testing.assert_allclose(kept.test["loss"], moved.test["loss"], rtol=1e-6)


def test_splits_are_told_apart_and_have_batches_of_their_own():
    """A parabola's loss is one higher on the test split, and the same on the others."""
    curves = evaluate(KEY, parabola(), {"a": optax.sgd(0.05)}, horizon=5, **SEEDS)["a"]
    np.testing.assert_allclose(curves.valid["loss"], curves.final_loss, rtol=1e-6)
    np.testing.assert_allclose(curves.test["loss"], curves.final_loss + 1.0, rtol=1e-6)

    drawn = draw_starts(KEY, noisy(), 2)
    shifts = np.stack([drawn.probes, drawn.valids, drawn.tests])
    assert len(np.unique(shifts)) == shifts.size


def test_diverged_runs_count_as_the_cap_and_none_is_dropped():
    optimizers = {
        "nan": nan_after(4),
        "explodes": optax.sgd(10.0),
        "fine": optax.sgd(0.1),
    }
    curves = evaluate(KEY, parabola(cap=50.0), optimizers, horizon=8, probe_every=4, **SEEDS)
    for name in ("nan", "explodes"):
        assert curves[name].final_loss.tolist() == [50.0] * 3
        assert curves[name].diverged.all()
        assert curves[name].valid["loss"].tolist() == [50.0] * 3
        assert curves[name].test["loss"].tolist() == [50.0] * 3
    assert np.all(curves["nan"].probe_loss[:, 1] < 50.0)
    assert not curves["fine"].diverged.any()


def test_a_task_without_a_cap_still_counts_divergence_as_a_finite_loss():
    curves = evaluate(KEY, parabola(cap=np.inf), {"nan": nan_after(0)}, horizon=2, **SEEDS)
    assert curves["nan"].diverged.all()
    assert np.all(np.isfinite(curves["nan"].final_loss))


def test_an_image_task_reports_its_metrics_on_the_test_split():
    task = digits_mlp().evaluation[0]
    curves = evaluate(KEY, task, {"adam": optax.adam(1e-2)}, horizon=60, num_seeds=2)["adam"]
    assert set(curves.test) == {"loss", "accuracy", "macro_f1"}
    assert np.all(curves.test["accuracy"] > 0.6)
    assert np.all(curves.final_loss < curves.probe_loss[:, 0])


def test_metrics_of_an_image_task_are_of_the_whole_split():
    """Macro-F1 is no mean over batches, and rows that are drawn are not the split."""
    task, num_steps = imbalanced_digits_mlp().evaluation[0], 100
    tx = optax.adam(0.01)
    curves = evaluate(KEY, task, {"adam": tx}, horizon=num_steps, num_seeds=2)["adam"]

    starts = draw_starts(KEY, task, 2)
    zero, count = jnp.int32(0), jnp.int32(num_steps)
    train = lambda start: train_steps(
        *(task, tx, (start.params, tx.init(start.params)), start, task.data, zero, count),
        most=num_steps,
    )
    (trained, _), *_ = jax.jit(jax.vmap(train))(starts)
    for (split, found), seed in product(
        {"valid": curves.valid, "test": curves.test}.items(), (0, 1)
    ):
        rows = task.data[split]
        params = jax.tree.map(lambda x, seed=seed: np.asarray(x[seed]), trained)
        hidden = np.maximum(rows.inputs @ params["w0"] + params["b0"], 0.0)
        logits = hidden @ params["w1"] + params["b1"]
        predicted, labels = np.argmax(logits, axis=1), np.asarray(rows.targets)
        whole = f1_score(labels, predicted, average="macro")
        np.testing.assert_allclose(found["macro_f1"][seed], whole, rtol=1e-5)
        np.testing.assert_allclose(found["accuracy"][seed], np.mean(predicted == labels), rtol=1e-5)
        log_probs = jax.nn.log_softmax(logits)[np.arange(len(labels)), labels]
        np.testing.assert_allclose(found["loss"][seed], -np.mean(log_probs), rtol=1e-4)
        drawn = np.random.default_rng(seed).integers(0, len(labels), (400, 64))
        by_batch = [f1_score(labels[d], predicted[d], average="macro") for d in drawn]
        assert abs(whole - np.mean(by_batch)) > 5 * np.std(by_batch) / 400**0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(horizon=0), "`horizon` must be at least 1; got 0. Try"),
        (dict(num_seeds=0), "`num_seeds` must be at least 1; got 0. Try"),
        (dict(probe_every=0), "`probe_every` must be between 1 and horizon=5; got 0. Try"),
        (dict(probe_every=6), "`probe_every` must be between 1 and horizon=5; got 6. Try"),
        (dict(seen={"parabola"}), "`task` must not be one that was meta-trained on; got parabola"),
    ],
)
def test_bad_arguments(wrong, message):
    sizes = dict(horizon=5, num_seeds=2) | wrong
    with pytest.raises(ValueError, match=message):
        evaluate(KEY, parabola(), {"a": optax.sgd(0.1)}, **sizes)


def test_streams_of_meta_training_and_evaluation_are_disjoint():
    assert len(set(TAGS.values())) == len(TAGS)
    keys = {
        tuple(jax.random.key_data(stream(seed, purpose)).tolist())
        for seed in range(50)
        for purpose in TAGS
    }
    assert len(keys) == 50 * len(TAGS)
    # The starts of evaluation, too, hold no key of meta-training's first draws.
    drawn = draw_starts(stream(0, "evaluation"), parabola(), 8).key
    other = draw_starts(stream(0, "meta_training"), parabola(), 8).key
    rows = np.concatenate([jax.random.key_data(drawn), jax.random.key_data(other)])
    assert len(np.unique(rows, axis=0)) == 16
