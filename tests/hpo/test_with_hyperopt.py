"""Hyperopt's estimator."""

from hpo_search import RUNS, STEPS, searched

from l2o.hpo.search import Search


def test_engines_with_a_model_draw_a_quarter_at_random(trainer, tmp_path, monkeypatch):
    import hyperopt

    counts = []

    def suggest(*arguments, n_startup_jobs):
        counts.append(n_startup_jobs)
        return hyperopt.rand.suggest(*arguments)

    monkeypatch.setattr(hyperopt.tpe, "suggest", suggest)
    assert searched("hyperopt_tpe", trainer[0], 0, tmp_path).num_random == 4
    assert counts == [4] * RUNS
    many = [Search(trainer[0], runs * STEPS).num_random for runs in (2, 12, 1000)]
    assert many == [2, 3, 10]
