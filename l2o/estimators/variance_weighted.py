"""Evolution and backpropagation from the same windows, weighted by their measured variance.

Both estimate the gradient of the smoothed loss E[L(θ + ε)]: g_es = ε (ℓ⁺ - ℓ⁻) / 2σ², and the
reparametrised g_rp = ½ (∇ℓ⁺ + ∇ℓ⁻). For each coordinate of theta
    g = (g_es / v_es + g_rp / v_rp) / (1 / v_es + 1 / v_rp),
with v the variance over the population (Metz, Maheswaranathan, Nixon, Freeman, Sohl-Dickstein
2019). Short windows follow backpropagation, long ones, whose gradients explode, evolution.

Here the two gradients of each pair are weighted by the variances of the other pairs. In that paper
a pair's own gradient counts, too, which is biased: where gradients are skewed, a rare large one
raises the variance of its kind and so lowers its own weight.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from l2o.estimators.estimator import Estimator
from l2o.estimators.population import (
    PAIRED,
    MemberEstimate,
    as_pair,
    both_signs,
    check_differentiable,
    check_pairs,
    check_problem,
    gather_members,
    is_finite,
    loss_difference,
    plus_member,
    population_estimator,
    std_at,
    window_mean,
)
from l2o.problem import InnerState, Problem, reset_run


def variance_weighted(
    problem: Problem, *, num_pairs: int, std: float | optax.Schedule, mesh: Mesh | None = None
) -> Estimator:
    """Combine truncated ES and truncated backpropagation coordinate by coordinate.

    Biased as both are when the horizon is longer than the window, and only then. A pair whose loss
    is finite and whose gradient is not counts as infinitely variable: evolution takes over. One
    gradient that is huge and finite turns the other pairs to evolution, but not its own pair.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> optimizer = l2o.learnable_adam()
    >>> problem = l2o.inner_problem(rosenbrock(), optimizer, horizon=20, window=5)
    >>> l2o.variance_weighted(problem, num_pairs=8, std=0.01).steps
    80

    Args:
        problem: Training runs to unroll.
        num_pairs: Number of antithetic pairs, at least 3.
        std: Standard deviation σ of perturbations, in units of theta, or a schedule of it over
            estimates.
        mesh: Devices to spread the pairs over.

    Raises:
        ValueError: If `num_pairs` < 3 or not a multiple of the mesh's devices, `std` <= 0, or the
            meta-loss has no gradient.
    """
    check_differentiable(problem)
    check_problem(problem)
    check_pairs(num_pairs, std)
    if num_pairs < 3:
        raise ValueError(
            f"`num_pairs` must be at least 3, to measure a variance without each; got {num_pairs}. "
            "Try num_pairs=16."
        )

    def estimate_pair(problem, key, theta, step, run, data):
        k_perturbation, k_unroll = jax.random.split(key)
        sigma = std_at(std, step)
        epsilon = sigma * jax.random.normal(k_perturbation, theta.shape)

        def backpropagate(theta: jax.Array, run: InnerState):
            def cost(theta: jax.Array):
                after, window = problem.unroll(k_unroll, theta, run, data)
                return window_mean(window), (after, window)

            return jax.grad(cost, has_aux=True)(theta)

        gradients, (pair, window) = jax.vmap(backpropagate, (0, PAIRED), (0, (PAIRED, 0)))(
            both_signs(theta, epsilon), as_pair(run)
        )
        delta = loss_difference(window, sigma, "none", mesh)
        both_kinds = jnp.stack(
            [0.5 * jnp.sum(delta) * (epsilon / sigma**2), jnp.mean(gradients, axis=0)]
        )
        everyone, is_other = gather_members(both_kinds, mesh)
        is_measured, _ = gather_members(is_finite(window), mesh)
        gradient = weigh(both_kinds, everyone, is_other & is_measured)
        return MemberEstimate(gradient, window), plus_member(pair)

    return population_estimator(
        problem,
        lambda problem, key, theta: problem.init(key, theta),
        estimate_pair,
        num_members=num_pairs,
        steps_per_member=2 * problem.window,
        mesh=mesh,
        reset=reset_run,
        argument="num_pairs",
    )


def weigh(both_kinds: jax.Array, everyone: jax.Array, counts: jax.Array) -> jax.Array:
    """Average a pair's gradients by the inverse variance that each kind has over other pairs.

    Evolution alone where both variances are infinite. A gradient that is not finite leaves
    everything to the other kind.

    Args:
        both_kinds: Gradients of the pair by evolution and by backpropagation, (2, meta-parameters).
        everyone: Those of all pairs, shape (pairs, 2, meta-parameters).
        counts: Pairs to measure the variances over, shape (pairs,).

    Returns:
        Shape (meta-parameters,).
    """
    of_evolved, of_backpropagated = variance(everyone, counts)
    ratio = of_evolved / of_backpropagated
    share = 1.0 / (1.0 + jnp.where(jnp.isnan(ratio), 0.0, ratio))
    evolved, backpropagated = both_kinds
    mean = share * evolved + (1.0 - share) * backpropagated
    known = jnp.where(jnp.isfinite(evolved), evolved, backpropagated)
    return jnp.where(jnp.all(jnp.isfinite(both_kinds), axis=0), mean, known)


def variance(values: jax.Array, counts: jax.Array) -> jax.Array:
    """Compute the variance along the first axis, infinite if a square among them is not finite.

    Float32 does not tell a standard deviation of less than a thousandth of the mean from that.

    Args:
        values: Shape (pairs, ...).
        counts: Which of them count, shape (pairs,).
    """
    is_known = jnp.isfinite(values**2)
    values = jnp.where(is_known, values, 0.0)

    def total(x: jax.Array) -> jax.Array:
        # For all pairs a product of matrices: no array of pairs times pairs times theta.
        weights = counts.astype(values.dtype)
        return jnp.tensordot(weights, x.astype(values.dtype), axes=1, precision="highest")

    num_values = jnp.maximum(jnp.sum(counts), 1)
    mean, square = total(values) / num_values, total(values**2) / num_values
    floor = jnp.maximum(1e-6 * square, 1e-30)
    is_finite = jnp.isfinite(square) & (total(~is_known) == 0)
    return jnp.where(is_finite, jnp.maximum(square - mean**2, floor), jnp.inf)
