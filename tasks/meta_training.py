"""Meta-training as a task: what is trained are the weights θ of a small learned optimizer.

A batch is all that some training runs need: the problem of each, its start, and a batch for each of
its few steps. The loss trains them by the learned optimizer that θ stands for, and is the mean of
the losses on the way, each up to its cap and in units of a typical one. It is smooth, and its
gradient comes by backpropagation through the runs, so an optimizer that trains θ needs nothing that
it would not need for a network.

A gradient costs R T inner steps for R runs of T steps, and their way back: by default 160 steps at
ten parameters each. It is not finite where θ makes the numbers of a run overflow.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import l2o
from l2o import Batch, Data, Instance, Key, LearnedOptimizer, Split, Task, TaskFamily
from l2o.tasks.families import sized_family
from l2o.tasks.quadratic import rotated_quadratic

STEP_MULT = 0.1
"""Scale of the steps of MLPs. Distances to a minimum are about 1, and a run has twenty steps."""


class Runs(NamedTuple):
    """What training runs need; every array has a first axis of runs.

    Attributes:
        instance: Problem of each.
        params: Parameters that it starts from.
        batches: Batches of its steps, with a second axis of steps.
    """

    instance: Instance
    params: optax.Params
    batches: Batch


def meta_training_task(
    name: str,
    optimizer: LearnedOptimizer,
    inner: Task,
    *,
    horizon: int = 20,
    num_runs: int = 8,
    family: str = "",
) -> Task:
    """Train a learned optimizer to train a task, by backpropagation; see the module.

    The metric "final_loss" is the mean loss of the runs' last steps, before their updates, in the
    same units as the loss. Splits differ in nothing: all runs are drawn anew.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> task = meta_training_task("sgd", l2o.learnable_sgd(), rotated_quadratic(2))
    >>> sorted(task.init(jax.random.key(0), ()))
    ['log_learning_rate']

    Args:
        name: Name of the task.
        optimizer: Learned optimizer that is trained.
        inner: Task that it trains, on training batches.
        horizon: Number of steps of a run.
        num_runs: Number of runs of a batch.
        family: Name that tasks of other optimizers share; empty for the task's own name.

    Raises:
        ValueError: If the inner task has no finite cap, or its loss no derivative of its own.
    """
    if inner.modifies_gradients or not inner.is_differentiable or math.isinf(inner.loss_cap):
        raise ValueError(
            "`inner` must have a loss with a finite cap and a gradient of its own; got "
            f"{inner.name}. Try rotated_quadratic(10)."
        )

    def batch(key: Key, instance: Instance, data: Data, split: Split) -> Runs:
        del instance, split

        def draw(key: Key) -> Runs:
            k_instance, k_params, k_batches = jax.random.split(key, 3)
            problem = inner.sample(k_instance)
            step_batch = lambda key: inner.batch(key, problem, data, "train")
            batches = jax.vmap(step_batch)(jax.random.split(k_batches, horizon))
            return Runs(problem, inner.init(k_params, problem), batches)

        return jax.vmap(draw)(jax.random.split(key, num_runs))

    def run_losses(theta: optax.Params, run: Runs) -> jax.Array:
        """Losses of the steps of one run, each before its update, shape (horizon,)."""
        tx = optimizer.transform(theta, horizon=horizon)

        def step(carry: tuple[optax.Params, optax.OptState], batch: Batch):
            params, state = carry
            loss, grads = jax.value_and_grad(inner.loss)(params, batch, run.instance)
            updates, state = tx.update(grads, state, params, value=loss)
            # A loss that is not a number counts as the cap, too.
            cost = jnp.where(loss < inner.loss_cap, loss, inner.loss_cap) / inner.loss_scale
            return (optax.apply_updates(params, updates), state), cost

        return jax.lax.scan(step, (run.params, tx.init(run.params)), run.batches)[1]

    def loss(theta: optax.Params, runs: Runs, instance: Instance) -> jax.Array:
        del instance
        return jnp.mean(jax.vmap(run_losses, in_axes=(None, 0))(theta, runs))

    def metrics(theta: optax.Params, runs: Runs, instance: Instance) -> dict[str, jax.Array]:
        del instance
        return {"final_loss": jnp.mean(jax.vmap(run_losses, in_axes=(None, 0))(theta, runs)[:, -1])}

    cap = inner.loss_cap / inner.loss_scale
    return Task(
        name=name,
        family=family,
        sample=lambda key: (),
        init=lambda key, instance: optimizer.init(key),
        batch=batch,
        loss=loss,
        loss_cap=cap,
        data=inner.data,
        metrics=metrics,
        metric_caps={"final_loss": cap},
        loss_scale=1.0,
    )


def meta_training() -> TaskFamily:
    """Meta-training of small learned optimizers on quadratics of ten dimensions."""

    def make(name: str, optimizer: Callable[[], LearnedOptimizer], varied: bool) -> Task:
        del varied  # every batch draws problems of its own
        return meta_training_task(name, optimizer(), rotated_quadratic(10), family="meta_training")

    mlp = lambda size: lambda: l2o.mlp_lopt(size, step_mult=STEP_MULT)
    meta_trained = {"sgdm": l2o.learnable_sgdm, "mlp_4": mlp(4)}
    held_out = {"adafac_4": lambda: l2o.adafac_mlp(step_mult=STEP_MULT), "mlp_16": mlp(16)}
    return sized_family("meta_training", make, meta_trained, held_out)
