"""Findings and verdicts from errors tables with a known truth."""

import re
from itertools import product

import numpy as np
import pandas as pd
import pytest

from mtrlib import claims
from mtrlib.claims import judging
from mtrlib.metrics import estimates
from mtrlib.metrics.correlation import within


def table(factor, *, tasks="sdn", seeds=4, images=24, panel="table", setting="linf", spread=0.02, **columns):
    """Errors of all cells of some tasks; the log ratio of a cell is log(factor(main, auxiliary, attacked)), with noise
    of images and, by model, of trainings."""
    g, rows = np.random.default_rng(0), []
    clean = {main: np.exp(g.normal(-2, 0.3, images)) for main in tasks}
    base = {main: g.normal(1.0, 0.4, images) for main in tasks}
    for main in tasks:
        for auxiliary in tasks:
            for seed in range(seeds):
                shift = g.normal(0, spread)
                for attacked in ("single",) if main == auxiliary else ("single", "joint"):
                    log = base[main] + shift + g.normal(0, 0.05, images) + np.log(factor(main, auxiliary, attacked))
                    cell = {
                        "panel": panel,
                        "setting": setting,
                        "attacked": attacked,
                        "main": main,
                        "auxiliary": auxiliary,
                    }
                    about = {**cell, "seed": seed, "image_id": range(images), **columns}
                    errors = {"clean_error": clean[main], "adversarial_error": clean[main] * np.exp(log)}
                    rows.append(pd.DataFrame({**about, **errors}))
    return pd.concat(rows, ignore_index=True)


def verdict_of(found: pd.DataFrame, number: str) -> str:
    return judging.verdict(found[found.number == number])


def alike(*_):
    return 1.0


def test_the_columns_are_those_of_the_contract():
    found = claims.findings("rq1", table(alike))
    assert list(found) == "number where estimate low high asked decides verdict needs".split()
    assert set(found.number) == {"1.2", "1.3"}, "claims whose panels the table lacks are left out"
    assert set(found.verdict) <= {"agrees", "disagrees", "open"}
    assert claims.findings("rq1_auxiliary_tasks", table(alike)).equals(found)
    with pytest.raises(ValueError, match="rq1, rq2, rq3, rq4, rq5, rq6. Found notebook = 'rq9'"):
        claims.findings("rq9", table(alike))


def test_no_effect_is_neither_a_help_nor_a_defence():
    found = claims.findings("rq1", table(alike))
    assert verdict_of(found, "1.2") == "agrees"
    assert verdict_of(found, "1.3") == "agrees"
    assert (found[found.number == "1.3"].high == 0).all()


def test_one_cell_that_is_surely_lower_breaks_the_claim_that_none_is():
    found = claims.findings("rq1", table(lambda m, a, how: 0.6 if (m, a) == ("s", "d") else 1.0))
    assert verdict_of(found, "1.3") == "disagrees"
    assert verdict_of(found, "1.2") == "agrees"
    every = claims.findings("rq1", table(lambda m, a, how: 1.0 if m == a else 0.6))
    assert verdict_of(every, "1.2") == "disagrees", "lower in all of the cells is reliable"


def test_an_effect_within_ten_percent_is_none():
    """Well measured: 5 % lower everywhere, and still no cell is lower."""
    found = claims.findings("rq1", table(lambda m, a, how: 1.0 if m == a else 0.96, spread=0.003))
    assert verdict_of(found, "1.3") == "agrees"


def test_one_training_decides_nothing_where_models_are_compared():
    found = claims.findings("rq1", table(lambda m, a, how: 1.0 if m == a else 0.2, seeds=1))
    assert (found.verdict == "open").all()
    assert found.needs.str.contains("seeds|never").all()
    assert "3 seeds" in set(found.needs)


def test_a_noisy_training_needs_more_seeds():
    found = claims.findings("rq1", table(alike, seeds=3, spread=0.1))
    open_ = found[found.verdict == "open"]
    assert len(open_)
    assert open_.needs.str.match(r"\d+ seeds|never").all()


