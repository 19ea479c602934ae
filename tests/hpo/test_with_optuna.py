"""Optuna's samplers and their journals."""

import time

import numpy as np
import pytest
from hpo_search import RUNS, searched

from l2o.hpo.search import incumbents


def test_tpe_keeps_a_journal_and_stops_bad_trials_early(trainer, tmp_path):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    search = searched("optuna_tpe", trainer[0], 1, tmp_path)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna_tpe_1.journal")))
    (summary,) = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    states = [trial.state for trial in study.trials]
    assert len(study.trials) > RUNS and optuna.trial.TrialState.PRUNED in states
    assert study.best_value == incumbents(search.reports)[-1].loss


@pytest.mark.parametrize("name", ["optuna_tpe", "optuna_cmaes"])
def test_a_study_begins_anew_where_one_was_killed(name, trainer, tmp_path, monkeypatch):
    """With what it had written, and a lock that nobody will release."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    first = searched(name, trainer[0], 1, tmp_path)
    journal = tmp_path / f"{name}_1.journal"
    lock = tmp_path / f"{name}_1.journal.lock"
    lock.symlink_to(journal)  # as Optuna locks
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits for the lock"))
    again = searched(name, trainer[0], 1, tmp_path)
    assert [report.loss for report in again.reports] == [report.loss for report in first.reports]
    storage = JournalStorage(JournalFileBackend(str(journal)))
    assert len(optuna.get_all_study_summaries(storage)) == 1


def test_optuna_models_what_comes_after_a_quarter_at_random(trainer, tmp_path, monkeypatch):
    """Until there is a model, what a sampler of the same seed draws is the same."""
    import optuna

    def rates(folder):
        search = searched("optuna_tpe", trainer[0], 0, folder)
        by_trial = {report.trial: report.schedule[0, 0] for report in search.reports}
        return np.array(list(by_trial.values())[:RUNS])

    modelled, sampler = rates(tmp_path), optuna.samplers.TPESampler
    monkeypatch.setattr(
        optuna.samplers, "TPESampler", lambda seed, **rest: sampler(seed=seed, n_startup_trials=99)
    )
    (tmp_path / "random").mkdir()
    at_random = rates(tmp_path / "random")
    assert np.flatnonzero(modelled != at_random)[0] == 4
