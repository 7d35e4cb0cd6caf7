"""Nothing that is read is run: no pickle, no eval, no unsafe YAML, and what is hostile does nothing.

Elsewhere: checkpoints of the authors (`test_models`), paths that leave the folder of the data (`test_folder`).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import mtrlib
from mtrlib import data, training
from mtrlib.data import description
from mtrlib.specs import ModelSpec
from mtrlib.training import fitting, weights

SOURCES = sorted(Path(mtrlib.__file__).parent.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "read_pickle", "to_pickle", "system", "popen"}


def faults(source: str) -> list[str]:
    """What of a module could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        last, own = name.rpartition(".")[2], name in ("eval", "exec", "compile", "__import__")
        if own or (last in FORBIDDEN_CALLS - {"eval", "exec", "compile"}):
            found.append(name)
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(ast.unparse(node))
        if name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
            found.append(ast.unparse(node))
        if name.startswith("yaml.") and last in ("load", "load_all", "full_load", "unsafe_load", "Loader"):
            found.append(name)
        if "shell" in options:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_module_can_run_what_it_reads(path):
    """But for one: a file of the user's is run where a parameter names it, and that is said."""
    allowed = ["exec", "compile"] if path.parts[-2:] == ("models", "own.py") else []
    assert faults(path.read_text()) == allowed


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "eval('1')", "exec(x)", "os.system('x')", "pd.read_pickle(x)"),
        *("torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x)", "np.load(x, allow_pickle=True)"),
        *("yaml.load(x, Loader=yaml.Loader)", "yaml.unsafe_load(x)", "subprocess.run('x', shell=True)"),
    ],
)
def test_the_search_finds_what_it_searches(source):
    assert len(faults(source)) == 1


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_state_to_resume_from_does_nothing(tiny, tmp_path, monkeypatch):
    """With a right checksum, which anybody can compute."""
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0.0)
    spec = ModelSpec(**{**dict(tiny), "weights": "GradVac", "epochs": 1})
    rooms = data.load("rooms", tasks="sd", split="train", size=16, limit=8)
    training.fit(spec, rooms, tmp_path)
    expected, path = training.checkpoint(tmp_path, 1).read_bytes(), tmp_path / "resume.safetensors"
    written = tmp_path / "written"
    torch.save(Hostile(written), tmp_path / "hostile")
    state = load_file(path)
    state["balance/aggregator"] = torch.frombuffer(bytearray((tmp_path / "hostile").read_bytes()), dtype=torch.uint8)
    with safe_open(path, "pt") as file:
        about = {name: file.metadata()[name] for name in ("spec", "history", "format")}
    training.save(path, state, {**about, "sha256": fitting._digest(state, about)})
    with pytest.warns(UserWarning, match="resume.safetensors is damaged .*plain values only; nothing in it was run"):
        history = training.fit(spec, rooms, tmp_path)
    assert not written.exists()
    assert len(history) == 1
    assert training.checkpoint(tmp_path, 1).read_bytes() == expected
    torch.load(tmp_path / "hostile", weights_only=False)
    assert written.exists(), "the test would notice"


def test_the_state_of_an_aggregator_is_plain():
    one, two = weights.Aggregated("GradVac"), weights.Aggregated("GradVac")
    one.aggregator(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
    two.load(one.state())
    (kept,) = two._stateful().keys() - {""}
    assert torch.equal(one._stateful()[kept]._phi_t, two._stateful()[kept]._phi_t)
    assert two._stateful()[kept]._phi_t.abs().sum() > 0


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])
YAMLS = {
    "a command": "!!python/object/apply:os.system ['touch {written}']",
    "a call": "images: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{written}']]",
    "a module": "images: !!python/module:antigravity",
    "a billion laughs": LAUGHS,
    "laughs in a field": LAUGHS + "\nimages: *a29",
    "laughs in a list": LAUGHS.replace("a0: &a0", "- &a0").replace("\n", "\n- ").replace(": &", " &"),
    "brackets": "[" * 100_000,
    "a long number": f"images: {'9' * 10_000}",
    "no such day": "images: 2001-13-45",
    "itself": "images: &a [*a]",
    "no key": "? [a]\n: b",
}


@pytest.mark.parametrize("name", YAMLS)
def test_a_hostile_description_is_one_line_and_does_nothing(name, tmp_path):
    written = tmp_path / "written"
    (tmp_path / "dataset.yaml").write_text(YAMLS[name].replace("{written}", str(written)))
    with pytest.raises(ValueError) as error:
        description.read(tmp_path)
    told = str(error.value)
    assert told.startswith(str(tmp_path / "dataset.yaml"))
    assert len(told) < 2000
    assert len(told.splitlines()) == 1
    assert not written.exists()
