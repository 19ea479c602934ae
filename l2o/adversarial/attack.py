"""Attacks as tasks: whatever trains parameters finds perturbations.

A learned optimizer that is meta-trained on them is a learned attacker, as the recurrent one of
Xiong and Hsieh 2020 (arXiv:2004.12227), for any design or policy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from l2o.adversarial.ball import Ball, Norm
from l2o.adversarial.inputs import ball_of, check_steps, row_losses
from l2o.adversarial.networks import Networks, check_networks
from l2o.supervision.supervised import Batch as Rows
from l2o.task import Batch, Data, Instance, Key, Split, Task, TaskFamily

CAP = 20.0
"""Cost of an attack that diverged: more than one that has changed nothing."""

LEAST = 1e-8
"""Least loss of a row, in units of guessing, as the logarithm of zero is infinite."""

HeldOut = Literal["valid", "test"]
"""Split of rows that no network was trained on."""


class AttackInstance(NamedTuple):
    """One attack.

    Attributes:
        network: Index of the network that is attacked, an int32 scalar.
        seed: Seed of which rows are perturbed, a uint32 scalar.
    """

    network: jax.Array
    seed: jax.Array


class Victim(NamedTuple):
    """What is attacked: a network, and rows.

    Attributes:
        params: Parameters of the network.
        instance: Instance of the task that it was trained on.
        batch: Batch of that task.
    """

    params: optax.Params
    instance: Instance
    batch: Batch


@dataclass(frozen=True, eq=False)
class AttackTask(Task):
    """Task whose parameters perturb the inputs of a network; see `attack`.

    Attributes:
        inputs: Function `(params, victim) -> inputs`, those that `loss` and `metrics` show the
            network: perturbed, and placed in the ball and the range of the data.
    """

    inputs: Callable[[optax.Params, Victim], jax.Array] = field(kw_only=True)


def attack(
    task: Task,
    networks: Networks,
    *,
    radius: float,
    norm: Norm = "linf",
    rows: int | None = None,
    split: HeldOut = "test",
    low: float | None = None,
    high: float | None = None,
) -> AttackTask:
    """Turn a task round: the network stays as it is, and its inputs are what is trained.

    Parameters are `{"perturbation": array}` of the shape of the inputs of a batch of rows, which
    starts at zero. The loss places them in the ball and the range of the inputs; its gradient lacks
    what would lead out of them, and has what leads back, so that an optimizer that overshoots
    returns. Estimators that backpropagate refuse such a gradient.

    Where L is the loss of a row in units of guessing (`Task.loss_scale`), a perturbation is to
    minimise the mean of -log(1 - exp(-L)). For two classes, and nats, that is the negative
    log-probability of the wrong one: it falls with the margin while a row is right, and levels off
    to 0 where it is fooled, so that the rows left count most. L must be at least 0, as
    cross-entropy and squared error are.

    An instance is a network and rows of a split, which every batch of all splits holds: a row's
    perturbation is of use for that row alone. Metrics are `task_loss`, the mean loss of the
    network, and, if the task has an accuracy, `success`, the share of rows that are classified
    wrongly; both are maximized. `inputs` of the task gives the inputs that an attack has made.

    >>> import jax, l2o, optax
    >>> from l2o.tasks.digits import digits_mlp
    >>> task = digits_mlp().evaluation[0]
    >>> networks = l2o.trained_networks(
    ...     task, optax.adam(0.003), jax.random.key(0), number=2, steps=20
    ... )
    >>> attack = l2o.attack(task, networks, radius=0.1, rows=16)
    >>> start = attack.init(jax.random.key(1), attack.sample(jax.random.key(2)))
    >>> jax.tree.map(jax.numpy.shape, start)
    {'perturbation': (16, 64)}

    Args:
        task: Task that networks were trained on, as `l2o.robust` takes it.
        networks: Networks to attack, from `l2o.trained_networks` or of your own.
        radius: Largest change of a row, in units of the inputs.
        norm: Norm of that change, "linf" or "l2".
        rows: Rows of an attack, at most those of a batch; all of a batch if None.
        split: Split that rows are drawn from. Meta-train on "valid", report on "test".
        low: Least value of an input; the least training input if None.
        high: Largest value of an input; the largest training input if None.

    Raises:
        ValueError: If it is no task, or has no such inputs or networks; if the radius is not above
            0, the norm or the split unknown, the range empty, or a batch has fewer rows.
    """
    ball = ball_of(task, norm, radius, low, high, attack)
    number = check_networks(networks, task)
    if split not in get_args(HeldOut):
        raise ValueError(f"`split` must be valid or test; got {split!r}. Try split='test'.")
    draw = lambda key: task.batch(key, task.sample(key), task.data, split)
    example = jax.eval_shape(draw, jax.random.key(0))
    if rows is not None:
        check_rows(rows, task, example)
    shape, dtype = (rows or len(example.inputs), *example.inputs.shape[1:]), example.inputs.dtype
    place = placing(ball)

    def sample(key: Key) -> AttackInstance:
        k_network, k_rows = jax.random.split(key)
        network = jax.random.randint(k_network, (), 0, number, jnp.int32)
        return AttackInstance(network, jax.random.bits(k_rows))

    def victim(instance: AttackInstance, data: Data) -> Victim:
        params, own = jax.tree.map(lambda x: x[instance.network], data["networks"])
        drawn = task.batch(jax.random.key(instance.seed), own, data["task"], split)
        if rows is not None:
            inputs, targets = jax.tree.map(lambda x: x[:rows], (drawn.inputs, drawn.targets))
            size = jnp.asarray(rows, drawn.size.dtype)
            drawn = drawn._replace(inputs=inputs, targets=targets, size=size)
        return Victim(params, own, drawn)

    def batch(key: Key, instance: AttackInstance, data: Data, split: Split) -> Victim:
        del key, split
        return victim(instance, data)

    def inputs(params: optax.Params, victim: Victim) -> jax.Array:
        (perturbation,) = jax.tree.leaves(params)
        return place(perturbation, victim.batch.inputs)

    def perturbed(params: optax.Params, victim: Victim) -> Batch:
        return victim.batch._replace(inputs=inputs(params, victim))

    def loss(params: optax.Params, batch: Victim, instance: AttackInstance) -> jax.Array:
        del instance
        losses = row_losses(task, batch.params, perturbed(params, batch), batch.instance)
        return jnp.mean(-jnp.log(-jnp.expm1(-(losses / task.loss_scale + LEAST))))

    def metrics(
        params: optax.Params, batch: Victim, instance: AttackInstance
    ) -> Mapping[str, jax.Array]:
        del instance
        moved = perturbed(params, batch)
        found = {"task_loss": task.loss(batch.params, moved, batch.instance)}
        accuracy = task.metrics(batch.params, moved, batch.instance).get("accuracy")
        return found if accuracy is None else {**found, "success": 1.0 - accuracy}

    names = ("task_loss", "success") if "accuracy" in task.maximized else ("task_loss",)
    return AttackTask(
        inputs=inputs,
        name=f"{task.name}_attack{'' if split == 'test' else '_valid'}",
        family=f"{task.family or task.name}_attack",
        sample=sample,
        init=lambda key, instance: {"perturbation": jnp.zeros(shape, dtype)},
        batch=batch,
        loss=loss,
        loss_cap=CAP,
        data={"task": task.data, "networks": networks},
        metrics=metrics,
        maximized=frozenset(names),
        metric_caps=dict.fromkeys(names, 0.0),
        all_rows=lambda instance, data, split: victim(instance, data),
        is_differentiable=False,
    )


def attack_family(
    task: Task,
    networks: Networks,
    *,
    radius: float,
    norm: Norm = "linf",
    held_out: int,
    rows: int | None = None,
    low: float | None = None,
    high: float | None = None,
) -> TaskFamily:
    """Make a family of attacks: to meta-train on some networks, and to be judged on others.

    The attack to meta-train on perturbs validation rows, the one to report on test rows.

    >>> import jax, l2o, optax
    >>> from l2o.tasks.digits import digits_mlp
    >>> task = digits_mlp().evaluation[0]
    >>> networks = l2o.trained_networks(
    ...     task, optax.adam(0.003), jax.random.key(0), number=3, steps=20
    ... )
    >>> family = l2o.attack_family(task, networks, radius=0.1, held_out=1)
    >>> family.name, family.train[0].name, family.evaluation[0].name
    ('digits_mlp_32_attack', 'digits_mlp_32_attack_valid', 'digits_mlp_32_attack')

    Args:
        task: Task that networks were trained on.
        networks: Networks to attack.
        radius: As in `attack`.
        norm: As in `attack`.
        held_out: Number of networks, the last ones, that only the attack to report on is of.
        rows: As in `attack`.
        low: As in `attack`.
        high: As in `attack`.

    Raises:
        ValueError: As `attack`, or if not both attacks have a network.
    """
    number = check_networks(networks, task)
    check_steps(held_out=held_out)
    if held_out >= number:
        raise ValueError(
            f"`held_out` must be less than the number of networks, {number}; got {held_out}. "
            f"Try held_out={max(1, number // 4)}."
        )

    def on(part: slice, split: HeldOut) -> Task:
        some = jax.tree.map(lambda x: x[part], networks)
        return attack(
            task, some, radius=radius, norm=norm, rows=rows, split=split, low=low, high=high
        )

    judged = on(slice(number - held_out, None), "test")
    trained_on = on(slice(number - held_out), "valid")
    return TaskFamily(name=judged.name, train=(trained_on,), evaluation=(judged,))


def placing(ball: Ball) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Make `(perturbation, inputs) -> points` in a ball, with a gradient that knows the way back.

    The derivative of a projection is zero off the ball, where an optimizer would stay for good. In
    place of that, the gradient at the points is that of the perturbation, but for what would lead
    out where it is minimised.
    """

    @jax.custom_vjp
    def place(perturbation: jax.Array, inputs: jax.Array) -> jax.Array:
        return ball.project(inputs + perturbation, inputs)

    def forward(perturbation: jax.Array, inputs: jax.Array):
        return place(perturbation, inputs), (perturbation, inputs)

    def backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array):
        perturbation, inputs = kept
        descent = ball.stay(-gradient, inputs + perturbation, inputs)
        return -descent, jnp.zeros_like(inputs)

    place.defvjp(forward, backward)
    return place


def check_rows(rows: int, task: Task, batch: Batch) -> None:
    """Raise a `ValueError` that says what to type unless a batch has so many rows."""
    check_steps(rows=rows)
    if not isinstance(batch, Rows) or rows > len(batch.inputs):
        most = len(batch.inputs) if isinstance(batch, Rows) else "all"
        raise ValueError(
            f"`rows` must be at most those of a batch of {task.name}, {most}; got {rows}. "
            "Leave it out for a whole batch."
        )
