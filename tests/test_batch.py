"""The batch engine: what is needed, once; and a tier of 16-pixel rooms that is killed, restarted, and edited."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml

import mtrlib
from mtrlib import __main__ as command_line
from mtrlib import batch, machine
from mtrlib.batch import cost
from mtrlib.models.encoders import ENCODERS
from mtrlib.specs import DataSpec, ModelSpec
from mtrlib.studies import parameters
from mtrlib.studies.rq4 import forward_operations

REPOSITORY = Path(mtrlib.__file__).parents[1]
RQ1 = "rq1_auxiliary_tasks"
READS_THE_STORE = """
from mtrlib.studies import parameters, rq1
from mtrlib import studies
from mtrlib.store import Store
p = parameters.check(globals(), rq1.RQ1)
plan = studies.plan(Store(p.store), rq1.cells(p))
assert (plan["trained already"] == plan.models).all() and (plan["attacked already"] == plan.attacks).all()
"""
# Put before each job: notes every epoch that is trained, and holds it until a file says go.
WATCHED = """
import importlib.abc, importlib.util, os, sys, time

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "mtrlib.training.fitting":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            inner = module.epoch_losses
            def epoch_losses(spec, model, optimizer, data, device, epoch, *rest):
                with open(os.environ["WATCHED"], "a") as file:
                    file.write(f"{spec.key} {epoch}\\n")
                while not os.path.exists(os.environ["WATCHED"] + ".go"):
                    time.sleep(0.1)
                return inner(spec, model, optimizer, data, device, epoch, *rest)
            module.epoch_losses = epoch_losses
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""