def test_what_was_not_learned_is_left_out_and_named():
    errors = table(lambda m, a, how: 0.5 if m == "s" and a != "s" else 1.0)
    errors["constant_error"] = np.where(errors.main == "s", errors.clean_error, 10 * errors.clean_error)
    found = claims.findings("rq1", errors)
    assert verdict_of(found, "1.3") == "agrees", "the cells of s, which are lower, do not count"
    assert found["where"].str.contains("2 of 6 cells not learned, of main s").all()
    assert (claims.findings("rq1", errors.assign(constant_error=errors.clean_error))).empty
    assert verdict_of(claims.findings("rq1", errors.drop(columns="constant_error")), "1.3") == "disagrees"


def test_bounds_of_a_share_count_what_is_sure():
    found = claims.findings("rq1", table(lambda m, a, how: 0.5 if m == "s" and a != "s" else 1.0))
    row = found[(found.number == "1.2") & found["where"].str.startswith("linf, single")].iloc[0]
    assert (row.estimate, row.low, row.high) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


@pytest.mark.parametrize(
    ("low", "high", "side", "threshold", "told"),
    [
        (0.6, 0.9, "above", 0.5, "agrees"),
        (0.2, 0.5, "above", 0.5, "disagrees"),
        (0.5, 0.9, "above", 0.5, "open"),
        (0.2, 0.94, "below", 0.95, "agrees"),
        (0.95, 1.0, "below", 0.95, "disagrees"),
        (0.2, 19 / 20, "below", 0.95, "open"),
        (1.0, 1.0, "at least", 1, "agrees"),
        (0.0, 0.9, "at least", 1, "disagrees"),
        (0.0, 0.0, "at most", 0, "agrees"),
        (0.1, 1.0, "at most", 0, "disagrees"),
        (float("nan"), 1.0, "above", 0.5, "open"),
    ],
)
def test_a_threshold_itself_is_neither_above_nor_below(low, high, side, threshold, told):
    assert judging.decide(low, high, side, threshold) == told


def test_encoders_are_those_of_the_paper_by_their_whole_names():
    names = ["resnet50", "resnet152", "resnet50_small", "wide_resnet50_2", "resnet18_small", "timm/resnet50"]
    worse = lambda m, a, how: 1.0 if m == a else 2.0  # noqa: E731
    errors = pd.concat([table(worse, panel="encoders", setting=name) for name in names])
    found = claims.findings("rq1", errors)
    found = found[found.number == "1.5"].set_index("where").decides
    about = ": cells more vulnerable than the single-task model"
    decisive = {f"resnet50{about}", f"resnet152{about}", f"resnet50_small (a stand-in){about}"}
    assert set(found[found].index) == decisive
    assert f"wide_resnet50_2{about}" in found.index
    assert f"timm/resnet50 (a stand-in){about}" in found.index


def test_l2_is_judged_at_the_matched_budget_and_growth_by_its_exponent():
    lower = lambda m, a, how: 1.0 if m == a else 0.6  # noqa: E731
    frames = [table(lower, panel="norm", setting="l2, matched"), table(alike, panel="norm", setting="l2, nominal")]
    found = claims.findings("rq1", pd.concat(frames))
    assert verdict_of(found, "1.1") == "agrees", "the nominal budget decides nothing"
    eps = [table(alike, panel="eps", setting=float(e)) for e in (4, 8, 16, 32)]
    for rows in eps:
        rows["adversarial_error"] = rows.clean_error + 0.001 * rows.setting**2 * np.where(rows.image_id % 2, 1.1, 0.9)
    growth = claims.findings("rq1", pd.concat(eps))
    growth = growth[growth["where"].str.contains("exponent")]
    assert growth.estimate.to_list() == pytest.approx([2] * 3, abs=0.01)
    assert not growth.decides.any()


def test_more_steps_spread_models_and_joint_attacks_are_done_sooner():
    size = {"ss": 1.0, "sd": 1.5, "ds": 1.2, "dd": 1.0}
    frames = []
    for steps, share in ((5, {"single": 0.5, "joint": 0.96}), (15, {"single": 0.8, "joint": 0.98}), (25, {})):

        def grown(m, a, how, share=share):
            return np.exp(share.get(how, 1.0) * 2 * size[m + a]) / np.e

        frames.append(table(grown, tasks="sd", panel="steps", setting=steps, spread=0.001))
    found = claims.findings("rq1", pd.concat(frames)).set_index("where")
    (plateau,) = found[found.index.str.contains("joint over single")].itertuples()
    assert plateau.verdict == "agrees"
    assert plateau.estimate < 0.5
    (spread,) = found[found.index.str.contains("spread")].itertuples()
    assert spread.estimate == pytest.approx(2, rel=0.15)


