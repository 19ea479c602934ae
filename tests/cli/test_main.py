"""The command line: what it makes, and what it says to mistakes."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest
import safetensors.numpy
from rich.console import Console
from user_module import bowl

from l2o import registry, release
from l2o.cli import main as cli
from l2o.cli.evaluate import compare_on, what_to_evaluate_on
from l2o.cli.methods.table import METHODS
from l2o.cli.settings import MetaTraining
from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.training import Trainer
from l2o.optimizers.learnable import learnable_sgd
from l2o.rng import stream
from l2o.runs.folder import RunFolder
from l2o.runs.logging import read_metrics

RUN = (
    *("--task", "user_module:bowl", "--optimizer", "learnable_sgd", "--horizon", "8"),
    *("--window", "2", "--log-every", "5", "--checkpoint-every", "10", "--quiet"),
    *("--eval.seeds", "8", "--eval.baselines", "adam"),
)
PAIRS = ("pes", "--num-pairs", "2", "--std", "0.1")
TINY = (*RUN, *PAIRS)
SHORT = (
    *("--task", "user_module:bowl", "--horizon", "5", "--seeds", "8"),
    *("--baselines", "adam", "--trials", "0"),
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

    evaluate = ["evaluate", "run", *SHORT]
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
    assert cli.main(["meta-train", *RUN, *design, *PAIRS, "--steps", "5", "--run-dir", "a"]) == 0
    evaluate = ["evaluate", "a", *SHORT]
    assert cli.main([*evaluate, *design]) == 0
    capsys.readouterr()
    assert cli.main(evaluate) == 0  # the folder names its code
    Path("a", "theta.safetensors").rename("alone.safetensors")
    capsys.readouterr()
    assert cli.main(["evaluate", "alone.safetensors", *SHORT]) == 2  # a file never does
    assert "momentum_rate" in one_line(capsys)


@pytest.mark.slow
def test_a_strategy_in_place_of_an_estimator():
    strategy = ("SNES", "--population-size", "4", "--std", "0.1", "--runs-per-candidate", "3")
    assert cli.main(["meta-train", *RUN, "--steps", "10", "--run-dir", "a", *strategy]) == 0
    line = read_metrics(RunFolder(Path("a")).metrics)[-1]
    assert line["inner_steps"] == 10 * 4 * 3 * 8
    assert line["best_loss"] <= line["meta_loss"] == line["bowl/meta_loss"]
    assert Path("a", "report.html").exists()


def one_line(capsys) -> str:
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    return error


POLICY = "--optimizer scheduler --horizon 50 --window 25 ppo --num-pairs 2 --minibatches 1"
REINFORCE = "--optimizer scheduler --horizon 50 --window 25 reinforce --num-groups 2"
MISTAKES = {
    "task": (
        "--task digts",
        "`task` must be a known name; got digts. Try digits_vit, digits_vae, digits_mlp",
    ),
    "design": ("--optimizer adafac", "got adafac. Try adafac_mlp"),
    "preset": ("digitz", "`PRESET` must be a known name; got digitz. Try digits"),
    "method": ("pse", "`PRESET` must be a known name; got pse. Try pes"),
    "horizon = window": ("--horizon 2", "`horizon` must be above `window`; got horizon=2"),
    "horizon < window": ("--horizon 1", "Try horizon=8"),
    "no multiple": ("--horizon 9", "multiple of `window`; got horizon=9, window=2. Try"),
    "range": ("--horizon 8 4", "from short to long; got 8 to 4. Try horizon=4 8"),
    "three": ("--horizon 2 4 8", "`horizon` must be one number or two; got 3"),
    "window": ("--window 0", "`window` must be at least 1; got 0"),
    "pairs": ("--num-pairs 0", "`num_pairs` must be at least 1; got 0. Try num_pairs=16"),
    "members": (
        "full_grad --num-members 0",
        "`num_members` must be at least 1; got 0. Try num_members=16",
    ),
    "std": ("--std 0", "`std` must be positive and finite; got 0.0. Try std=0.01"),
    "endless std": ("--std inf", "`std` must be positive and finite; got inf"),
    "negative std": ("--std -1", "`std` must be positive and finite; got -1.0"),
    "rate": ("--learning-rate 0", "`learning_rate` must be positive and finite; got 0.0"),
    "nan rate": ("--learning-rate nan", "`learning_rate` must be positive and finite; got nan"),
    "steps": ("--steps 0", "`steps` must be positive and finite; got 0"),
    "seed": ("--seed -1", "`seed` must be between 0 and 2**32 - 1; got -1"),
    "large seed": ("--seed 4294967296", "`seed` must be between 0 and 2**32 - 1"),
    "empty module": ("--task :x", "`task` must be a known name; got :x"),
    "decay": ("--weight-decay -1", "`weight_decay` must not be negative"),
    "ema": ("--ema-decay 1", "must be in [0, 1); got 1.0"),
    "eval horizon": ("--eval.horizon 0", "`eval.horizon` must be positive and finite; got 0"),
    "eval task": ("--eval.tasks bowk", "`eval.tasks` must be a known name; got bowk. Try bowl"),
    "integers": ("--task user_module:integer_params", "floating point; got int32 at params['n']"),
    "vector": ("--task user_module:vector_loss", "the loss must be a float scalar"),
    "no task": ("--task user_module:not_a_task", "got user_module:not_a_task"),
    "no module": ("--task no_such_module:x", "No module named 'no_such_module'"),
    "no attribute": ("--task user_module:x", "has no attribute 'x'"),
    "no design": ("--optimizer user_module:bowl", "gives Task. Return l2o.LearnedOptimizer"),
    "design option": (
        "--optimizer nominal_mlp widht=3",
        "`optimizer` nominal_mlp cannot be made from widht=3: it takes no widht",
    ),
    "two designs": (
        "--optimizer nominal_mlp celo",
        "`optimizer` must be one design and options as name=value; got celo",
    ),
    "type of an option": (
        "--optimizer adafac_mlp hidden_size=wide",
        "hidden_size='wide' is not of type int",
    ),
    "init from nothing": ("--init-from nothing", "must name an optimizer that comes with l2o"),
    "init from another design": (
        "--init-from digits",
        "`init_from` must hold a theta of learnable_sgd; got digits, which does not. It is of "
        "--optimizer nominal_mlp",
    ),
    "devices": ("--devices 2 --num-pairs 3", "must be a multiple of the 2 devices; got 3. Try"),
    "too many devices": (
        "--devices 3 --num-pairs 3",
        "`devices` must be between 1 and the 2 present; got 3. Try devices=2",
    ),
    "no launcher": ("--distributed --num-processes 2", "needs `coordinator`, `process_id`"),
    "not distributed": ("--process-id 1", "`process_id` goes with --distributed; got 1. Add"),
    "timeout": ("--connect-timeout 0", "`connect_timeout` must be at least 1 s; got 0"),
    "weights": ("--weights 1 2", "`weights` must be one number for each task; got 2 for 1"),
    "weight": ("--weights -1", "`weights` must be positive and finite; got -1.0"),
    "twice": ("--task user_module:bowl user_module:bowl", "tasks that differ; got bowl twice"),
    "measure": ("--measure acc", "`measure` must be loss or a metric of task bowl; got acc"),
    "backprop": (
        "--task quadratic full_grad --summary mean --measure distance_to_minimum",
        "must be an evolution strategy for a metric",
    ),
    "target": ("--summary steps_to_target", "`target` goes with the objective steps_to_target"),
    "candidates": (
        "SNES --population-size 2",
        "`population_size` must be at least 4; got 2. Try population_size=8",
    ),
    "runs": ("SNES --runs-per-candidate 0", "`runs_per_candidate` must be positive and finite"),
    "small theta": (
        "LM_MA_ES",
        "LM_MA_ES needs a theta of at least 4 numbers, as it diverges on fewer; got 1.",
    ),
    "freeze": ("--freeze rate", "fit the name of a leaf of theta; got rate. Try log_learning_rate"),
    "endless target": (
        "--summary steps_to_target --target nan",
        "`target` must be finite and, for a loss, below the cap of task bowl, 100; got nan",
    ),
    "final std": ("--final-std 0", "`final_std` must be positive and finite; got 0.0. Try"),
    "one task to combine": (
        "pes --combine mgda",
        "`combine` must be mean on one task, bowl; got mgda. Drop it, or add a task.",
    ),
    "one task to weigh": (
        "pes --weighting worst_case",
        "`weighting` must be fixed on one task, bowl; got worst_case. Drop it, or add a task.",
    ),
    "curriculum": (
        "--curriculum 5",
        "`horizon` must be a range for a curriculum; got 8 alone. Try horizon=4 8",
    ),
    "curriculum of whole runs": (
        "--horizon 10 40 --curriculum 5 full_es",
        "`curriculum` must be 0 for full_es, which trains whole runs in every outer step; got 5.",
    ),
    "curriculum of a policy": (
        f"--horizon 25 50 --curriculum 5 {POLICY}",
        "`curriculum` must be 0 for ppo; got 5. Drop it, or try nres.",
    ),
    "batches": ("--measure-batches 2", "`measure_batches` must be 1 on the step's own batch"),
    "no policy": (
        "ppo",
        "`optimizer` must be a policy for ppo; got learnable_sgd. Try ",
    ),
    "no such reward": (
        f"{POLICY} --reward.names f1",
        "`reward` must be log_loss, loss, examples or a metric of task bowl; got f1. "
        "Try log_loss, loss, examples.",
    ),
    "interval": (POLICY.replace("25", "10"), "must be a multiple of the 25 steps"),
    "discount": (f"{POLICY} --discount 1.5", "`discount` must be in [0, 1]; got 1.5. Try"),
    "minibatches": (f"{POLICY} --minibatches 3", "`minibatches` must divide the 2 groups; got 3."),
    "empty range": ("--optimizer user_module:empty_range", "must make a range of positive rates"),
    "groups": (f"{REINFORCE} --num-groups 0", "`num_groups` must be at least 1; got 0"),
    "group": (f"{REINFORCE} --group-size 3", "`group_size` must be even"),
    "baseline": (
        "--eval.baselines adm",
        "`eval.baselines` must be among adam, adam_cosine",
    ),
    "all and one": (
        "--eval.baselines all adam",
        "`eval.baselines` must be all, or names; got all adam. Try eval.baselines=all.",
    ),
    "run dir": ("--run-dir /proc/no/run", "`run_dir` must be a folder that can be written"),
    "resume": ("--resume --run-dir nothing", "`resume` needs a run to continue"),
    "validation task": ("--validate-on bowk", "`validate_on` must be a known name; got bowk. Try"),
    "seen validation task": (
        "--validate-on user_module:bowl",
        "`validate_on` must name held-out tasks; got bowl, of a family and data that are meta-",
    ),
    "other shape of a seen family": (
        "--task digits_mlp --validate-on digits_mlp_128x128",
        "got digits_mlp_128x128, of a family and data that are meta-trained on. Try another family",
    ),
    "validation task twice": (
        "--validate-on rosenbrock rosenbrock",
        "`validate_on` must name tasks that differ; got rosenbrock twice. Drop one.",
    ),
    "validation task without a loss": (
        "--validate-on user_module:always_nan",
        "must have a positive, finite validation loss at the start of a run, by which",
    ),
    "validation seeds": (
        "--validate-on rosenbrock --validate-seeds 0",
        "`validate_seeds` must be positive and finite; got 0. Try validate_seeds=8",
    ),
    "validation of nothing": ("--validate-every 5", "`validate_every` goes with --validate-on"),
    "old name": ("--averaging 0.9", "`--averaging` has another name; got --averaging. Type --ema"),
    "old estimator": ("--estimator nres", "Type the method's own name"),
    "old evaluation": ("--eval-seeds=3", "`--eval-seeds` has another name; got --eval-seeds=3."),
}


OF_METHOD = ("--num-pairs", "--std", "--final-std", "--learning-rate", "--weight-decay")
OF_METHOD += ("--summary", "--measure", "--measure-batches", "--target")


def meta_train_words(typed: str) -> list[str]:
    """What is typed in its place among the words of a small run."""
    words, method = typed.split(), PAIRS
    settings = [*RUN, "--steps", "5", "--run-dir", "run"]
    if METHODS.keys() & set(words):
        return [*settings, *words]
    if not words[0].startswith("-"):
        return [*words, *settings]
    is_of_method = bool({*OF_METHOD} & {*words})
    return [*settings, *method, *words] if is_of_method else [*settings, *words, *method]


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(case, tmp_path, capsys):
    typed, says = MISTAKES[case]
    assert cli.main(["meta-train", *meta_train_words(typed)]) == 2
    assert says in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_names_the_nearest(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["meta-train", "--stps", "3"])
    assert stopped.value.code == 2
    assert "--steps" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "owners"),
    [
        ("pes --clip-ratio 0.1", ["ppo"]),
        ("full_grad --shaping sign", ["pes", "nres"]),
        ("SNES --final-std 0.1", ["Open_ES", "SimpleGA"]),
        ("ppo --baseline value", ["reinforce"]),
        ("ppo --summary mean", ["CMA_ES", "pes"]),
        ("pes --reward.names loss", ["ppo", "reinforce"]),
    ],
)
def test_an_option_of_another_method_is_refused_and_says_whose_it_is(typed, owners, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["meta-train", "smoke", *typed.split()])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert typed.split()[-2] in error
    assert any(f"in l2o {owner} --help" in error for owner in owners)


def test_a_run_is_not_overwritten_nor_continued_with_other_settings(finished, tmp_path, capsys):
    tiny = ["meta-train", *TINY, "--run-dir", "run"]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert cli.main([*tiny, "--steps", "20"]) == 2
    assert "Add --resume to continue it" in one_line(capsys)
    assert cli.main([*tiny, "--steps", "20", "--resume", "--std", "0.2"]) == 2
    assert "it was started with method.std=0.1 (now 0.2)" in one_line(capsys)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_run_in_progress_is_not_started_twice(finished, capsys):
    tiny = ["meta-train", *TINY, "--run-dir", "run", "--steps", "20", "--no-evaluate", "--resume"]
    lines = finished.metrics.read_bytes()
    with finished.locked(pytest.fail):
        assert cli.main(tiny) == 2
        assert "`run_dir` must not be in use; got" in one_line(capsys)
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
    assert cli.main(["meta-train", *RUN, *task, *PAIRS, "--steps", "500", "--run-dir", "run"]) == 2
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
        ("evalute", "`COMMAND` must be a known name; got evalute. Try evaluate"),
        ("ppo --help", "`COMMAND` must be a known name; got ppo. Try l2o meta-train ppo."),
        ("smoke", "`COMMAND` must be a known name; got smoke. Try l2o meta-train smoke."),
        ("evaluate no_such", "`RUN_OR_FILE` must name an optimizer that comes with l2o"),
        ("report no_such", "no_such"),
        ("evaluate digits --seeds 0", "`seeds` must be positive and finite; got 0. Try seeds=16"),
        ("evaluate digits --horizon -5", "`horizon` must be positive and finite; got -5"),
        ("evaluate digits --seed -1", "`seed` must be between 0 and 2**32 - 1; got -1"),
        (
            "evaluate digits --baselines adam all",
            "`baselines` must be all, or names; got adam all. Try baselines=all.",
        ),
        (
            "evaluate digits --optimizer learnable_adam",
            "`design` must be that of the file, nominal_mlp",
        ),
        ("list tasks", "`list` takes --json or nothing; got tasks"),
        ("data", "`data` takes `list` or `fetch NAME ...`; got nothing"),
        ("data fetch mnst", "got mnst. Try mnist"),
    ],
)
def test_mistakes_of_other_verbs_are_one_line(typed, says, tmp_path, capsys):
    assert cli.main(typed.split()) == 2
    assert says in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["tune-baselines", "--cache", "notes"],
            "`cache` must be a folder that can be written to; got notes, but {} is no folder. "
            "Try cache=runs/tuning.",
        ),
        (["evaluate", "digits", "--cache", "notes"], "`cache` must be a folder that can be"),
        (["evaluate", "digits", "--cache", "notes/below"], "got notes/below, but {} is no folder."),
        (["evaluate", "digits", "--out", "notes"], "{} is no folder. Try out=runs/evaluation."),
    ],
)
def test_a_file_for_a_folder_is_told_before_anything_is_trained(
    words, says, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("trains"))
    (tmp_path / "notes").write_text("mine")
    assert cli.main(words) == 2
    assert says.format(tmp_path / "notes") in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize("typed", ["list --help", "data --help", "data fetch -h"])
def test_commands_without_options_have_a_help(typed, capsys):
    assert cli.main(typed.split()) == 0
    assert capsys.readouterr().out.startswith("usage: l2o ")


@pytest.mark.parametrize(
    ("given", "summary", "expected"),
    [
        ({}, {"task": ["a", "b"], "eval": {"horizon": 30}, "horizon": [5, 9]}, (("a", "b"), 30)),
        ({}, {"task": ["a"], "eval": {"horizon": None}, "horizon": [5, 9]}, (("a",), 9)),
        ({}, {"task": "a", "eval_steps": 7, "horizon": [5, 9]}, (("a",), 7)),
        ({"task": ("c",), "horizon": 3}, {"task": ["a"], "horizon": [5]}, (("c",), 3)),
        ({"task": ("c",), "horizon": 3}, {"eval": None, "horizon": []}, (("c",), 3)),
        ({}, {"task": ["a"], "eval": None, "horizon": 200}, (("a",), 200)),
    ],
)
def test_evaluation_is_of_what_was_meta_trained_unless_told_otherwise(given, summary, expected):
    given = {"task": (), "horizon": None} | given
    assert what_to_evaluate_on("runs/x", summary=summary, **given) == expected


def test_evaluation_needs_what_a_release_does_not_say():
    for given, message in (
        ({}, "`task` must name at least one, as x.* Try task=digits_mlp."),
        ({"task": ("c",)}, "`horizon` must be given, as x.* Try horizon=1000."),
    ):
        with pytest.raises(ValueError, match=message):
            what_to_evaluate_on("x", **{"task": (), "horizon": None} | given, summary={})


def test_list_names_everything(capsys):
    assert cli.main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    others = {"baselines", "presets", "estimators", "combiners", "weightings"}
    others |= {"policy_gradients", "strategies"}
    assert set(listed) == {"tasks", "families", "optimizers", "pretrained", *others}
    assert all(line for section in listed.values() for line in section.values())
    # `python benchmarks/families.py` adds what a new family lacks.
    too_large = {"minilm_whole", "minilm_lora", "minilm_frozen"}
    assert set(listed["families"]) == set(listed["tasks"]) - too_large
    for family in listed["families"].values():
        adam = family["tuned_adam"]
        assert adam["final_loss"] < 0.8 * adam["first_loss"]
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for section in listed.values() for name in section)


GROUPS = {"eval", "output", "processes", "method", "reward", "validation"}
"""Fields that hold options of their own."""
ONE_OPTION = {
    **{"evaluate": "--horizon", "report": "--png", "compare-hpo": "--engines"},
    **{"diagnose": "--std", "topology": "--coordinator"},
}


@pytest.mark.parametrize("method", ["", *METHODS])
def test_help_fits_a_page_and_says_what_each_option_is(method, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["meta-train", *method.split(), "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 70
    options = METHODS[method] if method else MetaTraining
    for option in dataclasses.fields(options):
        flag = f"--{option.name.replace('_', '-')}"
        if not dataclasses.is_dataclass(option.default) and option.name not in GROUPS:
            assert flag in shown or flag.replace("--", "--no-") in shown


@pytest.mark.parametrize("command", ONE_OPTION)
def test_help_of_other_commands(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert ONE_OPTION[command] in shown


def test_trackers_get_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = ["meta-train", *TINY, "--steps", "5", "--run-dir", "run"]
    assert cli.main([*arguments, "--no-evaluate", "--log", "tensorboard", "wandb"]) == 0
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert list((tmp_path / "run").rglob("*.wandb"))


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["antithetic", "leave_one_out", "value"])
def test_reinforce_from_the_command_line(baseline, tmp_path):
    arguments = [*REINFORCE.split(), "--baseline", baseline, "--group-size", "2"]
    assert cli.main(["meta-train", *RUN, "--steps", "5", "--run-dir", "a", *arguments]) == 0
    line = read_metrics(RunFolder(tmp_path / "a").metrics)[-1]
    assert line["inner_steps"] == 5 * 4 * 25
    assert line["meta_loss"] == -line["reward_log_loss"] == line["bowl/meta_loss"]
    lopt, theta = release.load(tmp_path / "a")
    assert lopt.name == "scheduler" and set(theta) == {"w0", "b0", "w1", "b1", "w2", "b2"}


def test_all_are_all_baselines(monkeypatch):
    names = []

    def compare_on(*tasks_and_theta, baselines, **options):
        names.extend(baselines)
        return []

    monkeypatch.setattr("l2o.cli.evaluate.compare_on", compare_on)
    assert cli.main(["evaluate", "digits", *SHORT, "--baselines", "all"]) == 0
    assert names == list(BASELINES)


def test_the_comparison_is_told_what_theta_was_chosen_by(monkeypatch):
    """And the file is taken by its path."""
    told = {}
    lopt = learnable_sgd()
    summary = {"trained_on": ["a"], "validated_on": ["b"]}
    release.save("validated.safetensors", lopt, lopt.init(jax.random.key(0)), summary)

    def compare_on(*tasks_and_theta, seen, validated, **options):
        told.update(seen=seen, validated=validated)
        return []

    monkeypatch.setattr("l2o.cli.evaluate.compare_on", compare_on)
    assert cli.main(["evaluate", "validated.safetensors", *SHORT]) == 0
    assert told == {"seen": ["a"], "validated": ["b"]}


def test_a_seed_changes_theta_and_what_is_frozen_stays(tmp_path):
    """And what is evaluated is what was released, against where it began."""
    evaluated, released = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        for seed in ("0", "1"):

            def compare_on(tasks, lopt, theta, theta0, *, run=seed, **options):
                evaluated[run] = (theta, theta0, options)
                return []

            patch.setattr("l2o.cli.meta_train.compare_on", compare_on)
            typed = ["--eval.baselines", "all", *PAIRS]
            typed += ["--steps", "5", "--seed", seed, "--run-dir", seed]
            design = ["--optimizer", "learnable_sgdm", "--freeze", "*momentum"]
            assert cli.main(["meta-train", *RUN, *design, *typed]) == 0
            weights = safetensors.numpy.load_file(Path(seed) / "theta.safetensors")
            released[seed] = {k: float(v) for k, v in weights.items()}
    (frozen,) = (name for name in released["0"] if name.endswith("momentum"))
    (trained,) = released["0"].keys() - {frozen}
    assert released["0"][trained] != released["1"][trained]
    theta, theta0, options = evaluated["0"]
    assert {k: float(v) for k, v in theta.items()} == released["0"]
    assert released["0"][frozen] == released["1"][frozen] == float(theta0[frozen])
    assert float(theta0[trained]) != released["0"][trained]
    assert options["seen"][0] == "bowl" and options["baselines"] == tuple(BASELINES)


def test_an_evaluation_draws_from_its_own_stream(monkeypatch):
    keys = []
    monkeypatch.setattr("l2o.cli.evaluate.compare", lambda key, *a, **k: keys.append(key))
    lopt = learnable_sgd()
    theta = lopt.init(jax.random.key(0))
    options = dict(seen=[], validated=[], horizon=1, num_seeds=8, seed=3, baselines=["adam"])
    options |= dict(trials=0, cache=None)
    console = Console(quiet=True)
    compare_on([bowl()], lopt, theta, theta, **options, console=console)
    (key,) = keys
    assert key == stream(3, "evaluation") != stream(3, "meta_training")
