"""States are sharded by the metadata of a Flax model's parameters, and steps stay what they are."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from design_cases import NAMES

FOLDER = Path(__file__).parent
QUICK = ["adafac_mlp", "nominal_mlp", "per_tensor_controller"]
SMALLEST_MATRIX = 24 * 24
GATHERS_MATRICES = ("muon_mlp",)  # to orthogonalise them


@pytest.mark.parametrize(
    "names",
    [QUICK, pytest.param(sorted({*NAMES} - {*QUICK}), marks=pytest.mark.slow)],
    ids=["quick", "others"],
)
def test_a_sharded_step_is_that_of_one_device(names):
    """On a mesh of 4 x 2 devices, with donation; what is gathered is rows, columns and scalars."""
    path = os.pathsep.join([str(FOLDER.parent), *sys.path])
    # With XLA as users have it: rounding differs by 1e-5 where this suite has it optimize less.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    found = subprocess.run(
        [sys.executable, FOLDER / "sharded_transformer.py", *names],
        env=environment | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert [row["design"] for row in rows] == names
    for row in rows:
        assert row["apart"] < 1e-5, row
        sizes = [math.prod(map(int, shape.split(","))) for shape in row["gathered"] if shape]
        most = 4 * SMALLEST_MATRIX if row["design"] in GATHERS_MATRICES else SMALLEST_MATRIX - 1
        assert max(sizes, default=0) <= most, row
