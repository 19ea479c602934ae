"""From independent replicates of estimators to their bias, variance, cosine and cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import scipy.stats

from l2o.evaluation.statistics import mean_interval

BUDGET = 10_000
"""Inner steps of the estimate whose variance is reported."""

LEVEL = 0.05
"""Probability that any unbiased estimator of a diagnosis is called biased."""

ROUNDING = 1e-5
"""Difference between two gradients, relative to their norm, that float32 explains."""

TINY = 1e-30
"""Smallest standard error that is told from zero."""

MANY = 1e9
"""Degrees of freedom at which t is normal."""

LOCK_STEP = frozenset({"es_single"})
"""Estimators whose pairs are all at one stage, so that one estimate sees one stretch of a run."""

Kind = Literal["exact", "smoothed"]
ReferenceChoice = Literal["auto", "exact", "smoothed"]

KINDS: Mapping[str, Kind] = {"full_grad": "exact", "full_es": "smoothed"}
"""Which reference an estimator's replicates make."""

REFERENCES: Mapping[str, int] = {"full_grad": 1, "full_es": 4}
"""Replicates for a reference for each replicate that is measured."""


class Job(NamedTuple):
    """An estimator at a horizon and, unless its estimates are of whole runs, a window."""

    estimator: str
    horizon: int
    window: int | None


class Replicates(NamedTuple):
    """Independent replicates of one estimator.

    Attributes:
        gradients: Mean estimate of each replicate, shape (replicates, dims).
        squares: Mean over a replicate of its estimates' squared norms, shape (replicates,).
        valid: Fraction of a replicate's estimates that were valid, shape (replicates,). The means
            are over those; both are zero where there is none.
        inner_steps: Inner steps of one replicate, over all its members.
        seconds: Seconds of one replicate on one device, without compilation, in the fastest of its
            programs.
        compile_seconds: Seconds of compilation.
    """

    gradients: np.ndarray
    squares: np.ndarray
    valid: np.ndarray
    inner_steps: int
    seconds: float
    compile_seconds: float


@dataclass(frozen=True)
class Reference:
    """The gradient that estimators are held against, at one horizon.

    Attributes:
        horizon: Inner steps of a training run.
        kind: "exact", of the cost itself, by full backpropagation; or "smoothed", of its mean over
            perturbations of theta, by full ES.
        norm: Its norm, with the part that noise explains taken off.
        error: Standard error, the root of the trace of its covariance.
        num_replicates: Replicates it is the mean of; none of them belongs to a measurement.
        valid: Fraction of the replicates made for it that were valid.
        is_used: Whether it is what bias and cosine are against.
    """

    horizon: int
    kind: Kind
    norm: float
    error: float
    num_replicates: int
    valid: float
    is_used: bool


@dataclass(frozen=True)
class Measurement:
    """One estimator at one horizon and window. NaN stands for what cannot be told.

    Attributes:
        estimator: Name of the estimator.
        horizon: Inner steps of a training run.
        window: Inner steps of an estimate; None if that is a whole run.
        inner_steps: Inner steps of one replicate, over all members.
        num_replicates: Independent replicates with a valid estimate.
        valid: Fraction of estimates that were valid.
        seconds: Seconds for `BUDGET` inner steps on one device, without compilation.
        compile_seconds: Seconds of compilation.
        norm: Norm of the mean estimate, with the part that noise explains taken off.
        variance: Trace of the covariance of the mean of as many replicates as `BUDGET` inner steps
            pay for, those that are not valid too: the noise that is left when outer steps add up.
        variance_low: Lower end of the 95 % bootstrap interval of `variance`.
        variance_high: Upper end of that interval.
        step_variance: Variance of one outer step that spends `BUDGET` inner steps on a window each
            of independent pairs, or members, at random stages. NaN for estimators in lock-step,
            and for those that need several pairs.
        step_variance_low: Lower end of the 95 % bootstrap interval of `step_variance`.
        step_variance_high: Upper end of that interval.
        bias: Distance of the mean estimate from the reference, with the part that noise explains
            taken off.
        bias_error: Standard error of that distance.
        p_value: Smallest p-value of no bias over the coordinates of theta (Welch's t test), times
            their number.
        is_biased: Whether `p_value` is below `LEVEL` over the number of measurements.
        relative_bias: Bias over the norm of the reference.
        relative_bias_error: Standard error of `relative_bias`, without that of the norm.
        cosine: Cosine of the mean estimate to the reference.
        mean_cosine: Mean over replicates of their cosine to the reference.
    """

    estimator: str
    horizon: int
    window: int | None
    inner_steps: int
    num_replicates: int
    valid: float
    seconds: float
    compile_seconds: float
    norm: float = math.nan
    variance: float = math.nan
    variance_low: float = math.nan
    variance_high: float = math.nan
    step_variance: float = math.nan
    step_variance_low: float = math.nan
    step_variance_high: float = math.nan
    bias: float = math.nan
    bias_error: float = math.nan
    p_value: float = math.nan
    is_biased: bool = False
    relative_bias: float = math.nan
    relative_bias_error: float = math.nan
    cosine: float = math.nan
    mean_cosine: float = math.nan


