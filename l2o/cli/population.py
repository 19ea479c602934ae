"""How large the population of a run is, and over how many devices it is spread."""

from dataclasses import replace

import jax

from l2o import registry
from l2o.cli.settings import MetaTraining


def num_devices(settings: MetaTraining) -> int:
    """The devices asked for, or as many as are present and divide the population.

    They count over all processes, which have equally many.
    """
    if settings.devices is not None:
        return settings.devices
    present, processes = jax.device_count(), jax.process_count()
    possible = range(processes, present + 1, processes)
    fitting = [n for n in possible if num_members(settings) % n == 0]
    return max(fitting) if settings.num_pairs > 0 and fitting else processes


def num_members(settings: MetaTraining) -> int:
    """What is spread over devices: pairs, groups, or the two runs or candidates of each."""
    if settings.estimator in registry.POLICY_GRADIENTS:
        return 2 * settings.num_pairs // group_size(settings)
    in_pairs = (*registry.EVOLUTION, *registry.MIXED)
    return settings.num_pairs * (1 if settings.estimator in in_pairs else 2)


def group_size(settings: MetaTraining) -> int:
    """Runs that share all but the noise of their actions; pairs, where a critic is the baseline."""
    if settings.estimator != "reinforce" or settings.baseline == "value":
        return 2
    size = settings.num_runs
    if size < 2 or size % 2 or 2 * settings.num_pairs % size:
        raise ValueError(
            f"`num_runs` must be even and divide the {2 * settings.num_pairs} runs; got {size}. "
            "Try num_runs=2."
        )
    return size


def check_divides(settings: MetaTraining, devices: int) -> None:
    """Raises a `ValueError` that says what to type if the devices cannot share the population."""
    if settings.num_pairs < 1 or num_members(settings) % devices == 0:
        return
    size = group_size(settings) if settings.estimator in registry.POLICY_GRADIENTS else 1
    unit = next(
        n
        for n in range(1, devices * size + 1)
        if 2 * n % size == 0 and num_members(replace(settings, num_pairs=n)) % devices == 0
    )
    nearest = max(1, round(settings.num_pairs / unit)) * unit
    raise ValueError(
        f"`num_pairs` must be a multiple of {unit} on {devices} devices; got "
        f"{settings.num_pairs}. Try num_pairs={nearest}."
    )
