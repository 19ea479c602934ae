"""Make `pgd.npz`: a small network, rows, and where Foolbox's attacks move them.

Run it where Foolbox is installed, which l2o does not depend on:

    python3.11 -m venv foolbox-venv
    foolbox-venv/bin/pip install jax==0.10.2 scikit-learn scipy requests typing-extensions gitpython
    foolbox-venv/bin/pip install --no-deps foolbox==3.3.4 eagerpy==0.30.0
    foolbox-venv/bin/python tests/golden/make_pgd.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from eagerpy import astensor
from foolbox import JAXModel
from foolbox.attacks import L2PGD, LinfPGD
from sklearn.datasets import load_digits

ROWS, HIDDEN, STEPS = 24, 16, 10
RADII = {"linf": 0.15, "l2": 0.8}
STEP_SIZES = {"linf": 0.03, "l2": 0.2}


def forward(params, pixels):
    """Logits of a ReLU MLP."""
    hidden = jax.nn.relu(pixels @ params["w0"] + params["b0"])
    return hidden @ params["w1"] + params["b1"]


def train(pixels, labels):
    """Train the network by plain gradient descent on all rows."""
    rng = np.random.default_rng(0)
    sizes = {"w0": (64, HIDDEN), "b0": (HIDDEN,), "w1": (HIDDEN, 10), "b1": (10,)}
    params = {name: 0.2 * rng.standard_normal(size) for name, size in sizes.items()}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

    def loss(params):
        log_probs = jax.nn.log_softmax(forward(params, pixels))
        return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=1))

    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 0.5 * g, p, jax.grad(loss)(p)))
    for _ in range(300):
        params = step(params)
    return params


def main() -> None:
    """Attack the last rows, which the network was not trained on, from stored starts."""
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = (pixels / 16.0).astype(np.float32), labels.astype(np.int32)
    params = train(pixels[:-ROWS], labels[:-ROWS])
    inputs, targets = jnp.asarray(pixels[-ROWS:]), jnp.asarray(labels[-ROWS:])
    model = JAXModel(lambda x: forward(params, x), bounds=(0.0, 1.0))
    stored = {"inputs": inputs, "targets": targets, **params}
    rng = np.random.default_rng(1)
    for norm, attack_class in (("linf", LinfPGD), ("l2", L2PGD)):
        offset = rng.standard_normal(inputs.shape).astype(np.float32)
        length = np.linalg.norm(offset, axis=1, keepdims=True)
        offset = RADII[norm] * (np.tanh(offset) if norm == "linf" else 0.7 * offset / length)
        start = np.clip(np.asarray(inputs) + offset, 0.0, 1.0)

        class FromStart(attack_class):
            """The same, from a given start."""

            def get_random_start(self, x0, epsilon, start=start):
                return astensor(jnp.asarray(start))

        attack = FromStart(abs_stepsize=STEP_SIZES[norm], steps=STEPS, random_start=True)
        moved = attack.run(model, inputs, targets, epsilon=RADII[norm])
        right = jnp.mean(jnp.argmax(forward(params, moved), axis=1) == targets)
        print(norm, "accuracy", float(right))
        stored |= {f"{norm}_start": start, f"{norm}_points": moved}
        stored |= {f"{norm}_radius": RADII[norm], f"{norm}_step_size": STEP_SIZES[norm]}
    stored["steps"] = STEPS
    arrays = {name: np.asarray(value) for name, value in stored.items()}
    np.savez_compressed(Path(__file__).parent / "pgd.npz", **arrays)


if __name__ == "__main__":
    main()
