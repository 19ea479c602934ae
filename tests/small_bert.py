"""A small BERT of random weights."""

import numpy as np

from l2o.tasks.networks.bert import LINEAR, NORMS

HEADS = 2


def small_arrays(width=6, depth=2, vocabulary=11, positions=9) -> dict[str, np.ndarray]:
    """Random arrays of a small BERT by Hugging Face's names."""
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (vocabulary, width),
        "embeddings.position_embeddings.weight": (positions, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    norms, linears = ["embeddings.LayerNorm"], []
    for i in range(depth):
        norms += [f"encoder.layer.{i}.{name}" for name in NORMS.values()]
        linears += [f"encoder.layer.{i}.{name}" for name in LINEAR.values()]
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name in linears:
        rows = 4 * width if "intermediate" in name else width
        columns = 4 * width if name.endswith(LINEAR["down"]) and "attention" not in name else width
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
