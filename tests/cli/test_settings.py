"""Settings that build: what each one changes, and what the parts are given."""

import ast
import contextlib
from dataclasses import replace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2o import release
from l2o.cli.meta_train import parse_settings
from l2o.cli.methods import method, policy_gradients
from l2o.cli.methods.estimators import NRES, PES, FullGrad, TruncatedES
from l2o.cli.methods.method import MetaOptimizer
from l2o.cli.methods.policy_gradients import PPO, Reinforce
from l2o.cli.methods.strategies import CMA
from l2o.cli.methods.table import METHODS, alike
from l2o.cli.presets import PRESETS
from l2o.cli.settings import Evaluation, MetaTraining, Processes, design
from l2o.optimizers.celo import celo
from l2o.policies.scheduler import scheduler
from l2o.rl.reward import Reward

SETTINGS = (
    *("method.std=0.2", "method.final_std=0.01", "method.shaping=sign", "method.num_pairs=4"),
    *("method.meta_optimizer.learning_rate=0.1", "method.meta_optimizer.weight_decay=1.0"),
    *("method.meta_optimizer.clip=1e-9", "ema_decay=0.0", "steps=100"),
    *("horizon=(12,)", "window=4", "task=('user_module:bowl', 'rosenbrock')"),
    *("method.objective.summary=mean", "method.objective.summary=final"),
    *("method.objective.measure_on=valid", "method.objective.normalize=True"),
)
BASE = MetaTraining(
    task=("user_module:bowl",),
    optimizer=("learnable_sgd",),
    horizon=(8,),
    window=2,
    processes=Processes(devices=1),
    method=PES(num_pairs=2),
)


def changed(settings, path: str, value):
    """The settings with one field, which may be of a group, at another value."""
    name, _, rest = path.partition(".")
    new = changed(getattr(settings, name), rest, value) if rest else value
    return replace(settings, **{name: new})


def program_of(settings: MetaTraining) -> str:
    parts = settings.build()
    key = jax.random.key(0)
    state = jax.eval_shape(parts.learner.init, key, parts.theta)
    return str(jax.make_jaxpr(parts.learner.step)(key, state, parts.learner.data))


@pytest.fixture(scope="module")
def base_program():
    return program_of(BASE)


def with_change(settings, change):
    name, value = change.split("=")
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(value)
    return changed(settings, name, value)


@pytest.mark.parametrize("change", SETTINGS)
def test_every_setting_of_the_training_changes_the_program(change, base_program):
    assert program_of(with_change(BASE, change)) != base_program


def test_a_curriculum_changes_the_program_of_runs_of_several_lengths():
    varied = replace(BASE, horizon=(4, 8))
    assert program_of(replace(varied, curriculum=3)) != program_of(varied)


@pytest.mark.parametrize("method", [TruncatedES, NRES])
def test_a_method_changes_the_program(method, base_program):
    assert program_of(replace(BASE, method=method(num_pairs=2))) != base_program


@pytest.mark.parametrize(
    "change",
    [
        *("combine=mgda", "combine=pcgrad", "combine=cagrad"),
        *("weighting=worst_case", "weighting=learning_progress"),
    ],
)
def test_what_becomes_of_several_tasks_changes_the_program_of_two(change):
    two = replace(BASE, task=("user_module:bowl", "rosenbrock"))
    assert program_of(with_change(two, f"method.{change}")) != program_of(two)


POLICY_SETTINGS = (
    *("method.reward.names=('loss',)", "method.reward.names=('log_loss', 'loss')"),
    *("method.reward.on=valid", "method.reward.batches=2", "method.reward.penalty=2.0"),
    *("method.discount=0.9", "method.gae_lambda=0.5", "method.epochs=2", "method.minibatches=2"),
    *(
        "method.clip_ratio=0.1",
        "method.entropy_weight=0.01",
        "optimizer=('per_tensor_controller',)",
    ),
)


@pytest.fixture(scope="module")
def policy_base():
    return replace(
        BASE,
        task=("user_module:bowl_with_splits",),
        optimizer=("scheduler",),
        horizon=(50,),
        window=25,
        method=PPO(num_pairs=2, minibatches=1),
    )


@pytest.fixture(scope="module")
def policy_program(policy_base):
    return program_of(policy_base)


@pytest.mark.parametrize("change", POLICY_SETTINGS)
def test_every_setting_of_policies_changes_the_program(change, policy_base, policy_program):
    assert program_of(with_change(policy_base, change)) != policy_program


def test_reinforce_is_another_program_than_ppo(policy_base, policy_program):
    method = Reinforce(num_groups=2, group_size=2)
    assert program_of(replace(policy_base, method=method)) != policy_program


