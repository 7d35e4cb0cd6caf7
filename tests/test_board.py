"""The board: what the protocol measures is known by hand, rules are held, the page sorts and filters in a browser."""

import html
import json
import os
import re
import shutil
import subprocess

import pandas as pd
import pytest
import torch
from safetensors.torch import load as load_tensors
from torch import nn

import mtrlib
from mtrlib import data, machine, models
from mtrlib.__main__ import main
from mtrlib.batch import benchmark, board, corruptions
from mtrlib.data import sealed
from mtrlib.models import released
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import Store, evaluation

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COMMITTED = machine.root() / "results" / "board"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """`benchmark` of a protocol of few steps on 4 rooms of 16 pixels, into a folder of the test."""
    monkeypatch.setitem(benchmark.PROTOCOLS, "1-small", {"images": 4, "pgd": 9, "sea": 4, "square": 20, "transfer": 2})

    def run(model, tasks="d", name="me/net-v1", **settings):
        settings = {"size": 16, "protocol": "1-small", "folder": tmp_path} | settings
        return mtrlib.benchmark(model, name=name, tasks=tasks, **settings)

    return run


def brightness(images):
    """As depth, always far above the label: the more light, the worse."""
    return {"d": 2 + images.mean(dim=1, keepdim=True)}


def rooms(tasks="d", limit=4, size=16):
    return data.load("rooms", tasks=tasks, split="test", size=size, limit=limit)


def test_the_worst_case_of_a_linear_model_is_that_of_the_brightest_image(judge, tmp_path):
    entry = judge(brightness, architecture="a mean", authors="me", link="https://example.org")
    images, targets, _ = rooms().batch(slice(None))
    clean, worst = (
        (2 + points.mean(dim=1, keepdim=True) - targets["d"]).square().mean(dim=(1, 2, 3))
        for points in (images, (images + 8 / 255).clamp(max=1))
    )
    assert entry.errors["d"]["clean"][0] == pytest.approx(clean.mean().item(), rel=1e-5)
    for setting in ("pgd", "sea", "worst"):
        assert entry.errors["d"][setting][0] == pytest.approx(worst.mean().item(), rel=1e-4), setting
    low, high = entry.errors["d"]["worst"][1:]
    assert low < worst.mean() < high
    geometric = (worst / clean).log().mean().exp().item()
    assert entry.times["d"] == entry.times["all"]
    assert entry.times["d"][0] == pytest.approx(geometric, rel=1e-4)
    assert entry.cost["backward"] > 9 + 5 * 3
    assert entry.source == "rooms/sdDnE-v1"
    (path,) = tmp_path.glob("*.json")
    assert path.name == "me-net-v1.rooms-16.1-small.json"
    assert board.Entry.model_validate_json(path.read_bytes()) == entry


def rows_by_hand() -> pd.DataFrame:
    """Two images and two tasks; PGD and Square on s, on d and on both."""
    errors = {  # of s and d at image 0, then 1
        ("clean", ""): (0.2, 0.4, 1.0, 2.0),
        ("pgd", "s"): (0.3, 0.4, 1.0, 2.0),
        ("pgd", "d"): (0.2, 0.4, 3.0, 3.0),
        ("pgd", "sd"): (0.4, 0.4, 2.0, 6.0),
        ("square", "s"): (0.6, 0.79, 1.0, 2.0),
        ("square", "d"): (0.1, 0.1, 1.5, 1.5),
    }
    tables = []
    for (setting, attacked), values in errors.items():
        rows = {"task": list("ssdd"), "image_id": ["a", "b"] * 2, "adversarial_error": values}
        rows |= {"clean_error": errors["clean", ""], "setting": setting, "attacked": attacked}
        tables.append(pd.DataFrame(rows))
    for kind in corruptions.CORRUPTIONS:
        for severity in range(1, 6):
            spoiled = (severity, severity, 10, 20)
            tables.append(tables[0].assign(setting=f"{kind} {severity}", clean_error=spoiled, attacked=""))
    constant = {"task": list("ssdd"), "image_id": ["a", "b"] * 2, "constant_error": (0.5, 0.5, 1.5, 1.7)}
    return pd.concat([*tables, pd.DataFrame(constant).assign(setting="constant", attacked="")], ignore_index=True)


