"""Engines by name, and whether what they need is installed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from l2o.hpo.manual_search import manual_search
from l2o.hpo.random_search import random_search
from l2o.hpo.search import Search
from l2o.hpo.with_hyperopt import hyperopt_tpe
from l2o.hpo.with_optuna import optuna_cmaes, optuna_tpe
from l2o.hpo.with_ray import ray_pbt
from l2o.registry import unknown_name_error


@dataclass(frozen=True)
class Engine:
    """A search algorithm.

    Attributes:
        search: `(search, seed, folder) -> None`, runs trials while there is budget; it may keep
            files of its own in the folder.
        packages: Names of the modules that it imports, from the extra `tune`.
    """

    search: Callable[[Search, int, Path], None]
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Names of the packages that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]


ENGINES: Mapping[str, Engine] = {
    "cosine": Engine(manual_search),
    "random": Engine(random_search),
    "optuna_tpe": Engine(optuna_tpe, ("optuna",)),
    "optuna_cmaes": Engine(optuna_cmaes, ("optuna", "cmaes")),
    "hyperopt_tpe": Engine(hyperopt_tpe, ("hyperopt",)),
    "ray_pbt": Engine(ray_pbt, ("ray", "pyarrow")),
}
"""Engines by name; the first two need no further package."""

INSTALL = "pip install 'l2o[tune]'"


def check_engines(names: Sequence[str]) -> None:
    """Raise a `ValueError` that says what to type unless all engines are known and installed."""
    for name in names:
        if name not in ENGINES:
            raise unknown_name_error("engines", name, ENGINES)
        if ENGINES[name].missing:
            raise ValueError(
                f"`engines` must be installed; got {name}, which needs "
                f"{' and '.join(ENGINES[name].missing)}. Try {INSTALL}."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"`engines` must differ; got {' '.join(names)}. Drop one.")
