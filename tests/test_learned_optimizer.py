"""Constructors of designs record their arguments."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import optax
import pytest

import l2o
from l2o.registry import DESIGNS, POLICIES


@dataclasses.dataclass(frozen=True, eq=False)
class Special(l2o.LearnedOptimizer):
    note: str = dataclasses.field(kw_only=True)


@l2o.design
def special(rate: float, *, names: list[str] | None = None, steps: int = 3) -> Special:
    """A design of a class of its own."""
    init = lambda key: {"rate": jnp.float32(rate)}
    transform = lambda theta, *, horizon=None: optax.with_extra_args_support(optax.sgd(rate))
    return Special("special", init, transform, note=f"{steps} steps")


def test_the_arguments_of_a_call_and_the_defaults_are_the_config():
    assert special(0.5).config == {"rate": 0.5, "names": None, "steps": 3}
    found = special(rate=0.1, steps=4, names=["a"])
    assert found.config == {"rate": 0.1, "names": ["a"], "steps": 4}
    assert isinstance(found, Special) and found.note == "4 steps"
    assert special(**found.config).config == found.config
    with pytest.raises(TypeError, match="rate"):
        special()


def test_a_constructor_looks_as_it_was_written():
    assert special.__name__ == "special" and special.__doc__ == "A design of a class of its own."
    assert list(inspect.signature(special).parameters) == ["rate", "names", "steps"]


@pytest.mark.parametrize("name", sorted(DESIGNS.keys() - POLICIES.keys()))
def test_every_design_records_all_of_its_arguments(name):
    parameters = inspect.signature(DESIGNS[name]).parameters
    found = DESIGNS[name]().config
    assert {k: p.default for k, p in parameters.items()} == found == json.loads(json.dumps(found))


def test_a_released_design_of_a_user_is_rebuilt_from_its_config(tmp_path):
    lopt = special(0.25, names=["a"], steps=7)
    path = tmp_path / "theta.safetensors"
    l2o.save(path, lopt, lopt.init(jax.random.key(0)))
    loaded, theta = l2o.load(path, design=special)
    assert loaded.config == lopt.config and theta["rate"] == 0.25
