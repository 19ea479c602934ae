"""A meta-training that compiles in a second; as a script, the child of the kill tests."""

import sys

import jax
import optax
from jax.sharding import Mesh
from user_module import bowl, two_bowls

from l2o import release
from l2o.estimators.pes import pes
from l2o.evaluation.validation import ValidationCurve, Validator
from l2o.learner import Learner, MetaState, gradient_learner
from l2o.optimizers.learnable import learnable_sgd
from l2o.outer_loop import fit
from l2o.policies.policy import PolicyOptimizer
from l2o.policies.scheduler import scheduler
from l2o.problem import inner_problem
from l2o.rl.environment import training_environment
from l2o.rl.ppo import ppo_learner
from l2o.rng import stream
from l2o.runs.folder import RunFolder
from l2o.runs.signals import stop_on_signals

LOPT = learnable_sgd(learning_rate=0.05)
THETA = LOPT.init(jax.random.key(0))


def tiny_learner(mesh: Mesh | None = None) -> Learner:
    problem = inner_problem(bowl(), LOPT, horizon=8, window=2)
    estimator = pes(problem, num_pairs=2, std=0.1, mesh=mesh)
    return gradient_learner(estimator, optax.adam(0.05), ema_decay=0.9)


POLICY = scheduler(action_interval=2, core="gru", hidden_size=3)


def tiny_ppo(scheduler: PolicyOptimizer = POLICY) -> Learner:
    """Of a recurrent scheduler, whose runs end between windows of two decisions."""
    policy = scheduler.policy
    environment = training_environment(bowl(), policy, horizon=8, window=4)
    return ppo_learner(
        {"bowl": environment},
        policy.actor,
        policy.head,
        optax.adam(0.01),
        num_pairs=4,
        gae_lambda=0.95,
        epochs=2,
        minibatches=2,
    )


LEARNERS = {"pes": (LOPT, tiny_learner), "ppo": (POLICY, tiny_ppo)}


def main(folder: str, num_steps: int, name: str, *, resume: bool) -> None:
    config = {"seed": 1, "steps": num_steps}
    run = RunFolder.open(folder, config, resume=resume)
    lopt, make = LEARNERS[name]
    learner = make()

    key = stream(1, "validation")
    validator = Validator(key, [two_bowls()], lopt, horizon=8, num_seeds=2)
    curve = ValidationCurve(run.validation, validator)

    def save_best(state: MetaState) -> None:
        release.save(run.best, lopt, learner.theta(state), {"step": int(state.step)})

    def validate(state: MetaState) -> None:
        step = int(state.step)
        if step % 20 == 0 and curve.add(step, learner.theta(state))[1]:
            release.save(run.validated, lopt, learner.theta(state), {"step": step})

    with stop_on_signals() as should_stop:
        state = fit(
            jax.random.key(1),
            learner,
            lopt.init(jax.random.key(0)),
            num_steps=num_steps,
            log_every=5,
            checkpoint_every=10,
            run=run,
            on_checkpoint=validate,
            on_best=save_best,
            on_metrics=lambda line: print(line["step"], flush=True),
            should_stop=should_stop,
        )
    if state.step == num_steps:
        release.save(run.theta, lopt, learner.theta(state), {"steps": num_steps})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], resume="--resume" in sys.argv)
