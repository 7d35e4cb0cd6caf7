"""The benchmark runs and counts what it says; how fast this machine is, no test asks."""

import ast
import json
import re
from argparse import Namespace
from importlib import import_module

import pandas as pd
import pytest
import torch
from oracles import script

from mtrlib import attacks, machine

OPTIONS = Namespace(encoder="resnet18_tiny", size=16, batch=2, repeats=1)


def beside(name: str, monkeypatch):
    """A benchmark that imports another, as it does when it is run from its folder."""
    monkeypatch.syspath_prepend(str(machine.root() / "benchmarks"))
    return script(name)


@pytest.fixture(scope="module")
def attack_cost():
    return script("attack_cost")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_attack_cost_in_both_precisions(attack_cost, precision):
    device = torch.device("cpu")
    both, one = (attack_cost.attack_cost(OPTIONS, device, precision, "sd", tasks, 1.0) for tasks in ("sd", "s"))
    assert both["ratio"] == pytest.approx(both["ms/image"] / both["bare ms/image"])
    counted = [row["GFLOP/s"] * row["ms/image"] for row in (one, both)]
    assert counted[0] < counted[1], "a decoder that is not attacked is not counted"
    assert attack_cost.training_cost(OPTIONS, device, precision, "d", 1.0, 8)["images/s"] > 0


def test_training_is_measured_on_all_cores_and_on_one_beside_the_peak_of_as_many(attack_cost, monkeypatch):
    device, found = torch.device("cpu"), []

    def cost(options, device, precision, tasks, peak, size):
        found.append((torch.get_num_threads(), peak, size))
        return {"what": f"batches of {size}"}

    monkeypatch.setattr(attack_cost, "training_cost", cost)
    monkeypatch.setattr(attack_cost, "convolution_peak", lambda *_: 100.0 * torch.get_num_threads())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rows = attack_cost.training_costs(OPTIONS, device, "float32", 200.0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    sizes = (8, 16, OPTIONS.batch)
    assert found == [(threads, 100.0 * threads, size) for threads in (2, 1) for size in sizes]
    assert [row["what"] for row in rows] == [f"batches of {size}" for size in sizes] + [
        "convolution peak, one core",
        *(f"batches of {size}, one core" for size in sizes),
    ]


def test_a_table_is_written_with_what_measured_it(attack_cost, tmp_path):
    for name in ("one.csv", "two.csv"):
        attack_cost.write(pd.DataFrame({"ms": [1.23456]}), tmp_path / name)
    known = json.loads((tmp_path / "benchmarks_machine.json").read_text())
    assert known == {"one.csv": machine.describe(), "two.csv": machine.describe()}
    assert (tmp_path / "one.csv").read_text() == "ms\n1.235\n"
    folder = machine.root() / "results" / "benchmarks"
    known = json.loads((folder / "benchmarks_machine.json").read_text())
    assert set(known) == {path.name for path in folder.glob("*.csv")}


def test_passes_are_those_that_attacks_make(attack_cost):
    """Counted on a loss that counts."""
    images = torch.rand(1, 3, 8, 8)
    for name, attack in attacks.NAMED.items():
        counts = [0, 0]

        def losses(points, counts=counts, dense=None, watch=None):
            counts[0 if points.requires_grad else 1] += 1
            if watch is not None:
                watch(points.detach(), points.detach().flatten(1).mean(dim=1)[None])
            return points.flatten(1).mean(dim=1)[None] + 1

        losses.dense = None  # as those of a model, of which sea climbs several
        attack(losses, images, eps=0.1, step_size=0.03, steps=attack_cost.STEPS)
        assert tuple(counts) == attack_cost.passes(name), name


def test_input_share_is_a_share(tmp_path, monkeypatch):
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path / "cache"))
    options = Namespace(encoder="resnet18_small", size=16, batch=4, images=8, tasks="sd", steps=2, repeats=1)
    found = script("input_share").measure(options, tmp_path / "example")
    assert 0 < found["share of input"] < 1
    assert found["share of input"] == pytest.approx(found["batch ms"] / found["step ms"])


def test_the_zoo_has_every_distinct_model_once(monkeypatch):
    """66 sets of one or two of eleven tasks; 20 ordered pairs with other weights; 15 sets of five tasks an encoder."""
    scaling = beside("scaling", monkeypatch)
    monkeypatch.setattr(scaling, "seconds_of", lambda encoder, tasks, *_: (1.0, 1.0))
    table = scaling.projection(torch.device("cpu"), "float32").set_index(["encoder", "weights"])
    assert table.models.tolist() == [66, 20, 15, 15, 15, 15, 146]
    training = table.loc[("resnet18", "uniform"), "training hours"]
    assert training == pytest.approx(66 * 150 * scaling.TRAIN_IMAGES / 3600), "once, for as long as the longest setting"


def test_the_slope_of_the_cost_is_that_of_its_series(monkeypatch):
    scaling = beside("scaling", monkeypatch)
    monkeypatch.setattr(scaling, "VARIED", {"size": (32, 64, 128)})
    monkeypatch.setattr(scaling, "run", lambda what, setting, *_: Setting(setting))
    monkeypatch.setattr(scaling.attack_cost, "clock", lambda run, device: 0.5 * run["size"] ** 2)
    table = scaling.measured(torch.device("cpu"), "float32", 1)
    assert set(table.what) == {"PGD", "training"}
    assert table.slope.tolist() == pytest.approx([2.0] * 6)