def test_credit_changes_the_program(policy_base):
    agents = replace(
        policy_base, task=("user_module:two_bowls",), optimizer=("per_tensor_controller",)
    )
    assert program_of(changed(agents, "method.credit", "difference")) != program_of(agents)


def test_weights_change_the_program():
    mixed = replace(BASE, task=("user_module:bowl", "rosenbrock"))
    assert program_of(mixed) != program_of(replace(mixed, weights=(2.0, 1.0)))


def test_a_mixture_reports_every_family_and_evaluates_all(tmp_path):
    mixed = replace(BASE, task=("user_module:bowl", "digits_mlp"), weights=(3.0, 1.0))
    parts = mixed.build()
    state = jax.eval_shape(parts.learner.init, jax.random.key(0), parts.theta)
    args = (jax.random.key(0), state, parts.learner.data)
    _, metrics = jax.eval_shape(parts.learner.step, *args)
    for name in ("bowl", "digits_mlp", "digits_mlp_32_varied"):
        assert f"{name}/meta_loss" in metrics
    assert {"bowl", "digits_mlp_128x128"} <= {task.name for task in parts.evaluation}


@pytest.mark.parametrize(
    "method", [PES(num_pairs=5), CMA(population_size=6), FullGrad(num_members=7)]
)
def test_a_population_that_devices_cannot_share(method):
    settings = replace(BASE, method=method, processes=Processes(devices=2))
    if method.population % 2:
        with pytest.raises(ValueError, match=r"must be a multiple of the 2 devices; got"):
            settings.build()
    else:
        assert settings.build().learner.steps > 0


@pytest.mark.parametrize(
    ("steps", "log_every", "of_chunk", "between_checkpoints"),
    [(1000, 10, 10, 100), (1001, 10, 7, 98), (6, 10, 6, 96), (13, 10, 1, 100)],
)
def test_chunks_divide_the_run(steps, log_every, of_chunk, between_checkpoints):
    settings = replace(
        PRESETS["smoke"],
        steps=steps,
        log_every=log_every,
        checkpoint_every=100,
        processes=Processes(devices=1),
    )
    parts = settings.build()
    assert (parts.log_every, parts.checkpoint_every) == (of_chunk, between_checkpoints)


def test_what_cannot_be_evaluated_is_told_before_meta_training():
    settings = MetaTraining(
        task=("user_module:shrinks_in_training",),
        optimizer=("user_module:saves_examples",),
        horizon=(50,),
        processes=Processes(devices=1),
        method=PPO(num_pairs=4),
    )
    with pytest.raises(ValueError, match=r"`task` must have `shrink` .*; got bowl, which has none"):
        settings.build()
    assert replace(settings, evaluate=False).build().learner.steps > 0


def wrapped(monkeypatch, module, *names):
    """Records what the parts of a learner are given, by name."""
    parts = {name: Mock(wraps=getattr(module, name)) for name in names}
    for name, part in parts.items():
        monkeypatch.setattr(module, name, part)
    return parts


def policy_settings(method):
    return MetaTraining(
        task=("quadratic", "user_module:bowl"),
        optimizer=("scheduler",),
        horizon=(50, 100),
        processes=Processes(devices=1),
        weights=(1.0, 3.0),
        ema_decay=0.7,
        method=method,
    )


def test_environments_are_what_settings_say(monkeypatch):
    parts = wrapped(monkeypatch, policy_gradients, "training_environment")
    reward = Reward(("log_loss", "loss"), weights=(2.0, 0.5), on="valid", batches=2, penalty=3.0)
    policy_settings(Reinforce(num_groups=2, group_size=4, reward=reward)).build()
    calls = {call.args[0].name: call.kwargs for call in parts["training_environment"].mock_calls}
    ids = {"quadratic_10": (1.0, 0.0), "bowl": (0.0, 1.0)}  # tell the critic which task it is
    assert calls.keys() == ids.keys()
    for name, given in calls.items():
        assert given["reward"] == reward and given["privileged"] == ids[name]
        assert (given["horizon"], given["window"], given["credit"]) == ((50, 100), 50, "team")


