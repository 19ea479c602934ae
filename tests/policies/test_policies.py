"""Heads, advantages, rewards, the training run as an environment."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from user_module import bowl

import l2o
from l2o import release
from l2o.batches import batch_fraction, training_batch
from l2o.distributed.mesh import population_mesh
from l2o.estimators.nres import nres
from l2o.evaluation.evaluate import evaluate
from l2o.objective import Objective
from l2o.optimizers import nets
from l2o.policies.controller import scheduler, tensor_controller
from l2o.policies.heads import log_std_of, make_head
from l2o.policies.observation import NUM_RUN_FEATURES
from l2o.policies.optimizer_selector import chooser
from l2o.problem import inner_problem, unroll_run
from l2o.registry import POLICIES
from l2o.rl.environment import training_environment
from l2o.rl.gae import generalized_advantages, standardized, subtract_baseline
from l2o.rl.reward import LOG_FLOOR, Reward, check_reward, measure
from l2o.rl.rollout import collector, first_actor_critic
from l2o.tasks.digits import digits
from l2o.tasks.image_mlp import image_mlp

HORIZON, WINDOW, INTERVAL = 20, 10, 5


@pytest.fixture(scope="module")
def task():
    return image_mlp("tiny", digits(), (4,), batch_size=16)


def small_policy(**changes):
    return scheduler(**{"interval": INTERVAL, "hidden_size": 4, **changes})


def noisy_theta(lopt, scale=0.5, seed=0):
    theta = lopt.init(jax.random.key(seed))
    noise = optax.tree.random_like(jax.random.key(seed + 1), theta)
    return jax.tree.map(lambda t, z: t + scale * z, theta, noise)


# Heads


def test_gaussian_head_against_scipy():
    head = make_head("gaussian", 2)
    outputs, spread = jnp.array([0.3, -1.0]), jnp.array([-0.5, -2.0])
    raw = jnp.array([0.1, -1.2])
    normal = scipy.stats.norm(np.asarray(outputs), np.exp(log_std_of(spread)))
    np.testing.assert_allclose(
        head.log_prob(outputs, spread, raw), normal.logpdf(raw).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(head.entropy(outputs, spread), normal.entropy().sum(), rtol=1e-5)
    beyond = jnp.array([-30.0, 30.0])
    np.testing.assert_allclose(
        head.draw(outputs, beyond, jnp.ones(2)), outputs + np.exp([-4.0, 0.0]), rtol=1e-5
    )
    np.testing.assert_allclose(log_std_of(head.spread()), [-1.0, -1.0], rtol=1e-6)
    slopes = jax.vmap(jax.grad(log_std_of))(jnp.array([-6.0, 0.0, 6.0]))
    assert np.all(slopes > 0.005)  # there is a way back from near the bounds


def test_categorical_head_draws_what_it_says():
    head = make_head("categorical", 3)
    outputs, spread = jnp.log(jnp.array([0.2, 0.5, 0.3])), head.spread()
    noise = head.noise(jax.random.key(0), (20_000,))
    for z in (noise, head.reflect(noise)):
        drawn = head.draw(jnp.broadcast_to(outputs, (20_000, 3)), spread, z)
        counts = np.bincount(np.asarray(drawn[:, 0], int), minlength=3) / 20_000
        np.testing.assert_allclose(counts, [0.2, 0.5, 0.3], atol=4 * 0.5 / 20_000**0.5)
    np.testing.assert_allclose(
        head.log_prob(outputs, spread, jnp.array([1.0])), np.log(0.5), rtol=1e-5
    )
    np.testing.assert_allclose(
        head.entropy(outputs, spread), scipy.stats.entropy([0.2, 0.5, 0.3]), rtol=1e-5
    )
    assert head.mode(outputs) == 1.0
    np.testing.assert_allclose(head.reflect(noise), 1.0 - noise)


def test_reflected_gaussian_noise_is_opposite_and_a_squashed_action_bounded():
    head = make_head("squashed", 1)
    noise = head.noise(jax.random.key(0), (5,))
    np.testing.assert_array_equal(head.reflect(noise), -noise)
    assert np.all(np.abs(head.squash(100.0 * noise)) <= 1.0)


@pytest.mark.parametrize(("name", "number", "message"), [
    ("gaussian", 0, "at least 1 for a gaussian"),
    ("categorical", 1, "at least 2 for a categorical"),
    ("beta", 1, "`head` must be one of gaussian, squashed, categorical; got beta"),
])  # fmt: skip
def test_bad_heads(name, number, message):
    with pytest.raises(ValueError, match=message):
        make_head(name, number)


def test_gru_against_flax():
    from flax import nnx

    net = nets.gru_init(jax.random.key(0), 3, 4)
    cell = nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))
    cell.dense_i.kernel[...] = net["w_in"]
    cell.dense_i.bias[...] = 0.3 * jnp.arange(12.0)
    cell.dense_h.kernel[...] = net["w_h"]
    x, h = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.1, 0.2, -0.3, 0.4])
    expected, _ = cell(h, x)
    found = nets.gru_apply(net | {"b": 0.3 * jnp.arange(12.0)}, x, h)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Advantages


def test_generalized_advantages_by_hand():
    """γ = 0.9, λ = 0.5; the episode ends with the second decision, a new one is cut."""
    found = generalized_advantages(
        jnp.array([1.0, 2.0, 3.0, 4.0]),
        jnp.array([0.5, 1.0, 1.5, 2.0]),
        jnp.array(10.0),
        jnp.array([False, True, False, False]),
        discount=0.9,
        trace=0.5,
    )
    last = 4.0 + 0.9 * 10.0 - 2.0  # bootstrapped: a window's end is not an episode's
    third = 3.0 + 0.9 * 2.0 - 1.5 + 0.45 * last
    second = 2.0 - 1.0  # nothing comes after an end
    first = 1.0 + 0.9 * 1.0 - 0.5 + 0.45 * second
    np.testing.assert_allclose(found, [first, second, third, last], rtol=1e-6)


def test_baselines_by_hand():
    returns = jnp.array([[[1.0], [2.0]], [[4.0], [8.0]], [[5.0], [100.0]]])
    mask = jnp.ones((3, 2, 1), bool).at[2, 1].set(False)
    values = 0.5 * returns
    found = {
        name: subtract_baseline(name, returns, values, mask)[..., 0]
        for name in ("antithetic", "leave_one_out", "value")
    }
    np.testing.assert_allclose(found["value"], values[..., 0])
    np.testing.assert_allclose(found["leave_one_out"][:2], [[-1.0, 1.0], [-4.0, 4.0]])
    assert found["leave_one_out"][2, 0] == 5.0  # its only neighbour does not count
    # Pairs are each a group: the mean of the other groups.
    others = np.array([17.0 / 3, 8.0 / 3, 15.0 / 4])
    np.testing.assert_allclose(found["antithetic"], returns[..., 0] - others[:, None], rtol=1e-6)


def test_antithetic_baseline_is_of_the_other_pairs_of_the_group():
    returns = jnp.array([[[1.0], [2.0], [10.0], [20.0], [3.0], [7.0]]])
    mask = jnp.ones((1, 6, 1), bool).at[0, 5].set(False)
    found = subtract_baseline("antithetic", returns, returns, mask)[0, :, 0]
    others = np.array([33 / 3, 33 / 3, 6 / 3, 6 / 3, 33 / 4, 33 / 4])
    np.testing.assert_allclose(found[:5], returns[0, :5, 0] - others[:5], rtol=1e-6)


def test_standardized_leaves_out_what_does_not_count():
    mask = jnp.array([True, True, True, False])
    found = standardized(jnp.array([1.0, 2.0, 6.0, 1e9]), mask)[:3]
    np.testing.assert_allclose([np.mean(found), np.std(found)], [0.0, 1.0], atol=1e-5)


# The environment


def episode(environment, policy, theta, key, *, shift=0.0):
    """A whole run with the policy's most likely actions; states and outcomes."""
    k_start, k_enter, k_steps = jax.random.split(key, 3)
    state = environment.enter(k_enter, environment.start(k_start), environment.data)
    carry = policy.actor.start(environment.observe(state).agents.shape[0])
    states, outcomes = [state], []
    step = jax.jit(environment.step)
    for k in itertools.count():
        outputs, carry = policy.actor.apply(theta, environment.observe(state).agents, carry)
        action = policy.head.squash(policy.head.mode(outputs)) + shift
        state, outcome = step(jax.random.fold_in(k_steps, k), state, action, environment.data)
        states.append(state)
        outcomes.append(outcome)
        if outcome.done:
            return states, outcomes


