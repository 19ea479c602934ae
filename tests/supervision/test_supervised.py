"""Tasks of data and a network: losses, what is random, and mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import l2o
from l2o.evaluation.starts import NUM_BATCHES, draw_starts
from l2o.evaluation.training import mean_loss
from l2o.inner_step import batch_per_member
from l2o.registry import task_family
from l2o.task import batch_axes
from l2o.tasks.digits import digits, digits_mlp

KEY = jax.random.key(0)


def rows(number: int, seed: int = 0, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, width)).astype(np.float32)


def split_of(make) -> dict:
    return {split: make(i) for i, split in enumerate(("train", "valid", "test"))}


def linear(outputs: int):
    """A linear network from 4 numbers."""
    init = lambda key: {"w": jax.random.normal(key, (4, outputs)), "b": jnp.zeros(outputs)}
    return init, lambda params, inputs: inputs @ params["w"] + params["b"]


def draw(task, split="train", key=KEY):
    instance = task.sample(key)
    return task.init(key, instance), task.batch(key, instance, task.data, split), instance


def test_cross_entropy_and_accuracy_are_optaxs():
    data = split_of(lambda i: (rows(20, i), np.arange(20) % 3))
    task = l2o.supervised("classes", data, *linear(3))
    params, batch, instance = draw(task)
    logits = batch.inputs @ params["w"]
    theirs = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    assert task.loss(params, batch, instance) == pytest.approx(float(theirs.mean()), rel=1e-5)
    right = np.mean(np.argmax(logits, axis=1) == batch.targets)
    assert task.metrics(params, batch, instance)["accuracy"] == pytest.approx(right)
    assert task.loss_scale == pytest.approx(np.log(3)) and task.loss_cap == 1.5 * task.loss_scale


def test_of_a_sequence_the_mean_over_positions_counts():
    data = split_of(lambda i: (rows(20, i), np.arange(100).reshape(20, 5) % 3))
    init, apply = linear(15)
    task = l2o.supervised("words", data, init, lambda p, x: apply(p, x).reshape(-1, 5, 3))
    params, batch, instance = draw(task)
    logits = (batch.inputs @ params["w"]).reshape(-1, 5, 3)
    theirs = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    assert task.loss(params, batch, instance) == pytest.approx(float(theirs.mean()), rel=1e-5)
    assert set(task.metrics(params, batch, instance)) == {"accuracy"}


def test_squared_error_has_the_scale_of_the_best_constant():
    data = split_of(lambda i: (rows(40, i), 3.0 + 2.0 * rows(40, 9 + i, width=2)))
    task = l2o.supervised("numbers", data, *linear(2), l2o.squared_error())
    params, batch, instance = draw(task)
    error = batch.inputs @ params["w"] - batch.targets
    found = task.loss(params, batch, instance)
    assert found == pytest.approx(0.5 * float(np.mean(np.square(error))), rel=1e-5)
    whole = task.all_rows(instance, task.data, "train")
    constant = {"w": jnp.zeros((4, 2)), "b": jnp.mean(whole.targets, axis=0)}
    assert task.loss(constant, whole, instance) == pytest.approx(task.loss_scale, rel=1e-5)


def test_arrays_in_trees_and_criteria_of_ones_own():
    data = split_of(lambda i: ({"a": rows(20, i), "b": rows(20, 3 + i)}, {"y": rows(20, 6 + i)}))
    criterion = l2o.Criterion(
        losses=lambda outputs, targets: jnp.abs(outputs - targets["y"]).sum(axis=1),
        scale=lambda outputs, targets: 2.0 * len(targets["y"]),
        cap=3.0,
        metrics=lambda outputs, targets, counts: {"rows": jnp.sum(counts) / len(counts)},
        metric_caps={"rows": 0.0},
    )
    init, apply = linear(4)
    network = lambda params, inputs: apply(params, inputs["a"] - inputs["b"])
    task = l2o.supervised("tree", data, init, network, criterion)
    assert task.loss_scale == 40.0 and task.loss_cap == 120.0
    params, batch, instance = draw(task)
    assert task.metrics(params, batch, instance) == {"rows": 1.0}
    half = task.shrink(batch, jnp.float32(0.5))
    first = network(params, jax.tree.map(lambda x: x[:32], batch.inputs))
    expected = np.mean(np.sum(np.abs(first - batch.targets["y"][:32]), axis=1))
    assert task.loss(params, half, instance) == pytest.approx(expected, rel=1e-5)


def test_of_a_varied_instance_weights_are_scaled_and_biases_are_not():
    data = split_of(lambda i: (rows(20, i), np.arange(20) % 3))
    init, apply = linear(3)
    biased = lambda key: init(key) | {"b": jnp.ones(3)}
    task = l2o.supervised("classes", data, biased, apply, varied=True)
    instance = task.sample(KEY) | {"init_scale": jnp.float32(2.0), "scale": jnp.float32(4.0)}
    params = task.init(KEY, instance)
    np.testing.assert_allclose(params["w"], init(KEY)["w"] * 2.0 / 4.0, rtol=1e-6)
    np.testing.assert_allclose(params["b"], 1.0 / 4.0)


class ConvNet(nnx.Module):
    """A convolution, batch normalisation and dropout, each if asked for."""

    def __init__(self, rngs: nnx.Rngs, *, normalizes: bool = False, drops: bool = False):
        self.conv = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs) if normalizes else None
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if drops else None
        self.dense = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        x = self.conv(pixels.reshape(-1, 8, 8, 1))
        x = nnx.relu(self.norm(x) if self.norm else x).reshape(len(x), -1)
        return self.dense(self.dropout(x) if self.dropout else x)


def conv_net(**options) -> l2o.Task:
    return l2o.supervised_nnx(
        "conv", digits(), lambda rngs: ConvNet(rngs, **options), batch_size=16
    )


def test_a_module_computes_what_it_does_alone():
    task = conv_net()
    params, batch, instance = draw(task)
    assert task.shrink is not None and batch.key is None
    alone = ConvNet(nnx.Rngs(KEY))
    assert params["conv"]["kernel"].shape == (3, 3, 1, 4)
    np.testing.assert_array_equal(params["dense"]["kernel"], alone.dense.kernel[...])
    losses = optax.softmax_cross_entropy_with_integer_labels(alone(batch.inputs), batch.targets)
    assert task.loss(params, batch, instance) == pytest.approx(float(losses.mean()), rel=1e-5)


def test_dropout_draws_from_the_training_batch_alone():
    task = conv_net(drops=True)
    params, batch, instance = draw(task)
    losses = [
        float(task.loss(params, batch._replace(key=key), instance))
        for key in (KEY, KEY, jax.random.key(1))
    ]
    assert losses[0] == losses[1] != losses[2]
    _, valid, _ = draw(task, "valid")
    alone = ConvNet(nnx.Rngs(KEY), drops=True)
    alone.eval()
    theirs = optax.softmax_cross_entropy_with_integer_labels(alone(valid.inputs), valid.targets)
    assert task.loss(params, valid, instance) == pytest.approx(float(theirs.mean()), rel=1e-5)


def test_batch_normalisation_goes_by_the_batch_on_every_split():
    task = conv_net(normalizes=True)
    for split in ("train", "valid", "test"):
        params, batch, instance = draw(task, split)
        alone = ConvNet(nnx.Rngs(KEY), normalizes=True)
        logits = alone(batch.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        assert task.loss(params, batch, instance) == pytest.approx(float(losses.mean()), rel=1e-5)
    varied = l2o.supervised_nnx(
        "conv", digits(), lambda rngs: ConvNet(rngs, normalizes=True), batch_size=16, varied=True
    )
    sizes = jax.vmap(varied.sample)(jax.random.split(KEY, 20))["batch_size"]
    assert varied.shrink is None and set(np.asarray(sizes).tolist()) == {16}


@pytest.mark.parametrize(
    "options", [pytest.param({"drops": True}, marks=pytest.mark.slow), {"normalizes": True}]
)
def test_modules_pass_the_common_checks(options):
    l2o.testing.check_task(conv_net(**options), num_steps=30)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"train": (rows(3), np.arange(3))},
            r"must have the splits train, valid, test; got train\.",
        ),
        (split_of(lambda i: (rows(3), np.arange(2))), r"arrays with 2, 3 rows in train"),
        (split_of(lambda i: (rows(0), np.arange(0))), r"arrays with 0 rows in train"),
        (split_of(lambda i: (rows(3), np.float32(1.0))), r"arrays with 0, 3 rows in train"),
    ],
)
def test_data_that_does_not_fit_is_a_one_line_error(data, message):
    with pytest.raises(ValueError, match=message) as found:
        l2o.supervised("classes", data, *linear(3))
    assert "\n" not in str(found.value)


def test_a_module_without_parameters_is_a_one_line_error():
    with pytest.raises(ValueError, match=r"`module` of task nothing must have parameters"):
        l2o.supervised_nnx("nothing", digits(), lambda rngs: nnx.Dropout(0.5, rngs=rngs))


class Counting(nnx.Module):
    """Divides by a size that it carries from batch to batch."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(64, 10, rngs=rngs)
        self.size = nnx.BatchStat(jnp.ones(()))

    def __call__(self, x):
        self.size[...] = 0.9 * self.size[...] + 0.1 * jnp.std(x)
        return self.linear(x / self.size[...])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: l2o.supervised_nnx("t", digits(), Counting),
            "`module` of task t must not carry statistics .* got Counting. Try nnx.BatchNorm",
        ),
        (
            lambda: l2o.supervised_nnx("t", digits(), ConvNet, "cross_entropy"),  # pyright: ignore
            "`criterion` of task t must be a Criterion; got 'cross_entropy'. Try l2o.cross_ent",
        ),
        (
            lambda: l2o.supervised_nnx("t", digits(), ConvNet, l2o.cross_entropy),  # pyright: ignore
            "`criterion` of task t must be a Criterion; got <function cross_entropy",
        ),
        (
            lambda: l2o.supervised_nnx("t", digits(), ConvNet, batch_size="64"),  # pyright: ignore
            "`batch_size` of task t must be a whole number above 0; got '64'. Try batch_size=64.",
        ),
        (
            lambda: l2o.supervised_nnx("t", digits(), ConvNet(nnx.Rngs(0))),  # pyright: ignore
            "`module` of task t must be a function of rngs; got a ConvNet. Try its class",
        ),
        (
            lambda: l2o.testing.check_task(digits_mlp()),  # pyright: ignore
            r"`task` must be a Task; got TaskFamily digits_mlp. Try .* digits_mlp\(\).train\[0\].",
        ),
        (
            lambda: task_family("l2o.tasks.networks.mlp:MLP"),
            "`task` must not be a class; got l2o.tasks.networks.mlp:MLP. Try a function",
        ),
    ],
)
def test_what_is_easily_given_in_place_of_another_thing(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def frozen_linear():
    """A trained map behind a frozen one of 4,000 numbers."""
    data = split_of(lambda i: (rows(40, i), rows(40, i)[:, :3].argmax(1)))
    init = lambda key: {"w": 0.3 * jax.random.normal(key, (1000, 3))}
    frozen = {"w": rows(4, 5, width=1000) / 1000**0.5}
    apply = lambda params, inputs, frozen: inputs @ frozen["w"] @ params["w"]
    return l2o.supervised("frozen", data, init, apply, batch_size=8, varied=True, frozen=frozen)


def test_frozen_arrays_are_part_of_the_data_and_of_each_batch():
    task = frozen_linear()
    params, batch, instance = draw(task, "test")
    logits = instance["scale"] * batch.inputs @ batch.frozen.arrays["w"] @ params["w"]
    theirs = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()
    assert task.loss(params, batch, instance) == pytest.approx(float(theirs), rel=1e-4)
    np.testing.assert_array_equal(batch.frozen.arrays["w"], task.data["frozen"].arrays["w"])
    loss = lambda key, data: task.loss(params, task.batch(key, instance, data, "train"), instance)
    assert len(jax.jit(loss).lower(KEY, task.data).as_text()) < 200_000


@pytest.mark.slow
def test_tasks_with_frozen_arrays_pass_the_common_checks():
    l2o.testing.check_task(frozen_linear())
    l2o.testing.check_task(l2o.noisy_labels(frozen_linear()))


def test_frozen_arrays_are_not_stacked_with_batches():
    task = frozen_linear()
    starts = draw_starts(KEY, task, 2)
    assert starts.probes.inputs.shape == (2, NUM_BATCHES, 8, 4)
    assert starts.probes.frozen.arrays["w"].shape == (2, 4, 1000)
    one = jax.tree.map(lambda x: x[0], starts)
    losses = [
        task.loss(
            one.params,
            jax.tree.map(lambda x, i=i: x[i], one.probes._replace(frozen=None))._replace(
                frozen=one.probes.frozen
            ),
            one.instance,
        )
        for i in range(NUM_BATCHES)
    ]
    found = mean_loss(task, one.params, one.probes, one.instance)
    assert found == pytest.approx(float(np.mean(losses)), rel=1e-5)


def test_members_share_what_is_frozen_when_they_have_batches_of_their_own():
    batch = draw(frozen_linear())[1]
    params = {"w": jnp.ones((3, 2))}
    of_each = lambda p: batch_per_member(batch, p)
    axes = batch_axes(batch)  # of another than None, vmap would refuse it
    own = jax.vmap(of_each, out_axes=axes)(params)
    assert own.inputs.shape == (3, 8, 4) and own.frozen.arrays["w"].shape == (4, 1000)


@pytest.mark.parametrize(
    ("criterion", "targets", "message"),
    [
        (None, np.arange(8) % 3 + 1, "targets of train must be from 0 to 2, .* got 1 to 3"),
        (None, np.arange(8) % 3 - 1, "must be from 0 to 2, .* got -1 to 1"),
        (None, np.linspace(0, 1, 8), "must be whole numbers; got float64"),
        (None, np.arange(8)[:, None] % 3, r"must be class indices of shape .* got shape \(8, 1\)"),
        (None, np.eye(8, 3, dtype=int), r"must be class indices of shape .* got shape \(8, 3\)"),
        (None, np.array(["a"] * 8), "must be arrays of numbers; got an array of <U1 in train"),
        (None, [0, 1] * 4, "must be arrays of numbers; got int in train. Try numpy.asarray"),
        (l2o.squared_error(), rows(8, width=3)[:, 0], r"must have the shape of the outputs, "),
        (l2o.squared_error(), np.full((8, 3), np.nan), "must be finite; got NaN or infinity"),
        (l2o.squared_error(), np.ones((8, 3)), "must have targets that differ; got a loss of"),
    ],
)
def test_targets_that_are_not_what_a_criterion_takes(criterion, targets, message):
    data = split_of(lambda i: (rows(8, i), targets))
    with pytest.raises(ValueError, match=message) as found:
        l2o.supervised("wrong", data, *linear(3), criterion)
    assert "\n" not in str(found.value) and "`data` of task wrong" in str(found.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((rows(8), np.zeros(8, int)), "must be a dict; got tuple"),
        ({"train": rows(8)}, "must have pairs; got an array of float32 for train"),
        ({"train": (rows(8),) * 3}, "must have pairs; got tuple of 3 for train"),
    ],
)
def test_data_of_another_form(data, message):
    with pytest.raises(ValueError, match=message):
        l2o.supervised("wrong", data, *linear(3))


