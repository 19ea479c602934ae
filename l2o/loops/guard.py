"""A guard: an optimizer that another one relieves when training diverges.

A learned optimizer has no proof that it converges. The guard follows the loss. With l₀ the first,
l̄ an average of the last few and l* the lowest that it has been, training has diverged if

    l̄ > l₀ + |l₀|, twice the first loss, or
    l̄ > l* + max(l₀ - l*, |l₀| / 2) / 4 + 4 δ* for 20 updates: a quarter of what was won is lost;
                                δ* is how far a loss was from l̄ on average when l̄ was l*,

or if an update would make a parameter infinite, which is never done and looked for whenever the
parameters are copied. Then the parameters go back to where l̄ was lowest, and the fallback takes
over from there. l₀ is the first loss that is finite and not zero; twenty that are not are an end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import require_params, require_state, require_value
from l2o.leaves import on_any_tree, require_transformation, without_extremes
from l2o.tree import with_dtypes_of

FAST_DECAY = 0.8
NOISE_DECAY = 0.95
NOISES = 4.0
LOST = 0.25
LEAST = 0.5
PATIENCE = 20
CEILING = 4.0
"""A loss counts as this much above the first at most, in units of it: one bad batch is no end."""

RESTORING = 4
"""Updates that going back takes: a parameter of 1e8 plus what it lacks is not exact at once."""

LEADING, GOING_BACK, RELIEVED = range(3)

T = TypeVar("T")


class Watch(NamedTuple):
    """What the guard knows of the loss; float32 scalars, and an int32 one.

    Attributes:
        first: First finite loss; this and what follows from it are infinite before.
        recent: Average of the last losses.
        best: Lowest `recent` so far.
        noise: Average distance of a loss from `recent`.
        calm: What `noise` was at the best; it grows where training diverges by spikes.
        strikes: Consecutive updates at which a quarter of what was won was lost.
    """

    first: jax.Array
    recent: jax.Array
    best: jax.Array
    noise: jax.Array
    calm: jax.Array
    strikes: jax.Array


class GuardState(NamedTuple):
    """State of a guarded optimizer.

    Attributes:
        count: Number of updates so far, an int32 scalar.
        leader: State of the optimizer that is guarded.
        fallback: State of the one that relieves it.
        snapshot: Parameters where the loss was lowest, a tree like the parameters.
        watch: What is known of the loss.
        mode: 0 while the guarded optimizer leads, 1 while parameters go back, 2 once it is
            relieved; an int32 scalar.
        since: Number of updates in this mode, an int32 scalar.
        switches: How often it was relieved, an int32 scalar.
        last_switch: `count` when it was relieved last, an int32 scalar; -1 if it never was.
        last_return: `count` when it led again last, likewise.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    leader: optax.OptState
    fallback: optax.OptState
    snapshot: optax.Params
    watch: Watch
    mode: jax.Array
    since: jax.Array
    switches: jax.Array
    last_switch: jax.Array
    last_return: jax.Array


class Rare(NamedTuple):
    """What most updates leave as it is.

    Attributes:
        steps: Updates.
        fallback: State of the optimizer that relieves the guarded one.
        snapshot: Parameters where the loss was lowest.
        has_overflown: Whether the updates would make a parameter infinite.
    """

    steps: optax.Updates
    fallback: optax.OptState
    snapshot: optax.Params
    has_overflown: jax.Array