def test_evolution_meta_trains_policies_on_devices():
    """NRES on two devices is that on one, for every policy."""
    mesh = population_mesh(2)
    for make in POLICIES.values():
        lopt = make(interval=2, hidden_size=4)
        problem = inner_problem(bowl(), lopt, horizon=8, window=4)
        found = []
        for devices in (None, mesh):
            estimator = nres(problem, num_pairs=2, std=0.1, mesh=devices)
            theta = lopt.init(jax.random.key(0))
            state = jax.jit(estimator.init)(jax.random.key(1), theta)
            gradient, *_ = jax.jit(estimator.estimate)(jax.random.key(2), theta, state, ())
            found.append(gradient)
        for x, y in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_log_reward_telescopes(task):
    lopt = small_policy()
    environment = training_environment(task, lopt.policy, horizon=HORIZON, window=WINDOW)
    theta = noisy_theta(lopt)
    states, outcomes = episode(environment, lopt.policy, theta, jax.random.key(0))
    assert len(outcomes) == HORIZON // INTERVAL
    total = sum(o.reward for o in outcomes)
    ends = [np.log(s.loss + LOG_FLOOR) for s in (states[0], states[-1])]
    np.testing.assert_allclose(total, ends[0] - ends[1], atol=1e-5)
    assert abs(total) > 0.01


