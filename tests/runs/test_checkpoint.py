import errno
import gc
import json
import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from full_disk import file_size_limit
from jax.sharding import NamedSharding, PartitionSpec

from l2o.distributed.mesh import AXIS, population_mesh
from l2o.runs.checkpoint import MANIFEST, Checkpoints
from l2o.runs.folder import RunError, RunFolder, atomic_write


class State(NamedTuple):
    theta: dict
    opt_state: tuple
    key: jax.Array
    step: jax.Array


def make_state(seed: int, size: int = 3) -> State:
    key = jax.random.key(seed)
    theta = {"w": jax.random.normal(key, (size, 2)), "none": None, "layers": [jnp.ones(2), ()]}
    return State(
        theta=theta,
        opt_state=(
            optax.EmptyState(),
            {
                "bf16": jax.random.normal(key, (5,), jnp.bfloat16),
                "flag": jnp.array(True),
                "odd name/with.dots": jnp.arange(3, dtype=jnp.uint8),
                "empty": jnp.zeros((0, 4)),
                "nan": jnp.array([jnp.nan, -0.0, jnp.inf]),
            },
        ),
        key=jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        step=jnp.int32(seed),
    )


TARGET = jax.eval_shape(lambda: make_state(0))


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def saved(folder, steps, **kwargs) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", **kwargs)
    for step in steps:
        checkpoints.save(step, make_state(step))
    return checkpoints


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(p.name for p in checkpoints.folder.iterdir())


def test_round_trip_keeps_every_bit_and_type(tmp_path):
    step, state = saved(tmp_path, [7]).restore(TARGET, pytest.fail)
    assert step == 7
    assert_same(state, make_state(7))


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(TARGET, pytest.fail) is None


def test_keeps_the_last_two_and_knows_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    scores = {10: 3.0, 20: 1.0, 30: float("nan"), 40: 2.0, 50: None, 60: 1.5, 70: 1.0, 80: 0.5}
    is_best = {}
    for step, score in scores.items():
        is_best[step] = checkpoints.save(step, make_state(step), score=score)
        again = Checkpoints(tmp_path)  # as after a restart
        assert again.steps() == [s for s in (step - 10, step) if s]
        assert again.is_best(step) == is_best[step]
    assert [step for step, best in is_best.items() if best] == [10, 20, 80]


def test_the_best_score_is_that_of_the_checkpoint_continued_from(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.save(10, make_state(10), score=2.0)
    assert checkpoints.save(20, make_state(20), score=1.0)
    (checkpoints.folder / "20" / MANIFEST).write_text("{}")
    warnings = []
    assert checkpoints.find(TARGET, warnings.append) == 10 and len(warnings) == 1
    assert checkpoints.save(20, make_state(20), score=1.0)


def test_a_checkpoint_moves_to_other_devices(tmp_path):
    spread = NamedSharding(population_mesh(2), PartitionSpec(AXIS))
    state = {
        "population": jnp.arange(8.0),
        "keys": jax.random.split(jax.random.key(0), 4),
        "none": jnp.zeros((2, 0)),
    }
    on_two = jax.device_put(state, spread)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, on_two)
    for sharding in (None, spread):
        target = jax.tree.map(
            lambda x, s=sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state
        )
        _, restored = checkpoints.restore(target, pytest.fail)
        assert_same(restored, state)
        num_devices = {len(x.sharding.device_set) for x in jax.tree.leaves(restored)}
        assert num_devices == {2 if sharding else 1}


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="`keep` must be at least 1; got 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_flipped_bit_in_any_file_is_reported_and_passed_over(tmp_path):
    checkpoints = saved(tmp_path, [10, 20])
    pristine = tmp_path / "copy"
    shutil.copytree(checkpoints.folder, pristine)
    files = sorted(p for p in (pristine / "20").rglob("*") if p.is_file())
    assert len(files) > 5
    for seed, file in enumerate(files):
        shutil.rmtree(checkpoints.folder)
        shutil.copytree(pristine, checkpoints.folder)
        content = bytearray(file.read_bytes())
        position = np.random.default_rng(seed).integers(len(content))
        content[position] ^= 1 << (seed % 8)
        (checkpoints.folder / file.relative_to(pristine)).write_bytes(content)
        warnings = []
        step, state = checkpoints.restore(TARGET, warnings.append)
        assert step == 10
        assert_same(state, make_state(10))
        (warning,) = warnings
        assert "20 is damaged" in warning and "continuing from step 10 instead" in warning
        assert "\n" not in warning
        assert names(checkpoints) == ["10"]


