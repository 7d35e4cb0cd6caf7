import subprocess
import sys

import torch

import mtrlib
from mtrlib import machine


def test_exact_keeps_cudnn_and_forbids_tf32():
    with machine.exact():
        assert torch.backends.cudnn.enabled
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32


def test_relative_paths_start_at_the_repository_wherever_one_is(tmp_path):
    code = "from mtrlib import machine; print(machine.root())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(machine.root())
    assert (machine.root() / "mtrlib" / "machine.py").exists()


def test_where_a_result_comes_from_is_said():
    said = machine.describe()
    assert said["torch"] == torch.__version__
    assert said["commit"] != ""
    assert machine.precision() in ("float32", "bfloat16")


def test_the_commit_is_dirty_where_anything_but_notebooks_has_changed(tmp_path, monkeypatch):
    def git(*command: str) -> str:
        about = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *about, *command], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    for name in ("mtrlib/__init__.py", "notebooks/a.ipynb"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(mtrlib, "__file__", str(tmp_path / "mtrlib" / "__init__.py"))
    assert machine._commit() == "unknown"
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")[:12]
    assert machine._commit() == commit
    (tmp_path / "notebooks" / "a.ipynb").write_text("executed")
    assert machine._commit() == commit
    (tmp_path / "mtrlib" / "__init__.py").write_text("2")
    assert machine._commit() == f"{commit}-dirty"
