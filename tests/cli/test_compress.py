"""`l2o compress`, from a user's module to files."""

import json

import numpy as np
import pytest
from flax import nnx
from small_trained import trained_mlp

import l2o
from l2o.cli.main import main


def model() -> l2o.TrainedModel:
    return trained_mlp()


def of_a_kind(kind: str) -> int:
    return len(kind)


def not_a_model() -> int:
    return 3


network = nnx.Linear(2, 2, rngs=nnx.Rngs(0))


@pytest.fixture(autouse=True)
def users_module(monkeypatch):
    """This file is the module of a user, by a name that the command line can import."""
    import sys

    monkeypatch.setitem(sys.modules, "users_networks", sys.modules[__name__])


def test_from_a_users_model_to_files(tmp_path, capsys):
    words = "compress users_networks:model --keep .2 --search random_search --evaluations 8"
    options = f"--fine-tune 20 --optimizer sgd --rate 0.05 --out {tmp_path}"
    assert main([*words.split(), *options.split()]) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "compress.json").read_text())
    assert content["parameters"]["after"] <= 0.2 * content["parameters"]["before"]
    assert content["search"]["evaluations"] == 8
    shown = capsys.readouterr().out
    assert "first/kernel" in shown and "fine-tuned" in shown and str(tmp_path) in shown
    rows = trained_mlp().data["test"]
    loaded = l2o.load_compressed(tmp_path, like=trained_mlp().params)
    accuracy = float(trained_mlp().measure(loaded, rows)["accuracy"])
    np.testing.assert_allclose(
        accuracy, content["after_fine_tuning"]["test"]["accuracy"], atol=1e-6
    )


def test_units_and_bits_into_the_same_folder(tmp_path, capsys):
    for budget in ("--flops .4 --units", "--bits 3"):
        words = f"compress users_networks:model {budget} --search uniform --out {tmp_path}"
        assert main(words.split()) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "time for 256 rows" in out and "multiply-adds" in out
    assert json.loads((tmp_path / "bits.json").read_text()).keys() == {
        *("first/kernel", "second/kernel", "last/kernel")
    }
    assert not (tmp_path / "masks.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("users_networks:model", "exactly one of `keep`, `flops` and `bits` must be given"),
        ("users_networks:model --keep .001", "`keep` must leave room for the smallest network"),
        ("users_networks:model --bits 1", "`bits` must be between 2 and 8; got 1"),
        ("users_networks:model --bits 3 --units", "`units` must be left out with bits"),
        ("users_networks:model --keep .1 --search best", "`search` must be a known name; got best"),
        ("users_networks:not_a_model --keep .1", "`MODEL` must be a TrainedModel or a function"),
        ("users_networks:network --keep .1", "`MODEL` must be a TrainedModel or a function"),
        (
            "users_networks:model --keep .1 --fine-tune 1 --optimizer runs/none.safetensors",
            "`optimizer` must be a release file or a run folder; got runs/none.safetensors",
        ),
        (
            "users_networks:of_a_kind --keep .1",
            "`MODEL` must be callable without arguments; got users",
        ),
        ("users_networks:nothing --keep .1", "`MODEL` must be module:attribute"),
        ("model --keep .1", "`MODEL` must be module:attribute; got model. Try model:model."),
        (
            "users_networks:model --keep .1 --policy none",
            "`policy` must be a file of a meta-trained",
        ),
        (
            "users_networks:model --keep .1 --fine-tune 1 --optimizer digits --rate 1",
            "`rate` must be left out for digits, which is learned; got 1",
        ),
        (
            "users_networks:model --keep .1 --fine-tune 1 --optimizer adamm",
            "`optimizer` must be a known name; got adamm. Try adam",
        ),
        ("users_networks:model --keep .1 --rate 0.1", "`rate` goes with --fine-tune; got 0.1. Add"),
        (
            "users_networks:model --keep .1 --optimizer sgd",
            "`optimizer` goes with --fine-tune; got",
        ),
        (
            "users_networks:model --keep .1 --fine-tune 1 --rate 0",
            "`rate` must be positive and finite; got 0",
        ),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys):
    assert main(["compress", *words.split(), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