IN_TURN = """
import json, sys
from snakemake.cli import main
for arguments in sys.argv[1:]:
    try:
        main(json.loads(arguments))
    except SystemExit as ended:
        print(f"== exit {ended.code}", file=sys.stderr, flush=True)
"""
THREADS = "2"  # not what the engine gives a job
CAPTURED = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def write_notebook(path: Path, *sources: str) -> None:
    cells = [nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}), *map(nbformat.v4.new_code_cell, sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


SMOKE = batch.read(REPOSITORY / "params" / "smoke")  # before anything takes another repository


def write_parameters(path: Path, **changes) -> None:
    """Those of the smoke tier, smaller."""
    values = {
        **SMOKE[path.stem],
        **{"size": 16, "tasks": "sd", "train_images": 16, "test_images": 4, "epochs": 2, "batch_size": 8, "steps": 1},
        **{"precision": "float32", "output": "out"},
    }
    if path.stem == RQ1:
        few = {"panel_images": 2, "more_tasks": "", "steps_panel": [1, 2], "eps_panel": [4.0, 8.0]}
        values |= few
    path.write_text(yaml.safe_dump({**values, **changes}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A repository of its own: a notebook that fails where the store lacks anything, one that fails, and their tier."""
    folder = tmp_path_factory.mktemp("place")
    for part in ("notebooks", "params/tiny", "before"):
        (folder / part).mkdir(parents=True)
    write_notebook(folder / "notebooks" / f"{RQ1}.ipynb", READS_THE_STORE, "int(plan.models.sum())")
    write_notebook(folder / "notebooks" / "tour.ipynb", "text = 'broken'", "raise RuntimeError(text)", "1")
    for name in (RQ1, "tour"):
        write_parameters(folder / "params" / "tiny" / f"{name}.yaml")
    (folder / "before" / "sitecustomize.py").write_text(WATCHED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "root", lambda: folder)
        yield folder


def needs(place, *notebooks: str) -> batch.Needs:
    return batch.needs(batch.read("params/tiny", notebooks or None))


def snakemake(place) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "workflow" / "Snakefile")]
    command += ["--workflow-profile", str(REPOSITORY / "workflow" / "profiles" / "local"), "--directory", str(place)]
    return [*command, "--cores", "1", "--config", "params=params/tiny", "pack=3"]


def environment(place) -> dict:
    paths = {"PYTHONPATH": f"{place}/before:{REPOSITORY}", "WATCHED": str(place / "epochs")}
    return {**os.environ, **paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": THREADS}


def dry_runs(place, *folders: str) -> list[tuple[str, str]]:
    """The exit status of a dry run of each folder of parameters and what it says, all from one process."""
    common = [*snakemake(place)[3:-3], "--dry-run", "--config", "pack=3"]
    runs = [[*common, f"params={folder}"] for folder in folders]
    done = subprocess.run([sys.executable, "-c", IN_TURN, *map(json.dumps, runs)], env=environment(place), **CAPTURED)
    parts = re.split(r"^== exit (.*)\n", done.stdout, flags=re.MULTILINE)
    assert len(parts) == 2 * len(folders) + 1, done.stdout
    return list(zip(parts[1::2], parts[0::2], strict=False))


def planned(text: str) -> dict[str, int]:
    """Snakemake's table of jobs."""
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("tier", ["smoke", "laptop", "gpu", "paper", "photos"])
def test_a_tier_needs_each_model_and_attack_once(tier):
    """Beside brute force: the sets of keys of all studies."""
    values = batch.read(REPOSITORY / "params" / tier)
    assert set(values) == {
        name for name in batch.NOTEBOOKS if tier != "photos" or name[:3] in ("rq1", "rq2", "rq3", "rq4")
    }
    found = batch.needs(values)
    models, attacks = set(), set()
    for name, given in values.items():
        kind, study = batch.NOTEBOOKS[name]
        for cell in study(parameters.check(dict(given), kind)) if study else []:
            e = cell.evaluation
            used = [spec for spec in (e.model, e.source) if spec is not None]
            models |= {each.key for spec in used for each in (spec, *spec.starts)}
            attacks.add(e)
    assert set(found.models) == models
    assert {spec.key for spec in found.models.values()} == models
    once = [e for of_model in found.evaluations.values() for e in of_model]
    assert Counter(once) == Counter(attacks)
    for pack in (1, 4) if tier == "smoke" else (4,):
        wanted = batch.jobs(found, pack)
        assert [key for job in wanted["trained"] for key in job.of] == list(found.models)
        assert max(len(job.of) for job in wanted["trained"]) == pack
        marks = [job.mark for kind in wanted.values() for job in kind]
        assert len(set(marks)) == len(marks)
        assert {mark for kind in wanted.values() for job in kind for mark in job.after} <= set(marks)


def test_a_job_waits_for_the_models_that_it_attacks_and_for_those_it_transfers_from():
    found = batch.needs(batch.read(REPOSITORY / "params" / "smoke"))
    wanted = batch.jobs(found)
    trained = {job.mark: job.of[0] for job in wanted["trained"]}
    by_key = {job.of[0]: {trained[mark] for mark in job.after} for job in wanted["evaluated"]}
    for key, evaluations in found.evaluations.items():
        assert by_key[key] == {key} | {e.source.key for e in evaluations if e.source is not None}
    assert any(len(waits) > 1 for waits in by_key.values())
    ran = {job.of[0]: set(job.after) for job in wanted["ran"]}
    everything = {job.mark for kind in ("trained", "evaluated") for job in wanted[kind]}
    assert ran["tour"] == everything, "without a study it runs at the end"
    assert ran[RQ1] < everything


def test_one_precision_for_all_machines():
    values = batch.read(REPOSITORY / "params" / "smoke", [RQ1])
    one, two = (batch.needs(values, precision) for precision in ("float32", "bfloat16"))
    assert {spec.precision for spec in one.models.values()} == {"float32"}
    assert one.parameters[RQ1].precision == "float32"
    assert not set(one.models) & set(two.models)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (RQ1, {"eps_255": "8/255"}, rf"{RQ1}.yaml: Parameter eps_255: .* budgets in 255ths"),
        ("tour", {"learning_rate": "1e-4"}, r"tour.yaml: Parameter learning_rate: .* write 1.0e-4"),
        (RQ1, {"stepz": 1}, "Unknown parameter stepz"),
        (RQ1, {"store": "elsewhere"}, "store should be the same in all files. Found elsewhere, store"),
    ],
)
def test_wrong_parameters_of_any_notebook_are_said(place, name, changes, message):
    path = place / "params" / "tiny" / f"{name}.yaml"
    try:
        write_parameters(path, **changes)
        with pytest.raises(ValueError, match=message):
            needs(place)
    finally:
        write_parameters(path)


def test_unknown_names_are_said(place, capsys):
    with pytest.raises(ValueError, match=f"Notebooks should be out of .*{RQ1}, tour. Found rq9"):
        batch.read("params/tiny", ["rq9"])
    with pytest.raises(ValueError, match=f"^The folder of the parameters is missing: {place}/params/none.$"):
        batch.read("params/none")
    (place / "params" / "other").mkdir()
    with pytest.raises(ValueError, match="Notebooks should be out of .*Found none"):
        batch.read("params/other")
    for text, message in (("5", "should hold names and values. Found 5"), ("a: [", "tour.yaml is no YAML")):
        (place / "params" / "other" / "tour.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            batch.read("params/other")
    assert command_line.main(["train", "params/tiny", "0123", "--precision", "float32"]) == 2
    assert "Keys should be of models that these parameters need, see plan. Found 0123." in capsys.readouterr().err
    assert not (place / "store" / "models").exists()


def test_what_a_job_writes_goes_to_its_log_and_its_end_to_stderr_too(place, capfd, monkeypatch):
    def failing(*_):
        subprocess.run(["echo", "of a program"], check=True)
        raise RuntimeError("first\nlast")

    log = place / "logs" / "job.log"
    monkeypatch.setattr(batch, "train", failing)
    command = ["train", "params/tiny", "--precision", "float32", "--log", str(log)]
    assert command_line.main(command) == 2
    told, written = capfd.readouterr().err.splitlines(), log.read_text()
    title = re.escape(
        "train s, resnet18_tiny, seed 0; d, resnet18_tiny, seed 0; sd, resnet18_tiny, seed 0 (1, 2, 3 of 3"
    )
    assert re.search(rf" begins {title} models\) on .* \(log: {log}\)$", told[0])
    assert told[1:] == [f"last (log: {log})"]
    assert "of a program" in written
    assert "Traceback" in written
    assert command_line.main([*command[:-2], "--log", str(log), "--notebooks", "rq9"]) == 2
    assert f"Found rq9. (log: {log})" in capfd.readouterr().err
    assert log.read_text().startswith(written)


def wait_for(ready, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, "the engine ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ran(place):
    """The tier after this: the engine is killed while a model is trained, and a second one runs to its end."""

    def begun() -> int:
        (log,) = list((place / "store" / "batch" / "logs").glob("train-*.log")) or [None]
        return 0 if log is None else log.read_text().count(" begins train ")

    def start() -> subprocess.Popen:
        with open(place / "engine.log", "a") as output:
            return subprocess.Popen(snakemake(place), env=environment(place), stdout=output, stderr=output)

    first = start()
    wait_for((place / "epochs").exists, first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = start()
    try:
        wait_for(lambda: begun() == 2, second)
        (place / "epochs.go").touch()
        code = second.wait(timeout=500)
    finally:
        (place / "epochs.go").touch()
        second.kill()
        second.wait()
    return code, (place / "engine.log").read_text()


def test_a_killed_and_restarted_engine_trains_each_epoch_once(place, ran):
    """The first engine's job is still training when the second engine starts the same job."""
    found = needs(place)
    assert len(found.models) == 3
    assert sorted((place / "epochs").read_text().split("\n")[:-1]) == sorted(
        f"{key} {epoch}" for key in found.models for epoch in (1, 2)
    )
    assert batch.untrained(found, found.models) == []
    assert batch.unattacked(found, found.models) == []


def test_the_notebook_comes_out_and_found_everything_in_the_store(place, ran):
    finished = nbformat.read(place / "out" / f"{RQ1}.ipynb", as_version=4)
    assert finished.cells[-1].outputs[0]["data"]["text/plain"] == "3"
    metadata = finished.metadata.papermill
    assert (metadata.input_path, metadata.output_path) == (f"notebooks/{RQ1}.ipynb", f"out/{RQ1}.ipynb")
    assert (place / "out" / f"{RQ1}.html").stat().st_size > 0
    assert not (place / "out" / f"{RQ1}.partial.ipynb").exists()


def test_a_failed_notebook_survives_and_stops_no_other(place, ran):
    code, log = ran
    assert code == 1
    failed = nbformat.read(place / "out" / "tour.partial.ipynb", as_version=4)
    errors = [o for cell in failed.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    assert [error.evalue for error in errors] == ["broken"]
    cause = r"^RuntimeError: .*/tour.partial.ipynb has failed in a cell: RuntimeError: broken \(log: .*/notebook-tour-"
    assert re.search(cause, log, flags=re.MULTILINE)
    assert not (place / "out" / "tour.ipynb").exists()


def test_the_engine_says_what_it_will_do_and_at_what_cost(place, ran):
    _, log = ran
    assert "2 notebooks: 3 models, 0 of them trained already" in log
    assert re.search(r"Left: about [\d.e-]+ PFLOP to train and [\d.e-]+ PFLOP to attack", log)
    assert re.search(
        rf" begins notebook {RQ1} \(\d of 2 notebooks\) on .* {THREADS} threads.* \(log: .*\.log\)$", log, flags=re.M
    )
    hours = r"; left for all models about [\d.e-]+ hours of jobs one after another"
    assert re.search(
        rf" begins evaluate s, resnet18_tiny, seed 0; .* \(1, 2, 3 of 3 models\) on .* threads{hours}", log
    )


def another(place) -> str:
    """Beside RQ1, that ran, another notebook that attacks its models otherwise."""
    rq3, folder = "rq3_task_weights", place / "params" / "another"
    write_notebook(place / "notebooks" / f"{rq3}.ipynb", "1")
    folder.mkdir()
    shutil.copy(place / "params" / "tiny" / f"{RQ1}.yaml", folder)
    write_parameters(folder / f"{rq3}.yaml", panel_images=2, many_steps=2, balancers=["gradnorm"], masked_pairs=["sd"])
    return "params/another"


def one_deleted(place) -> str:
    """RQ1, that ran, in another store, which then lost the last checkpoint of a model."""
    (place / "params" / "deleted").mkdir()
    write_parameters(place / "params" / "deleted" / f"{RQ1}.yaml", store="another store")
    shutil.copytree(place / "store", place / "another store")
    (job,) = batch.jobs(batch.needs(batch.read("params/deleted")), 3)["ran"]
    job.mark.touch()
    next((place / "another store" / "models").glob("*/*/epoch_0002.safetensors")).unlink()
    return "params/deleted"


def test_an_edit_starts_what_depends_on_it_and_wrong_yaml_nothing(place, ran):
    """Nothing is edited; a budget is added to a panel; a number is written as YAML 1.1 does not know it."""
    for folder in ("more", "wrong"):
        shutil.copytree(place / "params" / "tiny", place / "params" / folder)
    write_parameters(place / "params" / "more" / f"{RQ1}.yaml", eps_panel=[4.0, 8.0, 16.0])
    wrong = place / "params" / "wrong" / "tour.yaml"
    wrong.write_text(re.sub("learning_rate: .*", "learning_rate: 1e-4", wrong.read_text()))
    (place / "params" / "braces").mkdir()
    write_parameters(place / "params" / "braces" / f"{RQ1}.yaml", store="st{or}e")
    folders = ("params/tiny", "params/more", "params/wrong", another(place), one_deleted(place), "params/braces")
    same, more, wrong, other, deleted, braces = found = dry_runs(place, *folders)
    assert [code for code, _ in found] == ["0", "0", "1", "0", "0", "1"]
    assert f"should have no braces: to Snakemake they are wildcards. Found {place}/st{{or}}e." in braces[1]
    assert planned(other[1])["evaluate"] > 0
    assert planned(other[1])["notebook"] == 1, "not those that have nothing of it"
    assert "1 notebook: 3 models, 2 of them trained already" in deleted[1]
    assert planned(deleted[1]) == {"train": 1, "all": 1, "total": 2}, "what the summary says"
    assert "2 notebooks: 3 models, 3 of them trained already" in same[1]
    assert planned(same[1]) == {"notebook": 1, "all": 1, "total": 2}, "the tour failed"
    assert planned(more[1]) == {"evaluate": 1, "notebook": 2, "all": 1, "total": 4}
    assert planned(wrong[1]) == {}
    assert re.search(r"tour.yaml: Parameter learning_rate: .* write 1.0e-4", wrong[1])
    before, after = (batch.jobs(batch.needs(batch.read(f"params/{folder}")), 3) for folder in ("tiny", "more"))
    assert after["trained"] == before["trained"]
    assert after["evaluated"] != before["evaluated"]


def test_marks_follow_the_store(place, ran):
    found = needs(place)
    wanted = batch.jobs(found)
    batch.renew(found, wanted)
    assert all(job.mark.exists() for kind in ("trained", "evaluated") for job in wanted[kind])
    key = next(iter(found.models))
    record = next(place.glob(f"store/models/*/{key}/record.json"))
    text = record.read_text()
    record.unlink()
    try:
        batch.renew(found, wanted)
        assert [job.of for job in wanted["trained"] if not job.mark.exists()] == [(key,)]
    finally:
        record.write_text(text)


def test_sources_and_notebooks_are_part_of_what_ran_and_of_no_model(place, monkeypatch):
    found = needs(place)
    before = batch.jobs(found)
    monkeypatch.setattr("mtrlib.batch.tier._library", lambda: "another")
    after = batch.jobs(found)
    assert after["trained"] == before["trained"]
    assert after["evaluated"] == before["evaluated"]
    assert not {job.mark for job in after["ran"]} & {job.mark for job in before["ran"]}


def test_a_notebook_whose_last_cell_says_nothing_did_not_get_to_its_end(place):
    source = place / "notebooks" / "tour.ipynb"
    text = source.read_text()
    try:
        write_notebook(source, "1", "pass")
        with pytest.raises(RuntimeError, match="tour.partial.ipynb has no outputs"):
            batch.notebook(needs(place), "tour")
    finally:
        source.write_text(text)
    assert not (place / "out" / "tour.ipynb").exists()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_operations_need_no_model_to_be_counted(encoder):
    """Two sizes, so that they go with pixels; classes and values, so that they go with channels."""
    for size in (64, 96):
        for tasks in ("s", "dsn"):
            spec = ModelSpec(data=DataSpec(size=size), tasks=tasks, encoder=encoder)
            assert cost.operations(spec) == forward_operations(spec)


def test_the_cost_is_counted_by_hand(place, ran, tmp_path):
    """One model; then at the rate of a record that says how long its training took."""
    write_parameters(place / "params" / "tiny" / f"{RQ1}.yaml", store=str(tmp_path))
    try:
        found = needs(place, RQ1)
    finally:
        write_parameters(place / "params" / "tiny" / f"{RQ1}.yaml")
    table = cost.estimate(found)
    assert table.seconds.isna().all()
    key, spec = next(iter(found.models.items()))
    row = table.set_index("key").loc[key]
    forward = forward_operations(spec)
    assert row.images == 16
    assert row.image_operations == 3 * forward * 2
    steps = sum(e.attack.images * (2 * e.attack.steps + 2) for e in found.evaluations[key])
    assert row.attack_operations == forward * steps
    store = found.store
    store.model(spec)
    record = store.record(spec)
    again = cost.estimate(found).set_index("key")
    assert again.trained[key]
    assert again.seconds[key] == pytest.approx(forward * steps * record["seconds"] / (3 * forward * 16 * 2))
    assert "1 of them trained already" in cost.summary(found, again.reset_index())


HOLD = """
import sys, time
from pathlib import Path
from mtrlib import machine
with machine.gpu(Path(sys.argv[1])) as name:
    print(name, flush=True)
    time.sleep(600)
"""


def test_gpus_are_shared_out_and_given_back_by_the_dead(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    try:
        assert holder.stdout.readline() == "4\n"
        got = []

        def third():
            with machine.gpu(tmp_path) as name:
                got.append((name, time.monotonic()))

        with machine.gpu(tmp_path) as name:
            assert name == os.environ["CUDA_VISIBLE_DEVICES"] == "7"
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
            waiting = threading.Thread(target=third)
            waiting.start()
            time.sleep(1)
            assert got == [], "both are taken"
            holder.kill()
            waiting.join(timeout=30)
            assert [name for name, _ in got] == ["4"]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


def test_what_slurm_gave_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with machine.gpu(tmp_path) as name:
        assert name == os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_nothing_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with machine.gpu(tmp_path) as name:
        assert name is None
    assert not list(tmp_path.iterdir())
