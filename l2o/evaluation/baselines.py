"""Rivals of learned optimizers, by name."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from l2o.evaluation.baseline import Baseline, Config, Number, Range, half_decades, schedule


def matrices(params: optax.Params) -> optax.Params:
    """Muon's axes: leading axes of a kernel are its inputs, the last its outputs."""

    def axes(leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        if leaf.ndim < 2:
            return None
        return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree.map(axes, params)


WARMUP = Range(0.0, 0.2, 0.0)

BETA1 = Range(0.7, 0.98, 0.9, "decay")

BETA2 = Range(0.9, 0.999, 0.99, "decay")

MOMENTUM = Range(0.5, 0.99, 0.9, "decay")

WEIGHT_DECAY = Range(1e-3, 1.0, 0.0, "log")

BETAS = {"b1": BETA1, "b2": BETA2}


def adam(config: Config, horizon: Number) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) at a constant rate."""
    del horizon
    return optax.adam(config["learning_rate"], config["b1"], config["b2"])


def adam_cosine(config: Config, horizon: Number) -> optax.GradientTransformation:
    """Adam with warm-up and a cosine to zero."""
    return optax.adam(schedule(config, horizon, "cosine"), config["b1"], config["b2"])


def adamw(config: Config, horizon: Number) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return optax.adamw(
        schedule(config, horizon, "linear"),
        config["b1"],
        config["b2"],
        weight_decay=config["weight_decay"],
    )


def nadamw(config: Config, horizon: Number) -> optax.GradientTransformation:
    """AdamW with Nesterov's momentum (Dozat 2016)."""
    return optax.nadamw(
        schedule(config, horizon, "cosine"),
        config["b1"],
        config["b2"],
        weight_decay=config["weight_decay"],
    )


def nadamw_one(config: Config, horizon: Number) -> optax.GradientTransformation:
    """NAdamW in AlgoPerf's one configuration for all workloads (Kasimbeg et al. 2025)."""
    return optax.nadamw(
        schedule({**config, "warmup": 0.02}, horizon, "cosine"),
        1.0 - 0.06733926164,
        0.9955159689799007,
        weight_decay=0.08121616522670176,
    )


def optlist_one(config: Config, horizon: Number) -> optax.GradientTransformation:
    """The first configuration of OptList (Metz et al. 2020), best over a thousand tasks.

    Epsilon is added to the root of the second moment before its bias is corrected, and the rate of
    the weight decay has the corrections, too.
    """
    b1, b2, epsilon, decay, constant = 0.9360, 0.99895, 5.876e-6, 1.014e-2, 0.7473
    length = config["horizon_fraction"] * horizon

    def root(count: jax.typing.ArrayLike) -> jax.Array:
        return jnp.sqrt(1.0 - b2 ** (count + 1.0))

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        progress = jnp.clip((count / length - constant) / (1.0 - constant), 0.0, 1.0)
        return config["learning_rate"] * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    adam = optax.inject_hyperparams(optax.scale_by_adam)
    return optax.chain(
        adam(b1, b2, eps=lambda count: epsilon / root(count)),
        optax.add_decayed_weights(lambda count: decay * root(count) / (1.0 - b1 ** (count + 1.0))),
        optax.scale_by_learning_rate(rate),
    )


def sgdm(config: Config, horizon: Number) -> optax.GradientTransformation:
    """Gradient descent with momentum at a constant rate."""
    del horizon
    return optax.sgd(config["learning_rate"], momentum=config["momentum"])  # pyright: ignore[reportArgumentType]


def sgdm_cosine(config: Config, horizon: Number) -> optax.GradientTransformation:
    """Gradient descent with momentum, warm-up and a cosine to zero."""
    return optax.sgd(schedule(config, horizon, "cosine"), momentum=config["momentum"])  # pyright: ignore[reportArgumentType]


def lion(config: Config, horizon: Number) -> optax.GradientTransformation:
    """The sign of a momentum (Chen et al. 2023)."""
    return optax.lion(
        schedule(config, horizon, "cosine"),
        config["b1"],
        config["b2"],
        weight_decay=config["weight_decay"],
    )


