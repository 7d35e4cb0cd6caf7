"""RQ5: what is claimed of robust training, from errors whose truth is known; its study."""

import numpy as np
import pandas as pd
import pytest

from mtrlib import claims
from mtrlib.claims import judging, published
from mtrlib.metrics import tables
from mtrlib.studies import results

MAINS = {"s": "dn", "d": "sn", "n": "sd"}
ALL = [(main, others) for main, others in MAINS.items()]
PANELS = {name: ALL for name in ("plain", "pgd_at", "trades", "against s", "against d")}
PANELS |= {"gat": [*ALL, ("s", "d"), ("s", "n")], "few gat": [("s", "d")], "gat with rotation": [("s", "s")]}
PANELS |= {f"{few}{name}": [("s", "s")] for few in ("", "few ") for name in ("same cost", "same epochs")}
# Panel: clean error, error under PGD, and how many times that SEA's is.
TRUTH = {"plain": (0.1, 0.6, 1.02), "pgd_at": (0.13, 0.2, 1.3), "trades": (0.12, 0.2, 1.3), "gat": (0.13, 0.15, 1.3)}
TRUTH |= {"against s": (0.12, 0.2, 1.3), "against d": (0.12, 0.2, 1.3), "few gat": (0.2, 0.25, 1.3)}
TRUTH |= {"gat with rotation": (0.13, 0.22, 1.3), "same cost": (0.13, 0.22, 1.3), "same epochs": (0.13, 0.25, 1.3)}
TRUTH |= {"few same cost": (0.2, 0.35, 1.3), "few same epochs": (0.2, 0.35, 1.3)}


def made(truth=TRUTH, seeds=4, images=24, spread=0.02, of=lambda panel, main, auxiliary: 1.0, **columns):
    """Errors of every panel, with noise of images and of trainings; `of` multiplies the errors under attack."""
    g, rows = np.random.default_rng(0), []
    hard = np.exp(g.normal(0, 0.2, images))
    for panel, (clean, attacked, strong) in truth.items():
        for (main, auxiliary), seed in ((cell, seed) for cell in PANELS[panel] for seed in range(seeds)):
            luck = np.exp(g.normal(0, spread))
            for setting, times in (("pgd", 1.0), ("sea", strong)):
                cell = {"panel": panel, "setting": setting, "attacked": "single", "main": main, "auxiliary": auxiliary}
                errors = {"clean_error": clean * hard * luck}
                errors["adversarial_error"] = attacked * times * of(panel, main, auxiliary) * hard * luck
                rows.append(pd.DataFrame({**cell, "seed": seed, "image_id": range(images), **errors, **columns}))
    return pd.concat(rows, ignore_index=True)


def told(errors: pd.DataFrame) -> dict[str, str]:
    found = claims.findings("rq5", errors)
    return {number: judging.verdict(rows) for number, rows in found.groupby("number")}


def only(found: pd.DataFrame, number: str, where: str) -> pd.Series:
    (row,) = (row for row in found[found.number == number].itertuples() if row.where.startswith(f"{where}: "))
    return row


def swapped(one: str, other: str) -> dict:
    return {**TRUTH, one: TRUTH[other], other: TRUTH[one]}


def test_every_claim_agrees_where_the_errors_are_made_so():
    expected = dict.fromkeys(["5.1", "5.2", "5.3", "5.5", "5.6", "5.7", "5.8"], "agrees")
    assert told(made()) == {**expected, "5.4": "disagrees"}
    found = claims.findings("rq5_adversarial_training", made())
    assert list(found) == judging.COLUMNS
    assert only(found, "5.1", "pgd_at, main s").estimate == pytest.approx((0.26 - 0.13) / (0.612 - 0.1), rel=0.1)
    assert only(found, "5.2", "pgd_at, mean of 3 tasks").estimate == pytest.approx(1.3, rel=0.03)
    assert only(found, "5.3", "same cost, mean of 3 sets").estimate == pytest.approx(0.15 / 0.22, rel=0.03)
    assert only(found, "5.3", "same epochs, gat, auxiliary d").estimate == pytest.approx(0.15 / 0.25, rel=0.05)
    assert only(found, "5.6", "trades").estimate == pytest.approx(0.2 / 0.15, rel=0.05)
    others = set(found[found.number == "5.6"]["where"].str.split(":").str[0])
    assert others == {"pgd_at", "trades", "against s"}, "on the same tasks, attacked on the main one at least"
    assert only(found, "5.7", "trained against one task").estimate == 1
    assert only(found, "5.8", "plain").verdict == "disagrees"


