"""Augmented tasks: closed forms, what stays the plain task's, and mistakes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from analytic import bowl_task

import l2o
from l2o.augmentation.augmented import KINDS, Augmented
from l2o.distributed.mesh import population_mesh
from l2o.evaluation.seen import is_seen, names_and_signatures, task_signature
from l2o.objective import as_cost, cost_on_batch
from l2o.problem import unroll_run

KEY = jax.random.key(0)
BOWL = bowl_task()
ROWS, CLASSES = 200, 5


def rows_task(targets=None, num_outputs: int = CLASSES, **options) -> l2o.Task:
    """A linear classifier of 200 rows of three numbers."""
    rng = np.random.default_rng(0)
    labels = np.arange(ROWS) % CLASSES if targets is None else targets
    split = rng.normal(size=(ROWS, 3)).astype(np.float32), labels
    return l2o.supervised(
        "rows",
        {"train": split, "valid": split, "test": split},
        init=lambda key: {
            "w": 0.3 * jax.random.normal(key, (3, num_outputs)),
            "b": jnp.zeros(num_outputs),
        },
        apply=lambda params, inputs: inputs @ params["w"] + params["b"],
        batch_size=16,
        **options,
    )


def wide_task(size: int) -> l2o.Task:
    """A bowl of many parameters in two arrays, all 1."""
    return l2o.Task(
        name="wide",
        sample=lambda key: (),
        init=lambda key, instance: {"a": jnp.ones(size), "b": jnp.ones((2, size))},
        batch=lambda key, instance, data, split: jax.random.normal(key, ()),
        loss=lambda params, batch, instance: (
            0.5 * (jnp.sum(params["a"] ** 2) + 9.0 * jnp.sum(params["b"] ** 2)) + 0.0 * batch
        ),
        loss_cap=1e9,
    )


ROWS_TASK = rows_task()

AUGMENTED = {
    "reparametrized": lambda task: l2o.reparametrized(task, low=0.25, high=4.0),
    "reparametrized_tensor": lambda task: l2o.reparametrized(task, "tensor", low=0.25, high=4.0),
    "reparametrized_parameter": lambda task: l2o.reparametrized(
        task, "parameter", low=0.25, high=4.0
    ),
    "reduced_batch": lambda task: l2o.reduced_batch(task, low=0.1, high=0.5),
    "low_precision": l2o.low_precision,
    "noisy_gradients": l2o.noisy_gradients,
    "normalized_gradients": l2o.normalized_gradients,
    "noisy_labels": l2o.noisy_labels,
    "noisy_inputs": l2o.noisy_inputs,
    "scaled_loss": lambda task: l2o.scaled_loss(task, low=2.0, high=4.0, offset=1.0),
}

OF_ROWS = {"reduced_batch", "noisy_labels", "noisy_inputs"}

ON_ANY_TASK = AUGMENTED.keys() - OF_ROWS


def draw(task: l2o.Task, split="train", key=KEY):
    instance = task.sample(key)
    return task.init(key, instance), task.batch(key, instance, task.data, split), instance


def units_of(name: str, instance):
    """From a loss of the plain task to one of the augmented task."""
    return lambda loss: instance.drawn * loss + 1.0 if name == "scaled_loss" else loss


# What stays the plain task's


@pytest.mark.parametrize("name", AUGMENTED)
def test_other_splits_have_the_plain_tasks_losses_metrics_and_gradients_but_for_units(name):
    task = AUGMENTED[name](ROWS_TASK)
    plain_params, plain_batch, plain_instance = draw(ROWS_TASK, "valid")
    params, batch, instance = draw(task, "valid")
    if name == "low_precision":
        plain_params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    loss, grads = jax.value_and_grad(task.loss)(params, batch, instance)
    expected, plain_grads = jax.value_and_grad(ROWS_TASK.loss)(
        plain_params, plain_batch, plain_instance
    )
    in_units = lambda loss: float(units_of(name, instance)(loss))
    assert loss == pytest.approx(in_units(expected), rel=1e-5) and loss.dtype == jnp.float32
    expected = ROWS_TASK.metrics(plain_params, plain_batch, plain_instance)
    found = task.metrics(params, batch, instance)
    assert found.keys() == expected.keys() and found["accuracy"] == expected["accuracy"]
    if not name.startswith(("reparametrized", "low", "scaled")):  # those are in other units
        jax.tree.map(np.testing.assert_array_equal, grads, plain_grads)
    whole = task.all_rows(instance, task.data, "test")
    plain_whole = ROWS_TASK.all_rows(plain_instance, ROWS_TASK.data, "test")
    expected = ROWS_TASK.loss(plain_params, plain_whole, plain_instance)
    assert task.loss(params, whole, instance) == pytest.approx(in_units(expected), rel=1e-5)


@pytest.mark.parametrize("name", sorted(ON_ANY_TASK))
def test_the_training_loss_is_the_plain_tasks_but_for_its_units(name):
    task = AUGMENTED[name](BOWL)
    plain = draw(BOWL)
    params, batch, instance = draw(task)
    if name == "low_precision":
        plain = jax.tree.map(lambda p: p.astype(jnp.float32), params), *plain[1:]
    expected = units_of(name, instance)(BOWL.loss(*plain))
    assert name != "scaled_loss" or 2.0 <= instance.drawn <= 4.0
    assert task.loss(params, batch, instance) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", AUGMENTED)
def test_a_family_is_refused_with_what_to_type(name):
    family = l2o.TaskFamily(name="rows", train=(ROWS_TASK,), evaluation=())
    function = re.sub("_(tensor|parameter)", "", name)
    says = rf"`task` must be a Task; got TaskFamily rows. Try \[l2o.{function}\(t\) for t in fam"
    with pytest.raises(ValueError, match=says):
        AUGMENTED[name](family)


def test_levels_have_names_of_their_own_and_a_letter_tells_ranges_apart():
    levels = [l2o.reparametrized(BOWL, level) for level in ("global", "tensor", "parameter")]
    other = dataclasses.replace(
        l2o.reparametrized(BOWL, low=0.5, high=2.0), name="bowl_reparametrized_b"
    )
    mixed = l2o.mixture(dict.fromkeys([*levels, other], 1.0))
    assert len(mixed.train) == 4
    assert all(is_seen(BOWL, frozenset([task.name])) for task in mixed.train)


@pytest.mark.parametrize("name", AUGMENTED)
def test_an_augmented_task_is_a_variant_of_the_plain_one(name):
    task = AUGMENTED[name](ROWS_TASK)
    assert task.name.removeprefix("rows_") in KINDS and task.family == "rows"
    assert task_signature(task) == task_signature(ROWS_TASK)
    for seen in (names_and_signatures([task]), [task.name]):
        assert is_seen(ROWS_TASK, frozenset(seen))
    assert is_seen(task, frozenset(["rows_varied"])) and not is_seen(task, frozenset(["row"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", AUGMENTED)
def test_augmented_tasks_pass_the_common_checks(name):
    task = AUGMENTED[name](BOWL if name in ON_ANY_TASK else ROWS_TASK)
    l2o.testing.check_task(task, num_steps=30)


def composed() -> l2o.Task:
    task = l2o.reduced_batch(l2o.noisy_labels(ROWS_TASK))
    task = l2o.low_precision(l2o.reparametrized(task, "parameter", low=0.1, high=10.0))
    return l2o.scaled_loss(l2o.normalized_gradients(l2o.noisy_gradients(task)))


@pytest.mark.slow
def test_all_augmentations_at_once_pass_the_common_checks():
    """Each alone does, too, which takes longer to compile."""
    l2o.testing.check_task(composed(), num_steps=30)


def test_augmentations_compose_and_meta_train():
    """Keys in batches go through pairs, windows and resets, spread over two devices."""
    task = composed()
    assert task.family == "rows" and task_signature(task) == task_signature(ROWS_TASK)
    grads = jax.grad(task.loss)(*draw(task))
    scale = draw(task)[2].drawn
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    assert optax.tree.norm(wide) == pytest.approx(float(scale), rel=1e-2)
    problem = l2o.inner_problem(task, l2o.learnable_sgd(), horizon=6, window=3)
    estimator = l2o.pes(problem, num_pairs=2, std=0.01, mesh=population_mesh(2))
    theta = l2o.learnable_sgd().init(KEY)
    learner = l2o.gradient_learner(estimator, optax.sgd(0.1))
    lines = []
    l2o.fit(KEY, learner, theta, num_steps=4, log_every=4, on_metrics=lines.append)
    assert np.isfinite(lines[-1]["meta_loss"]) and lines[-1]["valid"] == 1.0


# Reparametrisation

RATE = 0.125


def relative(grads, params):
    scale = jnp.sqrt(jnp.mean(jnp.square(params["x"])))
    return {"x": RATE * scale * jnp.sign(grads["x"])}


@pytest.mark.parametrize(
    ("step", "power"),
    [
        (lambda grads, params: {"x": RATE * grads["x"]}, 2),
        (lambda grads, params: {"x": RATE * jnp.sign(grads["x"])}, 1),
        (relative, 0),
    ],
    ids=["sgd", "sign", "relative"],
)
def test_a_global_alpha_changes_the_rate_in_the_units_of_the_loss(step, power):
    alpha = 4.0
    task = l2o.reparametrized(BOWL)
    instance = Augmented(BOWL.sample(KEY), jnp.float32(alpha))
    batch = task.batch(KEY, instance, (), "train")
    params, plain = task.init(KEY, instance), BOWL.init(KEY, instance.instance)
    np.testing.assert_allclose(alpha * params["x"], plain["x"], rtol=1e-6)
    moved = step(jax.grad(task.loss)(params, batch, instance), params)
    expected = step(jax.grad(BOWL.loss)(plain, batch, instance.instance), plain)
    np.testing.assert_allclose(alpha * moved["x"], alpha**power * expected["x"], rtol=1e-5)


def test_alphas_are_log_uniform_and_as_many_as_the_level_says():
    size, low, high = 500, 0.01, 10.0
    plain = wide_task(size)
    found = {}
    for level in ("global", "tensor", "parameter"):
        task = l2o.reparametrized(plain, level, low=low, high=high)
        instance = task.sample(KEY)
        params = task.init(KEY, instance)  # 1/α
        jax.tree.map(np.testing.assert_array_equal, params, task.init(KEY, instance))
        found[level] = -np.log(np.concatenate([p.ravel() for p in jax.tree.leaves(params)]))
        expected = plain.loss(plain.init(KEY, ()), jnp.float32(0.0), ())
        assert task.loss(params, jnp.float32(0.0), instance) == pytest.approx(float(expected), 1e-5)
    assert [len(np.unique(a)) for a in found.values()] == [1, 2, 3 * size]
    logs, width = found["parameter"], np.log(high / low)
    assert np.log(low) - 1e-5 <= logs.min() and logs.max() <= np.log(high) + 1e-5
    middle, sd = np.log(low * high) / 2, width / 12**0.5
    assert abs(logs.mean() - middle) < 4 * sd / logs.size**0.5
    assert abs(logs.var() / sd**2 - 1) < 4 * (0.8 / logs.size) ** 0.5  # kurtosis 1.8
    parameter = l2o.reparametrized(plain, "parameter").sample(KEY)
    assert sum(x.size for x in jax.tree.leaves(parameter)) == 1  # the seed alone


# Gradients


def test_normalized_gradients_have_length_one_over_all_arrays():
    task = l2o.normalized_gradients(wide_task(3))
    params, batch, instance = draw(task)
    params = {"a": jnp.array([3.0, 0.0, 0.0]), "b": jnp.zeros((2, 3)).at[1, 2].set(4.0 / 9.0)}
    gradient = jax.grad(task.loss)
    found = gradient(params, batch, instance)  # (3, 4) / 5
    np.testing.assert_allclose(found["a"], [0.6, 0.0, 0.0], rtol=1e-6)
    assert found["b"][1, 2] == pytest.approx(0.8, rel=1e-6)
    for scale in (1e-30, 1e15):
        scaled = gradient(jax.tree.map(lambda p, by=scale: by * p, params), batch, instance)
        np.testing.assert_allclose(scaled["a"], found["a"], rtol=1e-5)
    nothing = gradient(jax.tree.map(jnp.zeros_like, params), batch, instance)
    assert not np.any(nothing["a"]) and not np.any(nothing["b"])
    tripled = jax.grad(lambda p: 3.0 * task.loss(p, batch, instance))(params)
    np.testing.assert_allclose(tripled["a"], 3.0 * found["a"], rtol=1e-6)


def test_noise_has_the_stated_mean_and_variance():
    size = 4000
    plain, std = wide_task(size), 0.5
    task = l2o.noisy_gradients(plain, low=std, high=std)
    params, batch, instance = draw(task)
    params["b"] = params["b"].at[0].set(-2.0)
    assert instance.drawn == pytest.approx(std)
    noisy = jax.grad(task.loss)(params, batch, instance)
    exact = jax.grad(plain.loss)(params, batch.batch, instance.instance)
    normal = {
        k: (noisy[k] - exact[k]) / (std * np.sqrt(np.mean(np.square(exact[k])))) for k in exact
    }
    for z in normal.values():
        assert abs(np.mean(z)) < 4 / z.size**0.5
        assert abs(np.var(z) - 1) < 4 * (2 / z.size) ** 0.5
    assert abs(np.corrcoef(normal["a"], normal["b"][0])[0, 1]) < 4 / size**0.5
    for scale in (1e-30, 1e30):
        tiny_or_huge = jax.tree.map(lambda p, by=scale: by * p, params)
        found = jax.grad(task.loss)(tiny_or_huge, batch, instance)
        np.testing.assert_allclose(found["a"] / np.float32(scale), noisy["a"], rtol=1e-4, atol=1e-5)
    nothing = jax.grad(task.loss)(jax.tree.map(jnp.zeros_like, params), batch, instance)
    assert not np.any(nothing["a"]) and not np.any(nothing["b"])
    again = jax.grad(task.loss)(params, batch, instance)
    np.testing.assert_array_equal(noisy["a"], again["a"])
    other = task.batch(jax.random.key(1), instance, (), "train")
    assert np.all(jax.grad(task.loss)(params, other, instance)["a"] != noisy["a"])


def test_two_noises_are_apart():
    once = l2o.noisy_gradients(wide_task(1000), low=0.5, high=0.5)
    _, batch, _ = draw(l2o.noisy_gradients(once, low=1e-3, high=1e-3))
    inner = jax.random.normal(batch.batch.key, (1000,))
    outer = jax.random.normal(batch.key, (1000,))
    assert abs(np.corrcoef(inner, outer)[0, 1]) < 4 / 1000**0.5


def test_backpropagation_through_a_step_finds_the_true_meta_gradient():
    """One step by the unit gradient, φ₁ = φ₀ - r sign φ₀: d(½ φ₁²)/dr = -φ₁ sign φ₀."""
    task = l2o.normalized_gradients(
        dataclasses.replace(BOWL, loss=lambda p, batch, instance: 0.5 * jnp.sum(p**2))
    )
    _, batch, instance = draw(task)
    start = jnp.float32(-2.0)

    def loss_after(rate, measured_on):
        _, gradient = jax.value_and_grad(task.loss)(start, batch, instance)
        params = start - rate * gradient
        if measured_on == "step":
            return jax.value_and_grad(task.loss)(params, batch, instance)[0]
        return task.loss(params, task.batch(KEY, instance, (), "valid"), instance)

    for measured_on in ("step", "valid"):
        assert jax.grad(loss_after)(jnp.float32(0.5), measured_on) == pytest.approx(-1.5)


MODIFIED = {
    "noisy": lambda task: l2o.noisy_gradients(task, low=0.5, high=0.5),
    "normalized": l2o.normalized_gradients,
    "wrapped": lambda task: l2o.reparametrized(l2o.normalized_gradients(task), low=0.5, high=2.0),
}


@pytest.mark.parametrize("measure_on", ["step", "valid"])
@pytest.mark.parametrize("kind", MODIFIED)
def test_backpropagation_through_runs_agrees_with_differences(kind, measure_on):
    lopt = l2o.learnable_sgd(learning_rate=0.1)
    objective = l2o.Objective(measure_on=measure_on)
    task = MODIFIED[kind](BOWL)
    problem = l2o.inner_problem(task, lopt, horizon=6, window=3, objective=objective)
    cost = lambda theta: jnp.mean(unroll_run(problem, KEY, theta, ()).loss)
    cost_at = lambda delta: float(cost(jax.tree.map(lambda x: x + delta, lopt.init(KEY))))
    slope = (cost_at(0.02) - cost_at(-0.02)) / 0.04
    found = sum(jax.tree.leaves(jax.grad(cost)(lopt.init(KEY))))
    assert abs(slope) > 0.05 and found == pytest.approx(slope, rel=0.01)


@pytest.mark.parametrize("kind", MODIFIED)
def test_backpropagation_is_refused_on_fresh_training_batches_of_modified_gradients(kind):
    lopt, objective = l2o.learnable_sgd(), l2o.Objective(measure_on="train")
    problem_of = lambda task: l2o.inner_problem(
        task, lopt, horizon=6, window=3, objective=objective
    )
    problem = problem_of(MODIFIED[kind](BOWL))
    for refuse in (
        lambda: l2o.full_grad(problem, num_members=2),
        lambda: l2o.truncated_grad(problem, num_members=2),
        lambda: l2o.variance_weighted(problem, num_pairs=4, std=0.1),
    ):
        with pytest.raises(ValueError, match="for measure_on=train where the task modifies grad"):
            refuse()
    l2o.pes(problem, num_pairs=2, std=0.1)
    l2o.full_grad(problem_of(l2o.scaled_loss(BOWL)), num_members=2)


def test_stale_gradients_are_those_of_some_steps_ago():
    lopt = l2o.stale_gradients(l2o.learnable_sgd(learning_rate=1.0), delay=3)
    tx = lopt.transform(lopt.init(KEY))
    params = {"a": jnp.zeros(2), "b": jnp.zeros((), jnp.bfloat16)}
    gradients = [jax.tree.map(lambda p, t=t: jnp.full_like(p, t), params) for t in range(8)]
    state, found = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params, value=jnp.float32(0.0))
        assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, params)
        found.append([float(-updates["a"][1]), float(-updates["b"])])
    np.testing.assert_allclose(np.array(found).T, [[0, 0, 0, 0, 1, 2, 3, 4]] * 2)


# Rows


def labels_of(task, instance, split):
    return np.asarray(task.all_rows(instance, task.data, split).targets)


@pytest.mark.parametrize("positions", [(), (3,)], ids=["rows", "sequences"])
def test_labels_are_wrong_in_training_alone_at_the_stated_fraction(positions):
    true = np.resize(np.arange(CLASSES), (ROWS, *positions)).astype(np.int32)
    criterion = l2o.Criterion(losses=lambda outputs, labels: outputs[:, 0], scale=lambda *_: 1.0)
    plain = rows_task(true, criterion=criterion)
    task = l2o.noisy_labels(plain, low=0.4, high=0.4)
    keys = jax.random.split(KEY, 200)
    draw_labels = lambda key: task.all_rows(task.sample(key), task.data, "train").targets
    wrong = np.asarray(jax.jit(jax.vmap(draw_labels))(keys)) != true
    instance = task.sample(keys[0])
    chance = 0.4 * (1 - 1 / CLASSES)
    assert abs(wrong.mean() - chance) < 4 * (chance * (1 - chance) / wrong.size) ** 0.5
    assert not np.array_equal(wrong[0], wrong[1])
    for split in ("valid", "test"):
        assert np.array_equal(labels_of(task, instance, split), true)
    # Every batch of an instance has the labels that the instance has in all.
    inputs = np.asarray(plain.data["train"].inputs)
    labels = labels_of(task, instance, "train")
    of_row = {x.tobytes(): y for x, y in zip(inputs, labels, strict=True)}
    for i in range(3):
        batch = task.batch(jax.random.key(i), instance, task.data, "train")
        for x, y in zip(np.asarray(batch.inputs), np.asarray(batch.targets), strict=True):
            assert np.array_equal(of_row[x.tobytes()], y)


def test_inputs_have_new_noise_of_the_stated_size_in_every_training_batch():
    task = l2o.noisy_inputs(ROWS_TASK, low=0.5, high=0.5)
    instance = task.sample(KEY)
    inputs = np.asarray(ROWS_TASK.data["train"].inputs)
    keys = jax.random.split(KEY, 100)
    draw_batch = lambda task: jax.vmap(lambda k: task.batch(k, instance, task.data, "train"))(keys)
    plain_instance = ROWS_TASK.sample(KEY)
    plain = jax.vmap(lambda k: ROWS_TASK.batch(k, plain_instance, ROWS_TASK.data, "train"))(keys)
    noise = np.asarray(draw_batch(task).inputs) - np.asarray(plain.inputs)
    assert noise.std() == pytest.approx(0.5 * inputs.std(), rel=0.03)
    assert abs(noise.mean()) < 4 * noise.std() / noise.size**0.5
    assert len(np.unique(noise)) > 0.99 * noise.size
    np.testing.assert_array_equal(draw_batch(task).targets, plain.targets)
    twice = l2o.noisy_inputs(task, low=0.5, high=0.5)
    instance = twice.sample(KEY)
    noise = np.asarray(draw_batch(twice).inputs) - np.asarray(plain.inputs)
    assert noise.std() == pytest.approx(0.5**0.5 * inputs.std(), rel=0.1)
    drawn = [float(l2o.noisy_inputs(ROWS_TASK).sample(k).drawn) for k in keys]
    assert 0.3 <= min(drawn) < 0.5 and 1.2 < max(drawn) <= 2.0


def test_labels_that_are_wrong_twice_are_wrong_more_often():
    twice = l2o.noisy_labels(l2o.noisy_labels(ROWS_TASK, low=0.5, high=0.5), low=0.5, high=0.5)
    labels = [labels_of(twice, twice.sample(jax.random.key(i)), "train") for i in range(10)]
    chance = 0.75 * (1 - 1 / CLASSES)
    wrong = np.array(labels) != np.arange(ROWS) % CLASSES
    assert abs(wrong.mean() - chance) < 4 * (chance * (1 - chance) / wrong.size) ** 0.5


def test_wrong_labels_are_uniform_over_classes():
    task = l2o.noisy_labels(ROWS_TASK, low=1.0, high=1.0)
    labels = np.concatenate(
        [labels_of(task, task.sample(jax.random.key(i)), "train") for i in range(5)]
    )
    counts = np.bincount(labels, minlength=CLASSES)
    expected = len(labels) / CLASSES
    assert np.sum((counts - expected) ** 2 / expected) < 20  # χ² of 4 degrees: p = 0.0005


def test_a_fraction_of_the_batch_counts_in_training():
    task = l2o.reduced_batch(ROWS_TASK, low=0.25, high=0.5)
    fractions = []
    for i in range(20):
        _, batch, instance = draw(task, key=jax.random.key(i))
        assert batch.size == max(round(16 * float(instance.drawn)), 1)
        fractions.append(float(instance.drawn))
    assert 0.25 <= min(fractions) < max(fractions) <= 0.5
    assert draw(task, "valid")[1].size == 16
    assert task.shrink(batch, jnp.float32(0.5)).size == round(0.5 * int(batch.size))


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_scaled_loss_weighs_what_the_plain_one_does_in_the_mean(split, offset):
    """The difference that parameters make to a normalised cost, over many instances."""
    task = l2o.scaled_loss(BOWL, low=1.0, high=100.0, offset=offset)

    def gain(task, key):
        k_instance, k_init, k_batch = jax.random.split(key, 3)
        instance = task.sample(k_instance)
        params = task.init(k_init, instance)
        batch = task.batch(k_batch, instance, (), split)
        moved = jax.tree.map(lambda p: p + 1.0, params)
        cost = lambda p: cost_on_batch(l2o.Objective(normalize=True), task, p, batch, instance)
        return cost(moved) - cost(params)

    keys = jax.random.split(KEY, 20_000)
    gains = np.asarray(jax.jit(jax.vmap(lambda k: jnp.stack([gain(task, k), gain(BOWL, k)])))(keys))
    differences = gains[:, 0] - gains[:, 1]
    assert np.std(gains[:, 1]) > 1.0
    assert abs(differences.mean()) < 4 * differences.std() / len(keys) ** 0.5


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_a_diverged_run_costs_at_least_as_much_as_any_other_when_a_loss_is_scaled(offset):
    task = l2o.scaled_loss(BOWL, low=0.01, high=0.5, offset=offset)
    worst = float(as_cost(l2o.Objective(), task, jnp.nan))
    for seed in range(20):
        params, batch, instance = draw(task, key=jax.random.key(seed))
        grown = jax.tree.map(lambda p: p + 9.0, params)
        assert BOWL.loss(grown, batch, instance.instance) < BOWL.loss_cap
        assert task.loss(grown, batch, instance) <= worst
    fixed = l2o.scaled_loss(BOWL, low=3.0, high=3.0)  # a run at the plain cap is at the cap
    assert as_cost(l2o.Objective(normalize=True), fixed, jnp.nan) == pytest.approx(BOWL.loss_cap)


def test_a_scaled_loss_has_scaled_gradients():
    task = l2o.scaled_loss(BOWL, low=0.5, high=8.0, offset=3.0)
    params, batch, instance = draw(task)
    found = jax.grad(task.loss)(params, batch, instance)["x"]
    expected = jax.grad(BOWL.loss)(params, batch, instance.instance)["x"]
    np.testing.assert_allclose(found, instance.drawn * expected, rtol=1e-6)


def test_low_precision_rounds_parameters_and_gradients():
    task = l2o.low_precision(ROWS_TASK)
    params, batch, instance = draw(task)
    exact = ROWS_TASK.init(KEY, instance)
    np.testing.assert_array_equal(params["w"], exact["w"].astype(jnp.bfloat16))
    grads = jax.grad(task.loss)(params, batch, instance)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}


# Mistakes

MIXES_ROWS = rows_task(mixes_rows=True)
IGNORED = rows_task(
    np.where(np.arange(ROWS) % 9, np.arange(ROWS) % CLASSES, -1),
    criterion=dataclasses.replace(l2o.cross_entropy(), mistake=lambda outputs, targets: None),
)


def flipped(task: l2o.Task) -> l2o.Task:
    """Inputs in the other order, by a batch of one's own."""

    def batch(*args):
        drawn = task.batch(*args)
        return drawn._replace(inputs=drawn.inputs[..., ::-1])

    return dataclasses.replace(task, batch=batch)