def muon(config: Config, horizon: Number) -> optax.GradientTransformation:
    """Orthogonalised momentum, scaled to Adam's size (Jordan 2024, Liu et al. 2025)."""
    return contrib.muon(
        schedule(config, horizon, "linear"),
        beta=config["momentum"],
        weight_decay=config["weight_decay"],
        adam_b2=0.99,
        adam_weight_decay=config["weight_decay"],
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )


def ademamix(config: Config, horizon: Number) -> optax.GradientTransformation:
    """Adam with a second, slower momentum that is faded in (Pagliardini et al. 2024)."""
    length = config["horizon_fraction"] * horizon
    fast, slow = jnp.log(config["b1"]), jnp.log(config["b3"])

    def b3(count: jax.typing.ArrayLike) -> jax.Array:
        progress = jnp.minimum(count / length, 1.0)
        return jnp.exp(fast * slow / ((1.0 - progress) * slow + progress * fast))

    return contrib.ademamix(
        schedule(config, horizon, "cosine"),
        config["b1"],
        config["b2"],
        b3,
        lambda count: config["alpha"] * jnp.minimum(count / length, 1.0),
        weight_decay=config["weight_decay"],
    )


def schedule_free(config: Config, horizon: Number) -> optax.GradientTransformation:
    """Schedule-free AdamW (Defazio et al. 2024), judged at its averaged parameters."""
    warmup = config["warmup"] * horizon

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        return config["learning_rate"] * jnp.minimum(1.0, (count + 1.0) / jnp.maximum(warmup, 1.0))

    base = optax.adamw(rate, 0.0, config["b2"], weight_decay=config["weight_decay"])
    return contrib.schedule_free(base, rate, config["b1"])


def prodigy(config: Config, horizon: Number) -> optax.GradientTransformation:
    """Prodigy (Mishchenko and Defazio 2024)."""
    return contrib.prodigy(schedule(config, horizon, "cosine"))


def dadapt_adamw(config: Config, horizon: Number) -> optax.GradientTransformation:
    """D-Adaptation of AdamW (Defazio and Mishchenko 2023)."""
    return contrib.dadapt_adamw(schedule(config, horizon, "cosine"))


def mechanic(config: Config, horizon: Number) -> optax.GradientTransformation:
    """Mechanic on Adam (Cutkosky et al. 2023)."""
    return contrib.mechanize(optax.adam(schedule(config, horizon, "cosine")))


def dog(config: Config, horizon: Number) -> optax.GradientTransformation:
    """DoG (Ivgi et al. 2023)."""
    del horizon
    return contrib.dog(config["learning_rate"])


def dowg(config: Config, horizon: Number) -> optax.GradientTransformation:
    """DoWG (Khaled et al. 2023)."""
    del horizon
    return contrib.dowg(config["learning_rate"])


def cocob(config: Config, horizon: Number) -> optax.GradientTransformation:
    """COCOB (Orabona and Tommasi 2017)."""
    del horizon
    return contrib.cocob(config["learning_rate"])


def momo_adam(config: Config, horizon: Number) -> optax.GradientTransformation:
    """MoMo on Adam (Schaipp et al. 2024)."""
    del horizon
    return contrib.momo_adam(config["learning_rate"])


ADAM_RATES = half_decades(-8, -1)

SGD_RATES = half_decades(-6, 1)

UNTUNED = (1.0,)