def attacks(**factors):
    """RQ3: errors under `<weights>_<attack>`."""
    parts = [(name.split("_", 1), factor) for name, factor in factors.items()]
    return pd.concat([table(factor, panel=panel, setting=attack) for (panel, attack), factor in parts])


def test_the_claims_on_weights():
    lower = lambda m, a, how: 1.0 if m == a else 0.5  # noqa: E731
    errors = attacks(uniform_pgd=alike, published_pgd=lower, uniform_apgd=lambda *_: 1.7, published_apgd=lambda *_: 1.7)
    found = claims.findings("rq3", errors)
    assert verdict_of(found, "3.1") == "agrees"
    assert verdict_of(found, "3.6") == "agrees"
    assert verdict_of(found, "3.3") == "agrees", "apgd is as strong on weighted models"
    assert verdict_of(found, "3.4") == "disagrees", "no auxiliary task helps under apgd"
    assert verdict_of(found, "3.5") == "disagrees", "clean errors are the same"
    uniform = found[found["where"].str.startswith("uniform weights, apgd, single, mean of 6")].iloc[0]
    assert uniform.estimate == pytest.approx(1.7, rel=0.05)
    assert uniform.verdict == "agrees"
    assert verdict_of(found, "3.2") == "agrees", "1.7 and 3.4 times PGD, in the weights of either"
    some = attacks(uniform_pgd=alike, uniform_apgd=lambda m, a, how: 0.5 if a != m and how == "single" else 1.0)
    told = claims.findings("rq3", some)
    told = told[told.number == "3.4"].set_index("where").verdict
    assert told[told.index.str.contains("apgd, single")].eq("agrees").all()
    assert told[told.index.str.contains("apgd, joint")].eq("disagrees").all()


def test_attacks_on_the_same_models_are_compared_with_one_training_too():
    errors = attacks(uniform_pgd=alike, uniform_apgd=lambda *_: 1.1)
    found = claims.findings("rq3", errors[errors.seed == 0])
    assert set(found[found.number == "3.2"].verdict) == {"disagrees"}
    assert set(found[found.number == "3.4"].verdict) == {"open"}


def proxies(sign):
    """RQ4: the early model orders the auxiliary tasks of each main task as the target does, or the other way round."""
    rank = {letter: k for k, letter in enumerate("sdnDE")}
    order = lambda m, a, how: 1 + 0.5 * rank[a]  # noqa: E731
    early = lambda m, a, how: 1 + 0.5 * (rank[a] if sign > 0 else 4 - rank[a])  # noqa: E731
    return pd.concat([table(order, tasks="sdnDE", panel="target"), table(early, tasks="sdnDE", panel="early")])


def test_a_proxy_has_to_order_the_cells_of_each_main_task():
    found = claims.findings("rq4", proxies(1)).set_index("number")
    assert found.verdict["4.1"] == "agrees"
    assert found.estimate["4.1"] == pytest.approx(1)
    regret = found[found["where"].str.startswith("choice by early")].iloc[0]
    assert (regret.verdict, regret.estimate) == ("agrees", pytest.approx(0, abs=0.05))
    wrong = claims.findings("rq4", proxies(-1)).set_index("number")
    assert wrong.verdict["4.1"] == "disagrees"
    one = proxies(1)
    assert set(claims.findings("rq4", one[one.seed == 0]).verdict) == {"open"}


def test_noise_that_a_proxy_shares_with_its_target_is_no_knowledge():
    """All auxiliary tasks are alike; the early model has the noise of its own final one. Correlated and judged in the
    same trainings, on the same images, that is a correlation of 1 and no regret."""
    errors = [table(alike, tasks="sdnDE", panel=panel, spread=0.2) for panel in ("target", "early")]
    found = claims.findings("rq4", pd.concat(errors))
    early = found[found["where"].str.contains("early")].set_index("number")
    assert early.estimate["4.1"] < 0.4
    assert early.estimate["4.4"] > 0.6
    assert not (early.verdict == "agrees").any()


