"""Every way to meta-train, by name."""

from collections.abc import Mapping
from dataclasses import fields

from l2o.cli.methods.estimators import ESTIMATORS
from l2o.cli.methods.method import Method
from l2o.cli.methods.policy_gradients import POLICY_GRADIENTS
from l2o.cli.methods.strategies import STRATEGIES

METHODS: Mapping[str, type[Method]] = {
    method.name: method for method in (*ESTIMATORS, *STRATEGIES, *POLICY_GRADIENTS)
}
"""Every way to meta-train, by the word that chooses it."""


def alike(method: type[Method], other: Method) -> Method:
    """A method with the options that it shares with another one, and a population of its size."""
    if isinstance(other, method):
        return other
    names = {option.name for option in fields(method)}
    shared = {o.name: getattr(other, o.name) for o in fields(other) if o.name in names}
    return method(**shared).with_runs(other.num_runs)