def test_metrics_telescope_and_are_weighted(task):
    lopt = small_policy()
    reward = Reward(("accuracy", "macro_f1"), weights=(2.0, 0.5), on="valid")
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=reward
    )
    theta = noisy_theta(lopt)
    states, outcomes = episode(environment, lopt.policy, theta, jax.random.key(0))
    gains = sum(o.rewards for o in outcomes)
    np.testing.assert_allclose(gains, states[-1].potentials - states[0].potentials, atol=1e-5)
    np.testing.assert_allclose(
        sum(o.reward for o in outcomes), 2.0 * gains[0] + 0.5 * gains[1], rtol=1e-5
    )
    assert np.all(np.abs(states[-1].potentials - 0.5) <= 0.5)


def test_loss_reward_is_the_cost_of_evolution_strategies(task):
    """The mean over runs of the same distribution; and the same parts train them."""
    lopt = small_policy()
    theta = noisy_theta(lopt)
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=Reward(("loss",))
    )
    problem = inner_problem(
        task, lopt, horizon=HORIZON, window=WINDOW, objective=Objective(normalize=True)
    )
    number = 200

    def total(key):
        k_start, k_enter, k_steps = jax.random.split(key, 3)
        state = environment.enter(k_enter, environment.start(k_start), environment.data)

        def decide(state, key):
            outputs, _ = lopt.policy.actor.apply(theta, environment.observe(state).agents, ())
            return environment.step(key, state, lopt.policy.head.mode(outputs), environment.data)

        _, outcomes = jax.lax.scan(decide, state, jax.random.split(k_steps, HORIZON // INTERVAL))
        return jnp.sum(outcomes.reward)

    keys = jax.random.split(jax.random.key(0), number)
    returns = jax.jit(jax.vmap(total))(keys)
    cost = jax.jit(jax.vmap(lambda k: jnp.mean(unroll_run(problem, k, theta, problem.data).loss)))
    costs = cost(jax.random.split(jax.random.key(1), number))
    error = np.hypot(np.std(returns), np.std(costs)) / number**0.5
    assert abs(np.mean(returns) + np.mean(costs)) < 4 * error
    assert error < 0.02


@pytest.mark.parametrize(
    "changes",
    [
        {"core": "gru"},
        {"knobs": ("batch_fraction", "momentum")},
        {"base": "optax:lion", "knobs": ("b1",)},
        {"base": "optax:adafactor"},
        {"base": "digits", "learning_rate": 1.0},
    ],
    ids=["gru", "batch", "lion", "adafactor", "learned"],
)
def test_environment_trains_as_the_optimizer_that_ships(task, changes):
    """Decisions by the most likely action, on the same batches: the same parameters."""
    lopt = small_policy(**changes)
    theta = noisy_theta(lopt)
    environment = training_environment(task, lopt.policy, horizon=HORIZON, window=WINDOW)
    states, _ = episode(environment, lopt.policy, theta, jax.random.key(3))
    _, _, k_steps = jax.random.split(jax.random.key(3), 3)
    tx = lopt.transform(theta, horizon=HORIZON)
    params, instance = states[0].params, states[0].instance
    opt_state = tx.init(params)

    @jax.jit
    def step(k_batch, params, opt_state):
        batch = training_batch(task, k_batch, instance, task.data, batch_fraction(opt_state))
        loss, grads = jax.value_and_grad(task.loss)(params, batch, instance)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state, batch.size

    sizes = []
    for k in range(HORIZON // INTERVAL):
        k_batches, _ = jax.random.split(jax.random.fold_in(k_steps, k))
        for k_batch in jax.random.split(k_batches, INTERVAL):
            params, opt_state, size = step(k_batch, params, opt_state)
            sizes.append(int(size))
    assert (len(set(sizes)) > 2) == ("batch_fraction" in changes.get("knobs", ()))
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(states[-1].params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    rates = [float(np.exp(s.knobs.positions[0, 0])) for s in states]
    assert len({round(rate, 6) for rate in rates}) > 3  # it did turn the knob


def test_a_learned_base_at_a_rate_of_one_is_itself(task):
    lopt = small_policy(base="digits", learning_rate=1.0)
    learned, theta = l2o.load("digits")
    params = task.init(jax.random.key(2), task.sample(jax.random.key(1)))
    grads = jax.tree.map(lambda p: p + 0.1, params)
    found = []
    for tx in (
        lopt.transform(lopt.init(jax.random.key(0)), horizon=HORIZON),
        learned.transform(theta, horizon=HORIZON),
    ):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        found.append(updates)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5), *found))


def test_a_released_policy_refuses_another_base(tmp_path):
    lopt = small_policy(base="digits")
    path = tmp_path / "policy.safetensors"
    l2o.save(path, lopt, lopt.init(jax.random.key(0)))
    loaded, _ = l2o.load(path)
    assert loaded.config["base_sha256"] == release.checksum("digits")
    with pytest.raises(
        ValueError, match=r"`base` must be the digits .* of sha256 0123; got one of"
    ):
        small_policy(base="digits", base_sha256="0123")
    assert small_policy().config["base_sha256"] == ""


def test_what_a_task_cannot_do_with_batches_is_told_at_once(task):
    bare = dataclasses.replace(task, shrink=None)
    shrinks = small_policy(knobs=("batch_fraction",))
    with pytest.raises(ValueError, match="`task` must have `shrink`"):
        training_environment(bare, shrinks.policy, horizon=HORIZON, window=WINDOW)
    with pytest.raises(ValueError, match="`task` must have `shrink`"):
        inner_problem(bare, shrinks, horizon=HORIZON, window=WINDOW)
    reward = Reward(("log_loss", "examples"))
    with pytest.raises(ValueError, match="`reward` can be examples only if scheduler chooses"):
        training_environment(
            task, small_policy().policy, horizon=HORIZON, window=WINDOW, reward=reward
        )


def test_a_smaller_batch_is_its_first_rows_at_least_one(task):
    key, instance = jax.random.key(0), task.sample(jax.random.key(1))
    params = task.init(jax.random.key(2), instance)
    batch = task.batch(key, instance, task.data, "train")
    quarter = training_batch(task, key, instance, task.data, jnp.float32(0.25))
    assert quarter.pixels.shape == batch.pixels.shape
    first = batch._replace(pixels=batch.pixels[:4], labels=batch.labels[:4])
    log_probs = lambda rows: jax.vmap(
        lambda x, y: task.loss(
            params,
            batch._replace(
                pixels=jnp.zeros_like(batch.pixels).at[0].set(x),
                labels=jnp.zeros_like(batch.labels).at[0].set(y),
                size=jnp.int32(1),
            ),
            instance,
        )
    )(rows.pixels, rows.labels)
    expected = np.mean(log_probs(first))
    np.testing.assert_allclose(task.loss(params, quarter, instance), expected, rtol=1e-5)
    assert training_batch(task, key, instance, task.data, jnp.float32(0.001)).size == 1
    assert training_batch(task, key, instance, task.data, None).size == 16
    bare = dataclasses.replace(task, shrink=None)
    with pytest.raises(ValueError, match="`task` must have `shrink` for an optimizer that chooses"):
        training_batch(bare, key, instance, task.data, jnp.float32(0.5))


def test_batches_shrink_wherever_an_optimizer_trains(task):
    """In evaluation and under evolution strategies the loss of this task is the rows that count."""
    lopt = small_policy(knobs=("batch_fraction",))
    theta = lopt.init(jax.random.key(0))
    shrinking = {**theta, "b2": jnp.array([0.0, -3.0])}
    rows = dataclasses.replace(
        task, loss=lambda p, b, i: b.size + 0.0 * jnp.sum(p["w0"]), loss_cap=100.0
    )
    tx = lambda *, horizon: lopt.transform(shrinking, horizon=horizon)
    curves = evaluate(jax.random.key(1), rows, {"a": tx}, horizon=HORIZON, num_seeds=1)
    # It decides at steps 0, 5, ...; the next batch follows. Factors of exp(-0.9).
    sizes = [16, *[round(16 * float(np.exp(-0.9 * k))) for k in (1, 2, 3) for _ in range(5)]]
    np.testing.assert_allclose(curves["a"].train_loss[0, :16], sizes)
    problem = inner_problem(rows, lopt, horizon=HORIZON, window=WINDOW, objective=Objective("mean"))
    window = unroll_run(problem, jax.random.key(2), shrinking, problem.data)
    np.testing.assert_allclose(window.loss[:16], sizes, rtol=1e-6)


def test_examples_reward_is_what_was_not_used(task):
    lopt = small_policy(knobs=("batch_fraction",))
    reward = Reward(("log_loss", "examples"), weights=(1.0, 2.0))
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=reward
    )
    shrinking = {**lopt.init(jax.random.key(0)), "b2": jnp.array([0.0, -1.0])}
    states, outcomes = episode(environment, lopt.policy, shrinking, jax.random.key(3))
    at = np.exp(-0.3 * np.arange(5))  # the fraction after each decision, in force one step later
    used = sum((at[k] + 4 * at[k + 1]) / HORIZON for k in range(4))
    np.testing.assert_allclose(sum(o.rewards[1] for o in outcomes), -used, rtol=1e-5)
    gained = states[-1].potentials[0] - states[0].potentials[0]
    np.testing.assert_allclose(sum(o.reward for o in outcomes), gained - 2.0 * used, rtol=1e-4)


