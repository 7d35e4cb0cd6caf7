"""What a kernel is told: cells run in IPython in this process, and one notebook by papermill."""

import ast
import subprocess
import sys

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat import v4

from mtrlib import batch, machine

SMOKE = batch.read(machine.root() / "params" / "smoke")["rq1_auxiliary_tasks"]
CELL = "\n".join(f"{name} = {value!r}" for name, value in SMOKE.items())
CHECK = "from mtrlib.studies import parameters, rq1\np = parameters.check(globals(), rq1.RQ1)"


@pytest.fixture
def run(capsys):
    """A function that runs a cell in a notebook after its first two; what it raised and what was shown."""
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()

    def one(source: str) -> tuple[BaseException | None, str]:
        capsys.readouterr()
        result = shell.run_cell(source)
        return result.error_before_exec or result.error_in_exec, capsys.readouterr().out

    one("from mtrlib.studies import kernel\nkernel.faults_in_one_line()")
    one(CELL)
    assert one(CHECK)[0] is None
    yield one
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    "cell", [CELL.replace("epochs = ", "epochs = 1 + "), "epochs = 77", "for epochs in [77]: pass"]
)
def test_parameters_changed_after_their_check_stop_the_next_cell(run, cell):
    run(cell)
    fault, shown = run("print('computed')")
    assert "Parameter epochs is " in str(fault)
    assert f"but was {SMOKE['epochs']} when" in str(fault)
    assert "computed" not in shown
    assert len(shown.strip().splitlines()) == 1
    assert run(CHECK)[0] is None
    assert run("print('computed')") == (None, "computed\n")


def test_a_cell_that_sets_a_parameter_and_computes_stops_there(run):
    fault, shown = run("epochs = 77\nprint('computed')")
    assert "Parameter epochs is 77" in str(fault)
    assert "computed" not in shown


@pytest.mark.parametrize("misspelt", ["stpes", "epoch", "something_else"])
def test_a_misspelt_name_in_the_cell_of_the_parameters_is_noticed_until_corrected(run, misspelt):
    run(f"{CELL}\n{misspelt} = 4")
    assert f"Unknown parameter {misspelt} = 4" in str(run("1")[0])
    assert f"Unknown parameter {misspelt} = 4" in str(run(CHECK)[0])
    run(CELL)
    assert run(CHECK)[0] is None
    assert run("1")[0] is None


def test_a_misspelt_name_in_a_cell_of_its_own_is_noticed_until_corrected(run):
    run("stpes = 4")
    assert "Unknown parameter stpes = 4" in str(run("1")[0])
    assert "Unknown parameter stpes = 4" in str(run(CHECK)[0])
    run("steps = 4")
    assert run(CHECK)[0] is None
    assert run("p.steps")[0] is None


def test_what_a_first_check_refused_can_be_corrected_in_the_same_kernel(run):
    run("%reset -f")
    run(f"{CELL}\nstpes = 4")
    assert "Unknown parameter stpes" in str(run(CHECK)[0])
    run(CELL)
    assert run(CHECK)[0] is None


def test_variables_of_later_cells_are_no_parameters(run):
    assert run("cells = [1]\ntable = dict(a=1)")[0] is None
    assert run("bins = 20")[0] is None
    assert run("from __future__ import annotations\nbins + 1")[0] is None
    assert run(CHECK)[0] is None


def test_faults_of_the_library_and_interrupts_are_one_line_and_others_keep_their_traceback(run):
    run("from mtrlib.store import Store\nimport numpy")
    run("epochs = 0")
    for cell in (CHECK, "raise KeyboardInterrupt", "Store('/dev/null/x', released='/nowhere.parquet')"):
        fault, shown = run(cell)
        assert fault is not None
        assert len(shown.strip().splitlines()) == 1, shown
    run(CELL)
    run(CHECK)
    for cell in ("numpy.zeros(3).reshape(2)", "open('/nowhere')", "int('x')", "1 / 0"):
        fault, shown = run(cell)
        assert fault is not None
        assert "Traceback" in shown


def test_papermill_fails_where_a_later_cell_changes_a_parameter(tmp_path):
    cells = [CELL, CHECK, "epochs = 77", "print('computed')"]
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "in.ipynb", "out.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode
    assert "Parameter epochs is 77, but was" in done.stderr
    last = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1]
    assert [output.output_type for output in last.outputs] == ["error"]


@pytest.mark.parametrize("name", batch.NOTEBOOKS)
def test_no_notebook_sets_a_parameter_after_its_check(name):
    cells = nbformat.read(machine.root() / "notebooks" / f"{name}.ipynb", as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"][1:]
    lines = [line for source in sources for line in ast.parse(source).body if isinstance(line, ast.Assign | ast.For)]
    targets = [target for line in lines for target in getattr(line, "targets", None) or [line.target]]
    names = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    assert names
    fields = batch.NOTEBOOKS[name][0].model_fields
    assert not names & {field.alias or each for each, field in fields.items()}
