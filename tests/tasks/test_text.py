"""Language models over bytes, and their windows."""

import numpy as np
import pytest

from l2o.datasets.python_source import python_source
from l2o.registry import TASKS, task_family
from l2o.tasks import text

CORPUS = {
    split: np.frombuffer(bytes(range(low, low + 90)), np.uint8)
    for split, low in (("train", 0), ("valid", 90), ("test", 160))
}


def test_windows_are_all_of_the_text_once_and_targets_are_what_follows():
    inputs, targets = map(np.asarray, text.windows(CORPUS["train"], length=8))
    assert inputs.shape == targets.shape == (10, 8) and inputs.dtype == np.uint8
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(np.sort(inputs[:, 0]), np.arange(0, 90, 9))
    assert inputs[:, 0].tolist() != sorted(inputs[:, 0].tolist())
    few, _ = text.windows(CORPUS["train"], length=8, most=3)
    np.testing.assert_array_equal(few, inputs[:3])
    with pytest.raises(ValueError, match=r"`text` must have .* 33 bytes; got 9\. Try length=8"):
        text.windows(CORPUS["train"][:9])


def test_held_out_splits_are_drawn_from_their_own_text(monkeypatch):
    monkeypatch.setattr(text, "NUM_EVALUATED", 1)
    splits = text.split_windows(CORPUS)
    assert {split: len(inputs) for split, (inputs, _) in splits.items()} == {
        "train": 2,
        "valid": 1,
        "test": 1,
    }
    for split, (inputs, targets) in splits.items():
        assert set(np.asarray(inputs).ravel()) <= set(CORPUS[split].tolist())
        assert set(np.asarray(targets).ravel()) <= set(CORPUS[split].tolist())


def test_windows_of_the_standard_library_are_python():
    inputs, targets = text.python_windows()["train"]
    assert len(inputs) == len(python_source()["train"]) // (text.LENGTH + 1)
    said = b"\n".join(np.asarray(row).tobytes() for row in inputs[:2000])
    assert said.count(b"self") > 50 and said.count(b"def ") > 20
    np.testing.assert_array_equal(inputs[:100, 1:], targets[:100, :-1])


def test_perceptrons_predict_the_byte_after_their_window():
    (inputs, targets), (held, _) = (text.next_bytes_of_python()[s] for s in ("train", "test"))
    assert inputs.shape == (len(targets), text.CONTEXT) and len(held) == 2048
    cut, following = text.windows(python_source()["train"], text.CONTEXT)
    np.testing.assert_array_equal(inputs[:50], cut[:50])
    np.testing.assert_array_equal(targets[:50], following[:50, -1])


@pytest.mark.parametrize("name", [n for n in TASKS if TASKS.paths[n].startswith("l2o.tasks.text:")])
def test_families_on_fetched_text_say_what_to_fetch_and_read_it(name, cache):
    if name.startswith("python"):
        family = task_family(name)
        assert family.licence == "PSF-2.0" and "standard library of Python 3." in family.source
        return
    dataset = {"union": "state_of_the_union", "moby": "moby_dick"}[name.split("_")[0]]
    with pytest.raises(ValueError, match=f"got neither. Try `l2o data fetch {dataset}`."):
        task_family(name)
    folder = cache / dataset
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_bytes(f"{split} ".encode() * 40)
    family = task_family(name)
    assert family.name == name and dataset in family.source and "PDDL" in family.licence
    inputs, _ = family.train[0].data["valid"]
    assert b"valid" in np.asarray(inputs[0]).tobytes()
