"""The examples of CONTRIBUTING.md are as short as they should be, and run."""

import re
from pathlib import Path

import jax
import optax
import pytest

import l2o

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
LIMITS = {"digits_conv": 16, "momentum_mlp": 23}


def run_blocks() -> dict:
    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    return names


@pytest.mark.parametrize(("block", "limit"), [*zip(BLOCKS, LIMITS.values(), strict=True)])
def test_the_examples_are_short(block, limit):
    lines = [line for line in block.splitlines() if line.strip()]
    assert 10 < len(lines) <= limit
    assert max(map(len, lines)) <= 110


def test_the_examples_pass_the_checks():
    names = run_blocks()
    l2o.testing.check_task(names["digits_conv"](), num_steps=30)
    l2o.testing.check_optimizer(names["momentum_mlp"](), design=names["momentum_mlp"])


def test_the_examples_meta_train(key):
    names = run_blocks()
    lopt = names["momentum_mlp"]()
    problem = l2o.inner_problem(names["digits_conv"](), lopt, horizon=10, window=5)
    learner = l2o.gradient_learner(l2o.pes(problem, num_pairs=2, std=0.01), optax.adam(1e-3))
    theta = lopt.init(key)
    lines = []
    state = l2o.fit(
        key,
        learner,
        theta,
        num_steps=2,
        log_every=1,
        checkpoint_every=1,
        on_metrics=lines.append,
    )
    assert int(state.step) == 2 and [line["step"] for line in lines] == [1, 2]
    assert all(1.0 < line["meta_loss"] < 5.0 for line in lines)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), learner.theta(state), theta)
    assert all(jax.tree.leaves(moved))
