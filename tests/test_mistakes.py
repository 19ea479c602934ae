"""What is easily given in place of another thing, in Python: one line that says what to type."""

import jax
import jax.numpy as jnp
import optax
import pytest
from tiny_run import THETA, tiny_learner
from user_module import bowl

import l2o

LOPT = l2o.learnable_adam()
DIGITS = l2o.optimizer("digits", horizon=5)
KEY = jax.random.key(0)
RUNS = {"horizon": 8, "window": 4}

OTHERS = "`state` must come from `init` of nominal_mlp and these parameters; got one of others"


def update_with(state, tx=DIGITS):
    params = {"w": jnp.ones((4, 3))}
    return tx.update(params, state, params, value=1.0)


MISTAKES = {
    "a name as fallback": (
        lambda: l2o.guarded(DIGITS, "adam"),  # pyright: ignore
        "`fallback` must be an optax transformation; got 'adam'. Try optax.adam",
    ),
    "a function as fallback": (
        lambda: l2o.guarded(DIGITS, optax.adam),  # pyright: ignore
        "`fallback` must be an optax transformation; got the function adam",
    ),
    "a name to guard": (lambda: l2o.guarded("digits"), "`tx` must be an optax transformation"),  # pyright: ignore
    "a name to diagnose": (lambda: l2o.diagnosed("digits"), "`tx` must be an optax trans"),  # pyright: ignore
    "a name to stack": (lambda: l2o.stacked("digits", {"": 0}), "`tx` must be an optax trans"),  # pyright: ignore
    "a design as pretrained": (
        lambda: l2o.optimizer("muon_mlp", 9),
        "Try lopt = l2o.muon_mlp.., a design, and lopt.transform.lopt.init.key., horizon=1000.",
    ),
    "a text as rate": (lambda: l2o.muon_mlp(rate="0.1"), "`rate` must be a number; got '0.1'"),  # pyright: ignore
    "a fraction as size": (
        lambda: l2o.muon_mlp(direction_size=2.5),  # pyright: ignore
        "`direction_size` must be a whole number; got 2.5. Try direction_size=8",
    ),
    "a state of other shapes": (lambda: update_with(DIGITS.init({"w": jnp.ones((4, 1))})), OTHERS),
    "a state of fewer": (lambda: update_with(DIGITS.init({})), OTHERS),
    "a state of Adam's": (
        lambda: update_with(optax.adam(1e-3).init({"w": jnp.ones((4, 3))})),
        "`state` must come from `init` of nominal_mlp; got tuple. Call tx.init",
    ),
    "a state that lacks its guard": (
        lambda: update_with(DIGITS.init({"w": jnp.ones((4, 3))}), l2o.guarded(DIGITS)),
        "`state` must come from `init` of guarded; got PerTensorState. Call tx.init",
    ),
    "a name as meta-optimizer": (
        lambda: l2o.gradient_learner(
            l2o.pes(l2o.inner_problem(bowl(), LOPT, **RUNS), num_pairs=2, std=0.1), "adam"
        ),  # pyright: ignore
        "`optimizer` must be an optax transformation; got 'adam'",
    ),
    "a name as design": (
        lambda: l2o.inner_problem(bowl(), "adafac_mlp", **RUNS),  # pyright: ignore
        "`lopt` must be a LearnedOptimizer; got str 'adafac_mlp'. Try l2o.learnable_adam",
    ),
    "a constructor as design": (
        lambda: l2o.inner_problem(bowl(), l2o.learnable_adam, **RUNS),  # pyright: ignore
        "`lopt` must be a LearnedOptimizer; got function learnable_adam",
    ),
    "a horizon of text": (
        lambda: l2o.inner_problem(bowl(), LOPT, horizon="50", window=5),  # pyright: ignore
        "`horizon` must be a whole number, or a pair of them; got '50'. Try horizon=200",
    ),
    "a task as problem": (
        lambda: l2o.pes(bowl(), num_pairs=2, std=0.1),  # pyright: ignore
        "`problem` must be a Problem; got Task. Try l2o.inner_problem",
    ),
    "half a pair": (
        lambda: l2o.pes(l2o.inner_problem(bowl(), LOPT, **RUNS), num_pairs=2.5, std=0.1),  # pyright: ignore
        "`num_pairs` must be a whole number; got 2.5. Try num_pairs=16",
    ),
    "a seed as key": (
        lambda: l2o.fit(0, tiny_learner(), THETA, num_steps=2),  # pyright: ignore
        "`key` must be a random key; got 0. Try jax.random.key",
    ),
    "a state as theta": (
        lambda: l2o.fit(KEY, tiny_learner(), tiny_learner().init(KEY, THETA), num_steps=2),
        "`theta` must be meta-parameters; got a MetaState. Try learner.theta",
    ),
    "a split as purpose": (
        lambda: l2o.stream(0, "train"),  # pyright: ignore
        "`purpose` must be one of meta_training, evaluation, .* got 'train'",
    ),
    "a path as constructor": (
        lambda: l2o.load("digits", design="my:design"),  # pyright: ignore
        "`design` must be a constructor; got 'my:design'. Try my_module.my_design",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case):
    make, says = MISTAKES[case]
    with pytest.raises(ValueError, match=says) as found:
        make()
    assert "\n" not in str(found.value)


def test_nothing_prints_its_data():
    learner = tiny_learner()
    task = l2o.Task(
        name="large",
        sample=lambda key: None,
        init=lambda key, instance: {"x": jnp.zeros(2)},
        batch=lambda key, instance, data, split: data,
        loss=lambda params, batch, instance: jnp.sum(jnp.square(params["x"] - jnp.mean(batch))),
        loss_cap=10.0,
        data=jnp.arange(1000.0),
    )
    problem = l2o.inner_problem(task, LOPT, **RUNS)
    for thing in (task, problem, l2o.pes(problem, num_pairs=2, std=0.1), learner):
        assert "data=" not in repr(thing) and len(repr(thing)) < 2000
