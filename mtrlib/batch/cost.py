"""What a run will cost, before it is started: operations of the convolutions, and seconds where the store has records.

An estimate: a step of plain training counts as three forward passes, a step of an attack as two (Square's queries as
one), and every decoder is counted, also where an attack runs fewer.
"""

import json
from collections import defaultdict

import pandas as pd

from mtrlib import machine, studies
from mtrlib.batch.tier import Needs, evaluations, unattacked, untrained
from mtrlib.claims.judging import OPEN, verdict
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import Store
from mtrlib.studies import Cell
from mtrlib.tasks import Task
from mtrlib.training import adversarial

# Operations at 64 x 64 pixels of each encoder, of a decoder that goes with it, and of each channel that this gives. At
# other sizes they are as many for each pixel. Models need not be built to know what they cost, which takes seconds.
_OPERATIONS = {
    "resnet18": (296_091_648, 130_547_712, 2_359_296),
    "resnet50": (667_287_552, 143_130_624, 2_359_296),
    "resnet152": (1_879_441_408, 143_130_624, 2_359_296),
    "wide_resnet50_2": (1_860_567_040, 143_130_624, 2_359_296),
    "xception_small": (281_911_296, 34_304_000, 393_216),
    "resnet18_small": (479_920_128, 201_326_592, 2_359_296),
    "resnet50_small": (995_819_520, 251_658_240, 2_359_296),
    "wide_resnet50_2_small": (2_824_536_064, 251_658_240, 2_359_296),
    "resnet18_tiny": (30_326_784, 12_582_912, 589_824),
    "resnet50_tiny": (62_570_496, 15_728_640, 589_824),
}
_COLUMNS = ["key", "tasks", "encoder", "weights", "seed", "trained", "attacks", "attacked", "images"]
_COLUMNS += ["image_operations", "attack_operations", "seconds"]


def estimate(needs: Needs) -> pd.DataFrame:
    """What is left to do for each model.

    Returns
    -------
    One row a model, in the order of `needs.models`: key, tasks, encoder, weights, seed, trained (whether it is),
    attacks, attacked (how many of them were run), images (to train on; NaN where their number is not known before the
    data are read), image_operations (of the whole training, an image), attack_operations (that are left), seconds (that
    the rest takes, at the rate of the store's records of this encoder and size on a device like this one, else of all
    records on it; NaN without any).
    """
    definitions = {p.model(p.tasks).data: p.definitions for p in needs.parameters.values()}
    rates, images = _records(needs.store, definitions)
    rate, rows = rates.get((), float("nan")), []
    for key, spec in needs.models.items():
        attacks, left = evaluations(needs, [key]), unattacked(needs, [key])
        forward, trained = operations(spec, definitions[spec.data]), not untrained(needs, [key])
        number = spec.images or images.get((spec.data, None), float("nan"))
        image_operations = adversarial.passes(spec) * forward * spec.epochs
        attack_operations = float(sum(forward * e.attack.images * _passes(e.attack) for e in left))
        seconds = (0.0 if trained else image_operations * number) + attack_operations
        row = [key, spec.tasks, spec.encoder, spec.weights, spec.seed, trained, len(attacks), len(attacks) - len(left)]
        rows.append([*row, number, image_operations, attack_operations, seconds / rates.get(_kind(spec), rate)])
    return pd.DataFrame(rows, columns=_COLUMNS)


def summary(needs: Needs, table: pd.DataFrame) -> str:
    """The estimate in a few lines of plain text; `table` as `estimate` gives it."""
    notebooks = f"{len(needs.parameters)} notebook{'s' * (len(needs.parameters) > 1)}"
    new, device = table[~table.trained.astype(bool)], _device(machine.processor())
    train, attack = (new.image_operations * new.images).sum() / 1e15, table.attack_operations.sum() / 1e15
    attacks = f"{table.attacks.sum()} attacks on them, {table.attacked.sum()} of them run already"
    lines = [f"{notebooks}: {len(table)} models, {table.trained.sum()} of them trained already; {attacks}."]
    lines.append(f"Left: about {train:.3g} PFLOP to train and {attack:.3g} PFLOP to attack.")
    if len(unknown := new[new.images.isna()]):
        some = (
            f"{len(unknown)} of the models on all images of their data, whose number is not known before they are read"
        )
        more = unknown.image_operations.sum() / 1e12
        lines.append(f"To train {some}: about {more:.3g} PFLOP more for each 1,000 images.")
    if table.seconds.isna().all() and len(table):
        lines.append(f"Seconds unknown: the store has no model that was trained on {device}.")
    else:
        hours = table.seconds.sum() / 3600
        lines.append(f"About {hours:.2g} hours of jobs one after another, at the rate of the store's on {device}.")
    return "\n".join(lines)


