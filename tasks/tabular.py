"""Tables that scikit-learn brings along: linear and logistic models, and MLPs."""

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from flax import nnx

import l2o
from l2o import Split, Task, TaskFamily
from l2o.tasks.families import sized_family
from l2o.tasks.networks.mlp import MLP

SOURCE, LICENCE = "UCI and Efron et al. (2004), in scikit-learn", "BSD-3-Clause (package)"

HIDDEN = {"16": (16,), "32x32": (32, 32)}
HELD_OUT = {"64x64x64": (64, 64, 64)}

SHARES: Mapping[Split, float] = {"train": 0.6, "valid": 0.2, "test": 0.2}
"""Parts of the rows of a table."""


class Table(NamedTuple):
    """Rows of a table.

    Attributes:
        inputs: Columns with mean 0 and standard deviation 1 over the training rows, shape (rows,
            columns), float32.
        targets: Class indices, shape (rows,), int32; or numbers, standardised likewise, shape
            (rows, 1), float32.
    """

    inputs: np.ndarray
    targets: np.ndarray


@functools.cache
def table(name: Literal["breast_cancer", "wine", "diabetes"]) -> Mapping[Split, Table]:
    """Read a table, shuffle it with a fixed seed and cut it into three.

    breast_cancer has 569 rows of 30 columns in 2 classes, wine 178 of 13 in 3, diabetes 442 of 10
    and a number each, the progress of the disease after a year.
    """
    # What scikit-learn's `load_*` read; importing it takes longer than all else here.
    package = importlib.util.find_spec("sklearn")
    assert package and package.origin
    folder = Path(package.origin).parent / "datasets/data"
    if name == "diabetes":
        inputs = np.loadtxt(folder / "diabetes_data_raw.csv.gz")
        targets = np.loadtxt(folder / "diabetes_target.csv.gz")[:, None]
    else:
        file = {"breast_cancer": "breast_cancer.csv", "wine": "wine_data.csv"}[name]
        rows = np.loadtxt(folder / file, delimiter=",", skiprows=1)
        inputs, targets = rows[:, :-1], rows[:, -1].astype(np.int32)
    order = np.random.default_rng(0).permutation(len(inputs))
    ends = np.cumsum([round(share * len(inputs)) for share in SHARES.values()])
    parts = dict(zip(SHARES, np.split(order, ends[:-1]), strict=True))

    def standardised(values: np.ndarray) -> np.ndarray:
        trained_on = values[parts["train"]]
        return ((values - trained_on.mean(axis=0)) / trained_on.std(axis=0)).astype(np.float32)

    inputs = standardised(inputs)
    targets = standardised(targets) if targets.ndim > 1 else targets
    return {split: Table(inputs[rows], targets[rows]) for split, rows in parts.items()}


def network(
    name: str,
    data: Mapping[Split, Table],
    hidden: tuple[int, ...],
    family: str,
    *,
    varied: bool,
) -> Task:
    """An MLP on a table, or a linear model without hidden layers."""
    inputs, targets = data["train"]
    outputs = 1 if targets.ndim > 1 else int(targets.max()) + 1

    def module(rngs: nnx.Rngs) -> MLP:
        return MLP((inputs.shape[1], *hidden, outputs), rngs=rngs)

    criterion = l2o.squared_error() if targets.ndim > 1 else l2o.cross_entropy()
    return l2o.supervised_nnx(
        name, data, module, criterion, varied=varied, family=family, batch_size=32
    )


def networks(name: str, data: Mapping[Split, Table]) -> TaskFamily:
    """MLPs on a table."""

    make = lambda task, hidden, varied: network(task, data, hidden, name, varied=varied)
    family = sized_family(name, make, HIDDEN, HELD_OUT)
    return replace(family, source=SOURCE, licence=LICENCE)


def linear(name: str, data: Mapping[Split, Table]) -> TaskFamily:
    """Linear regression or logistic regression on a table."""
    make = lambda task, hidden, varied: network(task, data, hidden, name, varied=varied)
    family = sized_family(name, make, {"plain": ()}, {})
    return replace(family, source=SOURCE, licence=LICENCE)


def cancer_logistic() -> TaskFamily:
    """Logistic regression that tells malignant from benign tumours (569 rows, Wisconsin)."""
    return linear("cancer_logistic", table("breast_cancer"))


def cancer_mlp() -> TaskFamily:
    """MLPs that tell malignant from benign tumours (569 rows, Wisconsin)."""
    return networks("cancer_mlp", table("breast_cancer"))


def wine_logistic() -> TaskFamily:
    """Logistic regression that tells three cultivars of wine apart (178 rows)."""
    return linear("wine_logistic", table("wine"))


def wine_mlp() -> TaskFamily:
    """MLPs that tell three cultivars of wine apart (178 rows)."""
    return networks("wine_mlp", table("wine"))


def diabetes_linear() -> TaskFamily:
    """Linear regression of the progress of diabetes after a year (442 rows)."""
    return linear("diabetes_linear", table("diabetes"))


def diabetes_mlp() -> TaskFamily:
    """MLPs that predict the progress of diabetes after a year (442 rows)."""
    return networks("diabetes_mlp", table("diabetes"))