@pytest.mark.parametrize("core", ["mlp", "gru"])
def test_agents_with_networks_of_their_own(core):
    make = lambda **k: tensor_controller("sgdm", [], core=core, hidden_size=3, **k).policy
    shared, separate = make(), make(networks=2)
    theta = noisy_theta(tensor_controller("sgdm", [], core=core, hidden_size=3))
    seen = jax.random.normal(jax.random.key(1), (2, 29))
    twice = jax.tree.map(lambda t: jnp.stack([t, t]), theta)
    expected, carry = shared.actor.apply(theta, seen, shared.actor.start(2))
    found, own_carry = separate.actor.apply(twice, seen, separate.actor.start(2))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*map(np.asarray, (own_carry, carry)), rtol=1e-5)
    other = jax.tree.map(lambda t: t.at[1].add(1.0), twice)
    changed, _ = separate.actor.apply(other, seen, separate.actor.start(2))
    np.testing.assert_allclose(changed[0], found[0], rtol=1e-6)
    assert np.all(changed[1] != found[1])
    drawn = separate.actor.init(jax.random.key(0))
    assert all(leaf.shape[0] == 2 for leaf in drawn.values())
    assert any(np.any(leaf[0] != leaf[1]) for leaf in drawn.values())
    with pytest.raises(ValueError, match="`networks` must be 1 or one for each of the 3 tensors"):
        separate.knobs.init({k: jnp.ones(2) for k in "abc"}, 10)


