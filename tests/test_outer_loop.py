import dataclasses
import gzip
import json
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_disk import file_size_limit
from tiny_run import THETA, tiny_learner

from l2o.distributed.mesh import population_mesh
from l2o.learner import Learner, MetaState
from l2o.outer_loop import chunk_of, fit
from l2o.runs.checkpoint import Checkpoints
from l2o.runs.folder import RunError, RunFolder
from l2o.runs.logging import TIMING_FIELDS, read_metrics
from l2o.runs.signals import stop_on_signals

KEY = jax.random.key(1)
SCHEDULE = {"num_steps": 30, "log_every": 5, "checkpoint_every": 10}


def counting_learner(bad_from: int = 10**9, bad_to: int = 10**9, data=()) -> Learner:
    """Adds noise to theta; its metrics are bad in a range of steps."""

    def init(key, theta):
        del key
        return MetaState(theta, theta, (), jnp.zeros(2), jnp.int32(0))

    def step(key, state, data):
        bad = (state.step >= bad_from) & (state.step < bad_to)
        total = sum(jnp.sum(x) for x in jax.tree.leaves(data))
        theta = jax.tree.map(lambda t: t + jax.random.normal(key) + total, state.theta)
        metrics = {
            "meta_loss": jnp.where(bad, jnp.nan, 1.0 / (1.0 + state.step)),
            "finite": jnp.where(bad, 0.0, 1.0),
            "valid": jnp.float32(0.5),
        }
        return state._replace(theta=theta, step=state.step + 1), metrics

    return Learner(init=init, step=step, theta=lambda state: state.theta, steps=7, data=data)


def lines_of(run: RunFolder) -> list[dict]:
    lines = read_metrics(run.metrics)
    return [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in lines]


def assert_same(a, b) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def learner() -> Learner:
    return counting_learner()


@pytest.fixture(scope="module")
def whole(learner, tmp_path_factory):
    """An uninterrupted run."""
    run = RunFolder.open(tmp_path_factory.mktemp("fit") / "run", {})
    return run, fit(KEY, learner, THETA, **SCHEDULE, run=run)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", [5, 10, 15, 20, 30])
def test_resumed_equals_uninterrupted(learner, whole, tmp_path, killed_at):
    run = RunFolder.open(tmp_path / "run", {})

    def kill(line):
        if line["step"] == killed_at:
            raise Killed

    with pytest.raises(Killed):
        fit(KEY, learner, THETA, **SCHEDULE, run=run, on_metrics=kill)
    seen = []
    state = fit(KEY, learner, THETA, **SCHEDULE, run=run, on_metrics=seen.append)
    assert seen[0]["step"] == (killed_at - 1) // 10 * 10 + 5
    assert_same(state, whole[1])
    assert lines_of(run) == lines_of(whole[0])
    again = fit(KEY, learner, THETA, **SCHEDULE, run=run, on_metrics=pytest.fail)
    assert_same(again, whole[1])
    assert lines_of(run) == lines_of(whole[0])


def test_meta_training_resumes(tmp_path):
    learner = tiny_learner()
    run = RunFolder.open(tmp_path, {})
    fit(KEY, learner, THETA, **SCHEDULE | {"num_steps": 10}, run=run)
    seen = []
    whole = fit(KEY, learner, THETA, **SCHEDULE, on_metrics=seen.append)
    assert_same(fit(KEY, learner, THETA, **SCHEDULE, run=run), whole)
    lines = [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in seen]
    assert lines_of(run) == lines
    assert lines[-1]["inner_steps"] == 30 * learner.steps == 30 * 8
    assert {"meta_loss", "finite", "valid", "meta_gradient_norm"} < lines[0].keys()


def test_the_chunk_size_and_the_run_folder_change_no_bit(learner, whole):
    state = fit(KEY, learner, THETA, num_steps=30, log_every=10)
    assert_same(state, whole[1])
    assert all(x.is_deleted() is False for x in jax.tree.leaves(THETA))