@dataclass(frozen=True)
class Diagnosis:
    """References, and how estimators compare with them."""

    references: tuple[Reference, ...]
    measurements: tuple[Measurement, ...]


class Sample(NamedTuple):
    """Independent gradients, shape (n, dims), with their mean and variance, shape (dims,)."""

    gradients: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    @property
    def error(self) -> float:
        """Standard error of the mean, over all coordinates."""
        return float(np.sqrt(np.sum(self.variance) / len(self.gradients)))

    @property
    def norm(self) -> float:
        """Norm of the mean, with the part that noise explains taken off."""
        return root(np.sum(self.mean**2) - self.error**2)


def make_sample(gradients: np.ndarray) -> Sample:
    """Make a sample of gradients, shape (n, dims); its mean is NaN if there are fewer than two."""
    if len(gradients) < 2:
        nothing = np.full(gradients.shape[1:], np.nan)
        return Sample(gradients, nothing, nothing)
    return Sample(gradients, np.mean(gradients, axis=0), np.var(gradients, axis=0, ddof=1))


def root(square: float | np.floating) -> float:
    """Take the root of the estimate of a square, which noise can make negative."""
    return float(np.sqrt(np.maximum(square, 0.0)))


def summarize(replicates: Mapping[Job, Replicates], choice: ReferenceChoice) -> Diagnosis:
    """Make a diagnosis from the replicates of all estimators.

    Args:
        replicates: Replicates by estimator, horizon and window, in the order of the measurements.
            Those of full ES and full backpropagation begin with the ones that are measured;
            `REFERENCES` times as many follow, for the references.
        choice: Which reference is used; "auto" is the exact one where all of its replicates are
            valid and its standard error is the smaller.
    """
    found: dict[int, dict[Kind, Sample]] = {}
    valid: dict[tuple[int, Kind], float] = {}
    for job, drawn in replicates.items():
        if job.estimator in KINDS:
            _, others = parts(job, drawn)
            is_valid = others.valid > 0
            kind = KINDS[job.estimator]
            # An exact gradient that is sometimes infinite is no reference.
            if kind == "smoothed" or choice == "exact" or np.all(is_valid):
                sample = make_sample(others.gradients[is_valid])
                found.setdefault(job.horizon, {})[kind] = sample
                valid[job.horizon, kind] = float(np.mean(is_valid))
    used: dict[int, Kind] = {
        horizon: min(kinds, key=lambda k: np.nan_to_num(kinds[k].error, nan=np.inf))
        if choice == "auto"
        else choice
        for horizon, kinds in found.items()
    }
    return Diagnosis(
        references=tuple(
            Reference(
                horizon=horizon,
                kind=kind,
                norm=sample.norm,
                error=sample.error,
                num_replicates=len(sample.gradients),
                valid=valid[horizon, kind],
                is_used=kind == used[horizon],
            )
            for horizon, kinds in found.items()
            for kind, sample in kinds.items()
        ),
        measurements=tuple(
            measure(
                job,
                parts(job, drawn)[0],
                found[job.horizon][used[job.horizon]],
                level=LEVEL / len(replicates),
            )
            for job, drawn in replicates.items()
        ),
    )


def parts(job: Job, drawn: Replicates) -> tuple[Replicates, Replicates]:
    """Split replicates into those that are measured, and those for a reference."""
    measured = len(drawn.valid) // (1 + REFERENCES.get(job.estimator, 0))
    rows = lambda part: drawn._replace(
        gradients=drawn.gradients[part], squares=drawn.squares[part], valid=drawn.valid[part]
    )
    return rows(slice(measured)), rows(slice(measured, None))


