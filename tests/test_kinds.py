"""Tasks of other kinds than the paper's: labels, ordinal classes, several channels, whole images."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from tqdm import tqdm

from mtrlib import attacks, data, figures, machine, models
from mtrlib.__main__ import main
from mtrlib.batch import cost
from mtrlib.data import decoding
from mtrlib.dataset import Dataset
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import Store, evaluation
from mtrlib.tasks import BALANCED, TASKS, Task

SALIENCY = Task("b", "saliency", "", 1, "labels", BALANCED)
SCENE = Task("c", "scene", "", 3, "classes", class_names=("hall", "kitchen", "bath"), per_image=True)
THINGS = Task("m", "things", "", 3, "labels", class_names=("cup", "door", "dog"), per_image=True)
QUALITY = Task("q", "quality", "", 2, "ordinal", class_names=("bad", "fair", "good"))
AGE = Task("a", "age", "", 2, "ordinal", per_image=True)
FLOW = Task("v", "flow", "", 2, error_name="distance", target_unit="px")
SIZE_OF = Task("z", "size", "", 2, per_image=True, target_unit="m/s")
TASKS_HERE = {task.letter: task for task in (SALIENCY, SCENE, THINGS, QUALITY, AGE, FLOW, SIZE_OF)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(decoding, "bar", lambda **_: tqdm(disable=True))
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


def drawn(number: int, size: int = 32) -> tuple[torch.Tensor, dict, dict]:
    """Images, targets and masks of all tasks here."""
    generator = torch.Generator().manual_seed(number)
    targets = {}
    for letter, task in TASKS_HERE.items():
        pixels = () if task.per_image else (size, size)
        if task.classes:
            targets[letter] = torch.randint(task.classes, (number, *pixels), generator=generator).to(torch.uint8)
        else:
            values = torch.randn((number, task.channels, *pixels), generator=generator)
            targets[letter] = (values > 0.5).float() if task.kind == "labels" else values
    masks = {"b": torch.rand((number, size, size), generator=generator) > 0.3, "c": torch.arange(number) != 1}
    return torch.rand((number, 3, size, size), generator=generator), targets, dict.fromkeys(targets) | masks


def by_hand(logit: float, there: bool) -> float:
    return math.log1p(math.exp(-logit if there else logit))


def test_a_balanced_cross_entropy_weighs_what_is_there_as_much_as_what_is_not():
    output = torch.tensor([[[[2.0, -1.0, 0.5, 0.0]]]])
    target, mask = torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]]), torch.tensor([[[True, True, True, False]]])
    there, not_there = by_hand(2.0, True), (by_hand(-1.0, False) + by_hand(0.5, False)) / 2
    assert SALIENCY.loss(output, target, mask).item() == pytest.approx((there + not_there) / 2)
    nothing = SALIENCY.loss(output, torch.zeros_like(target), mask)
    assert nothing.item() == pytest.approx((by_hand(2.0, False) + 2 * not_there) / 3)
    assert SALIENCY.loss(output, target, torch.zeros_like(mask)).item() == 0


def test_labels_have_an_overlap_of_all_pixels_and_labels():
    output = torch.tensor([[1.0, 1.0, -1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
    target = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    f1 = Task("m", "things", "", 3, "labels", error_name="1 - F1", per_image=True)
    wrong = Task("m", "things", "", 3, "labels", error_name="share of wrong labels", per_image=True)
    assert THINGS.error(output, target).tolist() == pytest.approx([2 / 3, 0, 1, 0])
    assert f1.error(output, target).tolist() == pytest.approx([1 / 2, 0, 1, 0])
    assert wrong.error(output, target).tolist() == pytest.approx([2 / 3, 0, 1 / 3, 0])
    mask = torch.tensor([True, False, True, True])
    assert THINGS.error(output, target, mask).isnan().tolist() == [False, True, False, False]
    assert THINGS.loss(output, target)[0].item() == pytest.approx((2 * by_hand(1, False) + by_hand(1, True)) / 3)


def test_an_ordinal_task_counts_thresholds():
    output = torch.tensor([[3.0, 1.0], [3.0, -1.0], [-2.0, -3.0]])
    target = torch.tensor([2, 0, 1], dtype=torch.uint8)
    assert AGE.error(output, target).tolist() == [0, 1, 1]
    far = torch.tensor([[5.0, 5.0]])
    assert AGE.error(far, torch.tensor([0])).item() == 2
    assert AGE.loss(output, target)[1].item() == pytest.approx((by_hand(3, False) + by_hand(-1, False)) / 2)
    assert [task.classes for task in (AGE, THINGS, SCENE)] == [3, 0, 3]
    exact = Task("a", "age", "", 2, "ordinal", error_name="1 - rank accuracy", per_image=True)
    assert exact.error(far, torch.tensor([0])).item() == 1


def test_a_distance_is_of_all_channels_and_has_a_gradient_where_it_is_0():
    output = torch.zeros(1, 2, 1, 2, requires_grad=True)
    target = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    error = FLOW.error(output, target)
    assert error.item() == pytest.approx(2.5)
    (gradient,) = torch.autograd.grad(error.sum(), output)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("task", [SCENE, THINGS, AGE, SIZE_OF], ids=lambda task: task.letter)
def test_a_task_of_whole_images_is_one_of_maps_of_one_pixel(task):
    dense = Task(task.letter, task.name, "", task.channels, task.kind, task.loss_name, task.error_name)
    _, targets, _ = drawn(5)
    output, target = torch.randn(5, task.channels), targets[task.letter]
    mask = torch.tensor([True, True, False, True, True])
    for kind, m in itertools.product(("loss", "error"), (None, mask)):
        one = getattr(task, kind)(output, target, m)
        maps = (None if x is None else x[..., None, None] for x in (output, target, m))
        torch.testing.assert_close(one, getattr(dense, kind)(*maps), equal_nan=True)


def test_units_come_from_the_description():
    assert [task.unit for task in (FLOW, SIZE_OF, SALIENCY)] == ["distance (px)", "squared error ((m/s)²)", "1 - IoU"]
    assert Task("d", "z-depth in metres", "", 1, target_unit="m").unit == "squared error (m²)"
    assert not Task("d", "z-depth", "", 1, target_unit="m").is_papers
    assert {task.unit for task in TASKS.values()} == {"1 - mIoU", "squared error"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "classes", "error_name": "1 - mIoU", "per_image": True}, "error_name should be one of 1 - accuracy"),
        ({"kind": "labels", "loss_name": BALANCED, "per_image": True}, "loss_name should be one of binary"),
        ({"kind": "ranks"}, "kind should be one of classes, regression, labels, ordinal. Found kind = 'ranks'"),
    ],
)
def test_a_task_says_what_its_kind_allows(fields, message):
    with pytest.raises(ValueError, match=message):
        Task("x", "x", "", 3, **fields)


@pytest.fixture(scope="module")
def model() -> models.MultiTaskModel:
    return models.build("resnet18_tiny", "".join(TASKS_HERE), definitions=TASKS_HERE, seed=0).eval()


def test_a_model_gives_maps_and_vectors(model):
    images, _, _ = drawn(2)
    shapes = {letter: tuple(output.shape) for letter, output in model(images).items()}
    assert shapes == {x: (2, t.channels) if t.per_image else (2, t.channels, 32, 32) for x, t in TASKS_HERE.items()}
    same = models.build("resnet18_tiny", "c", definitions=TASKS_HERE, seed=0).eval()
    assert torch.equal(same(images)["c"], model(images)["c"])
    alone = cost.operations(ModelSpec(data=DataSpec(), tasks="s", encoder="resnet18_tiny"), {"s": SCENE})
    assert alone == 30_326_784


@pytest.mark.parametrize("dense", attacks.DENSE)
def test_every_loss_of_attacks_bears_every_kind(model, dense):
    images, targets, masks = drawn(3)
    letters = "".join(TASKS_HERE)
    losses = attacks.task_losses(model, targets, masks, letters, dense=dense)
    images.requires_grad_()
    rows = losses(images)
    assert rows.shape == (7, 3)
    (gradient,) = torch.autograd.grad(rows.sum(), images)
    assert gradient.isfinite().all()
    if dense == "error":
        with torch.no_grad():
            outputs = model(images)
        wanted = [task.error(outputs[x], targets[x], masks[x]).nan_to_num() for x, task in TASKS_HERE.items()]
        torch.testing.assert_close(rows.detach(), torch.stack(wanted))


@pytest.mark.parametrize("name", attacks.NAMED)
def test_every_attack_bears_every_kind(model, name):
    images, targets, masks = drawn(2)
    losses = attacks.task_losses(model, targets, masks, "".join(TASKS_HERE))
    settings = {"generator": torch.Generator().manual_seed(0), "eps": 8 / 255, "step_size": 2 / 255, "steps": 2}
    attacked = attacks.NAMED[name](losses, images, **settings)
    assert (attacked - images).abs().max() <= 8 / 255 + 1e-6
    assert not torch.equal(attacked, images)


def test_the_best_constant_is_no_worse_than_any_other():
    images, targets, masks = drawn(16, 4)
    names = tuple(map(str, range(16)))
    given = Dataset("made", images, targets, masks, names, (), tasks=TASKS_HERE)
    found = evaluation.constant_errors(given, given).groupby("task").constant_error.mean()
    for letter in "bmqac":
        task = TASKS_HERE[letter]
        if task.kind == "labels":
            others = [torch.tensor(signs) for signs in ([1.0] * task.channels, [-1.0] * task.channels)]
        else:
            ranks = torch.arange(task.classes)
            above = [torch.where(rank > torch.arange(task.channels), 1.0, -1.0) for rank in ranks]
            others = above if task.kind == "ordinal" else F.one_hot(ranks).float()
        target = targets[letter]
        shape = () if task.per_image else target.shape[-2:]
        spread = (other.view(1, -1, *[1] * len(shape)).expand(16, -1, *shape) for other in others)
        assert found[letter] <= min(task.error(each, target, masks[letter]).nanmean().item() for each in spread) + 1e-6


def test_labels_without_a_valid_pixel_to_train_on_have_a_constant():
    """No label is as good as any other there; the test images have some."""
    images, targets, masks = drawn(3)
    given = Dataset("made", images, {"b": targets["b"]}, {"b": masks["b"]}, ("0", "1", "2"), (), tasks=TASKS_HERE)
    nowhere = torch.zeros(len(images), *targets["b"].shape[-2:], dtype=torch.bool)
    found = evaluation.constant_errors(replace(given, masks={"b": nowhere}), given)
    assert found.constant_error.notna().all()


KINDS_OF_FILES = {
    "b": {"kind": "labels", "loss": "balanced cross-entropy"},
    "m": {"kind": "labels", "classes": ["cup", "door"], "per": "image"},
    "c": {"kind": "classes", "classes": ["hall", "kitchen"], "per": "image", "invalid": 255},
    "q": {"kind": "ordinal", "classes": 4},
    "v": {"kind": "regression", "channels": 2, "error": "distance", "unit": "px"},
    "z": {"kind": "regression", "per": "image", "scale": 0.5, "unit": "m", "error": "absolute error"},
}


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for letter in ("x", *KINDS_OF_FILES):
        (tmp_path / letter).mkdir()
    for number in range(12):
        files = {"m": generator.integers(0, 2, 2), "c": np.array([number % 2]), "q": generator.integers(0, 4, (32, 32))}
        files |= {"v": generator.normal(size=(32, 32, 2)), "z": np.array(float(number))}
        if number == 0:
            files["c"] = np.array(255)
        for letter, values in files.items():
            np.save(tmp_path / letter / f"{number}.npy", values)
        images = {"x": generator.integers(0, 256, (32, 32, 3)), "b": 255 * generator.integers(0, 2, (32, 32))}
        for letter, values in images.items():
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / letter / f"{number}.png")
    suffix = {"b": "png"}
    tasks = [{"letter": x, **each, "files": f"{x}/{{id}}.{suffix.get(x, 'npy')}"} for x, each in KINDS_OF_FILES.items()]
    ids = [str(number) for number in range(12)]
    what = {"images": "x/{id}.png", "tasks": tasks, "splits": {"train": ids[:8], "test": ids[8:]}}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(what))
    return tmp_path


def test_a_folder_of_every_kind_is_read_checked_and_drawn(folder):
    letters = "".join(KINDS_OF_FILES)
    train = data.load("folder", tasks=letters, split="train", size=16, root=folder)
    shapes = {letter: tuple(values.shape[1:]) for letter, values in train.targets.items()}
    assert shapes == {"b": (1, 16, 16), "m": (2,), "c": (), "q": (16, 16), "v": (2, 16, 16), "z": (1,)}
    assert set(train.targets["b"].unique().tolist()) == {0, 1}
    assert train.targets["z"][:, 0].tolist() == [0.5 * number for number in range(8)]
    assert train.targets["c"][1:].tolist() == [number % 2 for number in range(1, 8)]
    assert train.masks["c"].tolist() == [False] + [True] * 7
    assert [train.tasks[letter].unit for letter in "vz"] == ["distance (px)", "absolute error (m)"]
    table = data.check("folder", folder).set_index(["split", "task"])
    assert not table.stops.any()
    assert table.loc["train", "c"].classes == {"hall": 3, "kitchen": 4}
    assert len(table.loc["train", "q"].classes) == 4
    rows = {"label": figures.labels(train.targets, train.masks, 1)}
    built = models.build("resnet18_tiny", letters, definitions=train.tasks, seed=0).eval()
    rows["output"] = {x: output[0] for x, output in built(train.batch(slice(0, 1))[0]).items()}
    drawn = figures.images(rows, (), train.tasks)
    texts = {text.get_text() for axis in drawn.axes for text in axis.texts}
    assert {"kitchen", "0.5"} <= texts


def test_a_sheet_shows_every_kind_also_where_a_file_is_missing(folder, capsys):
    (folder / "c" / "8.npy").unlink()
    (folder / "q" / "9.npy").unlink()
    sheet = folder / "sheet.png"
    assert main(["check-data", "folder", str(folder), "--sheet", str(sheet)]) == 1
    assert "shows 12 of the frames" in capsys.readouterr().out
    assert sheet.stat().st_size > 0


def test_a_store_trains_attacks_and_measures_every_kind(folder, tmp_path):
    of = DataSpec(name="folder", root=str(folder), digest=data.digest("folder", folder), size=32)
    settings = {"encoder": "resnet18_tiny", "epochs": 1, "batch_size": 4}
    store = Store(tmp_path / "store", device="cpu")
    for weights, precision in (("uniform", "bfloat16"), ("gradnorm", "float32")):
        spec = ModelSpec(data=of, tasks="cbmqvz", weights=weights, precision=precision, **settings)
        rows = store.errors(spec, AttackSpec(tasks="cbmqvz", steps=2, images=4))
        assert rows.groupby("task").adversarial_error.count().to_dict() == dict.fromkeys("cbmqvz", 4)
    totals = rows.groupby("image_id")[["clean_loss", "adversarial_loss"]].sum()
    assert (totals.adversarial_loss > totals.clean_loss).all()
    assert len(store.constant_errors(of, "c", None, 4)) == 4


@pytest.mark.parametrize(
    ("letter", "changes", "message"),
    [
        ("c", {"files": "c/{id}.png"}, "files of whole images should be NPY or CSV, and CSV of these alone"),
        ("q", {"files": "q.csv"}, "files of whole images should be NPY or CSV, and CSV of these alone"),
        ("b", {"unit": "m"}, "unit should be given of regression alone"),
        ("m", {"classes": 2}, "labels have names as classes or a number as channels"),
        ("q", {"classes": None}, "classes should be given where the kind is classes"),
        ("b", {"kind": "binary"}, "kind: Input should be 'classes', 'regression', 'labels' or 'ordinal'"),
    ],
)
def test_a_description_says_what_a_kind_takes(folder, letter, changes, message):
    path = folder / "dataset.yaml"
    what = yaml.safe_load(path.read_text())
    (task,) = (task for task in what["tasks"] if task["letter"] == letter)
    task |= changes
    path.write_text(yaml.safe_dump(what))
    with pytest.raises(ValueError, match=message):
        data.tasks("folder", folder)


def test_a_file_of_a_whole_image_holds_as_many_numbers_as_there_are(folder):
    np.save(folder / "m" / "3.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"m/3.npy should be an array \(2,\)\. Found \(3,\)"):
        data.load("folder", tasks="m", split="train", size=16, root=folder)


def test_one_table_has_the_classes_labels_and_values_of_all_images(folder):
    path = folder / "dataset.yaml"
    what = yaml.safe_load(path.read_text())
    chosen = {task["letter"]: task for task in what["tasks"] if task["letter"] in "cmz"}
    for letter, task in chosen.items():
        task["files"] = f"tables/{letter}.csv"
    path.write_text(yaml.safe_dump(what | {"tasks": list(chosen.values())}))
    (folder / "tables").mkdir()
    places = ["hall" if number % 3 else "kitchen" for number in range(12)]
    lines = {"c": [*places[:6], "255", *places[7:]], "m": [f"{number % 2}, 1" for number in range(12)], "z": range(12)}
    for letter, values in lines.items():
        text = "image,value\n" + "".join(f"{number},{value}\n" for number, value in enumerate(values))
        (folder / f"tables/{letter}.csv").write_text(text)
    train = data.load("folder", tasks="cmz", split="train", size=16, root=folder)
    assert train.targets["c"].tolist() == [1, 0, 0, 1, 0, 0, 0, 0]
    assert train.masks["c"].tolist() == [True] * 6 + [False, True]
    assert train.targets["m"].tolist() == [[number % 2, 1] for number in range(8)]
    assert train.targets["z"].flatten().tolist() == [number / 2 for number in range(8)]
    assert not data.check("folder", folder).stops.any()
    digest, table = data.digest("folder", folder), folder / "tables/c.csv"
    table.write_text(table.read_text().replace("7,hall", "7,kitchen"))
    assert data.digest("folder", folder) != digest
    assert data.load("folder", tasks="c", split="train", size=16, root=folder).targets["c"][7] == 1
    for line, message in {
        "7,cellar": r"c.csv, line of 7 should hold 1 numbers, or one of \['hall', 'kitchen'\]. Found \['cellar'\]",
        "7,4": "line of 7 should hold classes 0 to 1. Found 4",
        "7,0,1": "line of 7 should hold 1 numbers",
        "77,0": "line of 7 is missing: 7 has no labels of c",
        "6,0": "c.csv should have one line of an image. Found 2 of '6'",
    }.items():
        table.write_text("".join(f"{line if number == 7 else f'{number},0'}\n" for number in range(12)))
        with pytest.raises(ValueError, match=message):
            data.load("folder", tasks="c", split="train", size=16, root=folder)


def test_diodes_own_normals_stand_beside_what_is_derived(tmp_path):
    for number in range(4):
        stem = tmp_path / f"{'train' if number < 2 else 'val'}/indoors/scene_{number:05}/scan_{number:05}/{number}"
        stem.parent.mkdir(parents=True)
        Image.fromarray(np.full((12, 16, 3), 40 * number, np.uint8)).save(f"{stem}.png")
        np.save(f"{stem}_depth.npy", np.full((12, 16, 1), 2.0, np.float32))
        np.save(f"{stem}_depth_mask.npy", np.ones((12, 16), np.float32))
        normal = np.zeros((12, 16, 3), np.float32)
        normal[:, 8:, 0] = 1
        np.save(f"{stem}_normal.npy", normal)
    text = (machine.root() / "docs" / "data.md").read_text()
    (block,) = (block for block in text.split("```") if "_normal.npy" in block)
    (tmp_path / "dataset.yaml").write_text(block.removeprefix("yaml"))
    found = data.load("folder", tasks="nd", split="train", size=12, root=tmp_path)
    assert found.masks["n"][0, 0].tolist() == [False] * 6 + [True] * 6
    assert found.targets["n"][0, :, 0, 11].tolist() == [1, 0, 0]
    assert found.masks["d"].all()
    assert found.tasks["n"].unit == "degrees"