def test_bytes_are_labels_of_256_classes():
    data = split_of(lambda i: (rows(8, i), jnp.arange(248, 256, dtype=jnp.uint8)))
    assert l2o.supervised("bytes", data, *linear(256)).loss_scale == pytest.approx(np.log(256))


def test_a_varied_task_of_few_rows_sees_one_at_least():
    data = split_of(lambda i: (rows(3, i), np.arange(3)))
    task = l2o.supervised("few", data, *linear(3), varied=True)
    numbers = jax.vmap(lambda key: task.sample(key)["num_rows"])(jax.random.split(KEY, 200))
    assert set(numbers.tolist()) == {1, 2}


def test_a_run_of_rows_goes_on_at_the_first():
    """Rows of a varied instance are consecutive ones, cyclically, and each as likely."""
    data = split_of(lambda i: (np.arange(8, dtype=np.float32)[:, None], np.arange(8) % 2))
    init, apply = (lambda key: {"w": jnp.zeros((1, 2))}), (lambda params, x: x @ params["w"])
    task = l2o.supervised("cyclic", data, init, apply, batch_size=400, varied=True)
    instance = task.sample(KEY) | {"first_row": jnp.int32(6), "num_rows": jnp.int32(4)}
    drawn = np.asarray(task.batch(KEY, instance, task.data, "train").inputs)[:, 0]
    shares = [np.mean(drawn == row) for row in (6, 7, 0, 1)]
    assert sum(shares) == pytest.approx(1.0) and min(shares) > 0.15


def test_a_network_that_begins_at_zero_passes_the_common_checks():
    zeros = lambda key: {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}
    data = split_of(lambda i: (rows(90, i), np.argmax(rows(90, i)[:, :3], axis=1)))
    task = l2o.supervised("zeros", data, zeros, linear(3)[1], batch_size=16)
    l2o.testing.check_task(task, num_steps=50)