def test_lines_hold_means_of_a_chunk(tmp_path):
    run, seen = RunFolder.open(tmp_path, {}), []
    learner = counting_learner(bad_from=1, bad_to=2)
    fit(KEY, learner, THETA, num_steps=4, log_every=2, checkpoint_every=2, run=run,
        on_metrics=seen.append)  # fmt: skip
    first, second = read_metrics(run.metrics)
    assert first["step"] == 2 and first["inner_steps"] == 14
    assert first["meta_loss"] == 1.0 and first["finite"] == 0.5 and first["valid"] == 0.5
    assert second["meta_loss"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert second["inner_steps_per_second"] == pytest.approx(14 / second["seconds"])
    assert "compile_seconds" in seen[0] and "compile_seconds" not in seen[1]
    assert {**seen[1]} == second


def test_one_trace_a_run(learner, tmp_path):
    traces = []

    def step(key, state, data):
        traces.append(1)
        return learner.step(key, state, data)

    counted = Learner(learner.init, step, learner.theta, learner.steps, learner.data)
    fit(KEY, counted, THETA, **SCHEDULE, run=RunFolder.open(tmp_path, {}))
    assert len(traces) == 1


@pytest.mark.parametrize("num_steps", [15, 5])
def test_one_chunk_is_traced_on_request(learner, tmp_path, num_steps):
    run = RunFolder.open(tmp_path, {})
    fit(KEY, learner, THETA, num_steps=num_steps, log_every=5, run=run, profile=True)
    (path,) = run.profile.glob("**/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    chunks = [e for e in events if e.get("name", "").startswith("PjitFunction(chunk)")]
    assert len(events) > 10 and len(chunks) <= 1
    with pytest.raises(ValueError, match="`run` is needed for a profile"):
        fit(KEY, learner, THETA, num_steps=5, log_every=5, profile=True)


def test_devices_share_one_program_and_agree(tmp_path):
    def state_on(num_devices, **kwargs):
        learner = tiny_learner(population_mesh(num_devices))
        return fit(KEY, learner, THETA, log_every=5, checkpoint_every=5, **kwargs)

    two, run = state_on(2, num_steps=20), RunFolder.open(tmp_path, {})
    state_on(2, num_steps=10, run=run)
    assert_same(state_on(2, num_steps=20, run=run), two)
    one = state_on(1, num_steps=20)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), one.theta, two.theta)


def test_data_is_no_constant_of_the_program():
    def size_of_program(num_rows):
        learner = counting_learner(data={"rows": np.random.default_rng(0).normal(size=num_rows)})
        state = learner.init(KEY, THETA)
        return len(jax.jit(chunk_of(learner, 5)).lower(KEY, state, learner.data).as_text())

    assert size_of_program(100_000) - size_of_program(10) < 1000


def test_data_reaches_the_learner():
    plain = fit(KEY, counting_learner(), THETA, num_steps=10)
    added = fit(KEY, counting_learner(data=jnp.ones(3)), THETA, num_steps=10)
    np.testing.assert_allclose(
        added.theta["log_learning_rate"] - plain.theta["log_learning_rate"], 30.0, rtol=1e-5
    )


def test_stops_when_asked_and_goes_on(learner, whole, tmp_path):
    run, steps = RunFolder.open(tmp_path / "run", {}), []
    stop = lambda: len(steps) == 3
    state = fit(KEY, learner, THETA, **SCHEDULE, run=run, on_metrics=steps.append, should_stop=stop)
    assert state.step == 15 and Checkpoints(run.checkpoints).steps() == [10, 15]
    assert_same(fit(KEY, learner, THETA, **SCHEDULE, run=run), whole[1])
    assert lines_of(run) == lines_of(whole[0])


@pytest.mark.parametrize("stops", [(10, 20), (5, 15, 30), (30, 40)])
def test_a_run_in_stretches_is_the_whole_run(learner, whole, tmp_path, stops):
    run = RunFolder.open(tmp_path / "run", {})
    for stop in stops:
        state = fit(KEY, learner, THETA, **SCHEDULE, run=run, until=stop)
        assert int(state.step) == min(stop, 30) == lines_of(run)[-1]["step"]
        again = fit(KEY, learner, THETA, **SCHEDULE, run=run, until=stop)
        assert_same(again, state)  # which takes no step
    assert_same(fit(KEY, learner, THETA, **SCHEDULE, run=run), whole[1])
    assert lines_of(run) == lines_of(whole[0])


