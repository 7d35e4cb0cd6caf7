"""What a fresh machine installs: one set of pins, within the ranges of the package."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter

import pytest
import yaml
from packaging.requirements import Requirement

from mtrlib import machine

ROOT = machine.root()


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_conda_and_pip_install_the_same_versions():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (from_pip,) = (entry["pip"] for entry in packages if isinstance(entry, dict))
    assert [line for line in from_pip if "==" not in line] == ["-e ."]
    assert dict(line.split("==") for line in from_pip if "==" in line) == pins()


def test_the_pins_lie_in_the_ranges_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in project["dependencies"] + extras["test"] + extras["batch"]]
    pinned = {Requirement(name).name: version for name, version in pins().items()}
    assert {requirement.name for requirement in wanted} == set(pinned)
    assert [r.name for r in wanted if not r.specifier.contains(pinned[r.name])] == []
    assert all(r.specifier for r in wanted)


def test_what_is_no_python_in_the_package_is_installed_with_it():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = [path for path in (ROOT / "mtrlib").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    data = [path for path in files if path.suffix != ".py"]
    assert {"report.html", "claims.csv", "task_weights_supplement.csv"} <= {path.name for path in data}
    assert [path for path in data if not any(path.match(pattern) for pattern in settings["package-data"]["*"])] == []


def test_no_files_import_each_other():
    """Not in a circle either: `prepare` raises with the first one. An import counts wherever it stands in a file, but
    for what the package offers when it is asked for it (`__getattr__`), which no file of it does."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "mtrlib").rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    imported = {name: set() for name in files}
    for name, path in files.items():
        parts = ast.parse(path.read_text()).body
        offered = [part for part in parts if name == "mtrlib" and getattr(part, "name", "") == "__getattr__"]
        for node in (node for part in parts if part not in offered for node in ast.walk(part)):
            if isinstance(node, ast.ImportFrom) and node.module in files:
                names = {f"{node.module}.{each.name}" for each in node.names}
                assert "mtrlib.benchmark" not in names, name
                imported[name] |= {each if each in files else node.module for each in names}
            elif isinstance(node, ast.Import):
                imported[name] |= {each.name for each in node.names} & set(files)
    assert "mtrlib.dataset" in imported["mtrlib.data"]
    TopologicalSorter(imported).prepare()


def test_torch_and_torchvision_are_a_pair():
    """torchvision 0.(n + 14) goes with torch 2.n."""
    torch, vision = (int(re.match(r"\d+\.(\d+)", pins()[name])[1]) for name in ("torch", "torchvision"))
    assert vision == torch + 14


def test_the_two_commands_of_the_readme_are_what_ci_runs():
    readme, make = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for command in ("reproduce", "test"):
        assert f"make {command}" in readme
        assert f"\n{command}:" in make
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_description_of_the_package_refers_to_no_file_of_the_repository():
    """README has images and links that are right in the repository alone; elsewhere they break."""
    text = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"]["text"]
    assert re.findall(r"\]\((?!https://)", text) == []
    linked = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / "README.md").read_text())
    assert linked
    assert [place for place in linked if not (ROOT / place).exists()] == []


# Loads nothing of PyTorch: shows OpenMP's variable at the first import of it and stops there.
BEFORE_TORCH = """
import os, sys
class Stop:
    def find_spec(self, name, *_):
        if name == "torch":
            sys.exit(f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY')}")
sys.meta_path.insert(0, Stop())
"""
RUNS = [*sorted(ROOT.glob("notebooks/*.ipynb")), *sorted(ROOT.glob("benchmarks/*.py"))]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_threads_that_wait_are_told_so_before_pytorch_is_loaded(path, monkeypatch):
    """OpenMP reads it as PyTorch loads, and never again."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell["source"] for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
        source = "\n".join("".join(cell) for cell in cells)
    lines = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    imports = "\n".join(ast.unparse(node) for node in lines if getattr(node, "module", "") != "__future__")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{path.parent}")
    done = subprocess.run([sys.executable, "-c", BEFORE_TORCH + imports], capture_output=True, text=True)
    assert done.stderr == "OMP_WAIT_POLICY=passive\n"


def test_so_they_are_in_the_process_of_the_tests_and_openmp_takes_it(monkeypatch):
    loaded = list(sys.modules)
    assert loaded.index("mtrlib") < loaded.index("torch")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    shown = subprocess.run(
        [sys.executable, "-c", "import mtrlib, torch"], capture_output=True, text=True, cwd=ROOT
    ).stderr
    spins = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", shown)
    if not spins:
        pytest.skip("another OpenMP than GNU's, which does not show how long its threads spin")
    assert set(spins) == {"0"}
