from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mtrlib.claims import published
from mtrlib.tasks import TASKS, Task


def test_table_1a_as_printed():
    table = published.vulnerability("1A", "single", "sdDnE")
    assert table.shape == (5, 5)
    assert table.loc["s", "s"] == 0.82
    assert table.loc["D", "E"] == 8.31
    assert table.loc["n", "s"] == 7.43
    joint = published.vulnerability("1A", "joint")
    assert list(joint.index) == list("sdDnE")
    assert np.isnan(np.diag(joint)).all()


def test_the_printed_evidence_of_claim_1_2_follows_from_the_printed_table():
    single, joint = (published.vulnerability("1A", attacked) for attacked in ("single", "joint"))
    alone = np.diag(single)[:, None]
    off = ~np.eye(5, dtype=bool)
    assert ((single.to_numpy() < alone) & off).sum() == 11
    assert ((joint.to_numpy() < alone) & off).sum() == 16


def test_every_printed_vulnerability_table_can_be_asked_for():
    for table in ("1A", "1B", "2A apgd", "2A wgd", "2B apgd", "2B wgd", "2", "3", "4", "5", "6"):
        attacked = "as_published" if table.startswith("2A") or table.startswith("2B") else "single"
        assert published.vulnerability(table, attacked).notna().sum().sum() >= 20


def test_the_orders_of_the_supplement():
    """Figures 12 and 13: six orders of the same five tasks; the second figure is the first over the number of tasks."""
    orders = published.orders()
    assert list(orders.order.unique()) == ["DEnds", "nsDdE", "sdnDE", "dDEsn", "nDEds", "EndDs"]
    assert (orders.groupby("order").added.agg("".join) == orders.order.unique()[[0, 5, 3, 4, 1, 2]]).all()
    of_all = orders[orders.tasks == "sdDnE"]
    assert of_all.unweighted.unique() == [11.9]
    assert np.allclose(orders.weighted_over_unweighted, 1, atol=0.02)
    falling = published.falling_steps()
    assert falling.loc["s or E", "unweighted"] == "1 of 7"  # with E added to sdDn
    assert falling.loc["another task", "weighted"] == "11 of 13"


def test_the_claims_by_number():
    claims = published.claims()
    assert len(claims) == 21
    assert list(published.claims("RQ1").index) == ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6"]
    assert "l-infinity" in claims.loc["1.2", "claim"]


@pytest.mark.parametrize(
    ("table", "attacked"), [("9", "single"), ("1A", "none"), ("2A", "as_published"), ("1A", "all")]
)
def test_what_was_not_printed_is_refused(table, attacked):
    with pytest.raises(ValueError, match="published table|attacked should be"):
        published.vulnerability(table, attacked)


def test_an_unknown_file_is_refused():
    with pytest.raises(ValueError, match="selection_table3"):
        published.read("table7")


def test_ratios_of_printed_tables():
    """Table 1 B is below 1 A in all of its forty cells; Auto-PGD's largest gain is that on E beside d."""
    for attacked in ("single", "joint"):
        found = published.ratio("1B", "1A", attacked)
        assert found.cells == 20
        assert found.highest < 1
    assert published.ratio("2A apgd", "1A").highest == pytest.approx(135.4 / 12.93)


def test_printed_numbers_stand_beside_the_papers_own_tasks_alone():
    measured = pd.DataFrame(1.0, index=list("sdnh"), columns=list("sdnh"))
    own = {
        "s": replace(TASKS["s"], channels=7, class_names=tuple("abcdefg")),  # classes differ between data sets
        "d": replace(TASKS["d"], error_name="absolute error"),
        "n": TASKS["n"],
        "h": Task("h", "height", "", 1),
    }
    (found,) = published.beside(measured, own, {"paper": published.vulnerability("1A")}).values()
    assert list(found.index) == list(found.columns) == list("sdnh")
    assert found.loc["n", "s"] == 7.43
    assert found.loc[list("sn"), list("sn")].notna().all(axis=None)
    assert found.notna().sum().sum() == 4
    other = {letter: replace(task, name="another") for letter, task in own.items()}
    assert published.beside(measured, other, {"paper": published.vulnerability("1A")}) == {}, "no blank panel"