def test_numbers_of_an_entry_by_hand():
    found = benchmark._numbers(rows_by_hand())
    means = {task: {name: round(of[0], 6) for name, of in found["errors"][task].items()} for task in "sd"}
    assert means["s"] == {"clean": 0.3, "pgd": 0.4, "square": 0.695, "worst": 0.695}
    assert means["d"] == {"clean": 1.5, "pgd": 4.5, "square": 1.75, "worst": 4.5}, "the worst of any attacked set"
    assert found["times"]["s"][0] == pytest.approx((0.6 / 0.2 * 0.79 / 0.4) ** 0.5)
    assert found["times"]["d"][0] == pytest.approx(3)
    assert found["times"]["all"][0] == pytest.approx((found["times"]["s"][0] * 3) ** 0.5)
    assert found["corruptions"]["s"]["blur"] == (1, 2, 3, 4, 5)
    assert found["corruptions"]["d"]["noise"] == (15,) * 5
    assert found["constant"] == pytest.approx({"s": 0.5, "d": 1.6})
    square, low = found["unreliable"]
    assert square.startswith("square errs 1.99 times what pgd does on s")
    assert low.startswith("clean, d ")


def test_the_worst_case_of_an_image_may_be_the_clean_one():
    rows = rows_by_hand()
    rows.loc[(rows.setting == "pgd") | (rows.setting == "square"), "adversarial_error"] = 0.01
    found = benchmark._numbers(rows)
    assert found["errors"]["s"]["worst"][0] == pytest.approx(0.3)


def test_gradients_that_mislead_are_said(judge):
    """Gradients turned round: Square finds what PGD does not. Nothing of it is taken for the model of the same maps."""
    entry = judge(lambda images: brightness(2 * images.detach() - images))
    assert any(of.startswith("square errs ") for of in entry.unreliable)
    assert entry.errors["d"]["worst"][0] == max(of[0] for of in entry.errors["d"].values())
    assert not any(of.startswith("square errs ") for of in judge(brightness).unreliable)


def purified(images):
    """One step of gradient descent on the image before it is looked at."""
    with torch.enable_grad():
        points = images.detach().requires_grad_()
        (step,) = torch.autograd.grad(points.square().sum(), points)
    return brightness(images - 0.1 * step)


BROKEN = {
    "same map of d for the same images again": lambda images: brightness(images + 0.1 * torch.rand_like(images)),
    "for an image without those beside it": lambda images: brightness(images - images.mean(dim=0)),
    "a gradient of the loss of d. Found none at 100% of the images": lambda images: brightness(images.detach()),
    "a gradient of the loss of d. Found none at 100%": lambda images: brightness((255 * images).round() / 255),
    "optimise nothing inside": purified,
    r"finite maps \(4, 1, 16, 16\) of d. Found \(4, 3, 16, 16\)": lambda images: {"d": images},
    "not all finite": lambda images: brightness(images / 0),
    "a dict with maps of d. Found maps of s": lambda images: {"s": images},
    "a dict with maps of d. Found Tensor": lambda images: images,
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_model_that_breaks_a_rule_is_refused_before_any_attack(words, judge, monkeypatch):
    monkeypatch.setattr(evaluation, "errors", None)
    with pytest.raises(ValueError, match=words) as error:
        judge(BROKEN[words])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocol": "2"}, "Parameter protocol should be one of 1, 1-small. Found protocol = '2'."),
        ({"name": "../net"}, "Parameter name: .* Found '../net'"),
        ({"author": "me"}, "Parameter author: .* Names are name, tasks, .*authors.* Found 'me'"),
        ({"link": "javascript:1"}, "Parameter link: "),
        ({"tasks": None}, "Parameter tasks: .* Found None"),
        ({"tasks": "dd"}, "Parameter tasks"),
        ({"data": "cars"}, "Parameter name should be one of rooms, "),
    ],
)
def test_wrong_parameters_are_one_line(settings, words, judge):
    with pytest.raises(ValueError, match=words) as error:
        judge(brightness, **settings)
    assert "\n" not in str(error.value)