def difference_and_team(task, **changes):
    """Environments alike but for their credit, and a run of each that has just begun."""
    policy = tensor_controller(knobs=[], interval=INTERVAL).policy
    found = []
    for credit in ("difference", "team"):
        environment = training_environment(
            task, policy, horizon=HORIZON, window=WINDOW, credit=credit, **changes
        )
        start = environment.start(jax.random.key(1))
        found += [environment, environment.enter(jax.random.key(0), start, environment.data)]
    return found


def test_difference_credit_is_what_an_agent_changed_from_the_start_of_the_run(task):
    """Less than the same run in which it never acts and the others do what they did."""
    reward = Reward(("log_loss", "loss"), weights=(2.0, 0.5))
    difference, state, team, begun = difference_and_team(task, reward=reward)
    drawn = 2.0 * jax.random.normal(jax.random.key(3), (HORIZON // INTERVAL, 4, 1))
    actions = drawn.at[:, 1].set(0.0)
    k_steps = jax.random.split(jax.random.key(2), HORIZON // INTERVAL)

    def rewards(actions):
        step = lambda state, given: team.step(given[0], state, given[1], team.data)
        return jax.lax.scan(step, begun, (k_steps, actions))[1].reward

    credits = []
    for key, action in zip(k_steps, actions, strict=True):
        state, outcome = difference.step(key, state, action, difference.data)
        credits.append(outcome.credit)
    whole = jax.jit(rewards)(actions)
    np.testing.assert_allclose(outcome.reward, whole[-1], rtol=1e-3, atol=1e-4)
    for agent in range(4):
        without = jax.jit(rewards)(actions.at[:, agent].set(0.0))
        found = np.array(credits)[:, agent]
        np.testing.assert_allclose(found, whole - without, rtol=1e-3, atol=2e-4)
    assert np.all(np.abs(np.array(credits)[:, 1]) < 1e-5)  # alike but for rounding
    assert np.max(np.abs(np.array(credits)[:, 0])) > 0.005
    assert difference.inner_steps == 5 * team.inner_steps


def test_all_pay_the_penalty_and_who_would_have_diverged_earns_nothing_more(task):
    difference, state, _, _ = difference_and_team(task, reward=Reward(penalty=7.0))
    still = jnp.zeros((4, 1))
    step = lambda state: difference.step(jax.random.key(2), state, still, difference.data)
    spoilt = lambda tree: jax.tree.map(lambda p: jnp.nan * p, tree)
    without = state.without._replace(params=spoilt(state.without.params))
    broken = state._replace(params=spoilt(state.params), without=without)
    np.testing.assert_allclose(step(broken)[1].credit, -7.0, rtol=1e-5)  # whatever each changed
    after, outcome = step(state._replace(without=without))
    worst = -np.log(task.loss_cap + LOG_FLOOR) - state.potentials[0]
    np.testing.assert_allclose(outcome.credit, outcome.reward - worst, rtol=1e-5)
    # For good, even if it comes down again.
    recovered = after._replace(without=after.without._replace(params=state.without.params))
    for _ in range(2):
        recovered, outcome = step(recovered)
        np.testing.assert_allclose(outcome.credit, outcome.reward, rtol=1e-6)


def test_every_run_is_without_its_agents_from_its_own_start(task):
    """In a population whose runs start anew, and so do those they are compared with."""
    lopt = tensor_controller(knobs=[], interval=INTERVAL, hidden_size=4)
    environment = training_environment(
        task, lopt.policy, horizon=(10, 20), window=WINDOW, credit="difference"
    )
    theta = first_actor_critic(jax.random.key(0), noisy_theta(lopt), lopt.policy.head, environment)
    population = collector(
        environment,
        lopt.policy.actor,
        lopt.policy.head,
        num_groups=3,
        group_size=2,
        antithetic=True,
    )
    collect = jax.jit(population.collect)
    groups, num_begun = population.init(jax.random.key(1)), 0
    for key in jax.random.split(jax.random.key(2), 4):
        has_begun = np.asarray(groups.state.step) == 0
        num_begun += np.sum(has_begun)
        of_each, alike = groups.state.without.params["w0"], groups.state.params["w0"][:, :, None]
        is_same = np.all(np.asarray(of_each == alike), axis=(2, 3, 4))
        np.testing.assert_array_equal(is_same, has_begun)
        assert not np.any(groups.state.without.is_over)
        groups, rollout, _ = collect(key, theta, groups, environment.data)
        outcome = rollout.transitions.outcome
        assert np.all(np.isfinite(outcome.credit))
        assert np.ptp(outcome.credit, axis=-1).max() > 1e-3
    assert num_begun > 6


def test_one_agent_cannot_be_paid_by_difference(task):
    with pytest.raises(ValueError, match="`credit` must be team for scheduler, which has one"):
        training_environment(
            task, small_policy().policy, horizon=20, window=10, credit="difference"
        )


def test_a_chooser_cannot_be_paid_by_difference(task):
    with pytest.raises(ValueError, match="`credit` must be team for chooser"):
        training_environment(task, chooser().policy, horizon=50, window=25, credit="difference")


def test_a_run_that_diverges_ends_and_pays(task):
    lopt = small_policy(learning_rate=3.0)
    reward = Reward(("loss",), penalty=7.0)
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=reward
    )
    state = environment.enter(
        jax.random.key(1), environment.start(jax.random.key(0)), environment.data
    )
    broken = state._replace(params=jax.tree.map(lambda p: jnp.nan * p, state.params))
    _, outcome = environment.step(jax.random.key(2), broken, jnp.zeros((1, 1)), environment.data)
    assert outcome.done
    # Every step of the run counts at the cap.
    np.testing.assert_allclose(outcome.reward, -7.0 - task.loss_cap / task.loss_scale, rtol=1e-5)


def test_diverging_saves_no_examples(task):
    lopt = small_policy(knobs=("batch_fraction",))
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=Reward(("examples",))
    )
    state = environment.enter(
        jax.random.key(1), environment.start(jax.random.key(0)), environment.data
    )
    broken = state._replace(params=jax.tree.map(lambda p: jnp.nan * p, state.params))
    _, outcome = environment.step(jax.random.key(2), broken, jnp.zeros((1, 2)), environment.data)
    np.testing.assert_allclose(outcome.rewards, [-1.0], rtol=1e-6)
    _, outcome = environment.step(jax.random.key(2), state, jnp.zeros((1, 2)), environment.data)
    np.testing.assert_allclose(outcome.rewards, [-INTERVAL / HORIZON], rtol=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "log_loss"])
