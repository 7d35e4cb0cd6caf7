import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mtrlib
from mtrlib import machine
from mtrlib.__main__ import main


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


def test_a_place_is_what_a_shell_makes_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "~/large")
    monkeypatch.delenv("NONE", raising=False)
    monkeypatch.setenv("EMPTY", "")
    for named, wanted in {
        "~": "/home/me",
        "~/data": "/home/me/data",
        "$DATA/rooms": "/home/me/large/rooms",
        "/a/${DATA}b": "/a/~/largeb",
        "a/~/b": machine.root() / "a/~/b",
        "a b{c}": machine.root() / "a b{c}",
        Path("~/a"): "/home/me/a",
        "": machine.root(),
    }.items():
        assert machine.place(named) == Path(wanted)
    for named, told in {
        "$NONE/a": "NONE of '$NONE/a'",
        "a/${EMPTY}": "EMPTY of",
        "~no.one/a": "'~no.one' has no home",
    }.items():
        with pytest.raises(ValueError, match=re.escape(told)):
            machine.place(named)
    with pytest.raises(ValueError, match="should be a text. Found None"):
        machine.place(None)


def test_a_folder_that_is_missing_and_one_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    assert machine.folder(tmp_path, "it") == tmp_path
    assert machine.folder(tmp_path / "a" / "b", "it", made=True) == tmp_path / "a" / "b"
    with pytest.raises(ValueError, match=f"^The folder of it is missing: {tmp_path}/a/b.$"):
        machine.folder(tmp_path / "a" / "b", "it")
    for path in (tmp_path / "file", tmp_path / "file" / "b"):
        for made in (True, False):
            with pytest.raises(ValueError, match=f"^The folder of it cannot be {path}: {tmp_path}/file is no folder.$"):
                machine.folder(path, "it", made)


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


def test_a_library_inside_the_repository_of_another_has_no_commit(tmp_path, monkeypatch):
    package = tmp_path / "unpacked" / "mtrlib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("1")
    about = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*about, "commit", "-qm", "another's"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(mtrlib, "__file__", str(package / "__init__.py"))
    assert machine._commit() == "unknown"
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "unpacked", check=True)
    assert machine._commit() == "unknown", "its own has no commit yet"


@pytest.mark.parametrize("slurm", [True, False])
@pytest.mark.parametrize("given", ["", "-1", "NoDevFiles", "none", "-1,0", ",0", " "])
def test_what_names_no_gpu_is_none(given, slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setenv("SLURM_JOB_ID", "1") if slurm else monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with machine.gpu(tmp_path) as name:
        assert name is None
        assert os.environ["CUDA_VISIBLE_DEVICES"] == given
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("3,-1,4", ["3"]),
        ("3, 4", ["3", "4"]),
        ("0,1,", ["0", "1"]),
        ("GPU-8932f937,MIG-GPU-89/1/0", ["GPU-8932f937", "MIG-GPU-89/1/0"]),
    ],
)
def test_gpus_are_those_that_cuda_takes(given, wanted, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert machine._devices(given) == wanted
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with machine.gpu(tmp_path) as name:
        assert name == os.environ["CUDA_VISIBLE_DEVICES"] == wanted[0]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == given


@pytest.mark.parametrize(
    "command", ["plan params/smoke", "train params/smoke", "evaluate a", "notebook params/smoke tour", "release a b"]
)
def test_commands_that_need_the_repository_say_so(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "root", lambda: tmp_path)
    assert main(command.split()) == 2
    told = capsys.readouterr().err
    assert "in the repository of mtrlib, which holds the folders notebooks and params" in told
    assert str(tmp_path) in told
    assert len(told.splitlines()) == 1


LIGHT = """
import sys
from mtrlib.__main__ import main
try:
    main({arguments})
except SystemExit:
    pass
sys.stderr.write(" ".join(sys.modules))
"""


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["--help"], "torch torchvision pandas pyarrow timm matplotlib scipy IPython"),
        (["plan", "--help"], "torch torchvision pandas pyarrow timm matplotlib scipy IPython"),
        (
            ["plan", "params/smoke", "--notebooks", "rq1_auxiliary_tasks"],
            "torchvision timm matplotlib torch._dynamo scipy.stats IPython",
        ),
    ],
)
def test_a_command_imports_no_more_than_it_needs(arguments, without):
    command = [sys.executable, "-c", LIGHT.format(arguments=arguments)]
    done = subprocess.run(command, cwd=machine.root(), capture_output=True, text=True, check=True)
    assert "usage" in done.stdout or "Left: about" in done.stdout
    assert set(without.split()) & set(done.stderr.split()) == set()