def test_a_run_that_was_stopped_goes_on_and_ends_alike(judge, tmp_path, monkeypatch):
    real, calls = evaluation.errors, []

    def counted(*of, **options):
        calls.append(of[2])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*of, **options)

    monkeypatch.setattr(evaluation, "errors", counted)
    with pytest.raises(KeyboardInterrupt):
        judge(brightness)
    assert len(list(tmp_path.glob("parts/*.parquet"))) == 3
    assert not list(tmp_path.glob("*.json"))
    entry, first = judge(brightness), len(calls)
    again = judge(brightness)
    assert len(calls) == first + 1, "the clean error alone is measured again"
    assert again == entry
    whole = judge(brightness, folder=tmp_path / "other")
    assert whole.errors == entry.errors
    assert whole.cost == entry.cost, "what was kept cost what it did"
    moved = judge(lambda images: {"d": brightness(images)["d"] + 0.01})
    assert moved.errors["d"]["worst"][0] > entry.errors["d"]["worst"][0], "another model is measured anew"


def test_a_network_of_ours_gives_what_its_own_evaluation_gives(judge):
    """Only the decoders that are asked for are run, batch norms are folded, and it is left as it was."""
    net = models.build("resnet18_tiny", "sd", definitions=data.tasks("rooms"), seed=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    entry = judge(net, tasks=None)
    assert entry.tasks == "sd"
    assert entry.parameters == sum(each.numel() for each in net.parameters())
    own = evaluation.errors(net, rooms("sd"), AttackSpec(name="pgd", tasks="s", steps=9)).groupby("task")
    assert entry.errors["s"]["clean"][0] == pytest.approx(own.clean_error.mean()["s"], rel=1e-3)
    assert entry.errors["s"]["pgd"][0] >= own.adversarial_error.mean()["s"] - 1e-3
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(each.requires_grad for each in net.parameters())


def test_corruptions_are_those_of_their_words_and_treat_each_image_by_itself():
    images = torch.full((3, 3, 32, 32), 128, dtype=torch.uint8)
    images[:, :, :, 16:] = 200
    for severity, spread in enumerate(corruptions.CORRUPTIONS["noise"], 1):
        noisy = corruptions.corrupted(images[:, :, :, :16], "noise", severity).float() / 255
        expected = (128 / 255 + spread * torch.randn(10**5)).clamp(0, 1).std().item()
        assert noisy.std().item() == pytest.approx(expected, rel=0.05)
    assert corruptions.corrupted(images, "contrast", 3).float().std() == pytest.approx(0.4 * 36, rel=0.03)
    blurred = corruptions.corrupted(images, "blur", 5)[0, 0, 0]  # sigma 1 pixel: 30 % lie beyond the next edge
    assert blurred[[0, 15, 31]].tolist() == [128, pytest.approx(128 + 0.3 * 72, abs=1), 200]
    view = rooms(size=32, limit=3).images
    for kind in corruptions.CORRUPTIONS:
        spoiled = [corruptions.corrupted(view, kind, severity) for severity in range(1, 6)]
        away = [(each.float() - view.float()).square().mean().item() for each in spoiled]
        assert away == sorted(away), kind
        assert away[0] > 0
        assert spoiled[0].dtype == torch.uint8
        assert torch.equal(corruptions.corrupted(view[:2], kind, 3), spoiled[2][:2]), kind


def test_the_transfer_is_made_on_the_released_network_with_most_tasks_but_never_on_itself():
    sd, d = rooms("sd"), rooms("d")
    assert benchmark._source("me/net", "rooms", sd) == "rooms/sdDnE-v1"
    assert benchmark._source("rooms/sdDnE-v1", "rooms", sd) == "rooms/sdDnE-tiny-v1"
    assert benchmark._source("me/net", "folder", sd) is None
    assert benchmark._shared(d, {"d": 3}) == "", "the same letter, another task"
    none = data.load("rooms", tasks="k", split="test", size=16, limit=1)
    assert benchmark._source("me/net", "rooms", none) is None


def test_released_networks_are_small_whole_and_as_good_as_they_say(tmp_path):
    files = list(machine.place(released.FOLDER).rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) < 12e6
    assert len(files) == len(released.names()) >= 2
    for name in released.names():
        known, net = released.about(name), models.load(name)
        state = load_tensors(machine.place(released.FOLDER).joinpath(f"{name}.safetensors").read_bytes())
        assert {value.dtype for value in state.values()} <= {torch.bfloat16, torch.int64}
        nothing = AttackSpec(tasks=net.tasks, eps_255=0, steps=0)
        found = evaluation.errors(net, rooms(net.tasks, 64, known["spec"]["data"]["size"]), nothing)
        assert found.groupby("task").clean_error.mean().to_dict() == pytest.approx(
            known["clean_error"]["bfloat16"], rel=1e-3
        )
        assert known["clean_error"]["bfloat16"] == pytest.approx(known["clean_error"]["float32"], rel=0.01)
    for suffix in (".json", ".safetensors"):
        shutil.copy(machine.place(released.FOLDER) / f"rooms/sdDnE-tiny-v1{suffix}", tmp_path / f"x{suffix}")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(sealed.Damaged, match="not that of its checksum"):
        models.load("x", tmp_path)
    with pytest.raises(
        ValueError, match="should be one of rooms/sdDnE-tiny-v1, rooms/sdDnE-v1, in .* Found name = '../x'"
    ):
        models.load("../x")


def test_a_model_of_a_store_is_released_and_loaded(tmp_path, monkeypatch, capsys):
    spec = ModelSpec(data=DataSpec(size=16), tasks="ds", encoder="resnet18_tiny", images=8, epochs=1, batch_size=4)
    store = Store(tmp_path / "store", "cpu")
    net = board.release(store, spec, "rooms/ds-v1", tmp_path / "models")
    assert released.names(tmp_path / "models") == ["rooms/ds-v1"]
    own = store.model(spec).state_dict()
    for name, value in net.state_dict().items():
        expected = own[name].bfloat16().float() if own[name].is_floating_point() else own[name]
        assert torch.equal(value, expected), name
    assert net.tasks == "ds"
    assert net.definitions == store.model(spec).definitions
    known = released.about("rooms/ds-v1", tmp_path / "models")
    assert ModelSpec(**known["spec"]) == spec
    assert set(known["clean_error"]["float32"]) == {"d", "s"}
    assert main(["release-models", str(machine.root() / "params" / "smoke"), str(tmp_path), "rooms/x=0123"]) == 2
    assert "NAME=KEY" in capsys.readouterr().err


def test_the_example_of_the_documentation_works_as_it_is_written(tmp_path, monkeypatch, capsys):
    text = (machine.root() / "docs" / "library.md").read_text(encoding="utf-8")
    (code,) = (each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "mtrlib.benchmark(" in each)
    monkeypatch.setitem(mtrlib.benchmark.__kwdefaults__, "folder", str(tmp_path))
    left: dict = {}
    exec(compile(code, "library.md", "exec"), left)
    assert left["entry"].tasks == "sd"
    assert any(of.startswith("clean, s") for of in left["entry"].unreliable), "it has learned nothing"
    assert left["released"].tasks == "sdDnE"
    assert capsys.readouterr().out.startswith("(0.")
    assert len(list(tmp_path.glob("*.json"))) == 1


def made(name, tasks, architecture, worst, **words) -> board.Entry:
    numbers = {setting: (worst / 2, None, None) for setting in ("clean", "pgd", "sea", "square")}
    errors = {task: numbers | {"worst": (worst + n, worst, worst + 2)} for n, task in enumerate(tasks)}
    values = {"name": name, "tasks": tasks, "architecture": architecture, "protocol": "1", "errors": errors}
    values |= {"data": "rooms", "size": 48, "images": 256, "parameters": 10**6, "units": dict.fromkeys(tasks, "mm")}
    values |= {
        "times": {task: (2 * worst, None, None) for task in (*tasks, "all")},
        "constant": dict.fromkeys(tasks, 9.0),
    }
    values |= {"corruptions": {task: {"noise": (1.0, 2.0, 3.0, 4.0, 5.0)} for task in tasks}, "unreliable": ()}
    values |= {
        "without_gradient": {},
        "cost": {"forward": 100 / worst, "backward": 1.0},
        "source": None,
    }
    return board.valid(board.Entry, **values | {"written_by": {}} | words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A board of five entries, and its page."""
    folder = tmp_path_factory.mktemp("board")
    entries = [made("a/one", "s", "big", 3.0), made("b/two", "sd", "small", 1.0), made("c/three", "sd", "big", 2.0)]
    entries.append(made("e/other-size", "sd", "big", 0.5, size=64))
    told = {"authors": "<b>me</b>", "link": "https://example.org/x", "unreliable": ("square & co",)}
    entries.append(made("d/four", "ds", "a very long name of an architecture", 10.0, **told))
    for number, entry in enumerate(entries):
        (folder / f"{number}.json").write_text(entry.model_dump_json())
    assert board.write(folder) == folder / "index.html"
    return folder


def test_the_page_has_every_number_escapes_words_and_asks_no_other_address(folder):
    page = (folder / "index.html").read_text()
    assert "<b>me" not in page
    assert "&lt;b&gt;me&lt;/b&gt;" in page
    assert "Unreliable: square &amp; co" in page
    assert re.findall(r'(?:href|src)="([^"]*)"', page) == ["data:,", *["https://example.org/x"] * 3]
    assert page.count("<tr data-") == 2 + 3 + 3 + 3 + 3
    assert '"1.0">1.00<small>[1.00, 3.00]' in page
    assert "rooms, 64 px, 256 images, protocol 1" in page


def test_what_is_no_entry_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="Found none in"):
        board.write(tmp_path)
    (tmp_path / "x.json").write_text(json.dumps({"name": "x", "rank": 1}))
    with pytest.raises(ValueError, match=r"x.json should be an entry of the board. Parameter \w+: [^\n]*$"):
        board.write(tmp_path)
    assert main(["board", str(tmp_path)]) == 2
    assert "x.json should be" in capsys.readouterr().err


def test_the_committed_page_is_that_of_the_committed_entries(tmp_path):
    entries = sorted(COMMITTED.glob("*.json"))
    assert len(entries) >= 2
    for path in entries:
        shutil.copy(path, tmp_path)
        entry = board.Entry.model_validate_json(path.read_bytes())
        assert set(entry.errors) == set(entry.tasks)
        for numbers in entry.errors.values():
            assert numbers["worst"][0] >= max(of[0] for of in numbers.values()) - 1e-9
    assert main(["board", str(tmp_path)]) == 0
    assert (tmp_path / "index.html").read_bytes() == (COMMITTED / "index.html").read_bytes()


# Clicks and choices of a reader, in a frame as wide as a screen; what is then seen, as JSON.
READER = """<!doctype html><body><iframe width="{width}" height="900" src="{page}"></iframe><pre></pre><script>
const frame = document.querySelector("iframe"), told = [];
frame.onload = () => {{
  const page = frame.contentDocument, choose = (name, value) => {{
    const select = page.querySelector(`select[name=${{name}}]`);
    select.value = value;
    select.dispatchEvent(new Event("change"));
  }};
  const click = column => page.querySelector(`th[data-column=${{column}}] button`).click();
  const seen = () => {{
    const rows = [...page.querySelectorAll("tbody tr")].filter(row => !row.hidden);
    told.push(rows.map(row => row.cells[0].textContent + " " + row.cells[1].firstChild.textContent));
  }};
  const steps = [() => 0, () => click("worst"), () => click("model"), () => click("cost"),
    () => choose("architecture", "big"), () => choose("architecture", ""), () => choose("tasks", "sd"),
    () => choose("task", "d"), () => choose("tasks", ""), () => click("transfer"), () => choose("task", "all"),
    () => choose("on", "rooms, 64 px, 256 images, protocol 1")];
  for (const step of steps) {{ step(); seen(); }}
  const wide = page.documentElement;
  told.push([page.defaultView.innerWidth, wide.scrollWidth, page.querySelector("th[aria-sort]").dataset.column]);
  document.querySelector("pre").textContent = JSON.stringify(told);
}};
</script>"""


@pytest.mark.skipif(CHROMIUM is None and os.environ.get("MTRLIB_CHROMIUM") != "required", reason="no chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_reader_sorts_and_filters_in_a_browser(folder, width, tmp_path):
    assert CHROMIUM, "MTRLIB_CHROMIUM=required, and there is no chromium"
    page = (folder / "index.html").as_uri()
    (tmp_path / "reader.html").write_text(READER.format(width=width, page=page))
    document, complaints = opened(tmp_path / "reader.html")
    assert complaints == []
    *seen, (inside, scrolled, sorted_by) = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", document)[1]))
    one, two, three, four = "a/one", "b/two", "c/three", "d/four"
    expected = [
        [two, three, one, four],  # the worst case of s, the least first
        [four, one, three, two],
        [one, two, three, four],
        [four, one, three, two],  # passes, of which those with the highest error have fewest
        [one, three],
        [four, one, three, two],
        [three, two],
        [three, two],
        [four, three, two],
        [four, three, two],  # by a column that is empty: as they were
        [four, one, three, two],
        ["e/other-size"],
    ]
    for found, names in zip(seen[:9], expected[:9], strict=True):
        assert found == [f"{rank} {name}" for rank, name in enumerate(names, 1)]
    assert [sorted(name[2:] for name in found) for found in seen[9:]] == [sorted(names) for names in expected[9:]]
    assert inside == width
    assert scrolled <= width, "the table scrolls, not the page"
    assert sorted_by == "transfer"


@pytest.mark.skipif(CHROMIUM is None and os.environ.get("MTRLIB_CHROMIUM") != "required", reason="no chromium")
def test_an_address_says_how_the_page_is_sorted_and_chosen(folder):
    document, complaints = opened(folder / "index.html", "#sort=model&down=1&task=d&tasks=sd&architecture=none")
    assert complaints == []
    rows = re.findall(r"<tr data-[^>]*?(hidden=\"\")?><td>(\d*)</td><td[^>]*>(?:<a[^>]*>)?([\w/-]+)", document)
    assert [(rank, name) for hidden, rank, name in rows if not hidden] == [("1", "c/three"), ("2", "b/two")]
    assert not opened(COMMITTED / "index.html")[1]


def opened(page, hash="") -> tuple[str, list[str]]:
    """The document as the browser has it, and what its console says."""
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --enable-logging=stderr --dump-dom"
    frames = ["--window-size=1300,1000", "--allow-file-access-from-files"]
    command = [CHROMIUM, *options.split(), *frames, page.as_uri() + hash]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_foreign_network_stays_in_the_mode_that_gives_its_maps_and_keeps_its_weights(judge):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))

        def forward(self, images):
            return {"d": self.body(images)}

    torch.manual_seed(0)
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    entry = judge(net)
    assert entry.parameters == sum(each.numel() for each in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(each.grad is None for each in net.parameters())