def measure(job: Job, drawn: Replicates, reference: Sample, *, level: float) -> Measurement:
    """Compare an estimator with a reference.

    Args:
        job: The estimator, its horizon and its window.
        drawn: Its replicates.
        reference: Gradients that bias and cosine are against, from other replicates.
        level: Level of the test for bias.
    """
    is_valid = drawn.valid > 0
    sample = make_sample(drawn.gradients[is_valid])
    num_replicates = len(sample.gradients)
    found = Measurement(
        estimator=job.estimator,
        horizon=job.horizon,
        window=job.window,
        inner_steps=drawn.inner_steps,
        num_replicates=num_replicates,
        valid=float(np.mean(drawn.valid)),
        seconds=drawn.seconds * BUDGET / drawn.inner_steps,
        compile_seconds=drawn.compile_seconds,
    )
    if min(num_replicates, len(reference.gradients)) < 2:
        return found

    # Squared distances from the mean: of replicates, and on average over one of its estimates.
    run_squares = np.sum((sample.gradients - sample.mean) ** 2, axis=-1)
    products = (sample.mean - 2.0 * sample.gradients) @ sample.mean
    step_squares = np.maximum(drawn.squares[is_valid] + products, 0.0)
    unbiased = num_replicates / (num_replicates - 1)
    per_run = unbiased * drawn.inner_steps / BUDGET / np.mean(is_valid)
    share_of_run = (job.window or job.horizon) / job.horizon
    per_step = unbiased * drawn.inner_steps * share_of_run / BUDGET / np.mean(drawn.valid)
    is_one_unit = drawn.inner_steps <= 2 * job.horizon  # a pair or a member, at any stage
    if job.estimator in LOCK_STEP or not is_one_unit:
        per_step = math.nan
    variance, step_variance = mean_interval(run_squares), mean_interval(step_squares)

    bias, bias_error, p_value = estimate_bias(sample, reference)
    to_reference = unit(reference.mean)
    scale = 1.0 / reference.norm if reference.norm > 0 else math.nan
    return replace(
        found,
        norm=sample.norm,
        variance=per_run * variance.value,
        variance_low=per_run * variance.low,
        variance_high=per_run * variance.high,
        step_variance=per_step * step_variance.value,
        step_variance_low=per_step * step_variance.low,
        step_variance_high=per_step * step_variance.high,
        bias=bias,
        bias_error=bias_error,
        p_value=p_value,
        is_biased=p_value < level,
        relative_bias=bias * scale,
        relative_bias_error=bias_error * scale,
        cosine=float(unit(sample.mean) @ to_reference),
        mean_cosine=float(np.mean(unit(sample.gradients) @ to_reference)),
    )


def estimate_bias(sample: Sample, reference: Sample) -> tuple[float, float, float]:
    """Estimate the distance of two means without what noise explains, its error, and a p-value.

    The p-value is that of no distance: the smallest over coordinates of Welch's t test, times their
    number.
    """
    num_replicates, num_reference = len(sample.gradients), len(reference.gradients)
    away = sample.mean - reference.mean
    sample_noise = sample.variance / num_replicates
    reference_noise = reference.variance / num_reference
    noise = sample_noise + reference_noise
    bias, direction = root(np.sum(away**2) - np.sum(noise)), unit(away)
    bias_error = root(
        np.var(sample.gradients @ direction, ddof=1) / num_replicates
        + np.var(reference.gradients @ direction, ddof=1) / num_reference
    )
    rounding = ROUNDING * np.linalg.norm(reference.mean) + TINY
    square = noise + rounding**2
    squares = sample_noise**2 / (num_replicates - 1) + reference_noise**2 / (num_reference - 1)
    freedom = square**2 / np.maximum(squares, square**2 / MANY)
    t = np.abs(away) / np.sqrt(square)
    p_value = 2.0 * float(np.min(scipy.stats.t.sf(t, freedom))) * away.size
    return bias, bias_error, min(1.0, p_value)


def unit(vector: np.ndarray) -> np.ndarray:
    """Scale a vector to norm 1 along its last axis; zero stays zero."""
    norm = np.linalg.norm(vector, axis=-1, keepdims=True)
    return vector / np.where(norm > 0, norm, 1.0)
