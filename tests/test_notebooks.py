"""The notebooks: executed and well formed as committed, and run by papermill with other parameters."""

import ast
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import yaml

from mtrlib import batch, data, machine
from mtrlib.studies import results

ROOT = machine.root()
NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").glob("*.ipynb") if path.stem in batch.NOTEBOOKS)
RQ1 = ROOT / "notebooks" / "rq1_auxiliary_tasks.ipynb"


def code_cells(path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def papermill(path, output, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--no-log-output", str(path), str(output)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=output.parent)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_committed_notebook_is_executed_in_order_and_without_errors(path):
    """nbval passes a stripped notebook without comparing anything."""
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    compared = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert compared
    assert all(cell.outputs for cell in compared)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_calls_and_reading_not_machinery(path):
    cells = code_cells(path)
    tagged = [number for number, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [0]
    assert "parameters.check(globals()" in cells[1].source
    assert "tables.write(" in cells[-1].source, "the last cell is the sentinel that a run got to its end"
    source = "\n".join(cell.source for cell in cells)
    assert sum(bool(line.strip()) for line in source.splitlines()) <= 100
    kinds = [type(node) for node in ast.walk(ast.parse(source))]
    assert kinds.count(ast.ClassDef) == 0
    assert kinds.count(ast.FunctionDef) <= 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_laptop_tier_with_its_released_errors_is_the_default_of_the_notebook(path):
    """One with a file of its own there has none yet: its defaults are tiny, and trained where it runs."""
    laptop, defaults = batch.read(ROOT / "params" / "laptop")[path.stem], batch.defaults(path.stem)
    if (ROOT / "params" / "laptop" / f"{path.stem}.yaml").exists():
        assert defaults["released"] == ""
        return
    # That show a model, so that they have to train one.
    shows_a_model = path.stem in ("tour", "new_dataset", "new_method", "constrained_attacks")
    released = "" if shows_a_model else "results/laptop/errors.parquet"
    assert laptop == {**defaults, "released": ""}
    assert defaults["released"] == released
    assert not released or (ROOT / released).is_file()


def test_the_notebook_of_the_results_is_executed_and_shows_what_they_say():
    """It computes nothing: findings and figures of other notebooks, in words."""
    (path,) = set((ROOT / "notebooks").glob("*.ipynb")) - set(NOTEBOOKS)
    assert path.stem == "results"
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    answer = results.answer(results.read("results/laptop"))
    assert answer in [output.data["text/markdown"] for output in cells[1].outputs]
    assert sum(bool(line.strip()) for cell in cells for line in cell.source.splitlines()) <= 40


def test_the_notebook_of_the_results_refuses_other_parameters(tmp_path):
    done = papermill(ROOT / "notebooks" / "results.ipynb", tmp_path / "results.ipynb", "-p", "foldr", "results/laptop")
    assert done.returncode != 0
    assert "Unknown parameter foldr" in done.stderr


def test_rq1_with_other_parameters(tmp_path):
    """Other tasks, an own store, two seeds: as a user runs it in batch, from another folder."""
    values = {
        **batch.read(ROOT / "params" / "smoke")["rq1_auxiliary_tasks"],
        **{"tasks": "ED", "size": 16, "train_images": 48, "test_images": 8, "panel_images": 4, "epochs": 2},
        **{"seeds": [3, 4], "steps": 3, "steps_panel": [1, 3], "eps_panel": [4.0, 16.0]},
        **{"store": str(tmp_path / "store"), "output": str(tmp_path / "out")},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values))
    done = papermill(RQ1, tmp_path / "rq1.ipynb", "-f", str(tmp_path / "p.yaml"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert code_cells(tmp_path / "rq1.ipynb")[-1].outputs, "the sentinel did not run"
    table = pd.read_csv(tmp_path / "out" / "rq1_vulnerability.csv")
    main = table[table.panel == "table"]
    assert len(main) == 2 + 2 + 2
    assert (main.images == 8).all()
    assert (main.low <= main.value).all()
    assert (main.value <= main.high).all()
    assert (main[main.main == "D"].adversarial_error > main[main.main == "D"].clean_error).all()
    verdicts = pd.read_csv(tmp_path / "out" / "rq1_verdicts.csv", dtype={"number": str}).set_index("number").verdict
    allowed = {"agrees", "disagrees", "open", "not measured here"}
    assert set(verdicts) <= allowed
    assert list(verdicts.index) == ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6"]
    assert len(list((tmp_path / "store" / "models").glob("*/*"))) == 3 * 2


# Training and attacks of seconds, for what any tier has.
TINY = {"size": 16, "train_images": 16, "test_images": 6, "panel_images": 4, "epochs": 1, "batch_size": 8, "steps": 2}
RQ1_TINY = {"steps_panel": [1, 2], "eps_panel": [4.0, 16.0]}
RQ3_TINY = {"balancers": ["gradnorm"], "many_steps": 3, "square_queries": 5}


@pytest.mark.parametrize(
    ("name", "tasks", "tiny", "table"),
    [
        ("rq1_auxiliary_tasks", "isd", RQ1_TINY, "rq1_vulnerability"),
        ("rq3_task_weights", "sd", RQ3_TINY, "rq3_vulnerability"),
        ("rq3_task_weights", "di", RQ3_TINY, "rq3_vulnerability"),  # no weights are published for these
    ],
)
def test_notebooks_run_on_a_folder_with_three_parameters_changed(tmp_path, run_cells, name, tasks, tiny, table):
    """data, root and tasks, one of them new, beside sizes that make it short."""
    folder = data.write_example(tmp_path / "mine", 16, 6)
    own = {"data": "folder", "root": str(folder), "tasks": tasks}
    values = {
        **batch.read(ROOT / "params" / "smoke")[name],
        **TINY,
        **tiny,
        **own,
        **{"store": str(tmp_path / "store"), "output": str(tmp_path / "out")},
    }
    run_cells(name, values)
    measured = pd.read_csv(tmp_path / "out" / f"{table}.csv")
    assert set(measured.main) == set(tasks)
    assert (measured.adversarial_error >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["-p", "stepz", "5", "-y", "learning_rate: 1e-4", "-r", "steps", "5"],
            ["Unknown parameter stepz = 5", "write 1.0e-4", "Parameter steps: Input should be a valid integer"],
        ),
        (["-p", "tasks", "sx"], ["letters out of 'sdDn"]),
    ],
)
def test_papermill_stops_at_once_on_wrong_parameters(tmp_path, arguments, messages):
    done = papermill(RQ1, tmp_path / "rq1.ipynb", "-p", "store", str(tmp_path / "store"), *arguments)
    assert done.returncode != 0
    assert all(message in done.stderr for message in messages), done.stderr
    assert not (tmp_path / "store").exists()