def test_correlation_within_main_tasks_is_blind_to_their_levels():
    index = pd.MultiIndex.from_tuples([(m, a) for m in "sdn" for a in "sdnE"], names=["main", "auxiliary"])
    level = np.repeat([1.0, 10.0, 100.0], 4)
    target = pd.Series(level * np.tile([1.0, 1.1, 1.2, 1.3], 3), index)
    proxy = pd.Series(level * np.tile([1.3, 1.2, 1.1, 1.0], 3), index)
    value, chance = within(*(numbers.to_frame(name=("seed 0", 0)) for numbers in (proxy, target)))
    assert value == pytest.approx(-1)
    assert abs(chance.mean()) < 0.02
    assert np.corrcoef(proxy, target)[0, 1] > 0.9


def sets(loss, seeds=3, images=20, panel="linf"):
    """RQ2: adversarial vulnerabilities loss(set) of one model's sets of tasks."""
    g, rows = np.random.default_rng(1), []
    for tasks in ("s", "d", "n", "sd", "sn", "dn", "sdn"):
        for seed in range(seeds):
            rise = loss(tasks) * np.exp(g.normal(0, 0.02, images) + g.normal(0, 0.005))
            cell = {
                "panel": panel,
                "setting": 8.0,
                "attacked": "joint",
                "main": tasks[0],
                "auxiliary": tasks[1:] or tasks,
            }
            losses = {"clean_attacked_loss": 1.0, "adversarial_attacked_loss": 1 + rise}
            rows.append(
                pd.DataFrame({**cell, "attacked_tasks": tasks, "seed": seed, "image_id": range(images), **losses})
            )
    return pd.concat(rows).assign(clean_error=1.0, adversarial_error=1.0)


def test_the_claims_on_sets_of_tasks():
    size = {"s": 5.0, "d": 1.0, "n": 0.5}
    found = claims.findings("rq2", sets(lambda tasks: sum(size[x] for x in tasks)))
    by_name = found.set_index(found.number + found["where"].str.split(":").str[1])
    assert by_name.verdict["2.1 steps that raise the vulnerability"] == "agrees"
    assert by_name.verdict["2.1 orders in which no step lowers it"] == "disagrees", "every order is monotone"
    assert by_name.verdict["2.4 orders in which the step that adds s is the largest"] == "agrees"
    assert verdict_of(found, "2.5") in ("disagrees", "agrees")
    least = claims.findings("rq2", sets(lambda tasks: sum({"s": 0.1, "d": 1.0, "n": 2.0}[x] for x in tasks)))
    assert verdict_of(least, "2.4") == "disagrees"
    bounds = {f"image {k}": -1 + 0.001 * k for k in range(12)}
    bounds = estimates.uncertainty(pd.DataFrame([{"value": -1.0, "seed 0": -1.0, **bounds}]))
    bounds.index = pd.MultiIndex.from_tuples([("linf, eps 0.25/255", "s", "d")], names=["panel", "before", "added"])
    told = claims.findings("rq2", sets(len), bounds=bounds)
    assert told[told["where"].str.contains("theorem 4")].verdict.to_list() == ["agrees"]


def test_with_weights_one_over_n_steps_may_fall_though_sums_rise():
    found = claims.findings("rq2", sets(lambda tasks: 1 + 0.1 * len(tasks), panel="chains", seeds=5))
    told = found[found.number == "2.3"].set_index("where").verdict
    assert told["1/N, adding another task: steps that lower the vulnerability"] == "agrees"
    assert told["1/N, adding s or E: steps that lower the vulnerability"] == "disagrees"
    assert told["summed: steps that lower the vulnerability"] == "agrees"


def test_a_summary_has_every_claim_with_its_findings_in_words():
    found = claims.findings("rq1", table(alike))
    told = claims.summary(found, "RQ1").set_index("number")
    assert list(told.index) == ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6"]
    assert told.verdict["1.1"] == "not measured here"
    assert told.verdict["1.2"] == "agrees"
    assert "model of their main task. The claim needs less than 95%: as claimed." in told.measured["1.2"]
    assert claims.sentences(found, "1.2").splitlines()[0] == "Claim 1.2: agrees"