def doubled(task: l2o.Task) -> l2o.Task:
    """The same of a tree of inputs: the numbers of rows become other numbers."""

    def batch(*args):
        drawn = task.batch(*args)
        return drawn._replace(inputs=jax.tree.map(lambda x: 2.0 * x, drawn.inputs))

    return dataclasses.replace(task, batch=batch)


NUMBERS = rows_task(np.eye(ROWS, 2, dtype=np.float32), 2, criterion=l2o.squared_error())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: l2o.reparametrized(BOWL, "layer"), r"`level` must be one of .*; got layer"),
        (lambda: l2o.reparametrized(BOWL, low=0.0), r"above 0; got low=0.0, high=1000.0. Try"),
        (lambda: l2o.reparametrized(BOWL, low=2.0, high=1.0), r"`low` and `high` must be"),
        (lambda: l2o.reparametrized(BOWL, high=np.inf), r"got low=0.001, high=inf"),
        (lambda: l2o.noisy_gradients(BOWL, low=np.nan), r"got low=nan"),
        (lambda: l2o.reduced_batch(ROWS_TASK, high=1.5), r"at most 1; got low=0.01, high=1.5"),
        (lambda: l2o.reduced_batch(MIXES_ROWS), r"must have `shrink`.*; got rows, which has none"),
        (lambda: l2o.noisy_labels(ROWS_TASK, low=-0.1), r"at least 0 and at most 1; got low=-0.1"),
        (
            lambda: l2o.noisy_inputs(ROWS_TASK, low=0.0),
            r"above 0; got low=0.0, high=2.0. Try low=0.",
        ),
        (
            lambda: l2o.noisy_inputs(BOWL),
            r"one array of real numbers as inputs; got bowl, whose",
        ),
        (lambda: l2o.noisy_labels(BOWL), r"one of l2o.supervised; got bowl"),
        (lambda: l2o.noisy_labels(l2o.noisy_gradients(ROWS_TASK)), r"Apply noisy_labels first"),
        (lambda: l2o.noisy_labels(NUMBERS), r"as targets; got rows, .* float32.* from 0.0"),
        (lambda: l2o.noisy_labels(IGNORED), r"integers from 0, .* int32\[200\] from -1 to 4\. L"),
        (lambda: l2o.noisy_labels(flipped(ROWS_TASK)), r"batches are otherwise. Apply noisy_la"),
        (lambda: l2o.noisy_labels(doubled(ROWS_TASK)), r"batches are otherwise. Apply noisy_la"),
        (lambda: l2o.scaled_loss(BOWL, offset=-1.0), r"`offset` must be at least 0 .* got -1.0"),
        (lambda: l2o.scaled_loss(BOWL, offset="1"), r"`offset` must be a number; got '1'. Try"),
        (lambda: l2o.reduced_batch(ROWS_TASK, low="0.1"), r"`low` must be a number; got '0.1'. T"),
        (lambda: l2o.noisy_gradients(BOWL, high=None), r"`high` must be a number; got None. Try"),
        (lambda: l2o.noisy_gradients("digits_mlp"), r"must be a Task; got str digits_mlp. Try \["),
        (lambda: l2o.stale_gradients(BOWL, delay=3), r"a LearnedOptimizer; got Task bowl. Try"),
        (lambda: l2o.stale_gradients(l2o.celo(), delay=2.5), r"`delay` must be an integer.* 2.5"),
        (lambda: l2o.scaled_loss(BOWL, high=0.01), r"got low=0.1, high=0.01"),
        (
            lambda: l2o.stale_gradients(l2o.celo(), delay=0),
            r"`delay` must be an integer, at least 1; got 0",
        ),
    ],
)
def test_mistakes_are_one_line_errors(make, message):
    with pytest.raises(ValueError, match=message) as found:
        make()
    assert "\n" not in str(found.value)
