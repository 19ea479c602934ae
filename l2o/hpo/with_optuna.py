"""Optuna's samplers, by ask and tell; studies are kept in journal files."""

from pathlib import Path
from typing import TYPE_CHECKING

from l2o.hpo.schedule import SPACE, Hyperparameters, schedule
from l2o.hpo.search import Search

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


def optuna_tpe(search: Search, seed: int, folder: Path) -> None:
    """Search by a tree-structured Parzen estimator; successive halving stops bad trials."""
    from optuna.pruners import SuccessiveHalvingPruner
    from optuna.samplers import TPESampler

    # Resources are counted in reports, of which a whole trial has eight.
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    sampler = TPESampler(seed=seed, n_startup_trials=search.num_random)
    _optimize(search, sampler, pruner, folder / f"optuna_tpe_{seed}.journal")


def optuna_cmaes(search: Search, seed: int, folder: Path) -> None:
    """Search by CMA-ES, every trial to its end."""
    from optuna.pruners import NopPruner
    from optuna.samplers import CmaEsSampler

    journal = folder / f"optuna_cmaes_{seed}.journal"
    _optimize(search, CmaEsSampler(seed=seed), NopPruner(), journal)


def _optimize(search: Search, sampler: "BaseSampler", pruner: "BasePruner", journal: Path) -> None:
    import optuna
    from optuna.distributions import BaseDistribution, FloatDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for left in (journal, journal.with_name(journal.name + ".lock")):
        left.unlink(missing_ok=True)  # of a search that was killed; it starts again
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))), sampler=sampler, pruner=pruner
    )
    space: dict[str, BaseDistribution] = {
        name: FloatDistribution(low, high, log=True) for name, (low, high) in SPACE.items()
    }
    while search.has_budget:
        trial = study.ask(space)
        state, loss = TrialState.COMPLETE, float("nan")
        rows = schedule(Hyperparameters(**trial.params), search.trainer.horizon)
        for report, (step, loss) in enumerate(search.trial(rows), start=1):
            trial.report(loss, report)
            if step < search.trainer.horizon and trial.should_prune():
                state = TrialState.PRUNED
                break
        study.tell(trial, None if state is TrialState.PRUNED else loss, state)
