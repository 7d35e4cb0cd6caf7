"""The library's side of the batch engine: what the notebooks of a folder of parameters need, each thing once, as jobs.

`workflow/Snakefile` runs the jobs. They may be killed, retried or started twice: the store's locks decide who computes,
and what the store has is not computed again. What Snakemake sees of the store are marks, empty files named by content:

    <store>/batch/trained/<name>      the models of one job are trained
    <store>/batch/evaluated/<name>    all attacks on them were run
    <store>/batch/ran/<notebook>-<digest>
"""

import ast
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import mtrlib
from mtrlib import machine, studies
from mtrlib.data import sealed
from mtrlib.models import own
from mtrlib.specs import Evaluation, ModelSpec
from mtrlib.store import Store
from mtrlib.studies import constrained_attacks, new_dataset, new_method, rq1, rq2, rq3, rq4, rq5, rq6
from mtrlib.studies.fidelity import ladder
from mtrlib.studies.parameters import Parameters, check
from mtrlib.studies.tour import Tour

# Each notebook's parameters, and its cells, which say what it needs; those without any run at the end.
NOTEBOOKS: dict[str, tuple[type[Parameters], Callable[[Any], list[studies.Cell]] | None]] = {
    "tour": (Tour, None),
    "rq1_auxiliary_tasks": (rq1.RQ1, rq1.cells),
    "rq2_marginal_vulnerability": (rq2.RQ2, rq2.cells),
    "rq3_task_weights": (rq3.RQ3, rq3.cells),
    "rq4_task_selection": (rq4.RQ4, rq4.cells),
    "rq5_adversarial_training": (rq5.RQ5, rq5.cells),
    "rq6_architectures": (rq6.RQ6, rq6.cells),
    "fidelity": (ladder.Fidelity, ladder.trained),
    "new_dataset": (new_dataset.NewDataset, new_dataset.cells),
    "new_method": (new_method.NewMethod, new_method.cells),
    "constrained_attacks": (constrained_attacks.ConstrainedAttacks, None),
}


@dataclass(frozen=True)
class Needs:
    """What notebooks need."""

    parameters: dict[str, Parameters]  # of each notebook
    uses: dict[str, list[str]]  # the keys of each notebook's models
    models: dict[str, ModelSpec]  # by key, in the order of their first use
    evaluations: dict[str, list[Evaluation]]  # by the key of the attacked model; of none without
    store: Store  # where all is kept


@dataclass(frozen=True)
class Job:
    """One job of the batch engine."""

    kind: str  # "trained", "evaluated" or "ran"
    mark: Path  # the file that marks its end
    of: tuple[str, ...]  # the keys of its models, or the name of its notebook
    after: tuple[Path, ...]  # the marks that it waits for


def read(folder: str | Path, notebooks: Iterable[str] | None = None) -> dict[str, dict]:
    """The parameters of notebooks, unchecked, by their names, as papermill would have them: what stands in the
    notebook, changed by `common.yaml` of the folder, changed by `<notebook>.yaml`. A folder without common.yaml is of
    the notebooks that have a file there; `notebooks` takes some of them."""
    folder = machine.folder(machine.place(folder), "the parameters")
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if unknown := set(files) - {*NOTEBOOKS, "common"}:
        raise ValueError(f"Files in {folder} should be named as one of {', '.join(NOTEBOOKS)}. Found {unknown}.")
    present = [name for name in sorted(NOTEBOOKS) if name in files or "common" in files]
    chosen = present if notebooks is None else list(notebooks)
    if not chosen or set(chosen) - set(present):
        found, allowed = ", ".join(chosen) or "none", ", ".join(present)
        raise ValueError(f"Notebooks should be out of those with a file in {folder}: {allowed}. Found {found}.")
    common = _values(files["common"]) if "common" in files else {}
    return {name: {**defaults(name), **common, **(_values(files[name]) if name in files else {})} for name in chosen}


