"""BERT against its formulas in NumPy, and MiniLM against published similarities."""

import numpy as np
import pytest
from scipy.special import erf, softmax
from small_bert import HEADS, small_arrays

from l2o.datasets import minilm
from l2o.tasks.networks.bert import bert, bert_weights


def by_formulas(arrays, tokens, heads):
    """Hidden states of one text, head by head, in double precision."""
    of = lambda name: np.asarray(arrays[name], np.float64)

    def norm(name, x):
        centred = x - x.mean(1, keepdims=True)
        std = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-12)
        return of(f"{name}.weight") * centred / std + of(f"{name}.bias")

    linear = lambda name, x: x @ of(f"{name}.weight").T + of(f"{name}.bias")
    x = of("embeddings.word_embeddings.weight")[tokens]
    x = x + of("embeddings.position_embeddings.weight")[: len(tokens)]
    x = norm("embeddings.LayerNorm", x + of("embeddings.token_type_embeddings.weight")[0])
    depth = sum(name.endswith("intermediate.dense.bias") for name in arrays)
    for layer in (f"encoder.layer.{i}" for i in range(depth)):
        q, k, v = (
            np.split(linear(f"{layer}.attention.self.{name}", x), heads, axis=1)
            for name in ("query", "key", "value")
        )
        mixed = [
            softmax(q[h] @ k[h].T / np.sqrt(q[h].shape[1]), axis=1) @ v[h] for h in range(heads)
        ]
        attended = linear(f"{layer}.attention.output.dense", np.concatenate(mixed, axis=1))
        x = norm(f"{layer}.attention.output.LayerNorm", x + attended)
        inner = linear(f"{layer}.intermediate.dense", x)
        inner = inner * 0.5 * (1.0 + erf(inner / np.sqrt(2.0)))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    return x


def test_hidden_states_are_those_of_the_formulas():
    arrays, tokens = small_arrays(), np.random.default_rng(1).integers(0, 11, (3, 7))
    found = bert(bert_weights(arrays, length=8), tokens.astype(np.uint16), heads=HEADS)
    expected = [by_formulas(arrays, row, HEADS) for row in tokens]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["query", "down"])
def test_low_rank_factors_are_added_to_the_kernel(name):
    arrays, tokens = small_arrays(), np.arange(6)[None]
    weights = bert_weights(arrays, length=8)
    maps = weights["layers"]["1"][name]
    a, b = (
        np.random.default_rng(i).normal(size=(n, 2)).astype(np.float32)
        for i, n in enumerate(maps["kernel"].shape)
    )
    added = {**maps, "kernel": maps["kernel"] + a @ b.T}
    maps |= {"a": a, "b": b.T}
    found = bert(weights, tokens, heads=HEADS)
    weights["layers"]["1"][name] = added
    np.testing.assert_allclose(found, bert(weights, tokens, heads=HEADS), atol=2e-5)
    assert np.abs(found - bert(bert_weights(arrays, 8), tokens, heads=HEADS)).max() > 0.1


@pytest.fixture
def arrays():
    try:
        minilm.minilm_tokens(["a"])
        return minilm.read_minilm()
    except ValueError as error:
        pytest.skip(str(error))


def test_minilm_is_bert_by_its_formulas_and_has_the_published_similarities(arrays):
    """Similarities are those of the Sentence Transformers' documentation for this model."""
    texts = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    weights = bert_weights(arrays, length=16)
    embedded = []
    for pieces in minilm.minilm_tokens(texts):
        tokens = np.array([minilm.CLS, *pieces, minilm.SEP])
        hidden = np.asarray(bert(weights, tokens[None], heads=12))[0]
        np.testing.assert_allclose(hidden, by_formulas(arrays, tokens, 12), atol=1e-4)
        embedded.append(hidden.mean(0) / np.linalg.norm(hidden.mean(0)))
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(np.inner(embedded, embedded), published, atol=1e-4)