def test_a_run_of_nan_is_paid_a_finite_price(task, name):
    lopt = small_policy()
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=Reward((name,))
    )
    state = environment.enter(
        jax.random.key(1), environment.start(jax.random.key(0)), environment.data
    )
    broken = state._replace(params=jax.tree.map(lambda p: jnp.nan * p, state.params))
    _, outcome = environment.step(jax.random.key(2), broken, jnp.zeros((1, 1)), environment.data)
    assert outcome.done and np.isfinite(outcome.reward) and outcome.reward <= -1.0
    worst = {"accuracy": 0.0, "log_loss": -np.log(task.loss_cap + LOG_FLOOR)}[name]
    np.testing.assert_allclose(outcome.rewards[0], worst - state.potentials[0], rtol=1e-5)


def draws():
    """A task whose loss is the number between 0 and 1 that its batch is, whatever is learned."""
    return dataclasses.replace(
        bowl(),
        batch=lambda key, instance, data, split: jax.random.uniform(key),
        loss=lambda params, batch, instance: batch + 0.0 * jnp.sum(params["x"]),
        loss_scale=1.0,
    )


def test_a_reward_is_measured_on_other_batches_than_those_of_the_interval():
    policy = scheduler(interval=3).policy
    reward = Reward(("loss",), batches=3)
    environment = training_environment(draws(), policy, horizon=3, window=3, reward=reward)
    step = lambda k: environment.step(k, environment.start(k), jnp.zeros((1, 1)), ())
    after, outcome = jax.jit(jax.vmap(step))(jax.random.split(jax.random.key(0), 500))
    trained_on = -outcome.reward  # the mean of three draws, as what is measured is
    assert np.all(np.abs(trained_on - after.loss) > 1e-6)
    assert abs(np.corrcoef(trained_on, after.loss)[0, 1]) < 4 / 500**0.5


def test_each_batch_of_a_measurement_is_drawn_anew():
    """The variance of the mean of uniform draws falls as their number."""
    found = lambda number: jax.vmap(
        lambda key: measure(Reward(batches=number), draws(), key, {"x": jnp.zeros(3)}, None, ())[0]
    )(jax.random.split(jax.random.key(0), 1000))
    for number in (1, 4):
        assert abs(12 * number * np.var(found(number)) - 1.0) < 4 * (2 / 1000) ** 0.5


def test_horizons_are_drawn_from_the_whole_range():
    environment = training_environment(bowl(), small_policy().policy, horizon=(5, 20), window=5)
    keys = jax.random.split(jax.random.key(0), 100)
    for begin in (environment.start, environment.init):
        states = jax.vmap(begin)(keys)
        assert set(np.unique(states.horizon)) == {5, 10, 15, 20}
        np.testing.assert_array_equal(states.knobs.seen.horizon, states.horizon)