def guarded(
    tx: optax.GradientTransformation,
    fallback: optax.GradientTransformation | None = None,
    *,
    snapshot_every: int = 10,
    retry_after: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Guard an optimizer: if training diverges, go back and let another one go on.

    Until then updates are those of `tx`, bit for bit. What it did is in the state: `switches`,
    `last_switch`, `last_return`. It takes the memory of a copy of the parameters and of the
    fallback's state, and once `tx` is relieved, updates of both are computed. The loss must be one
    that training lowers.

    >>> import jax.numpy as jnp, l2o
    >>> tx = l2o.guarded(l2o.optimizer("digits", horizon=1000))
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params, value=2.0)
    >>> int(state.switches)
    0

    Args:
        tx: Optimizer to guard.
        fallback: Optimizer that relieves it; `optax.adam(1e-3)` if None.
        snapshot_every: Updates between two copies of the best parameters, at least, and between
            two looks for parameters that would be infinite.
        retry_after: Updates after which `tx` is begun anew; twice as many the next time, and so on;
            never if None.

    Returns:
        An optimizer whose `update` needs `params` and `value=loss`.

    Raises:
        ValueError: If a number of updates is no whole number of at least 1, or `tx` or `fallback`
            no optax transformation.
    """
    for name, number in (("snapshot_every", snapshot_every), ("retry_after", retry_after)):
        if number is not None and (not isinstance(number, int) or number < 1):
            raise ValueError(f"`{name}` must be a whole number from 1 on; got {number!r}. Try 10.")
    leader = require_transformation(tx, "tx")
    relief = require_transformation(optax.adam(1e-3) if fallback is None else fallback, "fallback")

    def init(params: optax.Params) -> GuardState:
        number = lambda value: jnp.full((), value, jnp.int32)
        none = lambda: jnp.full((), jnp.inf, jnp.float32)
        return GuardState(
            count=number(0),
            leader=leader.init(params),
            fallback=relief.init(params),
            snapshot=jax.tree.map(jnp.array, params),
            watch=Watch(none(), none(), none(), none(), none(), number(0)),
            mode=number(LEADING),
            since=number(0),
            switches=number(0),
            last_switch=number(-1),
            last_return=number(-1),
        )

    def update(
        updates: optax.Updates,
        state: GuardState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GuardState]:
        state = require_state(state, GuardState, "guarded")
        params = require_params(jax.tree.map(jnp.asarray, params), "guarded")
        watch, mode = decide(state, require_value(value, "guarded"), retry_after)
        is_new = mode != state.mode
        leader_state = state.leader
        if retry_after is not None:
            is_begun = is_new & (mode == LEADING)
            leader_state = if_so(is_begun, lambda _: leader.init(params), leader_state)
        grads = jax.tree.map(without_extremes, updates)
        steps, led = leader.update(grads, leader_state, params, value=value, **extra_args)
        is_due = state.count % snapshot_every == 0
        is_best = is_due & (watch.recent <= watch.best) & jnp.isfinite(watch.recent)

        def act(carry: Rare) -> Rare:
            steps, relieved, snapshot, _ = carry
            has_overflown = is_due & overflows(params, steps)
            snapshot = if_so(is_best & (mode != GOING_BACK), lambda _: params, snapshot)

            def relieve(carry: tuple[optax.Updates, optax.OptState]):
                grads = jax.tree.map(without_extremes, updates)  # here: only where it is needed
                relief_state = if_so(is_new, lambda _: relief.init(params), carry[1])
                found = relief.update(grads, relief_state, params, value=value, **extra_args)
                return with_dtypes_of(carry, found)

            def go_back(steps: optax.Updates) -> optax.Updates:
                back = lambda u, s, p: (s - p).astype(u.dtype)
                return jax.tree.map(back, steps, snapshot, params)

            steps, relieved = if_so(mode == RELIEVED, relieve, (steps, relieved))
            return Rare(
                if_so(mode == GOING_BACK, go_back, steps), relieved, snapshot, has_overflown
            )

        # One loop for all that is rare: updates that pass through a second are copied.
        rare = Rare(steps, state.fallback, state.snapshot, jnp.bool_(False))
        rare = if_so(is_due | (mode != LEADING), act, rare)
        steps = jax.tree.map(without_overflow, rare.steps, params)
        now = lambda when, before: jnp.where(is_new & (mode == when), state.count, before)
        since = jnp.where(is_new, 1, jnp.asarray(optax.safe_increment(state.since)))
        last_switch = now(GOING_BACK, state.last_switch)
        return steps, GuardState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            leader=led,
            fallback=rare.fallback,
            snapshot=rare.snapshot,
            watch=watch._replace(strikes=jnp.where(rare.has_overflown, PATIENCE, watch.strikes)),
            mode=mode,
            since=since,
            switches=state.switches + (last_switch != state.last_switch),
            last_switch=last_switch,
            last_return=now(LEADING, state.last_return),
        )

    tx = optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
    return on_any_tree(tx, "guarded", sees_extremes=True)


def if_so(is_so: jax.Array, function: Callable[[T], T], x: T) -> T:
    """Apply a function, or leave a tree as it is, which costs nothing.

    A loop of no steps keeps arrays where they are; `jax.lax.cond` copies them.
    """
    once = lambda carry: (jnp.zeros_like(carry[0]), function(carry[1]))
    return jax.lax.while_loop(lambda carry: carry[0], once, (is_so, x))[1]


def observe(watch: Watch, loss: jax.Array, count: jax.Array) -> Watch:
    """Add a loss to what is known; `count` is the number of those before."""
    is_none = jnp.isinf(watch.first) | (watch.first == 0)
    first = jnp.where(is_none & jnp.isfinite(loss), loss, watch.first)
    ceiling = first + CEILING * jnp.abs(first)
    loss = jnp.where(jnp.isfinite(loss), jnp.minimum(loss, ceiling), ceiling)

    def average(decay: float | jax.Array, before: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where(jnp.isinf(before), x, decay * before + (1.0 - decay) * x)

    is_new = jnp.isinf(watch.recent)  # not NaN, which people look for with jax_debug_nans
    distance = jnp.where(is_new, 0.0, jnp.abs(loss - jnp.where(is_new, 0.0, watch.recent)))
    # A plain average at first, where zero, the distance of the first loss, would count for long.
    plain = (count - 1.0) / jnp.maximum(count, 1.0)
    noise = average(jnp.clip(plain, 0.0, NOISE_DECAY), watch.noise, distance)
    recent = average(FAST_DECAY, watch.recent, loss)
    is_best = ~(recent > watch.best)
    best = jnp.where(is_best, recent, watch.best)
    calm = jnp.where(is_best | (count < PATIENCE), noise, watch.calm)
    won = jnp.maximum(jnp.where(jnp.isinf(best), 0.0, first - best), LEAST * jnp.abs(first))
    is_lost = recent > best + LOST * won + NOISES * calm
    is_lost |= ~jnp.isfinite(first)
    return Watch(first, recent, best, noise, calm, jnp.where(is_lost, watch.strikes + 1, 0))


def decide(state: GuardState, loss: jax.Array, retry_after: int | None) -> tuple[Watch, jax.Array]:
    """Decide who makes the next update, by what is then known of the loss."""
    watch = observe(state.watch, loss, state.count)
    has_diverged = watch.recent > watch.first + jnp.abs(watch.first)
    has_diverged |= (watch.strikes >= PATIENCE) | (state.watch.strikes >= PATIENCE)
    wait = jnp.inf if retry_after is None else retry_after * 2.0 ** (state.switches - 1)
    mode = jnp.select(
        [state.mode == LEADING, state.mode == GOING_BACK],
        [
            jnp.where(has_diverged, GOING_BACK, LEADING),
            jnp.where(state.since < RESTORING, GOING_BACK, RELIEVED),
        ],
        jnp.where(state.since < wait, RELIEVED, LEADING),
    ).astype(jnp.int32)
    # Losses on the way back are those of parameters that are on none, and who leads again is not
    # to be told of another's.
    is_new_run = (mode == GOING_BACK) | ((mode == LEADING) & (state.mode == RELIEVED))
    return watch._replace(
        recent=jnp.where(is_new_run, watch.best, watch.recent),
        strikes=jnp.where(is_new_run, 0, watch.strikes),
    ), mode


def overflows(params: optax.Params, updates: optax.Updates) -> jax.Array:
    """Tell whether an update would make a parameter infinite or NaN."""
    new = jax.tree.leaves(optax.apply_updates(params, updates))
    return ~jnp.all(jnp.array([jnp.all(jnp.isfinite(p)) for p in new]))


def without_overflow(u: jax.Array, p: jax.Array) -> jax.Array:
    """Put zero in the place of updates that would make a parameter infinite or NaN.

    From such a parameter there is no way back: an update is what is added to it.
    """
    return jnp.where(jnp.isfinite((p + u).astype(p.dtype)), u, jnp.zeros_like(u))
