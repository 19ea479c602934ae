"""From a trained model and a budget to a compressed one, measured."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.compression.budget import LARGEST
from l2o.compression.fine_tuning import fine_tune as fine_tuned
from l2o.compression.layers import leaves_by_name
from l2o.compression.policy import CompressionPolicy, load_compression_policy
from l2o.compression.problem import CompressionProblem, compression_problem
from l2o.compression.pruning import prune_weights, weight_masks
from l2o.compression.quantization import quantize, quantize_weights
from l2o.compression.scheme import Scheme, SchemeName
from l2o.compression.searches.search import Found
from l2o.compression.searches.table import SEARCHES
from l2o.compression.trained_model import Params, TrainedModel
from l2o.compression.units import Group, prune_units, remove_units
from l2o.leaves import require_transformation
from l2o.registry import unknown_name_error
from l2o.release_file import given_as
from l2o.rng import check_seed
from l2o.supervision.supervised import Rows
from l2o.task import Split

Metrics = Mapping[Split, Mapping[str, float]]

TIMED_ROWS, TURNS = 256, 31
"""Rows of which the outputs are timed, and how often, in turn."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """Compressed model, and what it cost.

    Attributes:
        model: The model before.
        scheme: What was compressed: "weights", "units" or "bits".
        params: Compressed parameters; without the units that were removed, arrays are smaller.
        counts: Weights or units that each layer keeps, or its bits.
        masks: Which weights, or units, of each layer are kept; empty for bits.
        integers: Whole numbers and scales of each layer that was quantized, whose product is in
            `params`.
        unit: What the budget counts.
        limit: What the counts may cost, of `whole`.
        cost: What they do cost.
        whole: What the network before costs.
        search: Name of the search, or "policy".
        found: What it found, with its evaluations.
        before: Loss and metrics of the model before, on the validation and test rows.
        after: Those once it is compressed.
        after_fine_tuning: Those after fine-tuning; None without.
        seconds: Median seconds for 256 rows before and after, if units were removed.
    """

    model: TrainedModel
    scheme: SchemeName
    params: Params = field(repr=False)
    counts: Mapping[str, int]
    masks: Mapping[str, np.ndarray] = field(repr=False)
    integers: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(repr=False)
    unit: str
    limit: int
    cost: int
    whole: int
    search: str
    found: Found
    before: Metrics
    after: Metrics
    after_fine_tuning: Metrics | None
    seconds: tuple[float, float] | None

    @property
    def bits(self) -> Mapping[str, int]:
        """Bits of each layer; empty unless it was quantized."""
        return self.counts if self.scheme == "bits" else {}


def compress(
    model: TrainedModel,
    *,
    keep: float | None = None,
    flops: float | None = None,
    bits: float | None = None,
    units: bool = False,
    search: str = "ppo",
    policy: CompressionPolicy | str | Path | None = None,
    evaluations: int = 200,
    fine_tune: int = 0,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Compressed:
    """Compress a trained model to a budget, which is never exceeded.

    A search shares the budget out among the layers by the model's metric on the validation rows.

    >>> import l2o
    >>> rng = np.random.default_rng(0)
    >>> split = lambda: (x := rng.normal(size=(64, 4)).astype(np.float32), (x[:, 0] > 0) * 1)
    >>> model = l2o.trained_model(
    ...     "sign",
    ...     {"w": np.array([[-3.0, 3.0], [0.1, 0.0], [0.0, 0.1], [0.2, 0.0]], np.float32)},
    ...     lambda params, inputs: inputs @ params["w"],
    ...     {"train": split(), "valid": split(), "test": split()},
    ... )
    >>> smaller = l2o.compress(model, keep=0.25, search="uniform")
    >>> smaller.counts, smaller.after["test"]["accuracy"]
    ({'w': 2}, 1.0)

    Args:
        model: Trained model, see `l2o.trained_model` and `l2o.trained_model_nnx`.
        keep: Share of all parameters that may stay. Exactly one of `keep`, `flops` and `bits` is
            given.
        flops: Share of the multiply-adds of a row that may stay.
        bits: Average number of bits of the layers' weights, from 2 to 8.
        units: Whether whole units and channels are removed, instead of single weights.
        search: uniform, global_magnitude, greedy, random_search, tpe, or ppo on this model.
        policy: Meta-trained policy, or its file, which allocates without search.
        evaluations: Number of networks that the search may measure.
        fine_tune: Number of steps of fine-tuning.
        optimizer: Optimizer that fine-tunes; `optax.adam(1e-3)` if None.
        batch_size: Number of rows of a batch of fine-tuning.
        seed: Seed of the search and of the batches.

    Raises:
        ValueError: If the budget is not one, is below the smallest network or not the only one;
            there is no such search; or an argument is out of range.
    """
    check_seed(seed)
    if not isinstance(model, TrainedModel):
        raise ValueError(
            f"`model` must be a TrainedModel; got {type(model).__name__}. Describe it by "
            "l2o.trained_model_nnx, or l2o.trained_model, with its data."
        )
    if not isinstance(policy, CompressionPolicy | str | Path | None):
        raise ValueError(
            f"`policy` must be a CompressionPolicy or its file; got {type(policy).__name__}. Try "
            "policy='policy.safetensors'."
        )
    if not isinstance(units, bool):
        raise ValueError(
            f"`units` must be True or False; got {type(units).__name__}. What belongs to units is "
            "an argument of l2o.trained_model."
        )
    for name, value, least in (
        ("evaluations", evaluations, 1),
        ("fine_tune", fine_tune, 0),
        ("batch_size", batch_size, 1),
    ):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(
                f"`{name}` must be a whole number, at least {least}; got {value!r}. "
                f"Try {name}={max(64, least)}."
            )
    tx = optax.adam(1e-3) if optimizer is None else require_transformation(optimizer, "optimizer")
    if model.size > LARGEST:
        raise ValueError(
            f"`model` must have at most {LARGEST:,} parameters; got {model.size:,}. Compress parts "
            "of it."
        )
    if search not in SEARCHES:
        raise unknown_name_error("search", search, SEARCHES)
    scheme, groups = make_scheme(model, keep=keep, flops=flops, bits=bits, units=units)
    problem = compression_problem(model, scheme)
    if policy is None:
        found = SEARCHES[search](problem, evaluations, seed)
    else:
        if not isinstance(policy, CompressionPolicy):
            with given_as("policy", "path"):
                policy = load_compression_policy(policy)
        found = policy.allocate(problem)
    weights, params = model.params, problem.compressed(found.counts)
    measured = measure_splits(model, params)
    after_fine_tuning = None
    if fine_tune:
        weights = fine_tuned(
            problem, found.counts, tx, steps=fine_tune, batch_size=batch_size, seed=seed
        )
        params = problem.compressed(found.counts, weights)
        after_fine_tuning = measure_splits(model, params)
    masks = masks_of(problem, found.counts)
    if scheme.name == "units":
        params = remove_units(params, groups, list(masks.values()))
    budget = scheme.budget
    return Compressed(
        model,
        scheme.name,
        params,
        dict(zip(budget.names, map(int, found.counts), strict=True)),
        masks,
        integers_of(problem, weights, found.counts),
        budget.unit,
        budget.limit * budget.scale,
        budget.spent(found.counts) * budget.scale,
        budget.whole * budget.scale,
        search if policy is None else "policy",
        found,
        measure_splits(model, model.params),
        measured,
        after_fine_tuning,
        time_both(model, params) if scheme.name == "units" else None,
    )


def make_scheme(
    model: TrainedModel,
    *,
    keep: float | None,
    flops: float | None,
    bits: float | None,
    units: bool,
) -> tuple[Scheme, tuple[Group, ...]]:
    """Make the scheme of the one budget that is given, and the groups of units if it has any.

    Raises:
        ValueError: As `compress`.
    """
    given = {k: v for k, v in (("keep", keep), ("flops", flops), ("bits", bits)) if v is not None}
    if len(given) != 1:
        raise ValueError(
            "exactly one of `keep`, `flops` and `bits` must be given; got "
            f"{' and '.join(given) or 'none'}. Try keep=0.1."
        )
    if bits is not None:
        if units:
            raise ValueError("`units` must be left out with bits; got both. Try keep=0.5.")
        return quantize_weights(model, bits=bits), ()
    if units:
        return prune_units(model, keep=keep, flops=flops)
    return prune_weights(model, keep=keep, flops=flops), ()


def measure_splits(model: TrainedModel, params: Params) -> Metrics:
    """Measure loss and metrics on all validation and all test rows."""
    measure = _measuring(model)
    splits: tuple[Split, ...] = ("valid", "test")
    return {
        split: {k: float(v) for k, v in measure(params, model.data[split]).items()}
        for split in splits
    }


@functools.lru_cache(maxsize=8)
def _measuring(model: TrainedModel) -> Callable[[Params, Rows], dict[str, jax.Array]]:
    """Compiled measurement of a model."""
    return jax.jit(model.measure)


def masks_of(problem: CompressionProblem, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Tell which weights or units of each group are kept; nothing for bits."""
    names, guide = problem.budget.names, problem.network.guide
    if problem.scheme.name == "bits":
        return {}
    if problem.scheme.name == "units":
        guide = dict(zip(names, guide, strict=True))
    masks = weight_masks(names, guide, jnp.asarray(counts))
    return {name: np.asarray(mask) for name, mask in masks.items()}


