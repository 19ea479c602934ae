"""The tasks that optimizers are compared on by `l2o suite`.

What they are trained on is for reports alone: no preset of `l2o meta-train` trains on the family
and data of one of them. Most take data that `l2o data fetch mnist fashion_mnist emoji moby_dick
state_of_the_union` puts into a local folder. A new version has a new name, as figures of two do not
compare.

Losses that count as solved are 0.01 nats for a classifier (99 % on the right label), 1 nat a byte
for a language model, 1e-3 for factors, equations and functions, which begin at about 1, and where a
loss cannot fall to zero one that tuned Adam does not reach in 200 steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import l2o
from l2o import SuiteTask, Task, TaskFamily
from l2o.tasks import bbob, emoji, factorisation, mnist, poisson, tabular, text
from l2o.tasks.image_mlp import image_mlp

CLASSIFIED = 0.01
"""Nats for an example of a classifier that is solved."""

PREDICTED = 1.0
"""Nats for a byte of a language model that is solved."""

BATCH_SIZE = 64
"""Images of a batch where a task does not say otherwise."""


def suite_1() -> tuple[SuiteTask, ...]:
    """The first version: 38 tasks, of which eight are quick.

    >>> suite = suite_1()
    >>> len(suite), sum(entry.is_quick for entry in suite)
    (38, 8)
    """
    return (
        *images(),
        *beyond_usual_training(),
        *language(),
        *tables(),
        *functions(),
    )


def images() -> tuple[SuiteTask, ...]:
    """Networks that classify, compress or generate images."""

    def fashion(name: str, make: Callable[[], TaskFamily], size: str, kind: str, **options):
        return entry(name, make, size, kind, dataset="fashion_mnist", **options)

    def digits(name: str, make: Callable[[], TaskFamily], size: str, kind: str, **options):
        return entry(name, make, size, kind, dataset="mnist", **options)

    def drawings(name: str, make: Callable[[], TaskFamily], size: str, kind: str, **options):
        return entry(name, make, size, kind, dataset="emoji", **options)

    return (
        fashion("fashion_mlp", mnist.fashion_mlp_14, "32x32", "mlp", is_quick=True),
        digits("mnist_mlp", mnist.mnist_mlp_14, "128x128", "mlp", horizon=1000),
        fashion("fashion_conv", mnist.fashion_conv_14, "8x16", "conv", is_quick=True),
        digits("mnist_conv", mnist.mnist_conv_14, "16x16x16", "conv", horizon=500),
        drawings("emoji_conv", emoji.emoji_conv, "8x16", "conv"),
        fashion("fashion_resnet", mnist.fashion_resnet_14, "8_2", "resnet", horizon=500),
        drawings("emoji_resnet", emoji.emoji_resnet, "8_1", "resnet", horizon=500),
        digits("mnist_vit", mnist.mnist_vit_14, "16_1", "attention"),
        fashion("fashion_vit", mnist.fashion_vit_14, "16_2", "attention", horizon=500),
        digits("mnist_mixer", mnist.mnist_mixer_14, "16_2", "mixer", horizon=500),
        fashion("fashion_mixer", mnist.fashion_mixer_14, "16_1", "mixer", horizon=500),
        digits(
            "mnist_autoencoder",
            mnist.mnist_autoencoder_14,
            "64x16",
            "autoencoder",
            solved=5e-3,
            is_quick=True,
        ),
        fashion(
            "fashion_autoencoder",
            mnist.fashion_autoencoder_14,
            "64x32x8",
            "autoencoder",
            solved=5e-3,
            horizon=1000,
        ),
        digits("mnist_vae", mnist.mnist_vae_14, "64x16", "vae", solved=0.1, horizon=500),
        fashion("fashion_vae", mnist.fashion_vae_14, "64x32x8", "vae", solved=0.15, horizon=500),
    )


def beyond_usual_training() -> tuple[SuiteTask, ...]:
    """Fashion-MNIST by an MLP, wider, deeper, longer, with other batches and in low precision."""
    dataset = "fashion_mnist"

    def mlp(name: str, hidden: Sequence[int], batch_size: int = BATCH_SIZE) -> Task:
        return image_mlp(
            f"fashion_mlp_14_{name}",
            mnist.images(dataset, 14),
            hidden,
            batch_size=batch_size,
            family="fashion_mlp_14",
        )

    def axis(name: str, make: Callable[[], Task], horizon: int, text: str) -> SuiteTask:
        return SuiteTask(
            f"fashion_mlp_{name}",
            make,
            kind="mlp",
            horizon=horizon,
            solved=CLASSIFIED,
            axis=text,
            dataset=dataset,
        )

    return (
        axis("wide", lambda: mlp("256x256", (256, 256)), 200, "width x8"),
        # Of ten layers the loss of some initial parameters is above the cap of the others.
        axis("deep", lambda: replace(mlp("10_layers", (32,) * 10), loss_cap=6.0), 200, "depth x5"),
        axis("long", lambda: mlp("32x32", (32, 32)), 5000, "horizon x25"),
        axis("batch_8", lambda: mlp("batch_8", (32, 32), 8), 200, "batch x1/8"),
        axis("batch_512", lambda: mlp("batch_512", (32, 32), 512), 200, "batch x8"),
        axis("bf16", lambda: l2o.low_precision(mlp("32x32", (32, 32))), 200, "bfloat16"),
        SuiteTask(
            "mnist_mlp_other_data",
            of_family(mnist.mnist_mlp_14, "32x32"),
            kind="mlp",
            horizon=200,
            solved=CLASSIFIED,
            axis="other data",
            dataset="mnist",
        ),
    )


def language() -> tuple[SuiteTask, ...]:
    """Language models over bytes of English."""

    def moby(name: str, make: Callable[[], TaskFamily], size: str, kind: str, **options):
        return entry(name, make, size, kind, dataset="moby_dick", solved=PREDICTED, **options)

    def union(name: str, make: Callable[[], TaskFamily], size: str, kind: str, **options):
        return entry(
            name, make, size, kind, dataset="state_of_the_union", solved=PREDICTED, **options
        )

    return (
        moby(
            "moby_transformer",
            text.moby_transformer,
            "16x1",
            "attention",
            horizon=100,
            is_quick=True,
        ),
        moby("moby_transformer_32", text.moby_transformer, "32x1", "attention", horizon=500),
        moby("moby_transformer_64", text.moby_transformer, "64x2", "attention", horizon=1000),
        union("union_transformer", text.union_transformer, "16x2", "attention", horizon=500),
        moby("moby_gru", text.moby_gru, "32", "recurrent"),
        union("union_gru", text.union_gru, "64", "recurrent", horizon=500),
        moby("moby_lstm", text.moby_lstm, "64", "recurrent", horizon=500),
        union("union_lstm", text.union_lstm, "32", "recurrent", horizon=500),
    )


def tables() -> tuple[SuiteTask, ...]:
    """Linear models and small MLPs on tables."""
    return (
        entry(
            "cancer_logistic",
            tabular.cancer_logistic,
            "plain",
            "linear",
            solved=0.02,
            is_quick=True,
        ),
        entry("diabetes_linear", tabular.diabetes_linear, "plain", "linear", solved=0.1),
        entry("cancer_mlp", tabular.cancer_mlp, "64x64x64", "mlp"),
        entry("diabetes_mlp", tabular.diabetes_mlp, "32x32", "mlp", solved=0.1, is_quick=True),
    )


def functions() -> tuple[SuiteTask, ...]:
    """Matrix completion, a differential equation and functions without data."""
    return (
        entry(
            "factorisation",
            factorisation.factorisation,
            "128x64",
            "factorisation",
            solved=1e-3,
            horizon=500,
        ),
        entry("poisson", poisson.poisson, "16x16", "equation", solved=1e-3, is_quick=True),
        bbob_entry("griewank_rosenbrock", horizon=200, is_quick=True),
        bbob_entry("lunacek", horizon=500),
    )


def bbob_entry(function: str, *, horizon: int, is_quick: bool = False) -> SuiteTask:
    """Make an entry of one function of BBOB, over its mean at starting points."""
    name = f"bbob_{function}"
    return SuiteTask(
        name,
        lambda: bbob.bbob_function(name, function, family=name),
        kind="function",
        horizon=horizon,
        solved=1e-3,
        is_quick=is_quick,
    )


def entry(
    name: str,
    make: Callable[[], TaskFamily],
    size: str,
    kind: str,
    *,
    horizon: int = 200,
    solved: float = CLASSIFIED,
    dataset: str = "",
    is_quick: bool = False,
) -> SuiteTask:
    """Make an entry of one task that its family reports on.

    Args:
        name: Name of the entry.
        make: Function that makes the family.
        size: What follows the family's name in the task's.
        kind: Kind of model.
        horizon: Inner steps of each run.
        solved: Loss at or below which the task is solved.
        dataset: Name of the data to be fetched.
        is_quick: Whether it belongs to the quick part.
    """
    return SuiteTask(
        name,
        of_family(make, size),
        kind=kind,
        horizon=horizon,
        solved=solved,
        dataset=dataset,
        is_quick=is_quick,
    )


def of_family(make: Callable[[], TaskFamily], size: str) -> Callable[[], Task]:
    """A function that makes the task of this size that a family reports on."""

    def task() -> Task:
        family = make()
        (found,) = [t for t in family.evaluation if t.name == f"{family.name}_{size}"]
        return found

    return task
