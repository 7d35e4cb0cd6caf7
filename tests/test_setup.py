"""What a fresh machine installs: one set of pins, within the ranges of the package."""

import re
import tomllib

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
