import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtrlib import batch, machine, studies, training
from mtrlib.claims import published
from mtrlib.specs import DataSpec, ModelSpec
from mtrlib.store import Store
from mtrlib.studies import parameters, rq4


@pytest.fixture
def p() -> rq4.RQ4:
    values = batch.read(machine.root() / "params" / "smoke")["rq4_task_selection"]
    return parameters.check(values, rq4.RQ4)


def test_the_printed_tables_say_what_the_claims_say_that_they_do():
    """claims.csv: .939 joint and .914 single pooled; clean error -.56 pooled, -.37 to -.97 within."""
    for attacked, pooled in (("single", 0.914), ("joint", 0.939)):
        matrices = {name: published.vulnerability(table, attacked) for name, table in (("50", "3"), ("18", "2"))}
        if attacked == "joint":  # the diagonal is the single-task model
            alone = {"50": published.vulnerability("3"), "18": published.vulnerability("2")}
            matrices = {name: matrix.fillna(alone[name]) for name, matrix in matrices.items()}
        found = rq4.correlations(rq4.printed(matrices), "50", ["18"]).set_index("group")
        assert found.pearson["pooled"] == pytest.approx(pooled, abs=0.002)
    printed = {"clean": published.vulnerability("2", "none"), "18": published.vulnerability("2")}
    found = rq4.correlations(rq4.printed(printed), "18", ["clean"]).set_index("group")
    assert found.pearson["pooled"] == pytest.approx(-0.56, abs=0.005)
    mains = found.pearson[list("sdDnE")]
    assert mains.max() == pytest.approx(-0.37, abs=0.005)
    assert mains.min() == pytest.approx(-0.97, abs=0.005)


def cells_of(target: dict[tuple[str, str], float], **proxies) -> dict[str, pd.DataFrame]:
    """Frames of estimates, exact ones: of the target, and of proxies that are functions of it."""
    index = pd.MultiIndex.from_tuples(target, names=["main", "auxiliary"])
    frame = pd.DataFrame({name: list(target.values()) for name in ("value", "seed 0", "image 0", "image 1")}, index)
    return {"target": frame, **{name: frame.map(function) for name, function in proxies.items()}}


def simpson() -> pd.DataFrame:
    """Main tasks of very different size: pooled the proxy looks perfect, within each it is upside down."""
    target, proxy = {}, []
    for size, main in ((1, "s"), (10, "d"), (100, "n")):
        for rank, auxiliary in enumerate("sdnE"):
            target[main, auxiliary] = size * (1 + 0.1 * rank)
            proxy.append(size * (1 - 0.1 * rank))
    frames = cells_of(target)
    return {**frames, "proxy": frames["target"].mul(0).add(proxy, axis=0)}


def test_a_pooled_correlation_hides_that_a_proxy_is_wrong_within_every_main_task():
    found = rq4.correlations(rq4.pivot(simpson()), "target", ["proxy"]).set_index("group")
    assert found.pearson["pooled"] > 0.9
    assert found.pearson["within"] == found.spearman["within"] == pytest.approx(-1)
    assert found.high["within"] < 0
    assert found.p["within"] < 0.01
    chosen = rq4.choices(simpson(), "target", ["proxy", "target"]).set_index("proxy")
    assert chosen.regret["target"] == 0
    assert chosen.top_1["target"] == 1
    assert chosen.top_1["proxy"] == 0
    assert chosen.regret["proxy"] > chosen.regret["chance"] > 0
    assert (chosen.low <= chosen.regret).all()


def test_choices_by_hand():
    """Main s may choose d (1), n (2), E (4). A proxy that is the same for all chooses each with 1/3: regret 4/3."""
    target = {("s", "s"): 0.1, ("s", "d"): 1.0, ("s", "n"): 2.0, ("s", "E"): 4.0}
    frames = cells_of(target, none=lambda v: 1.0, worst=lambda v: -v)
    found = rq4.choices(frames, "target", ["none", "worst"])
    found = found.set_index("proxy")
    assert found.regret.to_dict() == pytest.approx({"none": 4 / 3, "worst": 3.0, "chance": 4 / 3})
    assert found.top_1.to_dict() == pytest.approx({"none": 1 / 3, "worst": 0.0, "chance": 1 / 3})
    assert found.top_2.to_dict() == pytest.approx({"none": 2 / 3, "worst": 0.0, "chance": 2 / 3})
    assert (found.mains == 1).all()


def test_too_few_cells_have_no_correlation_of_their_own():
    values = rq4.pivot(cells_of({("s", "s"): 1.0, ("s", "d"): 2.0, ("d", "d"): 3.0}, p=lambda v: v))
    assert rq4.correlations(values, "target", ["p"]).group.to_list() == ["pooled"]


@pytest.mark.filterwarnings("error")
def test_cells_that_are_all_alike_have_no_correlation():
    values = rq4.pivot(cells_of({("s", x): 1.0 + k for k, x in enumerate("sdn")}, p=lambda v: 1.0))
    found = rq4.correlations(values, "target", ["p"])
    assert found[["pearson", "spearman"]].isna().all(axis=None)


def test_the_study_has_all_panels_of_the_same_cells(p):
    cells = rq4.cells(p)
    by_panel = {panel: [c for c in cells if c.panel == panel] for panel in ("target", "early", "fgsm", "surrogate")}
    places = [{(c.main, c.auxiliary, c.attacked) for c in group} for group in by_panel.values()]
    assert all(place == places[0] for place in places)
    assert {c.evaluation.epoch for c in by_panel["early"]} == {p.model("s").checkpoints[0]}
    assert {c.evaluation.model.encoder for c in by_panel["surrogate"]} == {p.surrogate}
    assert {c.evaluation.attack.name for c in by_panel["fgsm"]} == {"fgsm"}
    for values, message in (
        ({"tasks": "sd"}, "at least three tasks"),
        ({"surrogate": p.encoder}, "another encoder"),
        ({"surrogate": "vgg"}, "timm/<name>"),
        ({"size": 20}, "multiple of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            parameters.check({**p.model_dump(), **values}, rq4.RQ4)


@pytest.mark.parametrize(("encoder", "size"), [("resnet18_small", 16), ("xception_small", 32), ("resnet18", 64)])
def test_operations_are_those_of_a_pass_through_the_model(encoder, size):
    for tasks in ("s", "sdn"):
        spec = ModelSpec(data=DataSpec(size=size), tasks=tasks, encoder=encoder)
        model = training.build(spec, spec.data.tasks).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, size, size))
        assert rq4.forward_operations(spec) == counter.get_total_flops() > 0


def test_costs_and_the_first_order_of_trained_models(p, tmp_path):
    small = {
        "size": 32,
        "train_images": 16,
        "epochs": 3,
        "batch_size": 8,
        "test_images": 6,
        "panel_images": 2,
        "steps": 2,
    }
    p = rq4.RQ4(**{**p.model_dump(), **small})
    cells, store = rq4.cells(p), Store(tmp_path)
    for spec in studies.models(cells):
        store.model(spec)
    costs = rq4.costs(store, cells, p.panel_images).set_index("proxy")
    assert costs.share["target"] == 1
    assert costs.share["early stopping"] < 0.6
    assert costs.share["cheaper encoder"] < 1
    for name in ("clean error", "one step", "fewer images", "first order"):
        assert costs.share["early stopping"] < costs.share[name] < 1
    assert costs["share of seconds"]["fewer images"] == 1
    single = [c for c in cells if c.panel == "target" and c.attacked == "single"]
    found = rq4.first_order(store, single, images=6)
    assert len(found) == 9
    assert (found.value > 0).all()