BASELINES: Mapping[str, Baseline] = {
    "adam": Baseline("Adam", "Adam at a constant rate.", adam, ADAM_RATES, BETAS),
    "adam_cosine": Baseline(
        "Adam",
        "Adam with warm-up and a cosine to zero.",
        adam_cosine,
        ADAM_RATES,
        {"warmup": WARMUP, **BETAS},
        is_scheduled=True,
    ),
    "adamw": Baseline(
        "AdamW",
        "AdamW with warm-up and a linear decay to zero.",
        adamw,
        ADAM_RATES,
        {"warmup": WARMUP, **BETAS, "weight_decay": WEIGHT_DECAY},
        is_scheduled=True,
    ),
    "nadamw": Baseline(
        "NAdamW",
        "AdamW with Nesterov's momentum, warm-up and a cosine to zero.",
        nadamw,
        ADAM_RATES,
        {"warmup": WARMUP, **BETAS, "weight_decay": WEIGHT_DECAY},
        is_scheduled=True,
    ),
    "nadamw_one": Baseline(
        "NAdamW",
        "NAdamW in one configuration for all tasks, that of AlgoPerf's self-tuning rules (Kasimbeg "
        "et al. 2025), with warm-up and a cosine to zero; untuned.",
        nadamw_one,
        (0.0017486387539278373,),
        is_scheduled=True,
    ),
    "optlist_one": Baseline(
        "AdamW",
        "AdamW in one configuration for all tasks, the first of OptList (Metz et al. 2020); "
        "untuned.",
        optlist_one,
        (1.195e-3,),
        is_scheduled=True,
    ),
    "sgdm": Baseline(
        "momentum SGD",
        "Gradient descent with momentum at a constant rate.",
        sgdm,
        SGD_RATES,
        {"momentum": MOMENTUM},
    ),
    "sgdm_cosine": Baseline(
        "momentum SGD",
        "Gradient descent with momentum, warm-up and a cosine to zero.",
        sgdm_cosine,
        SGD_RATES,
        {"warmup": WARMUP, "momentum": MOMENTUM},
        is_scheduled=True,
    ),
    "lion": Baseline(
        "Lion",
        "Lion with warm-up and a cosine to zero.",
        lion,
        half_decades(-10, -3),
        {"warmup": WARMUP, **BETAS, "weight_decay": WEIGHT_DECAY},
        is_scheduled=True,
    ),
    "muon": Baseline(
        "Muon",
        "Muon scaled to Adam's size, with warm-up and a linear decay to zero; kernels of "
        "convolutions are matrices, vectors are Adam's.",
        muon,
        half_decades(-7, 0),
        {"warmup": WARMUP, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY},
        is_scheduled=True,
    ),
    "ademamix": Baseline(
        "AdEMAMix",
        "AdEMAMix with warm-up and a cosine to zero; its slow momentum is faded in over the run.",
        ademamix,
        ADAM_RATES,
        {
            "warmup": WARMUP,
            **BETAS,
            "b3": Range(0.98, 0.9999, 0.999, "decay"),
            "alpha": Range(1.0, 10.0, 5.0, "log"),
            "weight_decay": WEIGHT_DECAY,
        },
        is_scheduled=True,
    ),
    "schedule_free": Baseline(
        "schedule-free AdamW",
        "Schedule-free AdamW with warm-up, judged at its averaged parameters.",
        schedule_free,
        ADAM_RATES,
        {"warmup": WARMUP, **BETAS, "weight_decay": WEIGHT_DECAY},
    ),
    "prodigy": Baseline(
        "Prodigy", "Prodigy with a cosine to zero; untuned.", prodigy, UNTUNED, is_scheduled=True
    ),
    "dadapt_adamw": Baseline(
        "D-Adaptation",
        "D-Adaptation of AdamW with a cosine to zero; untuned.",
        dadapt_adamw,
        UNTUNED,
        is_scheduled=True,
    ),
    "mechanic": Baseline(
        "Mechanic",
        "Mechanic on Adam with a cosine to zero; untuned.",
        mechanic,
        UNTUNED,
        is_scheduled=True,
    ),
    "dog": Baseline("DoG", "DoG; untuned.", dog, UNTUNED),
    "dowg": Baseline("DoWG", "DoWG; untuned.", dowg, UNTUNED),
    "cocob": Baseline("COCOB", "COCOB; untuned.", cocob, UNTUNED),
    "momo_adam": Baseline("MoMo", "MoMo on Adam at optax's rate; untuned.", momo_adam, (0.01,)),
}
"""Baselines by name."""


DEFAULT_BASELINES = ("adam", "nadamw", "muon")
"""Baselines of a report unless said otherwise."""


def check_baselines(names: Sequence[str], argument: str = "baselines") -> None:
    """Raise a `ValueError` that says what to type unless there are such baselines."""
    for name in names:
        if name not in BASELINES:
            raise ValueError(
                f"`{argument}` must be among {', '.join(BASELINES)}; got {name}. "
                f"Try {' '.join(DEFAULT_BASELINES)}."
            )
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"`{argument}` must name different ones, at least one; got "
            f"{' '.join(names) or 'none'}. Try {' '.join(DEFAULT_BASELINES)}."
        )