def test_ppo_is_what_settings_say(monkeypatch):
    parts = wrapped(monkeypatch, policy_gradients, "ppo_learner")
    options = {"discount": 0.9, "gae_lambda": 0.8, "epochs": 2, "minibatches": 4}
    options |= {"clip_ratio": 0.3, "entropy_weight": 0.01, "num_pairs": 4}
    policy_settings(PPO(**options)).build()
    call = parts["ppo_learner"].call_args
    assert {name: call.kwargs[name] for name in options} == options
    assert call.kwargs["ema_decay"] == 0.7
    assert call.kwargs["weights"] == {"quadratic_10": 1.0, "bowl": 3.0}
    optimizer, theta = call.args[3], jnp.zeros(())
    state = optimizer.init(theta)
    for _ in range(2):
        update, state = optimizer.update(jnp.ones(()), state, theta)
    # It warms up over 50 outer steps of eight updates each.
    np.testing.assert_allclose(update, -MetaOptimizer().learning_rate / (50 * 8), rtol=1e-4)


def test_reinforce_is_what_settings_say(monkeypatch):
    parts = wrapped(monkeypatch, policy_gradients, "reinforce", "gradient_learner")
    parts |= wrapped(monkeypatch, method, "average_estimators")
    options = {"baseline": "value", "discount": 0.9, "entropy_weight": 0.01}
    options |= {"num_groups": 4, "group_size": 2}
    policy_settings(Reinforce(**options)).build()
    assert len(parts["reinforce"].mock_calls) == 2
    for call in parts["reinforce"].mock_calls:
        assert {name: call.kwargs[name] for name in options} == options
    weights = parts["average_estimators"].call_args.kwargs["weights"]
    assert weights == {"quadratic_10": 1.0, "bowl": 3.0}
    assert parts["gradient_learner"].call_args.kwargs["ema_decay"] == 0.7


def test_a_method_that_is_named_keeps_what_it_shares_with_the_preset():
    found = parse_settings(["smoke", "nres", "--std", "0.02"]).method
    assert found == NRES(num_pairs=4, std=0.02, meta_optimizer=MetaOptimizer(learning_rate=0.03))
    assert parse_settings(["smoke", "full_grad"]).method == FullGrad(
        num_members=8, meta_optimizer=MetaOptimizer(learning_rate=0.03)
    )
    assert parse_settings(["scheduler", "--steps", "7"]) == replace(
        PRESETS["scheduler"],
        steps=7,
        output=replace(PRESETS["scheduler"].output, run_dir="runs/scheduler"),
    )


@pytest.mark.parametrize("method", METHODS.values())
def test_populations_are_comparable(method):
    assert alike(method, PES(num_pairs=8)).num_runs == 16


def test_options_of_a_run_stand_before_the_method_or_behind_it():
    before = parse_settings(["--horizon", "100", "200", "pes", "--num-pairs", "3"])
    behind = parse_settings(["pes", "--num-pairs", "3", "--horizon", "100", "200"])
    assert before == behind
    assert before.horizon == (100, 200) and before.method == PES(num_pairs=3)


def test_a_design_takes_options_at_the_command_line():
    assert design(["scheduler"]).config == scheduler().config
    found = design(["scheduler", "core=gru", "hidden_size=16", "base=adam"])
    assert found.config == scheduler(core="gru", hidden_size=16, base="adam").config
    assert design(["celo", "scheduled=False"]).config == celo(scheduled=False).config
    rates = design(["optimizer_selector", "bases=sgdm,adam", "learning_rates=0.1,0.01"])
    assert rates.config["bases"] == ["sgdm", "adam"]
    assert rates.config["learning_rates"] == [0.1, 0.01]


def test_a_run_starts_from_the_theta_of_another(tmp_path):
    """And with what is frozen, as Celo's second phase: the MLP of the first, a schedule anew."""
    lopt = celo(hidden_size=3, scheduled=False)
    theta = jax.tree.map(lambda x: x + 1.0, lopt.init(jax.random.key(5)))
    release.save(tmp_path / "first.safetensors", lopt, theta)
    settings = replace(
        BASE,
        optimizer=("celo", "hidden_size=3"),
        init_from=str(tmp_path / "first.safetensors"),
        freeze=("mlp/*",),
    )
    parts = settings.build()
    found = parts.unravel(parts.theta)
    jax.tree.map(np.testing.assert_array_equal, found, theta)
    trained = parts.unravel(parts.theta + 1.0)
    jax.tree.map(np.testing.assert_array_equal, trained["mlp"], theta["mlp"])
    moved = jax.tree.map(lambda x: x + 1.0, theta["schedule"])
    jax.tree.map(np.testing.assert_array_equal, trained["schedule"], moved)


def test_what_is_recorded_is_nested_and_without_what_may_change():
    recorded = replace(BASE, eval=Evaluation(seeds=3)).recorded()
    assert recorded["method"]["name"] == "pes"
    assert recorded["method"]["objective"]["summary"] == "log"
    assert recorded["eval"]["seeds"] == 3
    assert not {"output", "processes", "evaluate"} & recorded.keys()
