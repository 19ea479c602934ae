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


def scalars_of(folder) -> tuple[dict[str, list[int]], list[int]]:
    """Steps by name, and steps at which a reader is told to drop what it has, in TensorBoard."""
    from tensorboardX.proto.event_pb2 import Event

    steps, purged = {}, []
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField("session_log"):
                purged.append(event.step)
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    return steps, purged


def test_tensorboard_writes_events_and_goes_on(tmp_path):
    pytest.importorskip("tensorboardX")
    folder = tmp_path / "tb"
    with metrics.tensorboard(folder, {"seed": 3}) as track:
        for step in (10, 20, 30):
            track({"step": step, "meta_loss": 0.5, "nothing": None})
    (events,) = folder.iterdir()
    assert b"meta_loss" in events.read_bytes() and b'{"seed": 3}' in events.read_bytes()
    assert scalars_of(folder)[1] == []
    events.rename(f"{events}.first")  # in the same second the next has the same name
    with metrics.tensorboard(folder, {"seed": 3}) as track:  # continued from step 20
        for step in (30, 40):
            track({"step": step, "meta_loss": 0.5})
        track.summary({"speed_up": 2.0, "task": "bowl"})
    steps, purged = scalars_of(folder)
    assert steps["meta_loss"] == [10, 20, 30, 30, 40] and purged == [30]  # the first 30 is dropped
    assert steps["results/speed_up"] == [40] and "results/text_summary" in steps


def test_a_tracker_that_fails_is_one_warning():
    told, seen = [], []

    def log(line):
        if line["step"] == 2:
            raise OSError("the service\nis away")
        seen.append(line["step"])

    tracker = metrics.Tracker("mine", log, close=lambda: seen.append(0), on_warning=told.append)
    for step in (1, 2, 3):
        tracker({"step": step})
    tracker.summary({})
    tracker.close()
    assert seen == [1]
    assert told == ["mine has failed and gets no more (the service is away); the run goes on."]


def test_seconds_are_summed(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for step, seconds in ((1, 0.5), (2, 0.25), (3, float("nan"))):
        log.write({"step": step, "seconds": seconds})
    assert metrics.compute_seconds(log.path) == 0.75


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_wandb_works_offline_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    for step in (10, 20):
        with metrics.wandb(folder, {"seed": 0}, on_warning=pytest.fail) as track:
            track({"step": step, "meta_loss": 0.5})
            track.summary({"speed_up": 2.0})
    run_id = (folder / "wandb" / "run_id").read_text()
    names = {path.name for path in (folder / "wandb").glob("offline-run-*/*.wandb")}
    assert names == {f"run-{run_id}.wandb"}