def integers_of(
    problem: CompressionProblem, weights: Params, counts: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Whole numbers and scales of each layer of these bits; nothing for masks."""
    if problem.scheme.name != "bits":
        return {}
    leaves, found = leaves_by_name(weights), {}
    for name, bits in zip(problem.budget.names, counts, strict=True):
        values, scale = jax.jit(quantize)(leaves[name], jnp.int32(bits))
        found[name] = np.asarray(values, np.int8), np.asarray(scale)
    return found


def time_both(model: TrainedModel, params: Params) -> tuple[float, float]:
    """Median seconds that 256 rows take before and after, in turns."""
    rows = model.data["valid"].inputs
    first = len(jax.tree.leaves(rows)[0])
    inputs = jax.tree.map(lambda x: x[jnp.arange(TIMED_ROWS) % first], rows)
    apply = jax.jit(model.apply)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(TURNS + 1):
        for i, each in enumerate((model.params, params)):
            begun = time.perf_counter()
            jax.block_until_ready(apply(each, inputs))
            seconds[i].append(time.perf_counter() - begun)
    before, after = (float(np.median(found[1:])) for found in seconds.values())
    return before, after


def num_parameters(result: Compressed) -> int:
    """Number of parameters that are left: those of masks and all that is not compressed."""
    if result.scheme != "weights":
        return sum(leaf.size for leaf in jax.tree.leaves(result.params))
    leaves = leaves_by_name(result.params)
    return sum(result.counts.get(name, leaf.size) for name, leaf in leaves.items())
