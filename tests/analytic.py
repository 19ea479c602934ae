"""Problems whose meta-gradient is known in closed form, without tasks or networks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2o.estimators.pes import credit_window
from l2o.problem import InnerState, Problem, Window
from l2o.task import Task

WINDOW = 5
NUM_WINDOWS = 4
HORIZON = WINDOW * NUM_WINDOWS
DECAY = 0.9
THETA = jnp.array([0.3, -0.2])


def decay_losses(theta: jax.Array, x: jax.Array, num_steps: int):
    """x ← 0.9 x + θ, each followed by the loss x₁ + ½ x₂²; (state, losses)."""

    def step(x, _):
        x = DECAY * x + theta
        return x, x[0] + 0.5 * x[1] ** 2

    return jax.lax.scan(step, x, length=num_steps)


def decay_problem(window: int = WINDOW, num_windows: int = NUM_WINDOWS, loss=None) -> Problem:
    """`decay_losses` from x = 0, for `num_windows` windows, with staggered starts.

    Args:
        window: steps of an unroll.
        num_windows: unrolls of a run.
        loss: `(losses, theta, state) -> losses`, to spoil them.
    """

    def begin(num_steps: jax.Array) -> InnerState:
        return InnerState(
            instance=jnp.int32(0),
            params=jnp.zeros(2),
            opt_state=jnp.zeros(()),
            step=jnp.int32(0),
            horizon=num_steps,
        )

    def init(key, theta):
        del theta
        return begin(window * jax.random.randint(key, (), 1, num_windows + 1, jnp.int32))

    def start(key, theta):
        del key, theta
        return begin(jnp.int32(window * num_windows))

    def unroll(key, theta, state, data):
        del data
        is_over = state.step >= state.horizon
        following = jax.tree.map(
            lambda cut, whole: jnp.where(state.horizon == 0, cut, whole),
            init(key, theta),
            start(key, theta),
        )
        state = jax.tree.map(lambda new, old: jnp.where(is_over, new, old), following, state)
        x, losses = decay_losses(theta, state.params, window)
        if loss is not None:
            losses = loss(losses, theta, state)
        draw = jax.random.uniform(key)  # recorded, so that a test sees what the members drew
        trained = state._replace(params=x, opt_state=draw, step=state.step + window)
        return trained, Window(
            loss=losses,
            done=jnp.arange(1, window + 1) + state.step >= state.horizon,
            mask=jnp.ones(window, bool),
            finite=jnp.isfinite(losses),
            diverged=~jnp.isfinite(losses),
        )

    return Problem(init, start, unroll, window, window * num_windows)


def decay_gradient(theta: jax.Array) -> jax.Array:
    """d/dθ of the mean loss over the horizon, by hand: x_t = c_t θ with c_t = (1 - 0.9ᵗ)/0.1."""
    c = displacement(jnp.arange(1, HORIZON + 1))
    return jnp.stack([jnp.mean(c), theta[1] * jnp.mean(c**2)])


def myopic_decay_gradient(theta: jax.Array) -> jax.Array:
    """What truncated ES estimates: each window's gradient with its first state held fixed."""
    c = displacement(jnp.arange(1, WINDOW + 1))
    since_start = displacement(jnp.arange(1, HORIZON + 1)).reshape(NUM_WINDOWS, WINDOW)
    return jnp.stack([jnp.mean(c), theta[1] * jnp.mean(c[None] * since_start)])


def displacement(t: jax.Array) -> jax.Array:
    """dx_t/dθ after t steps."""
    return (1.0 - DECAY**t) / (1.0 - DECAY)


def bowl_task() -> Task:
    """½ |x - x*|² of two parameters, with noise of 0.1 on x*: compiles in no time."""
    return Task(
        name="bowl",
        sample=lambda key: {"minimum": jax.random.normal(key, (2,))},
        init=lambda key, instance: {"x": jax.random.normal(key, (2,))},
        batch=lambda key, instance, data, split: 0.1 * jax.random.normal(key, (2,)),
        loss=lambda params, shift, instance: (
            0.5 * jnp.sum((params["x"] - instance["minimum"] - shift) ** 2)
        ),
        loss_cap=200.0,
    )


