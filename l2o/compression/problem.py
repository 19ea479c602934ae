"""A network to compress, as what searches see: counts in, a validation score out."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2o.compression.budget import Budget, project
from l2o.compression.scheme import Guide, Scheme
from l2o.compression.trained_model import Params, TrainedModel
from l2o.supervision.supervised import Rows


class Network(NamedTuple):
    """Arrays of one trained network.

    Attributes:
        params: Trained parameters.
        guide: What the scheme works out of them once.
    """

    params: Params
    guide: Guide


Evaluate = Callable[[Network, Rows, jax.Array], jax.Array]


@dataclass(frozen=True, eq=False)
class CompressionProblem:
    """Network to compress to a budget, by the validation score of what results.

    Attributes:
        model: The trained model.
        scheme: Way to compress it.
        network: Its arrays.
        rows: Validation rows.
        evaluate: Compiled function `(network, rows, counts) -> score`, see `TrainedModel.score`.
        to_counts: Compiled function `(action) -> counts`, see `project`.
        first: Problem of the same architecture that this was made from, see `of`; None if none.
    """

    model: TrainedModel
    scheme: Scheme
    network: Network = field(repr=False)
    rows: Rows = field(repr=False)
    evaluate: Evaluate = field(repr=False)
    to_counts: Callable[[jax.Array], jax.Array] = field(repr=False)
    first: "CompressionProblem | None" = field(default=None, repr=False)

    @property
    def budget(self) -> Budget:
        """Budget of the scheme."""
        return self.scheme.budget

    @property
    def num_groups(self) -> int:
        """Number of groups, each of which has a count."""
        return len(self.budget.names)

    def score(self, counts: np.ndarray | jax.Array) -> float:
        """Score of the network of these counts on the validation rows."""
        return float(self.evaluate(self.network, self.rows, jnp.asarray(counts, jnp.int32)))

    def project(self, action: np.ndarray | jax.Array) -> np.ndarray:
        """Counts of an action, within the budget."""
        return np.asarray(self.to_counts(jnp.asarray(action, jnp.float32)))

    def compressed(self, counts: np.ndarray | jax.Array, params: Params | None = None) -> Params:
        """Parameters of these counts, in their old shapes; of fine-tuned ones, if given."""
        used = self.network.params if params is None else params
        counts = jnp.asarray(counts, jnp.int32)
        return jax.jit(self.scheme.compress)(used, self.network.guide, counts)

    def of(self, model: TrainedModel) -> "CompressionProblem":
        """The same for another network of the same architecture, without compiling anew."""
        network = Network(model.params, self.scheme.prepare(model.params))
        return dataclasses.replace(
            self,
            model=model,
            network=network,
            rows=model.data["valid"],
            first=self.architecture,
        )

    @property
    def architecture(self) -> "CompressionProblem":
        """First problem of this architecture: what is compiled for it serves all others."""
        return self.first or self


def compression_problem(model: TrainedModel, scheme: Scheme) -> CompressionProblem:
    """Make a problem of a trained model and a way to compress it."""

    def evaluate(network: Network, rows: Rows, counts: jax.Array) -> jax.Array:
        return model.score(scheme.compress(network.params, network.guide, counts), rows)

    return CompressionProblem(
        model,
        scheme,
        network=Network(model.params, scheme.prepare(model.params)),
        rows=model.data["valid"],
        evaluate=jax.jit(evaluate),
        to_counts=jax.jit(lambda action: project(scheme.budget, action)),
    )
