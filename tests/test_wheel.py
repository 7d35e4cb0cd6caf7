"""The wheel, installed in an empty environment far from the repository: the command, the library, the files with it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import mtrlib
from mtrlib import batch, machine

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"

# Given the parameters of RQ1 as they stand in the notebook, and the folder of released errors; writes what it found.
WORKS = """
import json, sys
from pathlib import Path
import mtrlib
from mtrlib.claims import published
from mtrlib.claims.judging import rules
from mtrlib.data import letters
from mtrlib.store import Store
from mtrlib.studies import parameters, rq1

p = parameters.check(json.load(sys.stdin), rq1.RQ1)
found = {"from": mtrlib.__file__, "claims": len(published.claims()), "rules": len(rules()), "cells": len(rq1.cells(p))}
found["described"] = letters("nyuv2")
try:
    Store(p.store, released=p.released)
except ValueError as error:
    found["missing"] = str(error)
Path("results").mkdir()
Path("results/laptop").symlink_to(sys.argv[1])
found["released"] = Store(p.store, released=p.released).released.sentence()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The Python of an environment that has the wheel, and sees what else is installed here but this repository."""
    place = tmp_path_factory.mktemp("wheel")
    root, source, out = machine.root(), place / "source", place / "out"
    shutil.copytree(root / "mtrlib", source / "mtrlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(root / name, source)
    out.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True)
    (wheel,) = out.glob(f"mtrlib-{mtrlib.__version__}-py3-none-any.whl")
    shutil.rmtree(source)
    venv.create(place / "environment", symlinks=True)
    python = place / "environment" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, cwd=place)
    (packages,) = (place / "environment").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not read
    return python


def run(*command: str | Path, cwd: Path, given: str | None = None) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=clean, input=given)


def test_the_command_is_there(installed, tmp_path):
    command = installed.with_name("mtrlib")
    assert run(command, "--version", cwd=tmp_path).stdout == f"mtrlib {mtrlib.__version__}\n"
    done = run(command, "train", "params/smoke", cwd=tmp_path)
    assert done.returncode == 2
    assert "should be run in the repository of mtrlib" in done.stderr


def test_the_library_works_without_the_repository_and_says_where_released_errors_are(installed, tmp_path):
    values = json.dumps(batch.defaults("rq1_auxiliary_tasks"))
    done = run(installed, "-c", WORKS, machine.root() / "results" / "laptop", cwd=tmp_path, given=values)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["from"]).is_relative_to(installed.parents[1])
    assert found["claims"] == 21
    assert found["described"] == "sdn"
    assert found["rules"] >= found["claims"]
    assert found["cells"] > 0
    assert str(tmp_path / "results" / "laptop" / "errors.parquet") in found["missing"]
    assert "In the repository of mtrlib they are results" in found["missing"]
    assert found["released"].startswith("Released errors of ")
