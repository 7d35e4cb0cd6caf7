import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mtrlib import batch, data, machine, rooms, studies
from mtrlib.batch import cost
from mtrlib.specs import DataSpec
from mtrlib.store import Store
from mtrlib.studies import new_dataset, parameters, rq1

PARAMETERS = machine.root() / "params"


def smoke() -> dict:
    return batch.read(PARAMETERS / "smoke")["rq1_auxiliary_tasks"]


@pytest.mark.parametrize(
    ("tier", "notebook"),
    [(path.name, name) for path in sorted(PARAMETERS.iterdir()) for name in batch.read(path)],
)
def test_every_tier_is_valid(tier, notebook):
    kind, study = batch.NOTEBOOKS[notebook]
    p = parameters.check(batch.read(PARAMETERS / tier)[notebook], kind)
    assert tier in p.output
    assert not Path(p.root).is_absolute()  # released errors are found on every machine
    if study:
        assert study(p)


@pytest.mark.parametrize("path", sorted(PARAMETERS.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_file_has_what_it_changes_and_nothing_else(path):
    """All notebooks know the names in common.yaml; the others name what neither the notebook nor common.yaml say."""
    values, common = (
        yaml.safe_load(p.read_text()) or {} if p.exists() else {} for p in (path, path.with_name("common.yaml"))
    )
    for name in batch.NOTEBOOKS if path.stem == "common" else [path.stem]:
        assert set(values) <= set(batch.defaults(name))
    if path.stem != "common":
        before = {**batch.defaults(path.stem), **common}
        assert not [name for name, value in values.items() if value == before[name]]


def test_papermill_takes_both_files_and_the_engine_the_same_values(tmp_path):
    (tmp_path / "common.yaml").write_text("size: 16\nsteps: 2")
    (tmp_path / "tour.yaml").write_text("steps: 3")
    values = batch.read(tmp_path, ["tour"])["tour"]
    assert values == {**batch.defaults("tour"), "size": 16, "steps": 3}
    assert set(batch.read(tmp_path)) == set(batch.NOTEBOOKS)
    assert "common.yaml params/$(TIER)/$*.yaml" in (machine.root() / "Makefile").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1e-4", r"learning_rate: .*valid number.* Found '1e-4' \(YAML reads 1e-4"),
        ("eps_255: 8/255", "eps_255: .* Found '8/255'"),
        ("steps: 2.5", "steps: .*integer.* Found 2.5"),
        ("steps: yes", "steps: .* Found True .YAML reads yes"),
        ("steps: '5'", r"steps: .*integer\. Found '5' \(without quotes it is a number\)\.$"),
        ("steps: 1e2", "steps: .*integer. Found '1e2' .*: write whole numbers out"),
        ("seeds: yes", r"seeds: .*list\. Found True \(YAML reads yes, no, on and off as true and false\)\.$"),
        ("steps: 0", "steps: .*greater than or equal to 1"),
        ("encoder: no", "encoder: Input should be a valid string. Found False"),
        ("tasks: sdx", "tasks should be different letters out of '.*' for rooms, at least one. Found tasks = 'sdx'"),
        ("tasks: ss", "^Parameter tasks should be different ASCII letters.* Found tasks = 'ss'"),
        ("tasks: s", "^Parameter tasks should name at least two tasks"),
        ("seeds: [0, 0]", "seeds: .*differ"),
        ("more_tasks: s1", "different ASCII letters"),
        ("pretrained: yes please", "pretrained: .*valid boolean.* Found 'yes please'"),
        ("pretrained: true", "pretrained should be false unless an encoder is timm/<name>"),
        ("tasks: sz", "letters out of 'sdDn.*' for rooms, at least one. Found tasks = 'sz'"),
        ("size: 100", r"^Parameter size should be a multiple of 8.* Found 100\.$"),
        ("encoders: []", "encoders: .*at least 1 item"),
        ("root: $NO_SUCH/x", r"^Parameter root: The environment variable NO_SUCH of '\$NO_SUCH/x' is not set\. Found"),
        ("output: ${NO_SUCH}", "^Parameter output: The environment variable NO_SUCH of"),
        ("store: ~nobody.here/store", "^Parameter store: '~nobody.here' has no home folder"),
        (
            "output: pyproject.toml/out",
            r"^The folder of the output cannot be /.*/out: /.*/pyproject.toml is no folder\.$",
        ),
        ("{data: taskonomy, root: nowhere/at/all, tasks: sz}", "letters out of 'sdDn.*' for taskonomy"),
        ("{data: folder, root: nowhere/at/all}", r"^The folder of the data \(root\) is missing: /.*/nowhere/at/all\.$"),
        ("eps_panel: [4.0]", "eps_panel should have"),
        ("steps_panel: [25]", "steps_panel should have"),
        ("seeds: []", "seeds: .*at least 1 item"),
        ("panel_images: 5000", "panel_images should be at most"),
        ("data: taskonomy", "root should be the folder of the taskonomy files"),
        ("stepz: 5", "Unknown parameter stepz = 5. Allowed: .*data, root"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        parameters.check({**smoke(), **yaml.safe_load(text)}, rq1.RQ1)


def test_paths_are_those_that_they_name(tmp_path, monkeypatch):
    """In parameters, in specifications (whose keys go by the folder, not by how it was written), and for a store."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SET_HERE", str(tmp_path / "here"))
    named = {"root": "~/data", "store": "$SET_HERE/store", "released": "", "output": "${SET_HERE}/out"}
    p = parameters.check({**smoke(), **named, "data": "taskonomy", "tasks": "sd"}, rq1.RQ1)
    assert p.folder == tmp_path / "home" / "data"
    assert (p.store, p.output) == (str(tmp_path / "here" / "store"), str(tmp_path / "here" / "out"))
    model, other = p.model("sd"), DataSpec(name="taskonomy", root=str(tmp_path / "home" / "data"), size=p.size)
    assert model.data.folder == p.folder
    assert model.data.key == other.key
    assert Store("$SET_HERE/store").path == Path(p.store)
    with pytest.raises(ValueError, match="be a file of released errors.* Found .*here/none"):
        Store("store", released="$SET_HERE/none")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "new_dataset.yaml: .* Found other files in .*mine: set example to false to read your own data"),
        (
            {"root": "none", "test_images": "8"},
            "new_dataset.yaml: Parameter test_images: .* a valid integer",
        ),
        ({"root": None}, "new_dataset.yaml: Parameter root: .* a valid string. Found None"),
        (
            {"data": "nyuv2", "tasks": "sdn"},
            "example should be false to read your own data, found true for data 'nyuv2'",
        ),
    ],
)
def test_an_example_is_no_data_of_ones_own(tmp_path, monkeypatch, changes, told):
    """Said before anything is written."""
    values = batch.read(PARAMETERS / "smoke")["new_dataset"]
    monkeypatch.setattr(machine, "root", lambda: tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("my own")
    with pytest.raises(ValueError, match=f"^{told}" if told.startswith("new") else told):
        batch.needs({"new_dataset": {**values, "root": "mine", **changes}})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "notes.txt"]


def test_planning_writes_nothing(tmp_path, monkeypatch):
    """Not even the example, whose description is known before; the models are those of the files to come."""
    values = batch.read(PARAMETERS / "smoke")["new_dataset"]
    monkeypatch.setattr(machine, "root", lambda: tmp_path)
    shutil.copytree(PARAMETERS.parent / "notebooks", tmp_path / "notebooks", ignore=lambda *_: ["tour.ipynb"])
    before = sorted(tmp_path.rglob("*"))
    found = batch.needs({"new_dataset": {**values, "size": 64, "encoder": "timm/resnet10t"}})
    table = cost.estimate(found)
    p = found.parameters["new_dataset"]
    assert len(batch.jobs(found)["trained"]) == len(table)
    assert len(table) == studies.plan(found.store, new_dataset.cells(p)).models.sum()
    assert (table.image_operations > 0).all()
    assert sorted(tmp_path.rglob("*")) == before
    p.write_example()
    assert p.model("sd").data.digest == data.digest("folder", p.folder)
    assert p.definitions == data.tasks("folder", p.folder)
    assert [key for key in found.models] == list(batch.needs({"new_dataset": p.model_dump()}).models)


def test_pretrained_is_passed_on_to_the_encoders_of_timm_alone():
    values = {**smoke(), "pretrained": True, "encoders": ["resnet18_small", "timm/convnext_atto"], "size": 64}
    p = parameters.check(values, rq1.RQ1)
    assert not p.model("sd").pretrained
    assert p.model("sd", encoder="timm/convnext_atto").pretrained


def test_tasks_without_labels_are_refused(monkeypatch):
    monkeypatch.setattr(rooms, "TASKS", "sd")
    with pytest.raises(ValueError, match="letters out of 'sd' for rooms"):
        parameters.check({**smoke(), "tasks": "sk"}, rq1.RQ1)


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError) as error:
        parameters.check({**smoke(), "stepz": 1, "steps": "x", "tasks": ""}, rq1.RQ1)
    assert len(str(error.value).splitlines()) == 3


def test_a_missing_parameter_is_named():
    values = smoke()
    del values["steps"]
    with pytest.raises(ValueError, match="Parameter steps is missing"):
        parameters.check(values, rq1.RQ1)


def test_what_is_no_parameter_is_not_taken_for_one():
    namespace = {**smoke(), "_private": 1, "os": __import__("os"), "function": len, "In": [], "Out": {}}
    assert parameters.check(namespace, rq1.RQ1).steps == smoke()["steps"]


def test_one_notebooks_check_does_not_excuse_another():
    parameters.check(smoke(), rq1.RQ1)
    for _ in range(20):
        with pytest.raises(ValueError, match="stepz"):
            parameters.check({**smoke(), "stepz": 5}, rq1.RQ1)


def test_the_check_may_run_again_in_the_same_kernel():
    """A reader reruns cells: what later cells have set is no unknown parameter."""
    namespace = smoke()
    parameters.check(namespace, rq1.RQ1)
    namespace["a_table"] = [1, 2]
    parameters.check(namespace, rq1.RQ1)


def test_after_the_check_no_table_is_cut():
    """As a cell's result, a plain table and a styled one."""
    wide = pd.DataFrame([[f"{row} {column} {'long ' * 30}end" for column in range(30)] for row in range(80)])
    with (
        pd.option_context("display.max_rows", 60, "display.max_columns", 20, "display.max_colwidth", 50),
        pd.option_context("styler.render.max_elements", 100),
    ):
        assert "..." in wide._repr_html_()
        parameters.check(smoke(), rq1.RQ1)
        for html in (wide._repr_html_(), wide.style.to_html()):
            assert "..." not in html
            assert html.count("end</td>") == 80 * 30
