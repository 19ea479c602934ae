"""Digits under attack: networks that are to withstand it, and attacks on trained networks."""

import functools
from dataclasses import replace

import jax
import optax

import l2o
from l2o import Task, TaskFamily
from l2o.tasks.digits import digits_mlp, of_digits

RADIUS = 0.1
"""Largest change of a pixel, of which black is 0 and white 1."""

NETWORKS, HELD_OUT = 24, 8
"""Networks of each kind, and how many of them only the attacks to report on are of."""


def digits_robust() -> TaskFamily:
    """MLPs on digits, trained against attacks that change each pixel by up to 0.1.

    >>> [task.name for task in digits_robust().train][:1]
    ['digits_mlp_32_varied_robust']
    """
    return under_attack("digits_robust", adversarial_training=True)


def digits_plain_robust() -> TaskFamily:
    """MLPs on digits whose training is plain, and whose held-out losses are under attack.

    >>> task = digits_plain_robust().evaluation[0]
    >>> task.name, "robust_accuracy" in task.maximized
    ('digits_mlp_32_robust_b', True)
    """
    family = under_attack("digits_plain_robust", adversarial_training=False)
    named = lambda task: replace(task, name=f"{task.name}_b")
    return replace(
        family,
        train=tuple(map(named, family.train)),
        evaluation=tuple(map(named, family.evaluation)),
    )


def under_attack(name: str, *, adversarial_training: bool) -> TaskFamily:
    """Put every MLP on digits under attack."""

    def robust(task: Task) -> Task:
        return l2o.robust(task, radius=RADIUS, steps=5, adversarial_training=adversarial_training)

    plain = digits_mlp()
    return of_digits(
        TaskFamily(
            name=name,
            train=tuple(map(robust, plain.train)),
            evaluation=tuple(map(robust, plain.evaluation)),
        )
    )


@functools.cache
def digits_attack() -> TaskFamily:
    """Attacks on MLPs of two hidden layers, half of them trained against attacks.

    Attacks to report on are on other networks and other images than those to meta-train on. The
    networks are trained when the family is first asked for, which takes some seconds.
    """
    plain = digits_mlp().evaluation[1]
    robust = l2o.robust(plain, radius=RADIUS, steps=5)
    train, evaluation = [], []
    for kind, task in (("plain", plain), ("robust", robust)):
        networks = l2o.trained_networks(
            task, optax.adam(0.003), jax.random.key(0), number=NETWORKS, steps=400
        )
        family = l2o.attack_family(plain, networks, radius=RADIUS, held_out=HELD_OUT)
        train += [replace(task, name=f"{task.name}_{kind}") for task in family.train]
        evaluation += [replace(task, name=f"{task.name}_{kind}") for task in family.evaluation]
    return of_digits(
        TaskFamily(name="digits_attack", train=tuple(train), evaluation=tuple(evaluation))
    )