@pytest.mark.parametrize("factor", [0.7, 0.8, 0.85, 0.95])
def test_what_an_open_finding_needs_is_more_than_it_has(factor):
    """With Student's t of two trainings: the normal quantile would have called the size that it has enough."""
    rows = table(lambda main, other, _: factor if main != other else 1, tasks="sd", seeds=2, images=8, spread=0.1)
    found = claims.findings("rq1", rows)
    needs = found[found.verdict == judging.OPEN].needs
    assert len(needs)
    assert "2 seeds" not in set(needs)


def test_findings_that_are_not_there_are_said_in_a_line():
    with pytest.raises(ValueError, match=r"in results/laptop of the repository of mtrlib. Found no .*rq9_findings.csv"):
        claims.released("rq9")


def test_every_rule_has_a_sentence_that_takes_one_number():
    for rule in judging.rules().itertuples():
        assert rule.sentence.count("{}") == 1, rule.Index
    assert all(re.search(r"\w", text) for text in judging.words().values())


ROWS = [
    ("3.2", "uniform weights, apgd, single, mean of 6 cells: error under attack, over PGD's", 1.1, 1.08, 1.11,
     "above 1.5 times", True, "disagrees", ""),
    ("1.3", "linf, joint: cells less vulnerable than the single-task model (4 of 20 cells not learned)", 0.5, 0.25,
     0.75, "none", False, "disagrees", ""),
    ("4.1", "early stopping as proxy: rank correlation within main tasks", 0.4, -1.0, 1.0, "above 0", True, "open",
     "3 seeds"),
    ("3.3", "a place of one's own: a number of one's own", 2.0, 2.0, 2.0, "at least 1", True, "agrees", ""),
]  # fmt: skip
SENTENCES = [
    "Uniform weights, Auto-PGD, on one task, mean of 6 cells: the error under attack is 1.10 times that under PGD (95 "
    "% interval 1.08 to 1.11). The claim needs more than 1.5 times: against the claim.",
    "L-infinity attack, on all tasks: 50% of the task pairs are less vulnerable than the single-task model of their "
    "main task (surely 25% to 75%) (4 of 20 cells not learned). The claim needs none: against the claim, for "
    "comparison only.",
    "Early stopping as proxy: the rank correlation within main tasks is 0.40 (95 % interval -1.00 to 1.00). The claim "
    "needs more than 0: open (needs 3 seeds).",
    "A place of one's own: a number of one's own 2.00. The claim needs at least 1: as claimed.",
]


@pytest.mark.parametrize(("row", "sentence"), list(zip(ROWS, SENTENCES, strict=True)))
def test_a_finding_reads_as_english(row, sentence):
    (finding,) = pd.DataFrame([row], columns=judging.COLUMNS).itertuples()
    assert judging.sentence(finding) == sentence


def test_intervals_of_a_difference_cover():
    """Nominal 95 %: with three trainings and a dozen images; the bootstrap over three seeds covers 76 to 91 %."""
    g, hits = np.random.default_rng(0), []
    cells = pd.DataFrame(product("sdn", range(3), range(12)), columns=["auxiliary", "seed", "image_id"])
    cells = cells.assign(panel="table", setting="linf", attacked="single", main="s", clean_error=1.0)
    for _ in range(150):
        image, logs = g.normal(0, 0.5, 12), []
        for _ in "sdn":
            own = g.normal(0, 0.3, 12)
            logs += [image + own + g.normal(0, 0.2) + g.normal(0, 0.1, 12) for _ in range(3)]
        errors = cells.assign(adversarial_error=np.exp(np.concatenate(logs)))
        compared = estimates.compared(*estimates.beside(estimates.estimates(errors), auxiliary=""))
        ends = estimates.holm(compared.iloc[:1])
        hits.append(ends.low.iloc[0] <= 0 <= ends.high.iloc[0])
    assert 0.91 <= np.mean(hits) <= 0.995
