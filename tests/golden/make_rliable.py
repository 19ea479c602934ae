"""Make `rliable.json`: scores with ties, and what rliable 1.2.0 makes of them.

Run it where rliable is installed, which l2o does not depend on:

    python3.11 -m venv rliable-venv
    rliable-venv/bin/pip install rliable==1.2.0 arch==7.2.0 'pandas<3'
    rliable-venv/bin/python tests/golden/make_rliable.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rliable import library, metrics

SEED, RESAMPLES, CONFIDENCE = 7, 2000, 0.9
THRESHOLDS = np.array([-6.0, -1.0, -0.5, 0.0, 0.25, 0.3, 0.5, 1.0, 2.0])
STATISTICS = {
    "interquartile_mean": metrics.aggregate_iqm,
    "mean": metrics.aggregate_mean,
    "task_median": metrics.aggregate_median,
    "optimality_gap": metrics.aggregate_optimality_gap,
}


def draw_scores() -> dict[str, np.ndarray]:
    """Draw scores of three algorithms, shape (seeds, tasks), of a tenth, a third or no ties."""
    rng = np.random.default_rng(0)
    levels = np.array([0.1, 0.4, 0.5, 0.8, 0.3, -0.2, 0.9])
    drawn = {
        name: levels + gain + 0.3 * rng.standard_normal((seeds, 7))
        for name, seeds, gain in (("a", 10, 0.1), ("b", 10, 0.0), ("c", 9, -0.1))
    }
    for scores in drawn.values():
        scores[:, :3] = np.round(scores[:, :3], 1)
        scores[:, 3] = np.minimum(scores[:, 3], 1.0)  # solved
        scores[:2, 4] = -6.0  # failed
    drawn["b"][:, 0] = drawn["a"][:, 0]
    return drawn


def interval(scores, function) -> list:
    """Compute rliable's interval from its own random stream, which is NumPy's global one."""
    np.random.seed(SEED)  # noqa: NPY002
    _, found = library.get_interval_estimates(
        {"x": scores}, function, reps=RESAMPLES, confidence_interval_size=CONFIDENCE
    )
    return found["x"].squeeze().tolist()


def profile(scores) -> dict[str, list]:
    """Compute rliable's performance profile and its band."""
    np.random.seed(SEED)  # noqa: NPY002
    found, bands = library.create_performance_profile(
        {"x": scores}, THRESHOLDS, reps=RESAMPLES, confidence_interval_size=CONFIDENCE
    )
    return {"value": found["x"].tolist(), "interval": bands["x"].tolist()}


def main() -> None:
    """Write the file."""
    scores = draw_scores()
    pairs = [("a", "b"), ("b", "a"), ("a", "c"), ("c", "b"), ("a", "a")]
    improvement = metrics.probability_of_improvement
    content = {
        "versions": {name: version(name) for name in ("rliable", "arch", "numpy", "scipy")},
        "seed": SEED,
        "num_resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "thresholds": THRESHOLDS.tolist(),
        "scores": {name: values.tolist() for name, values in scores.items()},
        "statistics": {
            statistic: {
                name: {"value": float(f(values)), "interval": interval(values, f)}
                for name, values in scores.items()
            }
            for statistic, f in STATISTICS.items()
        },
        "profiles": {name: profile(values) for name, values in scores.items()},
        "probability_of_improvement": [
            {
                "pair": [x, y],
                "value": float(improvement(scores[x], scores[y])),
                "interval": interval((scores[x], scores[y]), improvement),
            }
            for x, y in pairs
        ],
    }
    path = Path(__file__).with_name("rliable.json")
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
