"""What `l2o.with_rollback` is worth: meta-training at rates that are too high.

For each rate and seed a design is meta-trained on digits_mlp twice, with rollback and without, by
PES with the same random numbers. Written are the mean meta-loss and the share of diverged inner
steps of the last quarter, and how often it went back. With defaults an hour of one core:

    python benchmarks/rollback.py
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import l2o
from l2o.registry import learned_optimizer, task_family
from l2o.runs.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "rollback.json"


def meta_train(design: str, rate: float, seed: int, num_steps: int, *, is_watched: bool) -> dict:
    """Meta-train once; returns what the last quarter was like."""
    lopt = learned_optimizer(design)
    task = task_family("digits_mlp").train[0]
    problem = l2o.inner_problem(
        task, lopt, horizon=(50, 200), window=25, objective=l2o.Objective(summary="log")
    )
    meta_optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    learner = l2o.gradient_learner(
        l2o.pes(problem, num_pairs=8, std=0.01), meta_optimizer, ema_decay=0.9
    )
    lines: list[Mapping[str, Any]] = []
    l2o.fit(
        jax.random.key(seed),
        l2o.with_rollback(learner) if is_watched else learner,
        lopt.init(jax.random.key(100 + seed)),
        num_steps=num_steps,
        patience=num_steps + 1,
        on_metrics=lines.append,
    )
    last = lines[-len(lines) // 4 :]
    return {
        "design": design,
        "rate": rate,
        "seed": seed,
        "rollback": is_watched,
        "meta_loss": float(np.mean([line["meta_loss"] for line in last])),
        "diverged": float(np.mean([line["diverged"] for line in last])),
        "went_back": round(num_steps * np.mean([line.get("rolled_back", 0.0) for line in lines])),
    }


def main() -> None:
    """Run what the command line says, and write what has been found after each run."""
    parser = argparse.ArgumentParser(description="What rollback in meta-training is worth.")
    parser.add_argument("--designs", nargs="+", default=["nominal_mlp", "adafac_mlp"])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.003, 0.03, 0.1])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    found = []
    for seed in range(options.seeds):
        for design in options.designs:
            for rate in options.rates:
                for is_watched in (False, True):
                    row = meta_train(design, rate, seed, options.steps, is_watched=is_watched)
                    print(row, flush=True)
                    found.append(row)
                    content = {"provenance": provenance(), "steps": options.steps, "runs": found}
                    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
