import json
import os
import sys

import numpy as np
import pytest

from l2o.runs import logging as metrics
from l2o.runs.folder import RunError
from l2o.runs.logging import MetricsLog, read_metrics


def log_of(path, steps):
    log = MetricsLog(path)
    for step in steps:
        log.write({"step": step, "meta_loss": 1.0 / step})
    return log


def test_lines_are_valid_json_with_null_for_what_is_not_finite(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write({"step": 1, "a": float("nan"), "b": float("inf"), "c": 0.1, "d": np.float64("nan")})
    log.write({"step": 2, "a": -1.5})
    first, second = (tmp_path / "m.jsonl").read_text().splitlines()
    refuse = pytest.fail
    assert json.loads(first, parse_constant=refuse) == {
        "step": 1,
        "a": None,
        "b": None,
        "c": 0.1,
        "d": None,
    }
    assert json.loads(second) == {"step": 2, "a": -1.5}


@pytest.mark.parametrize("torn", [b"", b"{", b'{"step": 4, "meta', b'{"step": 4}', b"\0\0"])
def test_truncate_drops_later_lines_and_a_torn_one(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    log = log_of(path, [1, 2, 3])
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(torn)
    log.truncate_after(3)
    assert path.read_bytes() == whole
    log.truncate_after(2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    log.write({"step": 3, "meta_loss": 1.0 / 3})
    assert path.read_bytes() == whole
    log.truncate_after(0)
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["m.jsonl"]


def test_truncate_of_no_file_makes_none(tmp_path):
    MetricsLog(tmp_path / "m.jsonl").truncate_after(3)
    assert os.listdir(tmp_path) == []


def test_a_damaged_line_in_the_middle_is_reported(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"line 2 of .*m\.jsonl is damaged\. Delete that line"):
        MetricsLog(path).truncate_after(3)


def test_an_unwritable_file_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match=r"metrics could not be written to .*No such file"):
        MetricsLog(tmp_path / "none" / "m.jsonl").write({"step": 1})


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(ValueError, match=r"`log` .* Try pip install 'l2o\[tracking\]'"),
        metrics.TRACKERS[name](tmp_path),
    ):
        pass


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboardX")
    with metrics.tensorboard(tmp_path / "tb") as track:
        track({"step": 10, "meta_loss": 0.5, "nothing": None})
    (events,) = (tmp_path / "tb").iterdir()
    assert b"meta_loss" in events.read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_wandb_works_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with metrics.wandb(tmp_path / "run", {"seed": 0}) as track:
        track({"step": 10, "meta_loss": 0.5})
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