class Toy(NamedTuple):
    """The recursion s ← s + θ² from s = 0 with loss 0.1 s, six steps a run.

    The mean loss of a run is 0.1 · 3.5 θ², whose derivative is 0.7 θ, 0.49 at θ = 0.7.

    A run ends inside a window of four, and the step that follows resets it and does not count.
    """

    window: int = 4
    horizon: int = 6
    theta: float = 0.7
    gradient: float = 0.49

    def problem(self) -> Problem:
        """Staggered by single steps; `params` is s, `step` counts the steps of the run."""

        def start(key, theta):
            del key, theta
            return InnerState(
                instance=jnp.int32(0),
                params=jnp.zeros(()),
                opt_state=jnp.zeros(()),
                step=jnp.int32(0),
                horizon=jnp.int32(self.horizon),
            )

        def init(key, theta):
            step = jax.random.randint(key, (), 0, self.horizon + 1)
            return start(key, theta)._replace(step=step)

        def unroll(key, theta, state, data):
            del key, data

            def step(carry, _):
                s, count = carry
                is_reset = count == self.horizon
                s = jnp.where(is_reset, 0.0, s + theta**2)
                count = jnp.where(is_reset, 0, count + 1)
                done = count == self.horizon
                return (s, count), (jnp.where(is_reset, 0.0, 0.1 * s), done, ~is_reset)

            (s, count), (loss, done, mask) = jax.lax.scan(
                step, (state.params, state.step), length=self.window
            )
            return state._replace(params=s, step=count), Window(
                loss=loss,
                done=done,
                mask=mask,
                finite=jnp.isfinite(loss),
                diverged=~jnp.isfinite(loss),
            )

        return Problem(init, start, unroll, self.window, self.horizon)


def pes_pair(delta, done, mask, accumulated, perturbation, std, credit=credit_window):
    """A pair's gradient and its next ξ, in the notation of Vicol et al. 2021; `delta` by step."""
    delta = jnp.where(mask, delta, 0.0) / jnp.sum(mask)
    score = perturbation / std**2
    gradient, carried = credit(delta, done, accumulated / std**2 + score, score)
    return gradient, carried * std**2


def inclusive_credit(delta, done, perturbation_sum, score):
    """`credit_window` as google/learned_optimization has it.

    The last step of a run counts for the run that follows, which is credited to ε even if it
    begins with the next window.
    """
    ended = jnp.cumsum(done) > 0
    a, b = jnp.sum(jnp.where(ended, 0.0, delta)), jnp.sum(jnp.where(ended, delta, 0.0))
    gradient = 0.5 * (a * perturbation_sum + b * score)
    return gradient, jnp.where(ended[-1], score, perturbation_sum)


def replicate(estimator, theta, *, num_replicates: int, skip: int, take: int, seed: int = 0):
    """Mean and standard error of an estimator over independent replicates.

    Each replicate starts afresh, leaves out `skip` estimates and averages the next `take`; those
    are correlated, the replicates are not.
    """

    def run(key):
        k_init, k_run = jax.random.split(key)

        def step(state, k):
            gradient, state, _ = estimator.estimate(k, theta, state, estimator.data)
            return state, gradient

        state = estimator.init(k_init, theta)
        _, gradients = jax.lax.scan(step, state, jax.random.split(k_run, skip + take))
        return jax.tree.map(lambda g: jnp.mean(g[skip:], axis=0), gradients)

    keys = jax.random.split(jax.random.key(seed), num_replicates)
    means = jax.jit(jax.vmap(run))(keys)
    return (
        jax.tree.map(lambda m: jnp.mean(m, axis=0), means),
        jax.tree.map(lambda m: jnp.std(m, axis=0, ddof=1) / num_replicates**0.5, means),
    )
