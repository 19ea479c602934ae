"""How much of what MuonMLP has learned to keep: final losses at fractions of its corrections.

`python benchmarks/shrink.py FILE --fractions 0.3 0.5 1` multiplies the last layer of each network
by a fraction, at 0 the rule before learning (between two sets of weights, as Wortsman et al. 2022),
and trains the held-out kinds and three plain text models by each: the mean logarithm of the final
loss over the seeds, less that of the rule, by training and by validation loss. Losses have a
hundredth added where that is what solved means, so that solved runs are equal. `--write 0.3 OUT`
writes that one as a release file.
"""

import argparse
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

import l2o
from l2o import SuiteTask, release
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import Curves, Trainer
from l2o.learned_optimizer import Theta
from l2o.suite.suite_task import selected
from l2o.tasks.general import held_out
from l2o.tasks.text import python_gru, python_lstm, python_transformer


def shrunk(theta: Theta, fraction: float) -> Theta:
    """Theta whose networks put out a fraction of what they did, before they are bounded."""

    def network(layers):
        last = len(layers) // 2 - 1
        names = (f"w{last}", f"b{last}")
        return {k: fraction * layer if k in names else layer for k, layer in layers.items()}

    return {name: network(layers) for name, layers in theta.items()}


def plain_text() -> tuple[SuiteTask, ...]:
    """Text models as they are, of which most thetas have seen varied instances."""
    rows = ((python_transformer, 500), (python_lstm, 500), (python_gru, 200))
    return tuple(
        SuiteTask(f.__name__ + "_plain", lambda f=f: f().evaluation[0], f.__name__, steps, 1e-9)
        for f, steps in rows
    )


def logs(curve: Curves, solved: float) -> tuple[float, float]:
    """Mean logarithms of the final training and validation loss."""
    found = (curve.final_loss, curve.valid["loss"])
    train, valid = (np.log(np.maximum(losses, 0.0) + solved).mean() for losses in found)
    return float(train), float(valid)


def main() -> None:
    """Train and print, and write."""
    parser = argparse.ArgumentParser(description="MuonMLP at fractions of what it has learned.")
    parser.add_argument("files", nargs="+", help="release files of MuonMLP with its defaults")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.3, 0.5, 1.0])
    parser.add_argument("--tasks", nargs="*", default=[], help="tasks; all if not given")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--write", nargs=2, metavar=("FRACTION", "OUT"))
    options = parser.parse_args()
    try:
        loaded = {file: l2o.load(file) for file in options.files}
        entries = selected((*held_out(), *plain_text()), options.tasks)
    except ValueError as error:
        sys.exit(f"error: {error}")
    lopt, theta = loaded[options.files[0]]
    for file, (design, _) in loaded.items():
        if design.name != "muon_mlp" or design.config != lopt.config:
            parser.error(f"`files` must be of one muon_mlp; got {file} of {design.name}")
    if options.write:
        fraction, out = options.write
        if len(loaded) > 1 or not re.fullmatch(r"\d*\.?\d+", fraction):
            parser.error(f"`--write` takes a fraction and a path, of one file; got {fraction}")
        about = release.summary(options.files[0]) | {"last_layers_times": float(fraction)}
        l2o.save(out, lopt, shrunk(theta, float(fraction)), about)
        return
    entrants = {"the rule": shrunk(theta, 0.0)}
    for file, (_, theta) in loaded.items():
        entrants |= {f"{file} x {f:g}": shrunk(theta, f) for f in options.fractions}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *entrants.values())
    for entry in entries:
        task, horizon = entry.make(), entry.horizon
        make = lambda theta, horizon=horizon: lopt.transform(theta, horizon=horizon)
        starts = draw_starts(l2o.stream(0, "evaluation"), task, options.seeds)
        trainer = Trainer(task, make, horizon=horizon, probe_every=horizon)
        curves = trainer.train(stacked, starts, splits=("valid",))
        solved = entry.solved if entry.solved <= 0.01 else 0.0
        found = np.array([logs(curve, solved) for curve in curves])
        print(f"{entry.name}, {horizon} steps; training, validation", flush=True)
        for name, (train, valid) in zip(entrants, found - found[0], strict=True):
            print(f"  {train:+.3f} {valid:+.3f}  {name}", flush=True)


if __name__ == "__main__":
    main()