def test_a_stop_before_the_first_step():
    with pytest.raises(ValueError, match="`until` must be at least 1; got 0"):
        fit(KEY, counting_learner(), THETA, num_steps=10, until=0)


def test_a_damaged_checkpoint_is_reported_and_changes_nothing(learner, whole, tmp_path):
    run = RunFolder.open(tmp_path / "run", {})
    fit(KEY, learner, THETA, **SCHEDULE | {"num_steps": 20}, run=run)
    (run.checkpoints / "20" / "state" / "_METADATA").write_text("{}")
    with pytest.warns(UserWarning, match="20 is damaged .*_METADATA differs .* step 10 instead"):
        state = fit(KEY, learner, THETA, **SCHEDULE, run=run)
    assert_same(state, whole[1])
    assert lines_of(run) == lines_of(whole[0])


def test_a_disk_full_of_metrics(learner, whole, tmp_path):
    run = RunFolder.open(tmp_path / "run", {})
    size = len(whole[0].metrics.read_bytes())
    with (
        file_size_limit(size - 100),
        pytest.raises(RunError, match=r"(metrics|checkpoint .*) could not be written .*Free space"),
    ):
        fit(KEY, learner, THETA, **SCHEDULE, run=run)
    assert_same(fit(KEY, learner, THETA, **SCHEDULE, run=run), whole[1])
    assert lines_of(run) == lines_of(whole[0])


def test_a_run_without_a_finite_member_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    run = RunFolder.open(tmp_path, {})
    message = (
        r"no member had a finite loss in the last 27 outer steps: stopped at step 50; the last "
        r"good checkpoint is at step 20\. Try a smaller --std or --learning-rate"
    )
    with pytest.raises(RunError, match=message):
        fit(KEY, counting_learner(bad_from=23), THETA, num_steps=100, log_every=5,
            checkpoint_every=10, patience=24, run=run)  # fmt: skip
    assert Checkpoints(run.checkpoints).steps() == [10, 20]
    assert read_metrics(run.metrics)[-1]["meta_loss"] is None


def test_a_run_that_never_had_a_finite_member(tmp_path):
    with pytest.raises(
        RunError, match=r"last 10 outer steps: stopped at step 10; nothing was saved"
    ):
        fit(KEY, counting_learner(bad_from=0), THETA, num_steps=10)
    run = RunFolder.open(tmp_path, {})
    with pytest.raises(RunError, match="none is saved yet"):
        fit(KEY, counting_learner(bad_from=0), THETA, num_steps=200, run=run)
    assert not run.checkpoints.exists()


def test_a_checkpoint_due_in_a_bad_stretch_is_saved_after_it(tmp_path):
    run = RunFolder.open(tmp_path, {})
    learner = counting_learner(bad_from=17, bad_to=23)
    fit(KEY, learner, THETA, num_steps=40, log_every=5, checkpoint_every=20, run=run)
    assert Checkpoints(run.checkpoints).steps() == [25, 40]
    state = fit(KEY, learner, THETA, num_steps=40, log_every=5, checkpoint_every=20)
    assert_same(fit(KEY, learner, THETA, num_steps=40, log_every=5, run=run), state)


def with_tasks(learner: Learner) -> Learner:
    """Two tasks, of which `lost` has no finite member from step 3 on, and none valid at step 9."""

    def step(key, state, data):
        after, metrics = learner.step(key, state, data)
        lost = jnp.where(state.step < 3, 1.0, 0.0)
        more = {"lost/finite": lost, "lost/valid": jnp.float32(1.0)}
        more |= {"fine/finite": 1.0 - lost, "fine/valid": jnp.where(state.step == 9, 0.0, 1.0)}
        return after, metrics | more

    return dataclasses.replace(learner, step=step)


