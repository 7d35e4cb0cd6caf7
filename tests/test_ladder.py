"""The ladder from the definitions to the published behaviour: its rungs, tables, verdicts and figures."""

import numpy as np
import pandas as pd
import pytest

from mtrlib import batch, claims, machine, studies
from mtrlib.metrics import estimates, tables
from mtrlib.store import Store
from mtrlib.studies import parameters, rq3
from mtrlib.studies.fidelity import CHANGES, TITLES, ladder, rungs

TINY = {"size": 16, "train_images": 32, "epochs": 2, "test_images": 8, "panel_images": 8, "steps": 3}


def smoke(**changes) -> ladder.Fidelity:
    values = batch.read(machine.root() / "params" / "smoke")["fidelity"]
    return parameters.check({**values, **changes}, ladder.Fidelity)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A whole ladder on models that are hardly trained: parameters, store, vulnerabilities and log ratios."""
    p = smoke(**TINY)
    store = Store(tmp_path_factory.mktemp("store"), "cpu")
    vulnerabilities, logs = ladder.run(store, p)
    return p, store, estimates.interval(vulnerabilities, quantity="ratio").reset_index(), logs


def test_the_two_ladders_go_from_end_to_end_by_single_changes():
    steps = ladder.steps()
    everything = frozenset(CHANGES)
    assert steps["adding", 0] == steps["undoing", len(CHANGES)] == frozenset()
    assert steps["undoing", 0] == steps["adding", len(CHANGES)] == everything
    for name in ("adding", "undoing"):
        for number, change in enumerate(CHANGES, start=1):
            assert steps[name, number - 1] ^ steps[name, number] == {change}
    assert len(set(steps.values())) == 2 * len(CHANGES)


def test_a_rung_changes_budgets_and_epochs_and_nothing_else():
    p = smoke()
    plain, changed = ladder.cells(p), ladder.cells(p, ["eps 4", "third"])
    for one, other in zip(plain, changed, strict=True):
        assert (one.panel, one.setting, one.main, one.auxiliary) == (
            other.panel,
            other.setting,
            other.main,
            other.auxiliary,
        )
        assert one.evaluation.attack.eps_255 == 8
        assert other.evaluation.attack.eps_255 == (4 if one.setting == "pgd" else 8)
        assert one.evaluation.epoch == p.epochs == 6
        assert other.evaluation.epoch == (2 if (one.panel, one.setting) == ("published", "pgd") else 6)
        assert one.evaluation.model == other.evaluation.model
        assert one.evaluation.attack.norm == ("l2" if one.setting == "l2" else "linf")
    with pytest.raises(ValueError, match="should be out of start"):
        ladder.cells(p, ["eps"])


def test_models_are_those_of_rq3():
    values = batch.read(machine.root() / "params" / "smoke")["rq3_task_weights"]
    of_rq3 = parameters.check(values, rq3.RQ3)
    ours = {m.key for m in studies.models(ladder.cells(smoke()))}
    assert ours <= {m.key for m in studies.models(rq3.cells(of_rq3))}
    assert {m.tasks for m in studies.models(ladder.trained(smoke()))} == {"s", "d", "sd", "ds", "dE"}


def test_the_lowest_rung_is_what_the_library_measures(ran):
    """Table 1 A by `studies.run` and `tables.vulnerabilities`, from other code for attack and errors."""
    p, store, table, logs = ran
    cells = [c for c in ladder.cells(p) if (c.panel, c.setting) == ("uniform", "pgd")]
    theirs = tables.vulnerabilities(studies.run(store, cells))
    ours = table[(table.ladder == "adding") & (table.number == 0) & (table.table == "Table 1 A")]
    keys = ["attacked", "main", "auxiliary"]
    merged = ours.merge(theirs, on=keys)
    assert len(merged) == len(ours) == len(theirs) == 2 + 2 + 2
    np.testing.assert_allclose(merged.value_x, merged.value_y, rtol=1e-5)
    np.testing.assert_allclose(merged.low_x, merged.low_y, rtol=1e-5)
    np.testing.assert_allclose(merged.high_x, merged.high_y, rtol=1e-5)


def test_changes_move_the_tables_that_they_are_about(ran):
    *_, table, logs = ran
    effects = rungs.effects(logs).set_index(["ladder", "change", "table"])
    same = {
        "unmasked": list(ladder.TABLES.values()),
        "batch l2": ["Table 1 A", "Table 1 B", "Table 2 A, WGD", "Table 2 B, WGD"],
        "constant WGD": ["Table 1 A", "Table 1 B", "l2, 8/255"],
        "eps 4": ["Table 2 A, WGD", "Table 2 B, WGD", "l2, 8/255"],
        "third": ["Table 1 A", "Table 2 A, WGD", "Table 2 B, WGD", "l2, 8/255"],
    }
    for change, names in same.items():
        for name in names:
            values = _values(table, change, name)
            assert np.array_equal(*values), (change, name)
    for change, name in {
        "start": "Table 1 A",
        "eps 4": "Table 1 A",
        "third": "Table 1 B",
        "batch l2": "l2, 8/255",
    }.items():
        assert not np.array_equal(*_values(table, change, name)), (change, name)
    assert effects.loc["adding", "unmasked", "Table 1 A"].ratio == pytest.approx(1)
    assert effects.loc["adding", "unmasked", "Table 1 A"].tau == 1


def _values(table: pd.DataFrame, change: str, name: str) -> list[np.ndarray]:
    number = list(CHANGES).index(change) + 1
    rows = table[(table.ladder == "adding") & (table.table == name)]
    return [rows[rows.number == n].value.to_numpy() for n in (number - 1, number)]


READS = {
    "": ("clean", "best", "masked"),
    "baseline": ("first", "best", "masked"),
    "last": ("clean", "last", "masked"),
    "early": ("clean", "best, early", "masked"),
    "last early": ("clean", "last, early", "masked"),
    "unmasked": ("clean", "best", "all"),
}


@pytest.mark.parametrize("changes", READS)
def test_a_rung_reads_a_run_at_the_points_that_its_changes_name(changes):
    points = ("clean", "first", "best", "best, early", "last", "last, early")
    rows = [
        {"task": task, "point": point, "counted": counted, "error": f"{task} {point} {counted}"}
        for task in "sd"
        for point in points
        for counted in ("masked", "all")
    ]
    found = ladder._read(pd.DataFrame(rows), "d", frozenset(changes.split()))
    clean, adversarial, counted = READS[changes]
    assert found["clean"].error.tolist() == [f"d {clean} {counted}"]
    assert found["adversarial"].error.tolist() == [f"d {adversarial} {counted}"]


def test_changes_make_another_run_of_the_attacks_that_they_are_about():
    everything = frozenset(CHANGES)
    found = {(c.setting, c.evaluation.attack.tasks): ladder._of_the_run(c, everything) for c in ladder.cells(smoke())}
    assert found["pgd", "s"] == found["wgd", "s"] == {"start", "class weights"}
    assert found["pgd", "d"] == {"start"}
    assert found["l2", "d"] == {"start", "batch l2"}
    assert found["wgd", "sd"] == {"start", "class weights", "constant WGD"}


def test_a_ratio_of_means_is_that_of_every_cell(ran):
    """Of d, whose errors are of single images: computed anew from the errors of the run."""
    p, store, *_ = ran
    cell = next(c for c in ladder.cells(p) if (c.setting, c.main, c.auxiliary) == ("pgd", "d", "d"))
    rows = ladder._read(ladder.measured(store, cell.evaluation, frozenset()), "d", frozenset())
    clean, adversarial = (rows[kind].error.to_numpy(float) for kind in ("clean", "adversarial"))
    for changes, expected in (
        (frozenset(), ((adversarial - clean) / clean).mean()),
        (frozenset({"means"}), adversarial.mean() / clean.mean() - 1),
    ):
        table, logs = ladder.read(ladder.errors(store, p, changes), changes)
        assert table.value["uniform", "pgd", "single", "d", "d"] == pytest.approx(expected, rel=1e-5)
        of_means = logs.value["uniform", "pgd", "single", "d", "d"] == pytest.approx(np.log1p(expected), rel=1e-5)
        assert of_means == ("means" in changes)


def test_wgd_is_pgd_on_one_task_until_budgets_differ(ran):
    *_, table, logs = ran
    alone = table[(table.main == table.auxiliary) & (table.ladder == "adding")]
    alone = alone.pivot(index=["number", "main"], columns="setting", values="value")
    before = alone.loc[: list(CHANGES).index("eps 4")]
    assert len(before) == 2 * 10
    np.testing.assert_array_equal(before.pgd, before.wgd)
    assert (alone.loc[len(CHANGES)].pgd != alone.loc[len(CHANGES)].wgd).any()


def test_nothing_is_attacked_or_read_twice(ran, monkeypatch):
    p, store, table, logs = ran
    files, reads, measured = (
        {path: path.stat().st_mtime_ns for path in store.path.glob("fidelity/*/*")},
        [],
        ladder.measured,
    )
    monkeypatch.setattr(ladder, "measured", lambda store, *run: reads.append(run) or measured(store, *run))
    assert np.array_equal(ladder.run(store, p)[0].value, table.value, equal_nan=True)
    assert len(reads) == len(set(reads)) > len(ladder.cells(p))
    assert files == {path: path.stat().st_mtime_ns for path in store.path.glob("fidelity/*/*")}


def test_verdicts_and_figures_of_every_rung(ran):
    *_, table, logs = ran
    climbed = rungs.climb(logs)
    grids = {name: rungs.grid(climbed, name) for name in ("adding", "undoing")}
    for grid in grids.values():
        assert list(grid.index) == list(rungs.CLAIMS)
        assert grid.shape == (7, 1 + len(CHANGES))
        assert grid.isin([claims.AGREES, claims.DISAGREES, claims.OPEN]).all(axis=None)
    assert grids["adding"]["definitions"].equals(grids["undoing"]["third"].rename("definitions"))
    ends = rungs.ends(climbed).set_index("claim")
    assert list(ends["published behaviour"]) == list(grids["undoing"]["all published"])
    figure = rungs.verdict_grid(climbed)
    letters = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert len(letters) == 2 * 7 * 12
    assert letters[:12] == [{"agrees": "A", "disagrees": "D"}.get(v, "?") for v in grids["adding"].iloc[0]]
    assert letters[84:96] == [{"agrees": "A", "disagrees": "D"}.get(v, "?") for v in grids["undoing"].iloc[0][::-1]]
    labels = [text.get_text() for text in figure.axes[1].get_xticklabels()]
    assert labels[:2] == ["definitions", "+ weighted models: 1/3 of epochs"], "both panels begin at the definitions"
    assert "undoing" not in figure.axes[1].get_title(loc="left")
    effects = rungs.effects(logs)
    drawn = rungs.effect_sizes(effects, ["Table 1 A", "Table 1 B", "l2, 8/255"])
    seen = [axis for axis in drawn.axes if axis.get_visible()]
    assert [axis.get_title() for axis in seen] == ["Table 1 A", "Table 1 B", "l2, 8/255"]
    assert [text.get_text() for text in seen[0].get_yticklabels()] == list(TITLES.values())
    assert list(TITLES) == list(CHANGES)
    assert max(map(len, TITLES.values())) <= 30
    for axis in seen:  # no effect lies outside
        of_table = effects[effects.table == axis.get_title()].ratio.dropna()
        assert axis.get_xlim()[0] <= of_table.min() <= of_table.max() <= axis.get_xlim()[1]


def test_where_a_claim_stands_is_told_from_both_ends():
    answers = {"adding": ["agrees", "agrees", "disagrees"], "undoing": ["disagrees", "agrees", "agrees"]}
    rows = []
    names = list(CHANGES)[:2]
    for name, told in answers.items():
        first = "definitions" if name == "adding" else "all published"
        for step, (change, verdict) in enumerate(zip([first, *names], told, strict=True)):
            rows.append(
                {"ladder": name, "step": step, "change": change, "claim": "1.2", "decides": True, "verdict": verdict}
            )
    found = rungs.ends(pd.DataFrame(rows)).iloc[0]
    assert found["stands under"] == "definitions only"
    assert found["verdict turns, adding"] == TITLES["baseline"]
    assert found["verdict turns, undoing"] == "start at x + eps"


def test_tau_is_within_main_tasks():
    """Two main tasks: one keeps the order of its three cells, one turns round one of three pairs."""
    index = pd.MultiIndex.from_arrays([list("sssddd"), list("sdndsn")], names=["main", "auxiliary"])
    columns = ["value", "seed 0", "image 0", "image 1"]
    one, other = (
        pd.DataFrame(dict.fromkeys(columns, np.log(v)), index) for v in ([1, 2, 3, 10, 20, 30], [1, 2, 3, 10, 30, 20])
    )
    assert rungs.agreement(one, other)["tau"] == pytest.approx((3 + 1) / 6)
    same = rungs.agreement(one, one)
    assert (same["tau"], same["tau_low"], same["tau_high"]) == (1, 1, 1)
    assert (same["ratio"], same["cells"]) == (1, 6)
    assert rungs.agreement(one + np.log(3), one)["ratio"] == pytest.approx(3)
    assert np.isnan(rungs.agreement(one[:1], other[:1])["tau"])


def test_a_ratio_of_batches_pools_their_miou():
    """Two batches of two images; in the first the classes of both are pooled: 1 - (1/3 + 2/2) / 2."""
    rows = pd.DataFrame(
        {
            "batch": [0, 0, 1, 1],
            "clean_intersection": [[1, 0], [0, 2], [4, 0], [4, 0]],
            "clean_union": [[2, 0], [1, 2], [4, 0], [4, 0]],
        }
    )
    ones = np.ones((1, 4), int)
    assert ladder._batch_errors(rows, "clean", ones) == pytest.approx([(1 / 3 * 2 + 0 * 2) / 4])
    twice = np.array([[2, 0, 1, 1]])  # the first image twice, the second not at all
    assert ladder._batch_errors(rows, "clean", twice) == pytest.approx([(1 / 2 * 2 + 0) / 4])


def test_batches_of_s_count_like_images_where_they_are_alike():
    """Images whose mIoU is their share of one class: pooled, the error is a mean over images, as of any task."""
    g = np.random.default_rng(1)
    rows = pd.DataFrame({"image_id": [f"{k:02d}" for k in range(12)], "batch": 0, "seed": 0})
    rows = rows.assign(panel="uniform", setting="pgd", attacked="single", main="s", auxiliary="s")
    for kind in ("clean", "adversarial"):
        right = g.integers(1, 100, 12)
        rows[f"{kind}_error"] = 1 - right / 100
        rows[f"{kind}_intersection"], rows[f"{kind}_union"] = [[n] for n in right], [[100]] * 12
    rows = pd.concat([rows, rows.assign(seed=1)])
    found = ladder._of_batches(rows, rows.image_id.unique())
    expected = estimates.estimates(rows, "ratio_of_means").loc["uniform"].iloc[0]
    np.testing.assert_allclose(found, expected)
    fewer = ladder._of_batches(rows[rows.image_id > "01"], rows.image_id.unique())
    assert list(np.isnan(fewer)) == [False] * 3 + [True] * 2 + [False] * 10


def test_heads_by_position_and_over_all_heads(ran):
    p, store, *_ = ran
    positions = ladder.swapped(store, p).set_index(["pair", "task"])
    assert positions.loads["sd"].eq("fails").all()
    assert positions.loads["dE"].eq("with swapped heads").all()
    assert positions.clean_error_swapped["sd"].isna().all()
    assert (positions.clean_error_swapped["dE"] != positions.clean_error["dE"]).all()
    heads = ladder.heads(store, p).set_index(["main", "auxiliary", "attacked"])
    assert len(heads) == 4
    assert (heads.definition > 0).all()
    assert (heads.xs("single", level="attacked").ratio != 1).all(), "the head that is not attacked counts"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"restarts": 2}, "restarts should be 1"),
        ({"eps_255": 4.0}, "eps_255 should be above 4"),
        ({"steps": 1}, "steps should be at least 2"),
        ({"swapped": ["sdn"]}, "swapped should be pairs"),
        ({"swapped": ["sx"]}, "letters out of .sdDn"),
    ],
)
def test_parameters_that_the_published_code_has_no_place_for(changes, message):
    with pytest.raises(ValueError, match=message):
        smoke(**changes)