class Setting(dict):
    """A run that does nothing and knows its setting."""

    def __call__(self) -> None: ...


def test_peers_compares_on_the_same_batch_and_names_what_is_not_installed(monkeypatch):
    peers = beside("peers", monkeypatch)
    monkeypatch.setattr(peers, "_library", lambda name, absent: absent.append(name))
    model = peers.models.build("resnet18_small", "sd", classes=11, seed=0).requires_grad_(False)
    classifier = peers.Classifier(model, "float32").eval()
    images, labels, absent = torch.rand(2, 3, 16, 16), torch.tensor([1, 2]), []
    monkeypatch.setattr(peers, "STEPS", 2)
    runs = peers.attackers(classifier, images, labels, absent)
    assert {name: list(found) for name, found in runs.items()} == {"PGD-2": ["mtrlib"], "Auto-PGD-2": ["mtrlib"]}
    assert absent == ["torchattacks", "foolbox", "art.attacks.evasion", "autoattack.autopgd_base"]
    row = peers.compare(runs["PGD-2"], torch.device("cpu"), OPTIONS)[0]
    assert (row["result"] - images).abs().max() <= peers.EPS + 1e-6
    assert row["times ours"] == 1
    trained = peers.compare(peers.trainers("float32", OPTIONS, torch.device("cpu")), torch.device("cpu"), OPTIONS)
    assert [row["library"] for row in trained] == ["mtrlib", "plain PyTorch"]


def test_memory_does_not_grow_with_images_steps_or_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path))
    memory = script("memory")
    assert memory.streaming(60, 32, 16) < 30, "MB, of 60 that were read"
    few, many = (memory.apart(_attack, images, steps) for images, steps in ((16, 2), (96, 6)))
    assert 0 < many < 2 * few + 5


def test_the_memory_of_a_notebook_is_that_of_papermill_and_of_its_kernel(tmp_path):
    small = {"size": 16, "train_images": 8, "test_images": 2, "shown": 1, "tasks": "sd", "epochs": 1, "steps": 1}
    found = script("memory").notebook("tour", tmp_path, **small)
    assert 20 < found["papermill"] < found["kernel"] < 4000, "MB; the kernel alone has PyTorch"
    assert (tmp_path / "store" / "models").is_dir()
    with pytest.raises(RuntimeError, match="tour should run to its end. Papermill ended with 1"):
        script("memory").notebook("tour", tmp_path, **small | {"tasks": "sx"})


def _attack(images: int, steps: int) -> float:
    return script("memory").attack(images, steps, 32, 8)


def test_busy_measures_beside_company_in_fresh_processes_that_only_their_environment_decides(monkeypatch, capfd):
    """The default is OpenMP's own, not the package's; the real company is a second training."""
    busy = beside("busy", monkeypatch)
    for name, value in (("OMP_WAIT_POLICY", "passive"), ("OMP_DISPLAY_ENV", "verbose")):
        monkeypatch.setenv(name, value)
    options = Namespace(encoder="resnet18_tiny", size=16, batch=2, seconds=0.1, repeats=1)
    assert busy.images_per_second(options, "the default of OpenMP", "a second training") > 0
    spins = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", capfd.readouterr().err)
    assert spins in ([], ["300000"] * 2), "none of an OpenMP that is not GNU's"
    rates = dict(zip(busy.BESIDE, (8.0, 4.0, 2.0), strict=True))
    monkeypatch.setattr(busy, "images_per_second", lambda options, setting, company: rates[company])
    table = busy.measured(options)
    assert table["threads"].unique().tolist() == list(busy.SETTINGS)
    assert table["of alone"].tolist() == [1, 0.5, 0.25] * len(busy.SETTINGS)


def test_gpu_measures_training_and_attack_with_and_without_compile(tmp_path, monkeypatch):
    """The first encoder only is compiled; compiling itself is left out here."""
    gpu, compiled = beside("gpu", monkeypatch), []
    monkeypatch.setattr(gpu, "compile_parts", compiled.append)
    arguments = [
        "--encoders",
        "resnet18_small",
        "xception_small",
        "--sizes",
        "32",
        "--pixels",
        "2048",
        "--repeats",
        "1",
    ]
    monkeypatch.setattr("sys.argv", ["gpu.py", *arguments, "--repeats", "1", "--output", str(tmp_path / "gpu.csv")])
    gpu.main()
    table = pd.read_csv(tmp_path / "gpu.csv")
    peak = table["GFLOP/s"][0]
    shares = (table["GFLOP/s"] / peak).tolist()
    assert table["of matrix peak"].tolist() == pytest.approx(shares, rel=2e-3)  # of four digits each
    runs = table.dropna(subset="encoder")
    assert len(compiled) == runs.compiled.astype(bool).sum() == 2
    assert runs.groupby("encoder", sort=False).what.agg(list).tolist() == [["training", "PGD"] * 2, ["training", "PGD"]]
    assert runs["GFLOP/s"].gt(0).all()


@pytest.mark.parametrize("path", sorted((machine.root() / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_asks_of_the_library_is_there(path):
    """Also in branches that no test runs, such as the choices of an option."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    rooms = {
        alias.asname or alias.name: import_module(f"mtrlib.{alias.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "mtrlib"
        for alias in node.names
    }
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    asked = {(node.value.id, node.attr) for node in used if node.value.id in rooms}
    assert asked
    assert not [f"{room}.{name}" for room, name in sorted(asked) if not hasattr(rooms[room], name)]
