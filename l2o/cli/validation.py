"""Options of validation while theta is meta-trained, which build the validator."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from l2o import registry, release
from l2o.cli.arguments import Names, Number
from l2o.cli.methods.method import check_positive
from l2o.evaluation.seen import check_held_out, names_and_signatures
from l2o.evaluation.validation import Row, Validator
from l2o.learned_optimizer import LearnedOptimizer
from l2o.problem import check_can_train
from l2o.rng import stream
from l2o.runs.folder import RunFolder
from l2o.task import Task


@dataclass(frozen=True)
class Validation:
    """Options of validation on held-out families; they do not change theta."""

    validate_on: Names = ()
    """Held-out families or tasks to score theta on."""
    validate_every: Number = None
    """Outer steps between scores, in whole checkpoints."""
    validate_seeds: int = 8
    """Runs of each of those tasks."""

    def build(
        self,
        lopt: LearnedOptimizer,
        train: Sequence[Task],
        seen: AbstractSet[str],
        *,
        horizon: int,
        seed: int,
    ) -> Validator | None:
        """Builds the validator; None if there is nothing to validate on.

        Args:
            lopt: Design whose theta is found.
            train: Tasks that it is meta-trained on.
            seen: Names and signatures of those that its first theta was meta-trained on.
            horizon: Inner steps of a run.
            seed: Seed of everything random.

        Raises:
            ValueError: if an option is out of its range, or a task unknown, named twice, meta-
                trained on, or no task for this design.
        """
        if self.validate_every is not None and not self.validate_on:
            raise ValueError(
                f"`validate_every` goes with --validate-on; got {self.validate_every}. "
                "Add --validate-on."
            )
        check_positive(validate_every=self.validate_every, validate_seeds=self.validate_seeds)
        tasks = registry.tasks_to_evaluate(self.validate_on, "validate_on")
        names = [task.name for task in tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"`validate_on` must name tasks that differ; got {name} twice. Drop one."
                )
        check_held_out(tasks, train, seen, "validate_on")
        for task in tasks:
            check_can_train(lopt, task, horizon)
        if not tasks:
            return None
        key = stream(seed, "validation")
        return Validator(key, tasks, lopt, horizon=horizon, num_seeds=self.validate_seeds)

    def steps_between(self, checkpoint_every: int) -> int:
        """The outer steps between two scores: a multiple of those between checkpoints."""
        every = self.validate_every or checkpoint_every
        return max(1, every // checkpoint_every) * checkpoint_every


def about_validation(
    about: Mapping[str, Any], tasks: Sequence[Task], row: Row
) -> Mapping[str, Any]:
    """What the release file of the theta with the best validation score says."""
    own = names_and_signatures(tasks)
    return {
        **about,
        "validated_on": list(dict.fromkeys([*about.get("validated_on", []), *own])),
        "validation_scores": {k: v for k, v in row.items() if k not in ("inner_steps", "seconds")},
    }


def best_of_validation(run: RunFolder) -> str:
    """A sentence about the theta with the best validation score."""
    if not run.validated.is_file():
        return "no theta had a validation score above 0, or none could be written"
    best = release.summary(run.validated)["validation_scores"]
    return f"best validation score {best['score']:.4g} at step {best['step']}: {run.validated}"
