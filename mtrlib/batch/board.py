"""The board of multi-task models: an entry each, as JSON that `benchmark` writes, and one static page of them."""

from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment
from pydantic import Field, ValidationError

from mtrlib.data import sealed
from mtrlib.metrics import tables
from mtrlib.models import MultiTaskModel, released
from mtrlib.specs import AttackSpec, ModelSpec, Spec, Tasks
from mtrlib.store import Store, evaluation

Numbers = tuple[float | None, float | None, float | None]  # a value and its 95 % interval; None where there is none
S = TypeVar("S", bound=Spec)
# The columns of the page by name, and those by which rows are chosen.
COLUMNS = {"model": "model", "worst": "worst case", "times": "worst, times clean", "clean": "clean", "pgd": "PGD-25"}
COLUMNS |= {"sea": "SEA", "square": "Square", "transfer": "transfer", "corrupted": "corrupted"}
COLUMNS |= {"constant": "best constant", "task": "task", "tasks": "task set", "architecture": "architecture"}
COLUMNS |= {"cost": "passes an image", "on": "data, size, images, protocol"}
CHOSEN = ("on", "task", "tasks", "architecture")


class About(Spec):
    """What whoever hands in a model says of it."""

    name: str = Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")
    tasks: Tasks
    architecture: str = ""
    authors: str = ""
    link: str = Field(default="", pattern=r"^(https://[^\s\"<>]+)?$")
    venue: str = ""
    additional_data: str = ""
    notes: str = ""


class Entry(About):
    """One model on the board, and what was measured of it, by task letter."""

    data: str
    size: int
    images: int
    protocol: str
    parameters: int | None  # how many numbers the network has
    units: dict[str, str]
    # clean, pgd, sea, square, transfer (where there is another network to make it on) and worst: means over images.
    errors: dict[str, dict[str, Numbers]]
    times: dict[str, Numbers]  # how many times the clean error the worst case is; "all" the geometric mean over tasks
    corruptions: dict[str, dict[str, tuple[float, ...]]]  # the mean error at each severity
    constant: dict[str, float]  # the error of the best constant map
    unreliable: tuple[str, ...]  # why the numbers may say less than they seem to
    without_gradient: dict[str, float]  # the share of images, by task
    cost: dict[str, float]  # forward and backward passes of the network an image
    source: str | None  # the released network of transfer
    written_by: dict[str, str]


def valid(kind: type[S], **values: object) -> S:
    """The value of this kind; ValueError of one line where a field is unknown or wrong."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise ValueError(_sentence(error, kind)) from None


def write(folder: Path) -> Path:
    """Write `index.html`, whose path is returned, from the entries of a folder, *.json: a row an entry and task."""
    entries = []
    for path in sorted(folder.glob("*.json")):
        try:
            entries.append(Entry.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            raise ValueError(f"{path} should be an entry of the board. {_sentence(error, Entry)}") from None
    if not entries:
        raise ValueError(f"The folder should hold entries of the board, *.json. Found none in {folder}.")
    rows = [_row(entry, task) for entry in entries for task in (*entry.tasks, "all")]
    chosen = {name: list(dict.fromkeys(row[name]["value"] for row in rows)) for name in CHOSEN}
    chosen["task"].sort(key="all".__eq__)
    page = Environment(autoescape=True).from_string(files("mtrlib.batch").joinpath("board.html").read_text("utf-8"))
    text = page.render(rows=rows, columns=COLUMNS, chosen=chosen, number=len(entries))
    sealed.write(folder / "index.html", text.encode())
    return folder / "index.html"


def release(store: Store, spec: ModelSpec, name: str, folder: str | Path = released.FOLDER) -> MultiTaskModel:
    """Release a model of a store, trained now where it is missing, for `models.load`. Beside the weights stand its
    specification, where it was trained, and its clean errors (64 images) before and after rounding to bfloat16."""
    model, test = store.model(spec), store.data(spec, "test", 64)
    told = {"spec": spec.model_dump(mode="json"), "written_by": store.record(spec)["written_by"]}
    rounded = released.save(model, spec.encoder, name, folder, **told).to(store.device)
    nothing, clean = AttackSpec(tasks=spec.tasks, eps_255=0, steps=0), {}
    for precision, network in {"float32": model, "bfloat16": rounded}.items():
        errors = evaluation.errors(network, test, nothing, device=store.device)
        clean[precision] = errors.groupby("task", sort=False).clean_error.mean().to_dict()
    return released.save(model, spec.encoder, name, folder, **told, clean_error=clean)


def _row(entry: Entry, task: str) -> dict[str, dict]:
    """The cells of a row by column: the value that it is sorted and chosen by, its text and what stands small below."""
    words = {"model": entry.name, "task": task, "tasks": entry.tasks, "architecture": entry.architecture or "?"}
    words["on"] = f"{entry.data}, {entry.size} px, {entry.images} images, protocol {entry.protocol}"
    row = {name: {"value": value, "text": value} for name, value in words.items()}
    row["model"] |= {"link": entry.link, "below": "; ".join(filter(None, (entry.authors, entry.venue, entry.notes)))}
    row["model"]["warning"] = "; ".join(entry.unreliable)
    row["task"]["below"] = entry.units.get(task, "")
    if entry.parameters:
        row["architecture"]["below"] = f"{entry.parameters / 1e6:.3g} M parameters"
    spoiled = [error for errors in entry.corruptions.get(task, {}).values() for error in errors]
    numbers: dict[str, Numbers] = {**entry.errors.get(task, {}), "times": entry.times[task]}
    if task != "all":
        numbers |= {"constant": (entry.constant[task], None, None)}
        numbers |= {"corrupted": (sum(spoiled) / len(spoiled), None, None)}
    for name, (value, low, high) in numbers.items():
        row[name] = {"value": value, "text": "" if value is None else tables.number(value)}
        if low is not None and high is not None and name in ("worst", "times"):
            row[name]["below"] = tables.interval(low, high)
    passes = entry.cost["forward"] + entry.cost["backward"]
    row["cost"] = {"value": passes, "text": f"{passes:,.0f}"}
    return row


def _sentence(error: ValidationError, kind: type[Spec]) -> str:
    fault = error.errors()[0]
    allowed = f"Names are {', '.join(kind.model_fields)}. " if fault["type"] == "extra_forbidden" else ""
    name, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ").rstrip(".")
    return f"Parameter {name}: {message}. {allowed}Found {fault['input']!r}."