@pytest.mark.parametrize("damage", ["delete", "truncate", "add"])
def test_changed_sets_of_files_are_damage(tmp_path, damage):
    checkpoints = saved(tmp_path, [10, 20])
    state = checkpoints.folder / "20" / "state"
    file = next(p for p in sorted(state.rglob("*")) if p.is_file() and p.stat().st_size > 1)
    match damage:
        case "delete":
            file.unlink()
        case "truncate":
            file.write_bytes(file.read_bytes()[:-1])
        case "add":
            (state / "more").write_text("?")
    warnings = []
    step, _ = checkpoints.restore(TARGET, warnings.append)
    assert step == 10 and len(warnings) == 1


def test_without_an_intact_one_it_stops_and_removes_nothing(tmp_path):
    checkpoints = saved(tmp_path, [10, 20])
    for step in (10, 20):
        (checkpoints.folder / str(step) / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match=r"10 is damaged .*no intact checkpoint is left\. Remove"):
        checkpoints.restore(TARGET, pytest.fail)
    assert names(checkpoints) == ["10", "20"]


def test_one_without_manifest_was_interrupted(tmp_path):
    checkpoints = saved(tmp_path, [10, 20])
    (checkpoints.folder / "20" / "manifest.json").unlink()
    (checkpoints.folder / "30").mkdir()
    (checkpoints.folder / "30" / "state.orbax-checkpoint-tmp").mkdir()
    step, _ = checkpoints.restore(TARGET, pytest.fail)
    assert step == 10 and names(checkpoints) == ["10"]
    checkpoints.save(20, make_state(20))
    assert checkpoints.restore(TARGET, pytest.fail)[0] == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s._replace(step=jnp.float32(0)), r"step is int32\[\], not float32\[\]"),
        (
            lambda s: s._replace(theta=s.theta | {"w": jnp.ones((2, 3))}),
            r"theta/w is float32\[3, 2\]",
        ),
        (
            lambda s: s._replace(theta=s.theta | {"v": jnp.ones(2)}),
            r"theta/v is absent, not float32",
        ),
        (lambda s: s._replace(opt_state=()), r"opt_state/1/bf16 is bfloat16\[5\], not absent"),
        (lambda s: s._replace(key=jax.random.split(jax.random.key(0), 3)), r"key is key<rbg>\[3\]"),
    ],
)
def test_another_dtype_shape_or_structure_is_never_cast(tmp_path, change, message):
    checkpoints = saved(tmp_path, [10])
    with pytest.raises(RunError, match=f"does not fit this run: {message}"):
        checkpoints.restore(change(make_state(0)), pytest.fail)


def test_another_format_is_not_guessed_at(tmp_path, monkeypatch):
    monkeypatch.setattr("l2o.runs.checkpoint.FORMAT", 3)
    checkpoints = saved(tmp_path, [10])
    monkeypatch.undo()
    with pytest.raises(RunError, match="has format 3, not 2"):
        checkpoints.restore(TARGET, pytest.fail)