def closing(findings: pd.DataFrame, cells: list[Cell], store: Store) -> pd.DataFrame:
    """What the open claims need, by the power of their findings (`claims`), one row each.

    Parameters
    ----------
    findings : as `claims.findings` gives them for the study.
    cells, store : of the study, and where its models are, or the records of those that were released.

    Returns
    -------
    number, findings (open ones that decide), needs (of the one that needs most), PFLOP (that it takes beside what there
    is) and hours, at the rate at which the models of the study were trained, one after another. NaN where no number of
    seeds and images would do.
    """
    specs, done = studies.models(cells), studies.evaluations(cells)
    trained = sum(adversarial.passes(s) * operations(s) * store.record(s)["images"] * s.epochs for s in specs)
    attacked = sum(float(operations(e.model) * e.attack.images * _passes(e.attack)) for e in done)
    rate = trained / sum(store.record(spec)["seconds"] for spec in specs)
    told = findings.number.map(lambda number: verdict(findings[findings.number == number]))
    table = findings[(told == OPEN) & (findings.verdict == OPEN) & findings.decides][["number", "needs"]]
    size = table.needs.str.extract(r"^(\d+) seeds(?:, (\d+) times the images)?$").astype(float)
    seeds, times = size[0] / len({e.model.seed for e in done}), size[1].where(size[1].notna() | size[0].isna(), 1.0)
    more = (seeds * (trained + attacked * times) - trained - attacked).clip(lower=0)
    table = table.assign(PFLOP=more / 1e15, hours=more / rate / 3600)
    table.insert(1, "findings", table.groupby("number").needs.transform("size"))
    return table.sort_values("PFLOP").drop_duplicates("number", keep="last").sort_values("number", ignore_index=True)


def operations(spec: ModelSpec, definitions: dict[str, Task] | None = None) -> int:
    """As `rq4.forward_operations` counts them, at once for the encoders of `encoders.ENCODERS`; `definitions` of
    the tasks are read from its data unless given."""
    if spec.encoder not in _OPERATIONS or spec.architecture != "hard":
        from mtrlib.studies.rq4 import forward_operations

        return forward_operations(spec, definitions)
    encoder, decoder, channel = _OPERATIONS[spec.encoder]
    definitions = definitions or spec.data.tasks
    channels = [definitions[letter].channels for letter in spec.tasks if not definitions[letter].per_image]
    return (encoder + decoder * len(channels) + channel * sum(channels)) * spec.data.size**2 // 64**2


def _passes(attack: AttackSpec) -> int:
    """Forward passes that an attack on one image is worth, and the two that measure it."""
    steps = 1 if attack.name == "fgsm" else attack.steps
    a_step = {"square": 1, "ensemble": 5 * 2, "sea": 5 * 2 + 2}.get(attack.name, 2)  # of each of their attacks
    return attack.restarts * steps * a_step + 2


def _records(store: Store, definitions: dict[DataSpec, dict[str, Task]]) -> tuple[dict[tuple, float], dict[tuple, int]]:
    """Operations a second by kind of model, and () of all, on devices like this one; images of each data set used."""
    device = _device(machine.processor())
    sums: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0.0])
    images = {}
    for path in sorted(store.path.glob("models/*/*/record.json")):
        record = json.loads(path.read_text())
        try:
            spec = ModelSpec.model_validate(record["spec"])
            forward = operations(spec, definitions.get(spec.data))
        except ValueError:  # written by another version, or its data are gone
            continue
        images[spec.data, spec.images] = record["images"]
        if _device(record["written_by"]["device"]) == device and record["seconds"] > 0:
            for kind in (_kind(spec), ()):
                sums[kind][0] += adversarial.passes(spec) * forward * record["images"] * spec.epochs
                sums[kind][1] += record["seconds"]
    rates = {kind: done / seconds for kind, (done, seconds) in sums.items()}
    return rates, images


def _kind(spec: ModelSpec) -> tuple:
    return spec.encoder, spec.architecture, spec.data.size, spec.precision


def _device(described: str) -> str:
    """Without the number of threads: "cpu (x86_64, 2 threads)" -> "cpu (x86_64)"."""
    return described.rsplit(",", 1)[0] + ")"
