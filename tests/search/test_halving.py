"""Successive halving: who goes on, and that the budget is kept."""

import dataclasses
import random

from hypothesis import given
from hypothesis import strategies as st

from l2o.search.halving import Job, Trial, best_trial, next_job, promotable, rungs_of

RUNGS = (10, 30, 90)


def scored(number: int, score: float, target: int = 10) -> Trial:
    return Trial(number, {}, 1, target, {10: score})


def test_rungs_are_whole_chunks_and_end_at_the_last_step():
    assert rungs_of(300, 3, 3, 10) == (30, 100, 300)
    assert rungs_of(20, 3, 3, 10) == (10, 20)
    assert rungs_of(100, 2, 1, 10) == (100,)


def test_the_best_third_goes_on_once():
    trials = [scored(i, score) for i, score in enumerate((0.1, 0.5, 0.3, 0.4, 0.2, 0.0))]
    assert [job.trial.number for job in promotable(trials, RUNGS, 3)] == [1, 3]
    trials[1] = dataclasses.replace(trials[1], target=30)
    assert [job.trial.number for job in promotable(trials, RUNGS, 3)] == [3]
    assert promotable(trials[:2], RUNGS, 3) == []


def test_higher_rungs_come_first():
    trials = [Trial(i, {}, 1, 30, {10: 0.1 * i, 30: 0.1 * i}) for i in range(3)]
    trials += [scored(3, 0.9)]
    first, second = promotable(trials, RUNGS, 3)
    assert (first.trial.number, first.target) == (2, 90)
    assert (second.trial.number, second.target) == (3, 30)


def test_a_trial_that_failed_does_not_go_on():
    trials = [scored(i, 0.1 * i) for i in range(3)]
    trials[2] = dataclasses.replace(trials[2], error="no finite loss")
    assert promotable(trials, RUNGS, 3) == []
    assert best_trial(trials).number == 1


def test_the_best_is_the_best_of_the_highest_rung():
    trials = [scored(0, 0.9), Trial(1, {}, 1, 30, {10: 0.1, 30: 0.2})]
    assert best_trial(trials).number == 1
    assert best_trial([]) is None


def test_what_is_left_of_the_budget_takes_a_trial_to_the_end():
    choose = lambda trials, budget: next_job(trials, RUNGS, eta=3, budget=budget, cost=1)
    assert choose([], 90) == Job(None, 10)
    one = [scored(0, 0.1)]
    assert choose(one, 100) == Job(None, 10)
    assert choose(one, 99) == Job(one[0], 30)  # a second would leave none at the end
    busy = [Trial(0, {}, 1, 10)]
    assert choose(busy, 99) is None
    assert choose([Trial(0, {}, 1, 90, {10: 0.1, 30: 0.1, 90: 0.1})], 99) is None


@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(90, 1000))
def test_a_search_ends_within_its_budget_with_a_whole_trial(seed, workers, budget):
    """However long trials take; no rung of a trial is given out twice."""
    draw = random.Random(seed)
    trials: list[Trial] = []
    given_out = set()
    while True:
        busy = [trial for trial in trials if trial.is_busy]
        job = next_job(trials, RUNGS, eta=3, budget=budget, cost=1)
        if len(busy) < workers and job is not None:
            trial = job.trial or Trial(len(trials), {}, 1, job.target)
            trials[trial.number :] = [
                dataclasses.replace(trial, target=job.target),
                *trials[trial.number + 1 :],
            ]
            assert (trial.number, job.target) not in given_out
            given_out.add((trial.number, job.target))
        elif busy:
            done = draw.choice(busy)
            scores = {**done.scores, done.target: draw.random()}
            trials[done.number] = dataclasses.replace(done, scores=scores)
        else:
            break
        assert sum(trial.budget_used for trial in trials) <= budget
    assert any(90 in trial.scores for trial in trials)
    assert budget - sum(trial.budget_used for trial in trials) < 60 or all(
        90 in trial.scores for trial in trials
    )