def defaults(notebook: str) -> dict:
    """The parameters as they stand in a notebook."""
    path = machine.root() / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    tagged = ("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    lines = ast.parse(next(tagged, "")).body
    return {line.target.id: ast.literal_eval(line.value) for line in lines if isinstance(line, ast.AnnAssign)}


def needs(values: dict[str, dict], precision: str = "auto") -> Needs:
    """What notebooks need, each thing once; nothing is written.

    Parameters
    ----------
    values : as `read` gives them; checked as the notebooks check them.
    precision : taken for "auto", so that jobs on other machines mean the same models; "auto" is this machine's.
    """
    precision = machine.precision() if precision == "auto" else precision
    parameters, uses, models, attacked = {}, {}, {}, {}
    for name, given in values.items():
        kind, study = NOTEBOOKS[name]
        resolved = {"precision": precision} if given.get("precision") == "auto" else {}
        try:
            parameters[name] = check({**given, **resolved}, kind)
        except ValueError as error:
            raise ValueError("\n".join(f"{name}.yaml: {line}" for line in str(error).splitlines())) from None
        cells = study(parameters[name]) if study else []
        keys = {spec: spec.key for spec in studies.models(cells)}
        uses[name] = list(keys.values())
        models |= {key: spec for spec, key in keys.items() if key not in models}
        for evaluation in studies.evaluations(cells):
            attacked.setdefault(keys[evaluation.model], {})[evaluation] = None
    store = Store(_same(parameters, "store"), released=_same(parameters, "released"), precision=precision)
    return Needs(parameters, uses, models, {key: list(found) for key, found in attacked.items()}, store)


def _same(parameters: dict[str, Parameters], name: str) -> str:
    """The value of a parameter that all notebooks share."""
    first, *others = sorted({getattr(p, name) for p in parameters.values()})
    if others:
        raise ValueError(f"Parameter {name} should be the same in all files. Found {', '.join([first, *others])}.")
    return first


def jobs(needs: Needs, pack: int = 1) -> dict[str, list[Job]]:
    """All jobs by kind; up to `pack` models are trained, and attacked, in one job, one after another.

    They depend on parameters, notebooks and sources alone, not on what the store has already.
    """
    keys = list(needs.models)
    packs = [tuple(keys[start : start + pack]) for start in range(0, len(keys), pack)]
    trained = [Job("trained", _mark(needs, "trained", chosen), chosen, ()) for chosen in packs]
    mark_of = {key: job.mark for job in trained for key in job.of}
    evaluated, ran = [], []
    for chosen in packs:
        if used := [model.key for e in evaluations(needs, chosen) for model, _ in e.attacked]:
            after = dict.fromkeys(mark_of[key] for key in [*chosen, *used])
            evaluated.append(Job("evaluated", _mark(needs, "evaluated", chosen), chosen, tuple(after)))
    for name in [name for name in NOTEBOOKS if name in needs.parameters]:
        used = set(needs.uses[name] if NOTEBOOKS[name][1] else keys)
        after = tuple(job.mark for job in (*trained, *evaluated) if used & set(job.of))
        ran.append(Job("ran", _mark(needs, "ran", (name,)), (name,), after))
    return {"trained": trained, "evaluated": evaluated, "ran": ran}


def renew(needs: Needs, wanted: dict[str, list[Job]]) -> None:
    """Make the marks say what there is, whoever computed it or took it away: in the store, or of executed notebooks."""
    for job in wanted["ran"]:
        if not _finished(needs, *job.of).exists():
            job.mark.unlink(missing_ok=True)
    for job in wanted["trained"] + wanted["evaluated"]:
        if {"trained": untrained, "evaluated": unattacked}[job.kind](needs, job.of):
            job.mark.unlink(missing_ok=True)
        elif not job.mark.exists():
            _touch(job.mark)


def evaluations(needs: Needs, keys: Iterable[str]) -> list[Evaluation]:
    """The evaluations of these models."""
    return [e for key in keys for e in needs.evaluations.get(key, [])]


def untrained(needs: Needs, keys: Iterable[str]) -> list[str]:
    """The keys of the models that the store lacks."""
    return [key for key in keys if not needs.store.has_model(needs.models[key])]


def unattacked(needs: Needs, keys: Iterable[str]) -> list[Evaluation]:
    """The evaluations of these models that the store lacks."""
    return [e for e in evaluations(needs, keys) if not needs.store.has_errors(e)]


def train(needs: Needs, keys: Iterable[str] = ()) -> None:
    """Train the models of these keys (of none: all) that the store lacks."""
    studies.train_models(needs.store, [needs.models[key] for key in _known(needs, keys)])


def evaluate(needs: Needs, keys: Iterable[str] = ()) -> None:
    """Run the attacks on the models of these keys (of none: all) that the store lacks."""
    studies.attack(needs.store, unattacked(needs, _known(needs, keys)))


def title(needs: Needs, kind: str, of: Iterable[str]) -> str:
    """A job in words, such as "train sd, resnet18, seed 0 (3 of 38 models)": the place counts models as `plan` lists
    them, or notebooks."""
    if kind == "notebook":
        (name,), names = of, list(needs.parameters)
        return f"notebook {name} ({names.index(name) + 1} of {len(names)} notebooks)" if name in names else name
    keys, chosen = list(needs.models), [key for key in of if key in needs.models] or list(needs.models)
    numbers, named = [str(keys.index(key) + 1) for key in chosen[:4]], []
    for spec in (needs.models[key] for key in chosen[:4]):
        recipe = "" if spec.adversarial is None else spec.adversarial.recipe
        words = (spec.tasks, spec.encoder, spec.weights, spec.architecture, recipe, f"seed {spec.seed}")
        named.append(", ".join(word for word in words if word not in ("uniform", "hard", "")))
    more = f" and {len(chosen) - 4} more" if len(chosen) > 4 else ""
    return f"{kind} {'; '.join(named)}{more} ({', '.join(numbers)}{more} of {len(keys)} models)"


def notebook(needs: Needs, name: str) -> Path:
    """Run a notebook and mark it. It moves to its place when its last cell, the sentinel, has outputs.

    Raises RuntimeError of one line where that cell has none, and where a cell fails.
    """
    if name not in needs.parameters:
        raise ValueError(f"Parameter name should be one of {', '.join(needs.parameters)}. Found name = {name}.")
    import nbformat
    import papermill  # takes long to import
    from nbconvert import HTMLExporter

    finished, mark = _finished(needs, name), _mark(needs, "ran", (name,))
    partial = finished.with_suffix(".partial.ipynb")  # where it is while it runs, and stays where it failed
    with sealed.locked(partial.with_name(f".{name}.lock")):
        if mark.exists() and finished.exists():  # by a job of a killed engine that went on
            return finished
        source = machine.root() / "notebooks" / f"{name}.ipynb"
        try:
            values = needs.parameters[name].model_dump()
            done = papermill.execute_notebook(source, partial, values, progress_bar=False)
        except papermill.PapermillExecutionError as error:
            told = " ".join(f"{error.ename}: {error.evalue}".split())
            raise RuntimeError(f"{partial} has failed in a cell: {told}") from error
        if not [cell for cell in done.cells if cell.cell_type == "code"][-1].outputs:
            raise RuntimeError(f"The last cell of {partial} has no outputs: the notebook did not get to its end.")
        places = {"input_path": source, "output_path": finished}  # not where this machine keeps them
        done.metadata.papermill.update({key: os.path.relpath(at, machine.root()) for key, at in places.items()})
        nbformat.write(done, partial)
        os.replace(partial, finished)
        sealed.write(finished.with_suffix(".html"), HTMLExporter().from_notebook_node(done)[0].encode())
        _touch(mark)
    return finished


def _finished(needs: Needs, name: str) -> Path:
    return machine.place(needs.parameters[name].output) / f"{name}.ipynb"


def _values(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(values, dict | None):
        raise ValueError(f"{path} should hold names and values. Found {values!r}.")
    return values or {}


def _known(needs: Needs, keys: Iterable[str]) -> tuple[str, ...]:
    """The keys, or all, of models whose data are there: the example is written."""
    chosen = tuple(keys) or tuple(needs.models)
    if unknown := set(chosen) - set(needs.models):
        raise ValueError(f"Keys should be of models that these parameters need, see plan. Found {', '.join(unknown)}.")
    for parameters in needs.parameters.values():
        if isinstance(parameters, new_dataset.NewDataset):
            parameters.write_example()
    return chosen


def _mark(needs: Needs, kind: str, of: tuple[str, ...]) -> Path:
    folder = needs.store.path / "batch" / kind
    if kind != "ran":
        named = of if kind == "trained" else [e.key for e in evaluations(needs, of)]
        return folder / (of[0] if kind == "trained" and len(of) == 1 else _digest(*named))
    parameters = needs.parameters[of[0]]
    brought = [own.pinned_weights(parameters.pretrained)]  # files of the user's may change
    for value in parameters.model_dump().values():
        several = value if isinstance(value, list) else [value]
        brought += [own.pinned(each) for each in several if isinstance(each, str)]
    cells = json.loads((machine.root() / "notebooks" / f"{of[0]}.ipynb").read_text())["cells"]
    sources = ("".join(cell["source"]) for cell in cells)
    return folder / f"{of[0]}-{_digest(parameters.model_dump_json(), str(brought), _library(), *sources)}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@cache
def _library() -> str:
    folder = Path(mtrlib.__file__).parent
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".csv", ".yaml"))
    return _digest(*(f"{path.relative_to(folder)}\0{path.read_text(encoding='utf-8')}" for path in files))


def _touch(mark: Path) -> None:
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
