"""Released errors: the same tables and figures from one file, without training; and the digests of the code."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from mtrlib import batch, machine, studies
from mtrlib.__main__ import main
from mtrlib.data import sealed
from mtrlib.specs import AttackSpec, Evaluation, ModelSpec
from mtrlib.store import Store, released, sources
from mtrlib.studies import rq4

TIER = {"size": 16, "train_images": 16, "test_images": 4, "panel_images": 2, "epochs": 3, "batch_size": 8, "steps": 2}
TIER |= {"tasks": "sdn", "encoder": "resnet18_tiny", "seeds": [0], "precision": "float32"}
OWN = {
    "rq1_auxiliary_tasks": {
        "tasks": "sd",
        "more_tasks": "",
        "encoders": ["resnet18_small"],
        "steps_panel": [1, 2],
        "eps_panel": [4.0, 8.0],
    },
    "rq2_marginal_vulnerability": {"chains": ["sdn"], "eps_panel": [1.0], "gradient_images": 4},
    "rq3_task_weights": {"tasks": "sd", "masked_pairs": ["sd"], "balancers": [], "many_steps": 4, "square_queries": 4},
    "rq4_task_selection": {"encoder": "resnet18_small", "surrogate": "resnet18_tiny"},
    "fidelity": {"tasks": "sd", "swapped": ["sd", "dE"]},
}
ATTACK = AttackSpec(tasks="sd", steps=2, images=5)


@pytest.fixture(scope="module")
def tier(tmp_path_factory, run_cells) -> Path:
    """A folder with the parameters of a tier whose notebooks were run (`first`), its store, and its released errors."""
    place = tmp_path_factory.mktemp("tier")
    (place / "params").mkdir()
    for name, own in OWN.items():
        values = batch.read(machine.root() / "params" / "laptop")[name]
        kept = {"store": str(place / "store"), "output": str(place / "first")}
        (place / "params" / f"{name}.yaml").write_text(yaml.safe_dump({**values, **TIER, **own, **kept}))
    for name, values in batch.read(place / "params").items():
        run_cells(name, values)
    batch.evaluate(batch.needs(batch.read(place / "params")))  # what the engine runs and no notebook reads
    assert main(["release", str(place / "params"), str(place)]) == 0
    return place


def again(place: Path, output: str, **changes) -> batch.Needs:
    """The same from the released errors and an empty store."""
    values = batch.read(place / "params")
    kept = {"store": str(place / f"store {output}"), "released": str(place / "errors.parquet")}
    kept |= {"output": str(place / output)}
    return batch.needs({name: {**own, **kept, **changes} for name, own in values.items()})


def test_every_table_and_figure_comes_out_of_the_released_errors_with_the_same_bytes(tier, run_cells):
    for name, parameters in again(tier, "second").parameters.items():
        run_cells(name, parameters.model_dump())
    first, second = (
        {path.name: path.read_bytes() for path in (tier / folder).iterdir() if path.suffix in (".csv", ".png", ".svg")}
        for folder in ("first", "second")
    )
    assert set(first) == set(second)
    assert {"rq1_vulnerability.csv", "rq2_marginals.csv", "rq3_masking.csv", "rq4_costs.csv"} < set(first)
    assert {"fidelity_positions.csv", "fidelity_heads.csv", "rq1_table_1a.png"} < set(first)
    assert [name for name in first if first[name] != second[name]] == []
    assert not (tier / "store second").exists() or not list((tier / "store second").glob("models/*/*"))


def test_the_file_is_the_errors_table_that_pandas_reads(tier):
    rows = pd.read_parquet(tier / "errors.parquet")
    needs = again(tier, "read")
    assert rows.specification.nunique() == sum(map(len, needs.evaluations.values())) == rows.key.nunique()
    one = Evaluation.model_validate_json(rows.specification[0])
    expected = Store(tier / "store").errors(one)
    own = rows[rows.key == one.key].drop(columns=["key", "specification"])
    pd.testing.assert_frame_equal(own.reset_index(drop=True), expected)
    assert (tier / "errors.parquet").stat().st_size < 2e6


def test_what_was_not_released_is_trained_and_nothing_else(tier):
    needs = again(tier, "more", epochs=2)
    assert not any(needs.store.has_record(spec) for spec in needs.models.values())
    needs = again(tier, "more")
    spec = next(iter(needs.models.values()))
    assert needs.store.has_record(spec)
    assert not needs.store.has_model(spec)
    trained = studies.train(needs.store, rq4.cells(needs.parameters["rq4_task_selection"]))
    assert len(trained) == 12
    new = ATTACK.model_copy(update={"tasks": spec.tasks, "steps": 1})
    assert not needs.store.has_errors(spec, new)
    assert len(needs.store.errors(spec, new)) == 5 * len(spec.tasks)
    assert [path.name for path in needs.store.path.glob("models/*/*")] == [spec.key]


def test_released_errors_of_another_precision_are_found_where_the_precision_is_automatic(tier):
    (spec, *_) = again(tier, "precision").models.values()
    other = ModelSpec(**{**dict(spec), "precision": "bfloat16"})
    for precision, found in {"auto": True, "float32": False}.items():
        store = Store(tier / "none", released=tier / "errors.parquet", precision=precision)
        assert store.has_record(other) is found
        assert store.has_record(spec)
        assert not store.has_record(ModelSpec(**{**dict(spec), "seed": 9}))


def test_the_sentence_names_what_wrote_it_and_where_the_code_has_changed_since(tier, monkeypatch):
    file = released.Released(tier / "errors.parquet")
    assert f"{len(again(tier, 'said').models)} models" in file.sentence()
    assert file.changed() == []
    assert "changed" not in file.sentence()
    now = sources._part
    monkeypatch.setattr(sources, "_part", lambda part: "other" if part == "attacks" else now(part))
    assert file.changed() == ["attacks"]
    assert file.sentence().endswith("Since then the code of attacks has changed: what it gives now may differ.")
    assert released.Released().sentence() == ""


def test_a_missing_damaged_or_other_file_is_refused_in_one_line(tier, tmp_path):
    with pytest.raises(ValueError, match="Parameter released should be a file of released errors"):
        Store(tmp_path, released=tmp_path / "none.parquet")
    copy = tmp_path / "errors.parquet"
    content = bytearray((tier / "errors.parquet").read_bytes())
    sealed.seal(copy, bytes(content))
    Store(tmp_path, released=copy)
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ValueError, match=r"errors.parquet is damaged: its content is not that of its checksum"):
        Store(tmp_path, released=copy)
    sealed.seal(copy, b"no parquet")
    with pytest.raises(ValueError, match="it is no file of released errors"):
        Store(tmp_path, released=copy)


def test_seeds_are_added_to_released_errors_by_a_store_that_has_those_alone(tier, tmp_path, monkeypatch):
    file = tmp_path / "errors.parquet"
    runs, stores = {}, {}
    for seed, commit in enumerate(("one", "two")):
        monkeypatch.setattr(machine, "_commit", lambda commit=commit: commit)
        needs = again(tier, f"seed {seed}", seeds=[seed], released="")
        p = needs.parameters["rq4_task_selection"]
        cells = rq4.cells(p.model_copy(update={"tasks": "sd"}))
        stores[seed], runs[seed] = needs.store, studies.evaluations(cells)
        studies.run(needs.store, cells)
        released.write(file, needs.store, studies.models(cells), runs[seed], add=True)
        if not seed:
            alone = file.read_bytes()
            released.write(file, needs.store, studies.models(cells), runs[seed], add=True)
            assert file.read_bytes() == alone  # what it has already is not there twice
    both = Store(tmp_path / "none", released=file)
    for seed, own in runs.items():
        for e in own:
            pd.testing.assert_frame_equal(both.errors(e), stores[seed].errors(e))
            assert both.record(e.model) == stores[seed].record(e.model)
    assert not list(both.path.glob("models/*/*"))
    assert both.released.changed() == []
    released.write(file, stores[1], [e.model for e in runs[1]], runs[1])
    assert not Store(tmp_path / "none", released=file).has_errors(runs[0][0])  # without add others go


def test_other_trainings_of_the_same_models_are_not_added(tier, tmp_path, monkeypatch):
    """Their errors would stand beside those of the first under one specification."""
    file, needs = tmp_path / "errors.parquet", again(tier, "seed 0", seeds=[0], released="")
    cells = rq4.cells(needs.parameters["rq4_task_selection"].model_copy(update={"tasks": "sd"}))
    runs, specs = studies.evaluations(cells), studies.models(cells)
    studies.run(needs.store, cells)
    released.write(file, needs.store, specs, runs)
    record = needs.store.record
    other = lambda spec: {**record(spec), "history": [{**record(spec)["history"][-1], "sha256": "0" * 64}]}  # noqa: E731
    monkeypatch.setattr(needs.store, "record", other)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="has models of other trainings of the same specifications: release it anew"):
        released.write(file, needs.store, specs[:1], [e for e in runs if e.model == specs[0]], add=True)
    assert file.read_bytes() == before


def test_what_the_store_lacks_is_not_released(tier, tmp_path):
    needs = again(tier, "lacking", released="")
    with pytest.raises(ValueError, match="It lacks .* run `make batch`"):
        released.write(tmp_path / "errors.parquet", needs.store, needs.models.values(), [])
    assert not (tmp_path / "errors.parquet").exists()


def test_a_digest_is_of_what_code_does(tmp_path):
    one = '"""Docs."""\nimport math\nA = 1\n\n\ndef f(x):\n    """More."""\n    return x + A  # why\n'
    moved = "def f(x):\n    from math import pi\n    return (x +\n            A)\n", "import torch\nA = 1\n"
    assert sources.digest([one]) == sources.digest(moved)
    for text in (
        one.replace("A = 1", "A = 2"),
        one.replace("x + A", "A + x"),
        one.replace("def f(x)", "def f(x, y=0)"),
    ):
        assert sources.digest([text]) != sources.digest([one])


def test_a_table_beside_the_code_decides_results_too(tmp_path, monkeypatch):
    monkeypatch.setitem(sources.PARTS, "made", (str(tmp_path),))
    (tmp_path / "code.py").write_text("A = 1")
    digests = set()
    for row in ("1", "2"):
        (tmp_path / "table.csv").write_text(f"width\n{row}\n")
        digests.add(sources._part.__wrapped__("made"))
    assert len(digests) == 2


def test_every_module_that_training_and_attacks_import_decides_results_or_is_known_not_to():
    """So that a new file is not forgotten."""
    package = Path(sources.__file__).parents[1]
    listed = {file for names in sources.PARTS.values() for file in names}
    # Where results are kept, on what, how far a run is, and what a specification may hold.
    neutral = {"machine.py", "specs.py", "data/sealed.py", "data/checks.py", "data/__init__.py", *sources.ASIDE}
    files = {str(path.relative_to(package)) for path in (package / "data").glob("*.py")}
    files |= {"tasks.py", "models", "training", "store/evaluation.py", "attacks", "rooms"}
    assert files <= listed | neutral
    assert all((package / file).exists() for file in listed | neutral)


def test_what_other_code_computed_is_not_taken_for_what_this_code_gives(tiny, tmp_path, monkeypatch):
    store = Store(tmp_path)
    before = store.errors(tiny, ATTACK)
    assert store.has_errors(tiny, ATTACK)
    now = sources._part
    monkeypatch.setattr(sources, "_part", lambda part: "0" * 8 if part == "attacks" else now(part))
    assert not store.has_errors(tiny, ATTACK)
    assert store.has_model(tiny), "the code of attacks does not decide a model"
    pd.testing.assert_frame_equal(store.errors(tiny, ATTACK), before)
    assert len(list(tmp_path.glob("errors/*/*.parquet"))) == 2
    monkeypatch.setattr(sources, "_part", lambda part: "0" * 8 if part == "training" else now(part))
    assert not store.has_model(tiny)
    monkeypatch.undo()
    assert store.has_model(tiny)
