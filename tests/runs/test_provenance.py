import hashlib
import json
import subprocess
import sys

import jax

from l2o.runs.folder import RunFolder
from l2o.runs.provenance import git_revision, provenance, record_provenance


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
    )


def test_the_revision_is_that_of_the_checkout_itself(tmp_path):
    assert git_revision(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git(tmp_path, "init")
    assert git_revision(tmp_path) is None  # nothing is committed
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    clean = git_revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "notes").write_text("untracked")
    assert git_revision(tmp_path) == clean
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == f"{clean}+dirty"
    (tmp_path / "inside").mkdir()
    assert git_revision(tmp_path / "inside") is None  # installed inside another project


def test_versions_and_modules(tmp_path, monkeypatch):
    (tmp_path / "my_task_of_this_test.py").write_text("x = 1")
    monkeypatch.syspath_prepend(tmp_path)
    found = provenance(["my_task_of_this_test", "sys", "no_such_module_at_all"])
    assert json.loads(json.dumps(found)) == found
    assert found["jax"] == jax.__version__ and found["device"] == jax.devices()[0].device_kind
    assert found["python"].startswith("3.")
    sha = hashlib.sha256(b"x = 1").hexdigest()
    assert found["modules"]["my_task_of_this_test"] == sha
    assert found["modules"]["sys"] is None and found["modules"]["no_such_module_at_all"] is None
    assert "my_task_of_this_test" not in sys.modules  # hashed, not run


def test_what_differs_when_a_run_goes_on_is_one_warning(tmp_path, monkeypatch):
    run, told = RunFolder.open(tmp_path / "run", {}), []
    module = tmp_path / "my_other_task.py"
    module.write_text("x = 1")
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        record_provenance(run, ["my_other_task"], on_warning=told.append)
    assert not told
    before = json.loads(run.provenance.read_text())
    changed = before | {"jax": "0.1", "revision": "a" * 40 + "+dirty", "device": "abacus"}
    run.provenance.write_text(json.dumps(changed))
    module.write_text("x = 2")
    record_provenance(run, ["my_other_task"], on_warning=told.append)
    (line,) = told
    assert "\n" not in line and f"jax 0.1 (now {jax.__version__})" in line
    assert "revision aaaaaaaaaaaa+dirty (now " in line and "my_other_task " in line
    assert "device" not in line and "optax" not in line
    assert json.loads(run.provenance.read_text()) == changed  # that of the beginning stays
    run.provenance.write_text("[")
    record_provenance(run, on_warning=told.append)
    assert "cannot be read" in told[1]