def test_one_dead_task_of_several_is_a_warning_and_no_end():
    told = []
    learner = with_tasks(counting_learner())
    state = fit(KEY, learner, THETA, num_steps=40, log_every=5, patience=6, on_warning=told.append)
    assert state.step == 40
    (line,) = told
    assert "no member had a finite loss on lost in the last 7 outer steps, up to step 10" in line
    with pytest.raises(RunError, match="no member had a finite loss in the last 10 outer steps"):
        fit(KEY, with_tasks(counting_learner(bad_from=0)), THETA, num_steps=40, patience=6,
            on_warning=told.append)  # fmt: skip


def scored_learner(scores: dict[int, float]) -> Learner:
    """Its meta-loss up to each of these steps."""
    learner = counting_learner()
    table = jnp.array(list(scores.values()))

    def step(key, state, data):
        after, metrics = learner.step(key, state, data)
        return after, metrics | {"meta_loss": table[state.step // 10]}

    return dataclasses.replace(learner, step=step)


@pytest.mark.parametrize("killed_at", [10, 20, 25, 40])
def test_the_best_state_is_handed_over_and_again_after_a_kill(tmp_path, killed_at):
    learner = scored_learner({10: 3.0, 20: 1.0, 30: 2.0, 40: 0.5})
    schedule = {"num_steps": 40, "log_every": 5, "checkpoint_every": 10}
    best = lambda found: lambda state: found.append(jax.device_get(state.theta))
    whole, killed, resumed = [], [], []
    fit(KEY, learner, THETA, **schedule, run=RunFolder.open(tmp_path / "whole", {}),
        on_best=best(whole))  # fmt: skip
    assert len(whole) == 3  # at 10, 20 and 40

    def kill_in_the_callback(state):
        if state.step == killed_at:
            raise Killed
        best(killed)(state)

    def kill(line):
        if line["step"] == killed_at == 25:
            raise Killed

    run = RunFolder.open(tmp_path / "run", {})
    with pytest.raises(Killed):
        fit(KEY, learner, THETA, **schedule, run=run, on_metrics=kill,
            on_best=kill_in_the_callback)  # fmt: skip
    fit(KEY, learner, THETA, **schedule, run=run, on_best=best(resumed))
    expected = [theta for i, theta in enumerate(whole) if (10, 20, 40)[i] >= killed_at // 10 * 10]
    assert len(resumed) == len(expected)
    for ours, theirs in zip(resumed, expected, strict=True):
        assert_same(ours, theirs)
    assert run.checkpoints.exists() and len(Checkpoints(run.checkpoints).steps()) == 2


def test_each_checkpoint_is_handed_over_before_the_best_and_the_one_that_a_run_continues_from(
    tmp_path,
):
    learner = scored_learner({10: 1.0, 20: 3.0, 30: 2.0, 40: 0.5})
    run, calls = RunFolder.open(tmp_path / "run", {}), []
    told = {
        "on_checkpoint": lambda state: calls.append(("saved", int(state.step))),
        "on_best": lambda state: calls.append(("best", int(state.step))),
    }

    def kill(line):
        if line["step"] == 35:
            raise Killed

    schedule = {"num_steps": 40, "log_every": 5, "checkpoint_every": 10}
    with pytest.raises(Killed):
        fit(KEY, learner, THETA, **schedule, run=run, on_metrics=kill, **told)
    assert calls == [("saved", 10), ("best", 10), ("saved", 20), ("saved", 30)]
    run.validation.write_text("".join(f'{{"step": {step}}}\n' for step in (20, 30, 40)) + '{"st')
    calls.clear()
    fit(KEY, learner, THETA, **schedule, run=run, **told)
    assert calls == [("saved", 30), ("saved", 40), ("best", 40)]
    assert [line["step"] for line in read_metrics(run.validation)] == [20, 30]
    calls.clear()
    fit(KEY, learner, THETA, **schedule, run=run, **told)
    assert calls == [("saved", 40), ("best", 40)]


def test_signals_are_left_alone_outside_the_main_thread():
    before, stopped = signal.getsignal(signal.SIGTERM), []

    def run():
        with stop_on_signals() as should_stop:
            stopped.append((should_stop(), signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert stopped == [(False, True)]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be at least 1; got 0"),
        ({"log_every": 0}, "`log_every` must be at least 1; got 0"),
        ({"patience": 0}, "`patience` must be at least 1; got 0"),
    ],
)
def test_step_counts_that_do_not_fit(tmp_path, steps, message):
    with pytest.raises(ValueError, match=message):
        fit(KEY, counting_learner(), THETA, **{"num_steps": 30} | steps, run=RunFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_fewer_steps_than_the_checkpoint_has(tmp_path):
    run = RunFolder.open(tmp_path, {})
    fit(KEY, counting_learner(), THETA, **SCHEDULE, run=run)
    with pytest.raises(ValueError, match=r"`num_steps` must be at least 30, .*; got 20\. Try num"):
        fit(KEY, counting_learner(), THETA, **SCHEDULE | {"num_steps": 20}, run=run)
    assert len(read_metrics(run.metrics)) == 6


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ({"num_steps": 4}, [4]),
        ({"num_steps": 12, "log_every": 5}, [4, 8, 12]),
        ({"num_steps": 9, "log_every": 2}, list(range(1, 10))),
    ],
)
def test_chunks_divide_the_run(learner, schedule, steps):
    lines = []
    fit(KEY, learner, THETA, **schedule, on_metrics=lines.append)
    assert [line["step"] for line in lines] == steps


@pytest.mark.parametrize(("before", "after"), [(6, 9), (10, 30), (7, 20)])
def test_a_run_can_be_made_longer(learner, tmp_path, before, after):
    run = RunFolder.open(tmp_path / "run", {})
    fit(KEY, learner, THETA, num_steps=before, checkpoint_every=1, run=run)
    state = fit(KEY, learner, THETA, num_steps=after, run=run)
    whole = fit(KEY, learner, THETA, num_steps=after)  # in chunks of another size
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), state, whole)
    assert lines_of(run)[-1]["step"] == after


