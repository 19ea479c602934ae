"""Small language models over bytes: of each byte, given those before it in a window.

Corpora are the source of Python's standard library, which is always there
(`l2o.datasets.python_source`), and the State of the Union addresses and Moby Dick, which
`l2o data fetch state_of_the_union moby_dick` puts into a local folder (`l2o.datasets.text`); there
it says which files, years or chapters make which split. A row is a window of 33 consecutive bytes,
of which the first 32 are inputs and the last 32 targets, and no two windows overlap; perceptrons
see eight bytes and predict the one after them. Training has all windows of its split; validation
and test have 512 each, 2,048 where a window has one target, drawn with a fixed seed, so that a
whole split can be evaluated at once. The loss is cross-entropy in nats per byte, ln 256 = 5.55
for guessing.
"""

import functools
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import l2o
from l2o import Split, Task, TaskFamily
from l2o.datasets.fetch import SOURCES, dataset_folder
from l2o.datasets.python_source import python_source, python_source_sha256
from l2o.datasets.text import read_text
from l2o.tasks.families import sized_family
from l2o.tasks.networks.byte_mlp import ByteMLP
from l2o.tasks.networks.recurrent import ByteRNN
from l2o.tasks.networks.transformer import ByteTransformer

Windows = tuple[jax.Array, jax.Array]
"""Bytes and those that follow them, each of shape (windows, length), uint8."""

LENGTH = 32
"""Bytes of a window."""

NUM_EVALUATED = 512
"""Most windows of the validation and of the test split."""

BATCH_SIZE = 16
"""Windows of a batch; fewer count in a varied instance."""

TRANSFORMERS = {"16x1": (16, 1), "32x1": (32, 1), "16x2": (16, 2)}
"""Widths and depths of the transformers that are meta-trained on side by side."""

WIDER_TRANSFORMERS = {"64x2": (64, 2)}
"""Those that are never meta-trained on."""

RECURRENT = {"16": 16, "32": 32}
"""Widths of the recurrent networks that are meta-trained on side by side."""

WIDER_RECURRENT = {"64": 64}
"""Those that are never meta-trained on."""

CONTEXT = 8
"""Bytes that a perceptron sees."""

PERCEPTRONS = {"16": 16, "32": 32}
"""Widths of the perceptrons that are meta-trained on side by side."""

WIDER_PERCEPTRONS = {"64": 64}
"""Those that are never meta-trained on."""


def windows(
    text: np.ndarray, length: int = LENGTH, most: int | None = None, *, seed: int = 0
) -> Windows:
    """Cut a text into windows of `length` + 1 bytes that do not overlap, and shuffle them.

    Args:
        text: Bytes, shape (bytes,), uint8; what does not fill a window at its end is left out.
        length: Number of inputs of a window, and of targets.
        most: Number of windows that are kept; all if None.
        seed: Seed of the order.

    Raises:
        ValueError: If the text is shorter than a window.
    """
    number = len(text) // (length + 1)
    if not number:
        raise ValueError(
            f"`text` must have at least {length + 1} bytes; got {len(text)}. Try length=8."
        )
    cut = text[: number * (length + 1)].reshape(number, length + 1)
    drawn = cut[np.random.default_rng(seed).permutation(number)[:most]]
    return jnp.asarray(drawn[:, :-1]), jnp.asarray(drawn[:, 1:])


def split_windows(corpus: Mapping[str, np.ndarray]) -> Mapping[Split, Windows]:
    """Windows of each split: all of the training text, `NUM_EVALUATED` at most of the others."""
    splits: tuple[Split, ...] = ("train", "valid", "test")
    return {
        split: windows(corpus[split], most=None if split == "train" else NUM_EVALUATED)
        for split in splits
    }


@functools.cache
def python_windows() -> Mapping[Split, Windows]:
    """Windows of the source of Python's standard library; one copy for all tasks."""
    return split_windows(python_source())


@functools.cache
def next_bytes_of_python() -> Mapping[Split, Windows]:
    """Windows of `CONTEXT` bytes of the same source, and the byte after each; one copy."""
    corpus = python_source()
    most: Mapping[Split, int | None] = {"train": None, "valid": 2048, "test": 2048}
    found: dict[Split, Windows] = {}
    for split, number in most.items():
        inputs, targets = windows(corpus[split], CONTEXT, number)
        found[split] = inputs, targets[:, -1]
    return found


@functools.lru_cache(maxsize=1)
def _folder_windows(folder: Path) -> Mapping[Split, Windows]:
    return split_windows(read_text(folder))


