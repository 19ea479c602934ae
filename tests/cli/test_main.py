"""The command line: what it makes, and what it says to mistakes."""

import ast
import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import pytest
import safetensors.numpy
from rich.console import Console
from user_module import bowl

from l2o import registry, release
from l2o.cli import main as cli
from l2o.cli import meta_train as meta_training
from l2o.cli.plan import resolve
from l2o.cli.settings import MetaTraining
from l2o.optimizers.learnable import learnable_sgd
from l2o.rng import stream
from l2o.runs.folder import RunFolder
from l2o.runs.logging import read_metrics

TINY = (
    *("--task", "user_module:bowl", "--optimizer", "learnable_sgd", "--horizon", "8"),
    *("--window", "2", "--num-pairs", "2", "--std", "0.1", "--log-every", "5"),
    *("--checkpoint-every", "10", "--eval-seeds", "2", "--quiet"),
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main(["meta-train", *TINY, "--steps", "20", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def finished(one_run, tmp_path):
    return RunFolder(shutil.copytree(one_run, tmp_path / "run"))


def test_a_run_leaves_its_folder_and_continues_as_it_was(finished, tmp_path, capsys):
    run = finished
    report = json.loads(run.report_json.read_text())
    (row,) = report["comparisons"]
    assert {"task", "steps", "learned_final_loss", "best_baseline", "speedup_low"} <= set(row)
    assert row["seen"] is True  # a single task is evaluated on itself, with other seeds
    assert [c["name"] for c in row["controls"]] == ["untrained"]
    theta = run.theta.read_bytes()
    lines = run.metrics.read_bytes()

    assert cli.main(["meta-train", *TINY, "--steps", "20", "--run-dir", "run", "--resume"]) == 0
    assert run.theta.read_bytes() == theta
    assert run.metrics.read_bytes() == lines

    capsys.readouterr()
    assert cli.main(["report", "run", "--png"]) == 0
    assert run.path.joinpath("report.png").stat().st_size > 0
    assert "best baseline" in capsys.readouterr().out

    evaluate = ["evaluate", "run", "--task", "user_module:bowl", "--steps", "5", "--seeds", "2"]
    assert cli.main([*evaluate, "--out", "b"]) == 0
    assert json.loads((tmp_path / "b" / "report.json").read_text())["comparisons"][0]["seen"]


def test_a_design_that_is_an_object_is_found_again(tmp_path, capsys):
    design = registry.design("user_module:configured")
    lopt = registry.learned_optimizer("user_module:configured")
    release.save("a.safetensors", lopt, lopt.init(jax.random.key(0)))
    assert release.load("a.safetensors", design=design)[0] is lopt
    other = learnable_sgd(learning_rate=0.3)
    release.save("b.safetensors", other, other.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"is configured otherwise: \{'learning_rate': 0.2\}"):
        release.load("b.safetensors", design=design)


def test_a_design_of_ones_own_is_trained_and_evaluated_by_its_path(tmp_path, capsys):
    design = ("--optimizer", "user_module:momentum_rate")
    assert cli.main(["meta-train", *TINY, *design, "--steps", "5", "--run-dir", "a"]) == 0
    evaluate = ["evaluate", "a", "--task", "user_module:bowl", "--steps", "5", "--seeds", "2"]
    assert cli.main([*evaluate, *design]) == 0
    capsys.readouterr()
    assert cli.main(evaluate) == 2  # a file never names code to import
    assert "momentum_rate" in one_line(capsys)


@pytest.mark.slow
def test_a_strategy_in_place_of_an_estimator():
    strategy = ("--estimator", "SNES", "--num-runs", "3")
    assert cli.main(["meta-train", *TINY, *strategy, "--steps", "10", "--run-dir", "a"]) == 0
    line = read_metrics(RunFolder(Path("a")).metrics)[-1]
    assert line["inner_steps"] == 10 * 4 * 3 * 8
    assert line["best_loss"] <= line["meta_loss"] == line["bowl/meta_loss"]
    assert Path("a", "report.html").exists()


def one_line(capsys) -> str:
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    return error


POLICY = "--optimizer scheduler --estimator ppo --horizon 50 --window 25 --minibatches 1"
REINFORCE = POLICY.replace("ppo", "reinforce").replace(" --minibatches 1", "")
MISTAKES = {
    "task": ("--task digts", "--task must be a known name; got digts. Try digits_mlp"),
    "design": ("--optimizer adafac", "got adafac. Try adafac_mlp"),
    "estimator": ("--estimator pse", "got pse. Try pes"),
    "preset": ("digitz", "PRESET must be a known name; got digitz. Try digits"),
    "horizon = window": ("--horizon 2", "--horizon must be above --window; got --horizon 2"),
    "horizon < window": ("--horizon 1", "Try --horizon 8"),
    "no multiple": ("--horizon 9", "multiple of --window; got --horizon 9, --window 2. Try"),
    "range": ("--horizon 8 4", "from short to long; got 8 to 4. Try --horizon 4 8"),
    "three": ("--horizon 2 4 8", "--horizon must be one number or two; got 3"),
    "window": ("--window 0", "--window must be at least 1; got 0"),
    "pairs": ("--num-pairs 0", "--num-pairs must be at least 1; got 0. Try --num-pairs 16"),
    "std": ("--std 0", "--std must be positive and finite; got 0.0. Try --std 0.01"),
    "endless std": ("--std inf", "--std must be positive and finite; got inf"),
    "negative std": ("--std -1", "--std must be positive and finite; got -1.0"),
    "rate": ("--learning-rate 0", "--learning-rate must be positive and finite; got 0.0"),
    "nan rate": ("--learning-rate nan", "--learning-rate must be positive and finite; got nan"),
    "steps": ("--steps 0", "--steps must be positive and finite; got 0"),
    "seed": ("--seed -1", "--seed must be between 0 and 2**32 - 1; got -1"),
    "large seed": ("--seed 4294967296", "--seed must be between 0 and 2**32 - 1"),
    "empty module": ("--task :x", "--task must be a known name; got :x"),
    "decay": ("--weight-decay -1", "--weight-decay must not be negative"),
    "averaging": ("--averaging 1", "--averaging must be in [0, 1); got 1.0"),
    "eval steps": ("--eval-steps 0", "--eval-steps must be positive and finite; got 0"),
    "eval task": ("--eval-tasks bowk", "--eval-tasks must be a known name; got bowk. Try bowl"),
    "integers": ("--task user_module:integer_params", "floating point; got int32 at params['n']"),
    "vector": ("--task user_module:vector_loss", "the loss must be a float scalar"),
    "no task": ("--task user_module:not_a_task", "got user_module:not_a_task"),
    "no module": ("--task no_such_module:x", "No module named 'no_such_module'"),
    "no attribute": ("--task user_module:x", "has no attribute 'x'"),
    "no design": ("--optimizer user_module:bowl", "gives Task. Return l2o.LearnedOptimizer"),
    "devices": (
        "--devices 2 --num-pairs 3",
        "must be a multiple of 2 on 2 devices; got 3. Try --num-pairs 4",
    ),
    "too many devices": (
        "--devices 3 --num-pairs 3",
        "--devices must be between 1 and the 2 present; got 3. Try --devices 2",
    ),
    "no launcher": (
        "--distributed --num-processes 2",
        "needs --coordinator, --process-id: neither",
    ),
    "not distributed": ("--process-id 1", "--process-id goes with --distributed; got 1. Add"),
    "timeout": ("--connect-timeout 0", "--connect-timeout must be at least 1 s; got 0"),
    "weights": ("--weights 1 2", "--weights must be one number for each task; got 2 for 1"),
    "weight": ("--weights -1", "--weights must be positive and finite; got -1.0"),
    "twice": ("--task user_module:bowl user_module:bowl", "tasks that differ; got bowl twice"),
    "measure": ("--measure acc", "--measure must be loss or a metric of task bowl; got acc"),
    "backprop": (
        "--task quadratic --objective mean --measure distance_to_minimum --estimator full_grad",
        "--estimator must be an evolution strategy for a metric",
    ),
    "target": ("--objective steps_to_target", "--target goes with the objective steps_to_target"),
    "shaping": (
        "--estimator full_grad --shaping sign",
        "--shaping goes with full_es, truncated_es",
    ),
    "strategy": ("--estimator cma_es", "--estimator must be a known name; got cma_es. Try CMA_ES"),
    "candidates": (
        "--estimator SNES --num-pairs 1",
        "--num-pairs must be at least 2 for SNES; got 1. Try --num-pairs 4",
    ),
    "runs": ("--num-runs 0", "--num-runs must be positive and finite; got 0. Try --num-runs 4"),
    "small theta": (
        "--estimator LM_MA_ES",
        "--estimator LM_MA_ES needs a theta of at least 4 numbers, as it diverges on fewer; got 1.",
    ),
    "adapted std": (
        "--estimator SNES --final-std 0.01",
        "--final-std must be left to SNES, which adapts it; got 0.01. Drop it.",
    ),
    "shaped ranks": ("--estimator SNES --shaping sign", "--shaping goes with full_es"),
    "freeze": ("--freeze rate", "fit the name of a leaf of theta; got rate. Try log_learning_rate"),
    "no noise": ("--estimator full_grad --final-std 0.1", "--final-std goes with perturbations"),
    "endless target": (
        "--objective steps_to_target --target nan",
        "--target must be finite and, for a loss, below the cap of task bowl, 100; got nan",
    ),
    "final std": ("--final-std 0", "--final-std must be positive and finite; got 0.0. Try"),
    "batches": ("--measure-batches 2", "--measure-batches must be 1 on the step's own batch"),
    "no policy": (
        "--estimator ppo",
        "--optimizer must be a policy for ppo; got learnable_sgd. Try optimizer_selector,",
    ),
    "no such reward": (
        f"{POLICY} --reward f1",
        "--reward must be log_loss, loss, examples or a metric of task bowl; got f1. "
        "Try log_loss, loss, examples.",
    ),
    "interval": (
        f"{POLICY} --horizon 50 --window 10",
        "--window must be a multiple of the 25 steps between two decisions of scheduler; got 10. "
        "Try --window 25.",
    ),
    "discount": (f"{POLICY} --discount 1.5", "--discount must be in [0, 1]; got 1.5. Try"),
    "minibatches": (f"{POLICY} --minibatches 3", "--minibatches must divide the 2 groups; got 3."),
    "empty range": ("--optimizer user_module:empty_range", "must make a range of positive rates"),
    "no reward": ("--reward loss", "--reward goes with reinforce and ppo; got loss with pes. Drop"),
    "no cost": (
        f"{POLICY} --objective mean",
        "--objective goes with estimators that minimise a cost",
    ),
    "not ppo's": (f"{POLICY} --baseline value", "--baseline goes with reinforce; got value with"),
    "no std": (f"{POLICY} --final-std 0.1", "--final-std goes with perturbations of theta"),
    "groups": (
        f"{REINFORCE} --baseline leave_one_out --num-runs 3",
        "--num-runs must be even and divide the 4 runs; got 3. Try --num-runs 2",
    ),
    "baseline": (
        "--eval-baselines adm",
        "--eval-baselines must be among adam, adam_cosine, sgdm, sgdm_cosine; got adm. Try adam",
    ),
    "run dir": ("--run-dir /proc/no/run", "--run-dir must be a folder that can be written"),
    "resume": ("--resume --run-dir nothing", "--resume needs a run to continue"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(case, tmp_path, capsys):
    typed, says = MISTAKES[case]
    arguments = typed.split()
    settings = (*TINY, "--steps", "5", "--run-dir", "run")
    is_preset = not typed.startswith("-")
    arguments = [*arguments, *settings] if is_preset else [*settings, *arguments]
    assert cli.main(["meta-train", *arguments]) == 2
    assert says in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_names_the_nearest(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["meta-train", "--stps", "3"])
    assert stopped.value.code == 2
    assert "--steps" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten_nor_continued_with_other_settings(finished, tmp_path, capsys):
    tiny = ["meta-train", *TINY, "--run-dir", "run"]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert cli.main([*tiny, "--steps", "20"]) == 2
    assert "Add --resume to continue it" in one_line(capsys)
    assert cli.main([*tiny, "--steps", "20", "--resume", "--std", "0.2"]) == 2
    assert "it was started with --std 0.1 (now 0.2)" in one_line(capsys)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_run_in_progress_is_not_started_twice(finished, capsys):
    tiny = ["meta-train", *TINY, "--run-dir", "run", "--steps", "20", "--no-evaluate", "--resume"]
    lines = finished.metrics.read_bytes()
    with finished.locked(pytest.fail):
        assert cli.main(tiny) == 2
        assert "--run-dir must not be in use; got" in one_line(capsys)
    assert finished.metrics.read_bytes() == lines
    assert cli.main(tiny) == 0


@pytest.mark.slow
def test_other_devices_may_continue_a_run_and_the_evaluation_may_wait(tmp_path, capsys):
    tiny = ["meta-train", *TINY, "--steps", "10", "--run-dir", "run"]
    assert cli.main([*tiny, "--devices", "2", "--no-evaluate"]) == 0
    run = RunFolder(tmp_path / "run")
    assert run.theta.exists() and not run.report_json.exists()
    assert str(run.theta) in capsys.readouterr().out
    assert cli.main([*tiny, "--devices", "1", "--resume"]) == 0
    assert run.report_json.exists()


def test_topology(capsys):
    assert cli.main(["topology", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["jax"] == jax.__version__ and found["device_kinds"] == {"cpu": 2}
    assert found["processes"] == 1 and found["devices_per_process"] == [2]
    assert cli.main(["topology"]) == 0
    shown = capsys.readouterr().out
    assert "2 x cpu; 2 in each process" in shown and "neither SLURM nor Open MPI" in shown


def test_a_loss_that_is_never_finite_stops_the_run(capsys):
    task = ("--task", "user_module:always_nan")
    assert cli.main(["meta-train", *TINY, *task, "--steps", "500", "--run-dir", "run"]) == 2
    error = one_line(capsys)
    assert "no member had a finite loss in the last 100 outer steps" in error
    assert "Try a smaller --std or --learning-rate" in error


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04K\x01.", b"\xff" * 100])
def test_a_file_that_is_no_release_file_is_one_line(content, tmp_path, capsys):
    (tmp_path / "bad.safetensors").write_bytes(content)
    assert cli.main(["evaluate", "bad.safetensors"]) == 2
    assert "bad.safetensors" in one_line(capsys)


def test_a_flipped_bit_in_a_release_file_is_noticed(finished, capsys):
    content = bytearray(finished.theta.read_bytes())
    content[-1] ^= 1
    finished.theta.write_bytes(content)
    assert cli.main(["evaluate", "run"]) == 2
    assert "theta.safetensors" in one_line(capsys)


@pytest.mark.parametrize(
    "typed, says",
    [
        ("evalute", "VERB must be a known name; got evalute. Try evaluate"),
        ("evaluate no_such", "RUN_OR_FILE must name an optimizer that comes with l2o"),
        ("report no_such", "no_such"),
        ("list tasks", "`list` takes --json or nothing; got tasks"),
        ("data", "`data` takes `list` or `fetch NAME ...`; got nothing"),
        ("data fetch mnst", "got mnst. Try mnist"),
    ],
)
def test_mistakes_of_other_verbs_are_one_line(typed, says, tmp_path, capsys):
    assert cli.main(typed.split()) == 2
    assert says in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_list_names_everything(capsys):
    assert cli.main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    ways = {"estimators", "policy_gradients", "strategies"}
    assert set(listed) == {"tasks", "optimizers", "presets", *ways}
    assert all(line for section in listed.values() for line in section.values())
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for section in listed.values() for name in section)


@pytest.mark.parametrize("verb", ["meta-train", "evaluate", "report"])
def test_help_lists_the_flags(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    assert stopped.value.code == 0
    assert "--" in capsys.readouterr().out


def test_trackers_get_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = ["meta-train", *TINY, "--steps", "5", "--run-dir", "run"]
    assert cli.main([*arguments, "--no-evaluate", "--log", "tensorboard", "wandb"]) == 0
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert list((tmp_path / "run").rglob("*.wandb"))


SETTINGS = (
    *("std=0.2", "final_std=0.01", "shaping=sign", "estimator=truncated_es", "estimator=nres"),
    *("learning_rate=0.1", "weight_decay=1.0", "clip=1e-9", "averaging=0.0", "steps=100"),
    *("horizon=(12,)", "window=4", "num_pairs=4", "task=('user_module:bowl', 'rosenbrock')"),
    *("objective=mean", "objective=final", "measure_on=valid", "normalize=True"),
)
BASE = MetaTraining(
    task=("user_module:bowl",),
    optimizer="learnable_sgd",
    horizon=(8,),
    window=2,
    num_pairs=2,
    devices=1,
)


def program_of(settings: MetaTraining) -> str:
    plan = resolve(settings)
    key = jax.random.key(0)
    state = jax.eval_shape(plan.learner.init, key, plan.trained)
    return str(jax.make_jaxpr(plan.learner.step)(key, state, plan.learner.data))


@pytest.fixture(scope="module")
def base_program():
    return program_of(BASE)


@pytest.mark.parametrize("change", SETTINGS)
def test_every_setting_of_the_training_changes_the_program(change, base_program):
    name, value = change.split("=")
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(value)
    assert program_of(replace(BASE, **{name: value})) != base_program


POLICY_SETTINGS = (
    *("reward=('loss',)", "reward=('log_loss', 'loss')", "reward_on=valid", "reward_batches=2"),
    *("penalty=2.0", "discount=0.9", "trace=0.5", "epochs=2", "minibatches=2", "clip_ratio=0.1"),
    *("entropy_weight=0.01", "estimator=reinforce", "optimizer=per_tensor_controller"),
)


@pytest.fixture(scope="module")
def policy_base():
    return replace(
        BASE,
        task=("user_module:bowl_with_splits",),
        optimizer="scheduler",
        estimator="ppo",
        horizon=(50,),
        window=25,
        minibatches=1,
    )


@pytest.fixture(scope="module")
def policy_program(policy_base):
    return program_of(policy_base)


@pytest.mark.parametrize("change", POLICY_SETTINGS)
def test_every_setting_of_policies_changes_the_program(change, policy_base, policy_program):
    name, value = change.split("=")
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(value)
    dropped = {"minibatches": 4} if value == "reinforce" else {}
    assert program_of(replace(policy_base, **({name: value} | dropped))) != policy_program


def test_credit_changes_the_program(policy_base):
    agents = replace(
        policy_base, task=("user_module:two_bowls",), optimizer="per_tensor_controller"
    )
    assert program_of(replace(agents, credit="difference")) != program_of(agents)


@pytest.mark.parametrize("baseline", ["antithetic", "leave_one_out", "value"])
def test_reinforce_from_the_command_line(baseline, tmp_path):
    arguments = [*TINY, *REINFORCE.split(), "--baseline", baseline, "--num-runs", "2"]
    assert cli.main(["meta-train", *arguments, "--steps", "5", "--run-dir", "a"]) == 0
    line = read_metrics(RunFolder(tmp_path / "a").metrics)[-1]
    assert line["inner_steps"] == 5 * 4 * 25
    assert line["meta_loss"] == -line["reward_log_loss"] == line["bowl/meta_loss"]
    lopt, theta = release.load(tmp_path / "a")
    assert lopt.name == "scheduler" and set(theta) == {"w0", "b0", "w1", "b1", "w2", "b2"}


def test_weights_change_the_program():
    mixed = replace(BASE, task=("user_module:bowl", "rosenbrock"))
    assert program_of(mixed) != program_of(replace(mixed, weights=(2.0, 1.0)))


def test_a_mixture_reports_every_family_and_evaluates_all(tmp_path):
    mixed = replace(BASE, task=("user_module:bowl", "digits_mlp"), weights=(3.0, 1.0))
    plan = resolve(mixed)
    state = jax.eval_shape(plan.learner.init, jax.random.key(0), plan.trained)
    args = (jax.random.key(0), state, plan.learner.data)
    _, metrics = jax.eval_shape(plan.learner.step, *args)
    for name in ("bowl", "digits_mlp", "digits_mlp_32_varied"):
        assert f"{name}/meta_loss" in metrics
    assert {"bowl", "digits_mlp_128x128"} <= {task.name for task in plan.evaluation}


def test_a_seed_changes_theta_and_what_is_frozen_stays(tmp_path):
    """And what is evaluated is what was released, against where it began."""
    evaluated, released = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        for seed in ("0", "1"):

            def compare_on(tasks, lopt, theta, theta0, *, run=seed, **options):
                evaluated[run] = (theta, theta0, options)
                return []

            patch.setattr("l2o.cli.meta_train.compare_on", compare_on)
            typed = [*TINY, "--steps", "5", "--seed", seed, "--run-dir", seed]
            design = ["--optimizer", "learnable_sgdm", "--freeze", "*momentum"]
            assert cli.main(["meta-train", *typed, *design]) == 0
            weights = safetensors.numpy.load_file(Path(seed) / "theta.safetensors")
            released[seed] = {k: float(v) for k, v in weights.items()}
    (frozen,) = (name for name in released["0"] if name.endswith("momentum"))
    (trained,) = released["0"].keys() - {frozen}
    assert released["0"][trained] != released["1"][trained]
    theta, theta0, options = evaluated["0"]
    assert {k: float(v) for k, v in theta.items()} == released["0"]
    assert released["0"][frozen] == released["1"][frozen] == float(theta0[frozen])
    assert float(theta0[trained]) != released["0"][trained]
    assert options["seen"] == ["bowl"]


def test_an_evaluation_draws_from_its_own_stream(monkeypatch):
    keys = []
    monkeypatch.setattr("l2o.cli.meta_train.compare", lambda key, *a, **k: keys.append(key))
    lopt = learnable_sgd()
    theta = lopt.init(jax.random.key(0))
    options = dict(seen=[], num_steps=1, num_seeds=1, seed=3, baselines=["adam"])
    console = Console(quiet=True)
    meta_training.compare_on([bowl()], lopt, theta, theta, **options, console=console)
    (key,) = keys
    assert key == stream(3, "evaluation") != stream(3, "meta_training")