@pytest.mark.parametrize("limit", [0, 100, 1000, 20_000])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, limit):
    checkpoints = Checkpoints(tmp_path / "c")
    # Made before the disk is full, as compiled programs are written, too.
    ten, twenty = make_state(10, size=30_000), make_state(20, size=30_000)
    with file_size_limit(limit), pytest.raises(RunError, match=r"none is saved yet\. Free space"):
        checkpoints.save(10, ten)
    checkpoints.save(10, ten)
    with (
        file_size_limit(limit),
        pytest.raises(
            RunError, match=r"20 could not be .*\(File too large\); the last good .* is at step 10"
        ),
    ):
        checkpoints.save(20, twenty)
    assert names(checkpoints) == ["10"]
    target = jax.eval_shape(lambda: make_state(0, size=30_000))
    assert_same(checkpoints.restore(target, pytest.fail)[1], ten)
    checkpoints.save(20, twenty)


@pytest.mark.slow  # pytest itself must not write while it lasts, and in xdist's workers it may
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's threads
@pytest.mark.parametrize("limit", [0, 1000])
def test_a_disk_that_fills_up_while_orbax_writes(tmp_path, monkeypatch, limit):
    monkeypatch.setattr("l2o.runs.checkpoint._reserve", lambda path, num_bytes: path.mkdir())
    checkpoints, twenty = saved(tmp_path, [10]), make_state(20, size=30_000)
    with (
        file_size_limit(limit),
        pytest.raises(
            RunError, match=r"20 could not be .*; the last good .* is at step 10"
        ) as error,
    ):
        checkpoints.save(20, twenty)
    assert "\n" not in str(error.value)
    assert names(checkpoints) == ["10"]
    gc.collect()
    assert_same(checkpoints.restore(TARGET, pytest.fail)[1], make_state(10))


def test_an_unwritable_folder_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/c/10 could not be written \(Not a directory\)"):
        Checkpoints(tmp_path / "file" / "c").save(10, make_state(0))


@pytest.fixture
def fickle(monkeypatch):
    """Let renames fail as over a network: `fickle(name, answers)`.

    Of "stale" and "full" nothing is done, "lost" is done and has no answer, "gone" is the file.
    """
    monkeypatch.setattr("l2o.runs.folder.PAUSES", (0.0, 0.0))
    monkeypatch.setattr("l2o.runs.checkpoint.PAUSES", (0.0,))
    numbers = {"stale": errno.ESTALE, "lost": errno.ESTALE, "full": errno.ENOSPC, "gone": 2}

    def install(name, answers):
        rename, answers = getattr(os, name), list(answers)

        def failing(source, target, **options):
            answer = answers.pop(0) if answers else "done"
            if answer in ("lost", "done"):
                rename(source, target, **options)
            if answer != "done":
                raise OSError(numbers[answer], answer)

        monkeypatch.setattr(os, name, failing)
        return answers

    return install


