"""Designs before meta-training, to enter in a suite beside what is learned from them.

`PYTHONPATH=benchmarks l2o suite --optimizer untrained=untrained:muon_mlp muon ...`
"""

import functools

import jax

import l2o
from l2o.suite.entrant import Entrant, as_it_is

_LOPT = l2o.muon_mlp()

muon_mlp = Entrant(
    "untrained",
    as_it_is(
        "untrained",
        "MuonMLP before meta-training, of which nothing is tuned.",
        functools.partial(_LOPT.transform, _LOPT.init(jax.random.key(0))),
    ),
)