def test_a_run_that_begins_above_the_cap_has_time_to_come_down(task):
    """It has diverged from twice its first loss on, as long as that is above the cap."""
    low = dataclasses.replace(task, loss_cap=0.5)
    lopt = small_policy(learning_rate=1e-4)
    environment = training_environment(low, lopt.policy, horizon=HORIZON, window=WINDOW)
    state = environment.enter(
        jax.random.key(1), environment.start(jax.random.key(0)), environment.data
    )
    step = lambda s: environment.step(jax.random.key(2), s, jnp.zeros((1, 1)), environment.data)[1]
    assert state.first_loss > 2.0 and not step(state).done
    assert step(state._replace(first_loss=0.4 * state.first_loss)).done


def test_only_a_run_that_has_just_begun_is_measured_at_a_window(task):
    environment = training_environment(task, small_policy().policy, horizon=HORIZON, window=WINDOW)
    enter = lambda s: environment.enter(jax.random.key(1), s, environment.data)
    begun = enter(environment.start(jax.random.key(0)))
    assert begun.loss == begun.first_loss > 1.0
    later = begun._replace(step=jnp.int32(5), loss=jnp.float32(0.1))
    assert enter(later).loss == jnp.float32(0.1)


def test_what_the_critic_sees_by_hand(task):
    environment = training_environment(
        task, small_policy().policy, horizon=HORIZON, window=WINDOW, privileged=(0.0, 1.0)
    )
    state = environment.start(jax.random.key(0))._replace(
        step=jnp.int32(5), first_loss=jnp.float32(2.0), loss=jnp.float32(0.5)
    )
    expected = [0.25 * np.log10(20), 0.75, 0.3 * np.log(0.5), 0.3 * np.log(0.25), 0.0, 1.0]
    np.testing.assert_allclose(environment.observe(state).critic, expected, rtol=1e-5)


def test_a_loss_in_bfloat16_is_paid_in_float32(task):
    half = dataclasses.replace(
        task,
        loss=lambda params, batch, instance: task.loss(params, batch, instance).astype(
            jnp.bfloat16
        ),
    )
    lopt = small_policy()
    environment = training_environment(
        half, lopt.policy, horizon=HORIZON, window=WINDOW, reward=Reward(("loss", "log_loss"))
    )
    states, outcomes = episode(environment, lopt.policy, noisy_theta(lopt), jax.random.key(0))
    assert outcomes[0].rewards.dtype == states[1].loss.dtype == jnp.float32
    assert jax.tree.map(jnp.result_type, states[0]) == jax.tree.map(jnp.result_type, states[1])


def test_an_agent_sees_how_far_steps_go():
    """Five decades of updates over parameters, each told from the next."""
    knobs = scheduler().policy.knobs
    params = {"w": jnp.ones(4)}
    seen = []
    for rate in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        state = knobs.init(params, 100)
        turned = state._replace(positions=jnp.full((1, 1), np.log(rate)))
        _, state = knobs.update(params, turned, params, jnp.float32(1.0))
        seen.append(float(knobs.observe(state)[0, NUM_RUN_FEATURES + 2]))
    np.testing.assert_allclose(np.diff(seen), 0.2 * np.log(10.0), rtol=1e-3)


@pytest.mark.parametrize("name", POLICIES)
def test_an_update_compiles_once(name):
    lopt = POLICIES[name]()
    tx = lopt.transform(lopt.init(jax.random.key(0)), horizon=100)
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    update = jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(3):
        _, state = update(params, state, params, value=jnp.float32(1.0))
    assert update._cache_size() == 1


def test_knobs_stay_in_their_range_and_keep_still_at_zero(task):
    del task
    knobs = tensor_controller("adam", ["b1", "weight_decay"], lowest=0.01, highest=0.2).policy.knobs
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = knobs.init(params, 100)
    still = knobs.turn(state, jnp.zeros((2, 3)))
    np.testing.assert_array_equal(still.positions, state.positions)
    np.testing.assert_allclose(np.exp(state.positions[:, 0]), 0.1, rtol=1e-5)
    for action, rate in ((1e3, 0.2), (-1e3, 0.01)):
        turned = knobs.turn(state, jnp.full((2, 3), action))
        np.testing.assert_allclose(np.exp(turned.positions[:, 0]), rate, rtol=1e-5)
        assert np.all(np.isfinite(knobs.observe(turned)))


@pytest.mark.parametrize("size", [np.nan, np.inf, 1e30])
def test_a_run_that_has_blown_up_is_seen_as_finite(size):
    for lopt in (scheduler(), tensor_controller(), chooser()):
        knobs = lopt.policy.knobs
        params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        blown = jax.tree.map(lambda p: size * p, params)
        state = knobs.init(params, 100)
        for _ in range(3):
            _, state = knobs.update(blown, state, blown, jnp.float32(size))
            seen = knobs.observe(state)
            assert np.all(np.isfinite(seen)) and np.max(np.abs(seen)) <= 3.0


