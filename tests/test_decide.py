"""Seeds are added where they decide most: which look comes next, what it costs, and what counts as decided."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import yaml

from mtrlib import batch, machine
from mtrlib.batch import cost, decide
from mtrlib.batch.decide import LEVEL, LOOKS
from mtrlib.claims import judging
from mtrlib.metrics import estimates

COLUMNS = "number where estimate low high asked decides verdict needs".split()


def finding(number: str, verdict: str, needs: str = "", decides: bool = True) -> dict:
    return dict(zip(COLUMNS, (number, "linf: cells", 0.5, 0, 1, "none", decides, verdict, needs), strict=True))


@dataclass
class Tier:
    """Stands for a store and its findings: by notebook, hours a look and findings by seeds; keeps what was asked."""

    hours: dict
    findings: dict
    ran: list

    def needs(self, values, precision):
        ((name, given),) = values.items()
        return name, tuple(given["seeds"])


@pytest.fixture
def tier(monkeypatch):
    made = Tier({}, {}, [])
    monkeypatch.setattr(decide.tier, "needs", made.needs)
    monkeypatch.setattr(decide, "_missing", lambda needs: ["key"])
    monkeypatch.setattr(decide, "_hours", lambda needs, name, engine: made.hours[name][len(needs[1])])
    read = lambda needs, name: pd.DataFrame(made.findings[name][len(needs[1])], columns=COLUMNS)  # noqa: E731
    monkeypatch.setattr(decide, "_findings", read)
    return made


def decided(tier: Tier, hours: float, **seeds: list[int]) -> pd.DataFrame:
    values = {name: {"seeds": given} for name, given in seeds.items()}
    return decide.decide(values, hours, engine=lambda needs, name, keys: tier.ran.append((name, needs[1])))


def test_the_look_that_decides_most_an_hour_comes_first_and_the_first_decision_counts(tier):
    tier.hours = {"rq1": {3: 1, 5: 2, 8: 9}, "rq3": {3: 2, 5: 1, 8: 9}}
    five, never = "5 seeds", judging.NEVER
    tier.findings["rq1"] = {
        3: [finding("1.2", "agrees"), finding("1.3", "open", five), finding("1.4", "open", never)],
        5: [finding("1.2", "disagrees"), finding("1.3", "disagrees"), finding("1.4", "open", never)],
    }
    three = [finding("3.1", "open", five), finding("3.3", "open", five), finding("3.4", "open", "8 seeds")]
    tier.findings["rq3"] = {3: three, 5: [finding("3.1", "agrees"), finding("3.3", "agrees"), three[2]]}
    table = decided(tier, 8, rq1=[7], rq3=[0, 1, 2], tour=[0])
    looks = [("rq1", 3), ("rq3", 3), ("rq3", 5), ("rq1", 5)]  # each once, then by what they close
    assert [*zip(table.notebook, table.seeds, strict=True)] == looks, "9 hours for 8 seeds are not begun"
    assert tier.ran[0] == ("rq1", (7, 0, 1)), "the tier's own seeds first"
    assert list(table.decided) == ["1.2 agrees", "", "3.1 agrees; 3.3 agrees", "1.3 disagrees"]
    assert table.open[3] == f"1.4 {never}", "1.2 is not opened again"
    assert table["hours estimated"].tolist() == [1, 2, 1, 2]


def test_without_hours_only_what_costs_nothing_is_looked_at(tier):
    tier.hours = {"rq1": {3: 0.0, 5: 0.1}, "rq4": {3: 0.2}}
    tier.findings["rq1"] = {3: [finding("1.2", "open", "5 seeds")]}
    table = decided(tier, 0, rq1=[0, 1, 2], rq4=[0])
    assert (len(table), table.open[0]) == (1, "1.2 5 seeds")
    assert decided(tier, 0.01, rq4=[0]).empty


def test_four_looks_are_wrong_together_as_often_as_one_may_be():
    """Models that are all alike, looked at after 3, 5, 8 and 12 seeds: how often some cell is told from its single-task
    model at some look. Each look at the whole level is wrong more often."""
    tables = range(200)  # as main tasks, whose models have their noise in common
    index = pd.MultiIndex.from_product([["table"], ["linf"], ["single"], tables, [*"sdDnE"]], names=estimates.CELL)
    seeds, wrong = np.random.default_rng(0).normal(0, 0.2, (len(index), LOOKS[-1])), {LEVEL: set(), 0.05: set()}
    for look in LOOKS:
        columns = {f"seed {k}": seeds[:, k] for k in range(look)}
        frame = pd.DataFrame({"value": seeds[:, :look].mean(axis=1), **columns}, index)
        alone = np.repeat(np.arange(0, len(frame), 5), 4)
        rows = estimates.compared(frame.drop("s", level="auxiliary"), frame.iloc[alone])
        for level, found in wrong.items():
            of_table = rows.groupby(level="main")
            found |= {n for n, cells in of_table if (estimates.holm(cells, 0.0, level).side != 0).any()}
    assert len(wrong[LEVEL]) / len(tables) <= 0.05 < len(wrong[0.05]) / len(tables)


def test_a_tiny_tier_gains_seeds(tmp_path, monkeypatch):
    """Trained for real, by an engine in this process; looks at 1 and 2 seeds."""
    monkeypatch.setattr(decide, "LOOKS", (1, 2))
    monkeypatch.setattr(estimates, "LEARNED", 99)  # nothing is, in three epochs
    small = {"size": 16, "train_images": 16, "test_images": 4, "tasks": "sn", "encoder": "resnet18_tiny", "epochs": 3}
    small |= {"steps": 1, "steps_panel": [1, 2], "eps_panel": [4.0, 8.0], "encoders": ["resnet18_tiny"]}
    small |= {"panel_images": 4, "seeds": [5], "released": "", "precision": "float32"}
    small |= {"store": str(tmp_path / "store"), "output": str(tmp_path / "out")}
    (tmp_path / "rq1_auxiliary_tasks.yaml").write_text(yaml.safe_dump(small))
    asked = []

    def engine(needs, name, keys):
        asked.append(keys)
        batch.train(needs, keys)
        batch.evaluate(needs, keys)

    table = decide.decide(batch.read(tmp_path), 1.0, engine=engine)
    assert table.seeds.tolist() == [1], "one training decides nothing, and 3 seeds are no look"
    assert [len(keys) for keys in asked] == [1, 2], "the first model gives the rate, then the two that are missing"
    assert "1.2 3 seeds" in table.open[0]
    assert (table[["hours estimated", "hours"]] > 0).all(axis=None)


def test_what_an_open_finding_costs(tiny):
    """Twice the seeds are the whole cost once more; twice the images double the attacks of all seeds. A claim costs
    what its dearest finding does."""
    from mtrlib.specs import AttackSpec, Evaluation
    from mtrlib.studies import Cell

    attack = AttackSpec(tasks="s", eps_255=8.0, step_size_255=2.0, steps=4, images=6)
    models = [tiny.model_copy(update={"seed": seed}) for seed in (0, 1, 2)]
    cells = [Cell("table", "linf", "s", 6, Evaluation(model=m, attack=attack, epoch=m.epochs)) for m in models]

    class Records:
        def record(self, spec):
            return {"images": 24, "seconds": 10.0}

    rows = [finding("1.2", "open", "6 seeds"), finding("1.3", "open", "3 seeds, 2 times the images")]
    rows += [finding("1.4", "open", judging.NEVER), finding("1.1", "agrees"), finding("1.5", "open", "8 seeds", False)]
    rows += [finding("1.2", "open", "4 seeds"), finding("1.4", "open", "4 seeds")]
    rows += [finding("1.6", "open", "12 seeds"), finding("1.6", "disagrees")]  # decided: nothing would open it again
    table = cost.closing(pd.DataFrame(rows, columns=COLUMNS), cells, Records())
    forward = cost.operations(tiny)
    trained, attacked = 3 * 3.0 * forward * 24 * 3, 3.0 * forward * 6 * (2 * 4 + 2)
    assert table.number.tolist() == ["1.2", "1.3", "1.4"]
    assert table.findings.tolist() == [2, 1, 2]
    assert table.needs.tolist() == ["6 seeds", "3 seeds, 2 times the images", judging.NEVER]
    assert table.PFLOP[:2].tolist() == pytest.approx([(trained + attacked) / 1e15, attacked / 1e15])
    assert table.hours[:2].tolist() == pytest.approx([30 / 3600 * x / trained for x in (trained + attacked, attacked)])
    assert table.iloc[2, 3:].isna().all()


def test_the_command_asks_for_hours(capsys):
    from mtrlib import __main__ as command_line

    with pytest.raises(SystemExit):
        command_line.main(["decide", str(machine.root() / "params/smoke")])
    assert "--hours" in capsys.readouterr().err