@pytest.mark.parametrize("name", ["rename", "replace"])
def test_renames_that_fail_at_first_are_tried_again(name, fickle, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    fickle(name, ["stale"])
    checkpoints.save(10, make_state(10))
    assert_same(checkpoints.restore(TARGET, pytest.fail)[1], make_state(10))


@pytest.mark.parametrize("answers", [["lost"], ["stale", "lost"]])
def test_a_rename_whose_answer_was_lost_is_done(answers, fickle, tmp_path):
    fickle("replace", answers)
    atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("answer", ["stale", "gone"])
def test_a_rename_that_always_fails_leaves_what_was_there(answer, fickle, tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    fickle("replace", [answer] * 9)
    with pytest.raises(OSError, match=answer):
        atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_that_cannot_be_renamed_twice_is_a_run_error(fickle, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    fickle("rename", ["stale"] * 2)
    with pytest.raises(RunError, match=r"c/10 could not be written \(.*stale"):
        checkpoints.save(10, make_state(10))
    assert not checkpoints.steps() and not list((tmp_path / "c").iterdir())


def test_a_full_disk_is_not_tried_again(fickle, tmp_path):
    left = fickle("replace", ["full"] * 9)
    with pytest.raises(RunError, match=r"c/10 could not be written \(full\)"):
        Checkpoints(tmp_path / "c").save(10, make_state(10))
    assert len(left) == 6  # of one manifest, three tries


CONFIG = {"steps": 10, "task": {"name": "digits", "dims": (1, 2)}, "quiet": False}


def test_a_run_folder_is_made_and_continued(tmp_path):
    run = RunFolder.open(tmp_path / "a" / "run", CONFIG)
    assert json.loads(run.config.read_text())["task"] == {"name": "digits", "dims": [1, 2]}
    assert RunFolder.open(run.path, CONFIG, resume=True) == run


def test_an_existing_run_folder_needs_resume(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    before = RunFolder(tmp_path).config.read_bytes()
    with pytest.raises(ValueError, match=r"`run_dir` must be new or empty.*Add --resume"):
        RunFolder.open(tmp_path, CONFIG | {"steps": 3})
    assert RunFolder(tmp_path).config.read_bytes() == before


def test_what_a_crash_while_it_was_made_left_does_not_count(tmp_path):
    (tmp_path / ".config.json.tmp").write_text("{")
    with pytest.raises(ValueError, match=r"`resume` needs a run.* Drop --resume"):
        RunFolder.open(tmp_path, CONFIG, resume=True)
    RunFolder.open(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"`resume` needs a run to continue.*Drop --resume"):
        RunFolder.open(tmp_path / "none", CONFIG, resume=True)
    assert not (tmp_path / "none").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"`resume` needs the config.json of a run.*No such file"):
        RunFolder.open(tmp_path, CONFIG, resume=True)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"`resume` needs the config.json of a run"):
        RunFolder.open(tmp_path, CONFIG, resume=True)


def test_resume_names_every_changed_field(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    changed = {"steps": 9, "task": {"name": "digits", "dims": (1, 3)}, "quiet": False, "new": None}
    with pytest.raises(ValueError, match="`resume` needs the configuration") as error:
        RunFolder.open(tmp_path, changed, resume=True)
    changes = "steps=10 (now 9), task.dims=[1, 2] (now [1, 3]), new not set (now null)"
    assert changes in str(error.value)


@pytest.mark.parametrize("path", ["file", "file/run", "/proc/l2o/run"])
def test_an_unwritable_run_folder(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`run_dir` must be a folder that can be written"):
        RunFolder.open(tmp_path / path, CONFIG)


def test_a_disk_that_is_full_at_once_leaves_no_folder(tmp_path):
    with file_size_limit(1), pytest.raises(ValueError, match=r"`run_dir` .*File too large"):
        RunFolder.open(tmp_path / "a" / "run", CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_a_config_must_be_json(tmp_path, value):
    with pytest.raises(ValueError, match="`config` must be JSON-able"):
        RunFolder.open(tmp_path / "run", {"a": value})
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_locked_for_others_and_no_longer_than_needed(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    for _ in range(2):
        with run.locked(pytest.fail):
            message = r"`run_dir` must not be in use; got .*choose another --run-dir"
            with pytest.raises(ValueError, match=message), run.locked(pytest.fail):
                pass
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "config.json"}


def test_a_file_system_that_cannot_lock_is_reported(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    warnings = []
    with RunFolder.open(tmp_path, CONFIG).locked(warnings.append):
        (text,) = warnings
    assert "cannot be locked (No locks available)" in text and "second run" in text


WITHOUT_FCNTL = """
import os, sys, pathlib
sys.modules["fcntl"] = None
sys.modules["resource"] = None
del os.posix_fallocate, os.sched_getaffinity
os.process_cpu_count = os.cpu_count  # as Python 3.13 has it where there is no affinity
import jax
from tiny_run import THETA, tiny_learner
import l2o
from l2o.distributed.processes import cores
from l2o.runs.folder import RunFolder

assert cores()
run, told = RunFolder.open(sys.argv[1], {}), []
with run.locked(told.append):
    l2o.fit(jax.random.key(0), tiny_learner(), THETA, num_steps=2, log_every=1,
            checkpoint_every=1, run=run)
print(*told)
"""


def test_a_run_on_a_system_without_locks(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "cannot be locked (this system has no flock)" in result.stdout
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [1, 2]