def test_each_tensor_obeys_its_own_agent():
    knobs = tensor_controller("sgdm", [], learning_rate=0.1).policy.knobs
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    state = knobs.turn(knobs.init(params, 100), jnp.array([[2.0], [0.0]]))
    updates, _ = knobs.update(params, state, params, jnp.float32(1.0))
    np.testing.assert_allclose(updates["a"], -0.1 * np.exp(0.3 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(updates["b"], -0.1, rtol=1e-5)


def test_the_chosen_optimizer_trains_and_the_others_follow():
    knobs = chooser(["sgdm", "adam"], [0.5, 0.01]).policy.knobs
    params = {"a": jnp.ones(2)}
    first = knobs.turn(knobs.init(params, 100), jnp.array([[1.0]]))
    updates, state = knobs.update(params, first, params, jnp.float32(1.0))
    np.testing.assert_allclose(updates["a"], -0.01, rtol=1e-4)
    updates, _ = knobs.update(params, knobs.turn(state, jnp.zeros((1, 1))), params, jnp.float32(1))
    np.testing.assert_allclose(updates["a"], -0.5 * 1.9, rtol=1e-5)  # its momentum is warm


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scheduler(lowest=1.0, highest=0.1), "`lowest` and `highest` must make a range"),
        (lambda: scheduler(learning_rate=9.0), "`learning_rate` must be in the range 0.0001 to 3"),
        (lambda: scheduler(base="lion"), "`base` must be a known name; got lion. Try adam, digits"),
        (lambda: scheduler(base="optax:lions"), "`base` must be module:attribute that can be"),
        (lambda: scheduler(base="math:sin"), "`base` must be a function that takes learning_rate"),
        (
            lambda: scheduler(base="optax.contrib:dpsgd"),
            "must be a function that takes learning_rate",
        ),
        (
            lambda: scheduler(base="optax:lbfgs"),
            "takes steps from gradients.*got optax:lbfgs .*grad",
        ),
        (
            lambda: scheduler(base="digits", knobs=["b1"]),
            "`knobs` of digits must be among batch_fr",
        ),
        (lambda: tensor_controller(knobs=["batch_fraction"]), "`knobs` of sgdm must be among mome"),
        (lambda: tensor_controller(networks=0), "`networks` must be at least 1; got 0"),
        (lambda: scheduler(interval=0), "`interval` must be at least 1; got 0"),
        (lambda: scheduler(head="categorical"), "`head` must be gaussian or squashed"),
        (lambda: scheduler(core="lstm"), "`core` must be mlp or gru; got lstm"),
        (lambda: scheduler(step=0.0), "`step` must be positive; got 0.0"),
        (lambda: tensor_controller("sgdm", ["b1"]), "`knobs` of sgdm must be among momentum"),
        (lambda: tensor_controller("adam", ["b1", "b1"]), "`knobs` must differ; got b1, b1"),
        (lambda: chooser(["sgdm"] * 2, [0.1, np.inf]), "must be positive and finite; got inf"),
        (lambda: chooser(["sgdm"], [0.1, 0.2]), "`learning_rates` must be one for each of the 1"),
        (lambda: chooser(["sgdm", "sgd"], [0.1, 0.2]), "`bases` must be among sgdm, adam; got sgd"),
    ],
)
def test_bad_policies(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (Reward(("recall",)), "got recall. Try log_loss, loss, examples, accuracy, macro_f1"),
        (Reward(()), "`reward` must name at least one"),
        (Reward(("loss", "loss")), "`reward` must differ"),
        (Reward(("loss",), weights=(1.0, 2.0)), "`reward_weights` must be one for each of 1"),
        (Reward(("loss",), weights=(-1.0,)), "`reward_weights` must be positive"),
        (Reward(batches=0), "`reward_batches` must be at least 1"),
        (Reward(penalty=-1.0), "`penalty` must not be negative"),
        (Reward(on="test"), "`reward_on` must be train or valid; got test"),
    ],
)
def test_bad_rewards(task, reward, message):
    with pytest.raises(ValueError, match=message):
        check_reward(reward, task)


def test_what_is_paid_must_have_a_worst_value(task):
    uncapped = dataclasses.replace(task, metric_caps={"accuracy": 0.0})
    check_reward(Reward(("accuracy",)), uncapped)
    with pytest.raises(ValueError, match=r"got macro_f1, which has none.*Add it to metric_caps"):
        check_reward(Reward(("macro_f1",)), uncapped)
    with pytest.raises(ValueError, match="`loss_cap` of task tiny must be finite"):
        check_reward(Reward(), dataclasses.replace(task, loss_cap=np.inf))


def test_interval_must_divide_the_window(task):
    message = "`window` must be a multiple of the 5 steps.*got 12. Try window=15"
    with pytest.raises(ValueError, match=message):
        training_environment(task, small_policy().policy, horizon=24, window=12)