@pytest.mark.parametrize(
    ("truth", "numbers"),
    [
        (swapped("plain", "pgd_at"), {"5.1", "5.2"}),
        (swapped("gat", "same cost"), {"5.3"}),
        (swapped("few gat", "few same cost"), {"5.5"}),
        (swapped("gat", "trades"), {"5.6"}),
        ({**TRUTH, **{f"against {x}": TRUTH["plain"] for x in "sd"}}, {"5.7"}),
        ({name: (clean, attacked, 1.0) for name, (clean, attacked, _) in TRUTH.items()}, {"5.8"}),
    ],
)
def test_the_other_way_round_the_claims_disagree(truth, numbers):
    verdicts = told(made(truth))
    assert {number for number in numbers if verdicts[number] != "disagrees"} == set()
    assert told(made())[next(iter(numbers))] == "agrees"


def test_what_the_same_cost_gives_decides_and_not_what_the_same_epochs_give():
    found = claims.findings("rq5", made({**TRUTH, "same cost": TRUTH["gat"]}))
    assert only(found, "5.3", "same cost, mean of 3 sets").verdict == "disagrees"
    assert only(found, "5.3", "same epochs, mean of 3 sets").verdict == "agrees"
    assert judging.verdict(found[found.number == "5.3"]) == "disagrees"


def test_one_training_says_nothing_of_another_but_two_attacks_on_it_can_be_compared():
    verdicts = told(made(seeds=1))
    assert verdicts.pop("5.8") == "agrees"
    assert set(verdicts.values()) == {"open"}
    assert set(told(made(spread=0.5)).values()) > {"open"}


def test_a_model_that_learned_nothing_is_not_robust():
    """Its error under attack is that without: the constant's."""
    truth = {**TRUTH, "pgd_at": (0.3, 0.31, 1.0)}
    errors = made(truth, constant_error=0.31)
    found = claims.findings("rq5", errors)
    assert not found[found.number == "5.1"]["where"].str.startswith("pgd_at").any()
    assert told(errors.drop(columns="constant_error"))["5.1"] == "agrees"


def test_what_protects_the_attacked_task_alone_does_not_protect_the_others():
    """Each of the two models is robust on the task that it was attacked on."""
    own = lambda panel, main, auxiliary: 3.0 if panel.startswith("against") and main != panel[-1] else 1.0  # noqa: E731
    assert told(made(of=own))["5.7"] == "disagrees"
    assert told(made(of=lambda *of: 4 - own(*of)))["5.7"] == "agrees"


def test_claims_whose_panels_are_lacking_are_left_out():
    errors = made()
    some = errors[errors.panel.isin(["plain", "pgd_at"])]
    assert set(told(some)) == {"5.1", "5.2", "5.8"}
    assert set(told(errors[errors.panel != "plain"])) == {"5.3", "5.4", "5.5", "5.6", "5.8"}
    assert told(errors[errors.setting == "pgd"]) == {}
    assert told(errors.assign(panel="masking pgd_at")) == {}


def test_its_claims_stand_below_the_papers_where_they_were_measured_and_nowhere_else(tmp_path):
    row = dict(zip(judging.COLUMNS, ("1.2", "linf: x", 1.0, 1.0, 1.0, "above 4", True, "agrees", ""), strict=True))
    tables.write(tmp_path, "rq1", findings=pd.DataFrame([row]))
    papers = results.side_by_side(tmp_path)
    assert list(papers.iloc[:, 0]) == list(published.claims().sort_index().index)
    answer = results.answer(results.read(tmp_path))
    tables.write(tmp_path, "rq5", findings=claims.findings("rq5", made()))
    both = results.side_by_side(tmp_path)
    pd.testing.assert_frame_equal(both.head(len(papers)), papers)
    assert list(both.iloc[len(papers) :, 0]) == [f"5.{k}" for k in range(1, 9)]
    assert dict(zip(both.iloc[:, 0], both.rooms, strict=True))["5.4"] == "✗ disagrees"
    assert results.answer(results.read(tmp_path)) == answer, "it counts the paper's claims"
    assert results.claims(results.read(tmp_path), "RQ5").count("**✓ agrees: 5.") == 7


def test_findings_are_sentences():
    text = claims.sentences(claims.findings("rq5", made()), "5.1", "5.3", "5.8")
    assert "PGD training, main s: the strong attack adds 0.26 times what it adds after plain training" in text
    assert "At no lower cost of training, mean of 3 sets: the error under the strong attack is 0.68 times" in text
    assert "The claim needs at most 0.5 times: as claimed." in text