def transformer_family(name: str, data: Mapping[Split, Windows]) -> TaskFamily:
    """Causal transformers on one corpus, labelled by width and depth.

    Args:
        name: Name of the family.
        data: Windows of each split.
    """

    def make(task: str, size: tuple[int, int], varied: bool) -> Task:
        width, depth = size
        module = lambda rngs: ByteTransformer(LENGTH, width, depth, rngs=rngs)
        return _byte_model(task, data, module, varied, name)

    return sized_family(name, make, TRANSFORMERS, WIDER_TRANSFORMERS)


def recurrent_family(
    name: str, data: Mapping[Split, Windows], cell: Literal["lstm", "gru"]
) -> TaskFamily:
    """LSTMs or GRUs on one corpus, labelled by width.

    Args:
        name: Name of the family.
        data: Windows of each split.
        cell: "lstm" or "gru".
    """

    def make(task: str, width: int, varied: bool) -> Task:
        module = lambda rngs: ByteRNN(width, cell, rngs=rngs)
        return _byte_model(task, data, module, varied, name)

    return sized_family(name, make, RECURRENT, WIDER_RECURRENT)


def perceptron_family(name: str, data: Mapping[Split, Windows]) -> TaskFamily:
    """Perceptrons that predict the byte after a window, labelled by width.

    Args:
        name: Name of the family.
        data: Windows of each split, and the byte after each.
    """

    def make(task: str, width: int, varied: bool) -> Task:
        module = lambda rngs: ByteMLP(CONTEXT, width, rngs=rngs)
        return l2o.supervised_nnx(task, data, module, varied=varied, family=name)

    return sized_family(name, make, PERCEPTRONS, WIDER_PERCEPTRONS)


def _byte_model(
    task: str,
    data: Mapping[Split, Windows],
    module: Callable[[nnx.Rngs], nnx.Module],
    varied: bool,
    family: str,
) -> Task:
    return l2o.supervised_nnx(
        task, data, module, batch_size=BATCH_SIZE, varied=varied, family=family
    )


def _on_python(family: TaskFamily) -> TaskFamily:
    sha256 = python_source_sha256()[:12]
    source = f"standard library of Python {platform.python_version()}, sha256 {sha256}"
    return replace(family, source=source, licence="PSF-2.0")


def _on(dataset: str, family: TaskFamily) -> TaskFamily:
    source = SOURCES[dataset]
    return replace(
        family,
        source=f"{dataset}, npm {source.package}, sha256 {source.sha256[:12]}",
        licence=source.licence,
    )


def python_transformer() -> TaskFamily:
    """Byte transformers on the source of Python's standard library.

    >>> [task.name for task in python_transformer().evaluation]  # doctest: +NORMALIZE_WHITESPACE
    ['python_transformer_16x1', 'python_transformer_32x1', 'python_transformer_16x2',
     'python_transformer_64x2']
    """
    return _on_python(transformer_family("python_transformer", python_windows()))


def python_mlp() -> TaskFamily:
    """Perceptrons that predict a byte of the source of Python's standard library."""
    return _on_python(perceptron_family("python_mlp", next_bytes_of_python()))


def python_lstm() -> TaskFamily:
    """Byte LSTMs on the source of Python's standard library."""
    return _on_python(recurrent_family("python_lstm", python_windows(), "lstm"))


def python_gru() -> TaskFamily:
    """Byte GRUs on the source of Python's standard library."""
    return _on_python(recurrent_family("python_gru", python_windows(), "gru"))


def union_transformer() -> TaskFamily:
    """Byte transformers on speeches; `l2o data fetch state_of_the_union` first."""
    return _on(
        "state_of_the_union",
        transformer_family("union_transformer", _fetched("state_of_the_union")),
    )


def union_lstm() -> TaskFamily:
    """Byte LSTMs on speeches; `l2o data fetch state_of_the_union` first."""
    return _on(
        "state_of_the_union", recurrent_family("union_lstm", _fetched("state_of_the_union"), "lstm")
    )


def union_gru() -> TaskFamily:
    """Byte GRUs on speeches; `l2o data fetch state_of_the_union` first."""
    return _on(
        "state_of_the_union", recurrent_family("union_gru", _fetched("state_of_the_union"), "gru")
    )


def moby_transformer() -> TaskFamily:
    """Byte transformers on Moby Dick; `l2o data fetch moby_dick` first."""
    return _on("moby_dick", transformer_family("moby_transformer", _fetched("moby_dick")))


def moby_lstm() -> TaskFamily:
    """Byte LSTMs on Moby Dick; `l2o data fetch moby_dick` first."""
    return _on("moby_dick", recurrent_family("moby_lstm", _fetched("moby_dick"), "lstm"))


def moby_gru() -> TaskFamily:
    """Byte GRUs on Moby Dick; `l2o data fetch moby_dick` first."""
    return _on("moby_dick", recurrent_family("moby_gru", _fetched("moby_dick"), "gru"))


def _fetched(dataset: str) -> Mapping[Split, Windows]:
    return _folder_windows(dataset_folder(dataset))