def test_data_may_be_numpy_arrays():
    """Those of a task's own are placed as JAX's are, of JAX's dtypes."""
    numbers = np.arange(6.0).reshape(2, 3)
    states = [
        fit(KEY, counting_learner(data={"x": data}), THETA, num_steps=2)
        for data in (numbers, jnp.asarray(numbers))
    ]
    assert_same(*states)


INTERRUPTED = """
import os, signal, sys, threading, time
from l2o.cli import main
from l2o.cli.meta_train import say_stopping
from l2o.outer_loop import beside
from l2o.runs.signals import stop_on_signals

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
has_begun, is_heard = threading.Event(), threading.Event()

def interrupt_twice():  # two that are sent before the first is heard are one
    for before in (has_begun, is_heard):
        before.wait()
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

def heard():  # a handler starts no thread: whom it interrupts may be starting one
    say_stopping()
    is_heard.set()

threading.Thread(target=interrupt_twice, daemon=True).start()

def compiling(argv):
    try:
        with stop_on_signals(heard):
            waiting = beside(time.sleep, 100)
            has_begun.set()
            waiting.result()
    except KeyboardInterrupt:
        return main.INTERRUPTED

main.main = compiling
main.run()
"""


def test_ctrl_c_twice_ends_what_is_compiling_at_once():
    """Compiling is one long call, in which Python hears no signals: it has a thread of its own."""
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 130
    assert ended.stderr.strip() == (
        "stopping when this chunk, or what is being compiled, is done; again to stop at once"
    )


def test_a_second_signal_does_what_it_does_by_default(request):
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_every_outer_step_has_a_key_of_its_own():
    learner = tiny_learner()

    def step(key, state, data):
        state, metrics = learner.step(key, state, data)
        return state, metrics | {"draw": jax.random.uniform(key)}

    draws = []
    fit(
        jax.random.key(1),
        dataclasses.replace(learner, step=step),
        THETA,
        num_steps=10,
        log_every=1,
        on_metrics=lambda line: draws.append(line["draw"]),
    )
    assert len(set(draws)) == 10
