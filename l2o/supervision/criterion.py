"""What a network is trained to lower, and what is measured besides."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Criterion:
    """What a network is trained to lower, and what is measured besides.

    Attributes:
        losses: Function `(outputs, targets) -> losses` of shape (rows,).
        scale: Function `(outputs, targets) -> float`, the loss of guessing, by which losses of
            tasks are made comparable; of the shapes of the outputs and all training targets.
        cap: Cost of a diverged run, in units of the scale.
        metrics: Function `(outputs, targets, counts) -> {name: scalar}`, where `counts`, of shape
            (rows,), tells which rows count.
        maximized: As in `Task`.
        metric_caps: As in `Task`.
        mistake: Function `(outputs, targets) -> what is wrong with the targets of a split`, or None
            if nothing is; of the shapes of the outputs of one row, and NumPy's arrays.
    """

    losses: Callable[[Any, Any], jax.Array]
    scale: Callable[[Any, Any], float]
    cap: float = 10.0
    metrics: Callable[[Any, Any, jax.Array], Mapping[str, jax.Array]] | None = None
    maximized: frozenset[str] = frozenset()
    metric_caps: Mapping[str, float] = field(default_factory=dict)
    mistake: Callable[[Any, Any], str | None] = lambda outputs, targets: None


def cross_entropy(*, sequences: bool = False) -> Criterion:
    """Cross-entropy in nats, of logits and class indices, with accuracy and macro-F1.

    A run that diverged counts as 1.5 times the loss of guessing among all classes.

    Args:
        sequences: Whether a row has several targets: outputs of shape (rows, ..., classes) and
            targets of shape (rows, ...). The mean over them counts, and there is no macro-F1.
    """

    def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(logits)
        picked = jnp.sum(log_probs * jax.nn.one_hot(labels, logits.shape[-1]), axis=-1)
        return -mean_of_row(picked)

    def metrics(logits: jax.Array, labels: jax.Array, counts: jax.Array) -> dict[str, jax.Array]:
        predicted = jnp.argmax(logits, axis=-1)
        is_right = mean_of_row((predicted == labels).astype(jnp.float32))
        found = {"accuracy": jnp.sum(jnp.where(counts, is_right, 0.0)) / jnp.sum(counts)}
        if not sequences:
            found["macro_f1"] = macro_f1(predicted, labels, counts, logits.shape[-1])
        return found

    def mistake(logits: jax.ShapeDtypeStruct, labels: np.ndarray) -> str | None:
        classes = logits.shape[-1]
        if labels.shape[1:] != logits.shape[1:-1]:
            return (
                f"must be class indices of shape {('rows', *logits.shape[1:-1])} for outputs of "
                f"shape {('rows', *logits.shape[1:])}; got shape {labels.shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            return f"must be whole numbers; got {labels.dtype}"
        lowest, highest = int(labels.min()), int(labels.max())  # 256 is none of uint8
        if lowest < 0 or highest >= classes:
            return (
                f"must be from 0 to {classes - 1}, as there are {classes} outputs; got {lowest} to "
                f"{highest}"
            )
        return None

    names = ("accuracy",) if sequences else ("accuracy", "macro_f1")
    return Criterion(
        losses,
        scale=lambda logits, labels: math.log(logits.shape[-1]),
        cap=1.5,
        metrics=metrics,
        maximized=frozenset(names),
        metric_caps=dict.fromkeys(names, 0.0),
        mistake=mistake,
    )


def squared_error() -> Criterion:
    """Half the mean square of outputs less targets, which have the same shape.

    Its scale is that of the best constant, half the variance of each number among training rows.
    """

    def mistake(outputs: jax.ShapeDtypeStruct, targets: np.ndarray) -> str | None:
        if targets.shape[1:] != outputs.shape[1:]:
            return (
                f"must have the shape of the outputs, {('rows', *outputs.shape[1:])}; got "
                f"{targets.shape}"
            )
        if not np.all(np.isfinite(targets)):
            return "must be finite; got NaN or infinity"
        return None

    return Criterion(
        losses=lambda outputs, targets: mean_of_row(0.5 * jnp.square(outputs - targets)),
        scale=lambda outputs, targets: 0.5 * float(np.mean(np.var(np.asarray(targets), axis=0))),
        mistake=mistake,
    )


def mean_of_row(values: jax.Array) -> jax.Array:
    """The mean over all axes but the first."""
    return jnp.mean(values.reshape(len(values), -1), axis=1) if values.ndim > 1 else values


def macro_f1(
    predicted: jax.Array, labels: jax.Array, counts: jax.Array, num_classes: int
) -> jax.Array:
    """Average F1 = 2 TP / (2 TP + FP + FN) over classes.

    Classes that are neither predicted nor there are left out, as scikit-learn does. It is no mean
    over rows: the F1 of a whole split is not the mean of those of its batches.

    Args:
        predicted: Predicted class indices, shape (rows,).
        labels: True class indices, shape (rows,).
        counts: Which rows count, shape (rows,).
        num_classes: Number of classes.
    """
    is_predicted = jax.nn.one_hot(predicted, num_classes) * counts[:, None]
    is_label = jax.nn.one_hot(labels, num_classes) * counts[:, None]
    hits = jnp.sum(is_predicted * is_label, axis=0)
    marked = jnp.sum(is_predicted + is_label, axis=0)
    f1 = 2.0 * hits / jnp.maximum(marked, 1.0)
    return jnp.sum(f1) / jnp.maximum(jnp.sum(marked > 0), 1)
