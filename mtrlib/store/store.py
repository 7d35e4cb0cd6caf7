"""Trained models and what was measured of them, on disk by the content of their specification: nothing twice.

    <path>/format                       what wrote the store; another format is refused
    <path>/models/<code>/<key>/         spec.json, epoch_<e>.safetensors, record.json (written last: with it the model
                                        is complete)
    <path>/errors/<code>/<key>.parquet  errors of each image; tables of other kinds in folders named after them

<code> is the digest of the sources that decide the result (`sources`): what other code computed stays, and is not taken
for what this code gives. Released errors (`released`) are a record of the code that made them: found whatever the code.
Each file is checked by its sha256 when it is read (that of a checkpoint lies in record.json): what is damaged, or of
another key, is set aside and computed again. So are the errors of a model that was trained again since and came out
otherwise, as it may on another machine. Of two processes that want the same thing one computes it (`sealed.kept`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from safetensors.torch import load as load_tensors

from mtrlib import machine, sealed, training
from mtrlib.data import Dataset, digest, load
from mtrlib.models import MultiTaskModel
from mtrlib.specs import AttackSpec, DataSpec, Evaluation, ModelSpec, key_of
from mtrlib.store import evaluation, sources, tables
from mtrlib.store.released import Released

FORMAT = "mtrlib store 3\n"  # of the files, not of what is in them: that is part of the keys
T = TypeVar("T")
Of = Sequence[tuple[ModelSpec, int]]  # models and their epochs
# Parts of `sources.PARTS` that decide a table, beside those of its models.
_ERRORS = ("attacks",)
_OTHERS = ("attacks", "theory")


class Store:
    """A folder of results; ValueError where another version has written them.

    Parameters
    ----------
    path : the folder; made when first written to. Relative paths start at the repository.
    device : to train and attack on; by default the first CUDA device, else the CPU.
    released : a file of released errors, where there is one. What is in it is not computed; a model is trained only
        when its outputs are asked for.
    precision : "auto" takes released errors of any precision of convolutions, others those of that precision.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str | None = None,
        released: str | Path = "",
        precision: str = "float32",
    ):
        self.path = machine.place(path)
        _check_format(self.path)
        self.released = Released(machine.place(released) if released else None, any_precision=precision == "auto")
        self.device = torch.device(device) if device is not None else machine.device()
        self._load_data = lru_cache(maxsize=2)(self._load_data)
        self._load_model = lru_cache(maxsize=3)(self._load_model)

    def folder(self, spec: ModelSpec) -> Path:
        """Where a model of this code is kept."""
        return self.path / "models" / sources.together(sources.of_model(spec.data.name)) / spec.key

    def has_model(self, spec: ModelSpec) -> bool:
        """Whether the model is trained: its record and all its checkpoints are there."""
        folder = self.folder(spec)
        files = (folder / "record.json", *(training.checkpoint(folder, epoch) for epoch in spec.checkpoints))
        return all(map(Path.exists, files))

    def has_record(self, spec: ModelSpec) -> bool:
        """Whether the model is trained, here or by whom the errors were released."""
        return self.has_model(spec) or self.released.record(spec) is not None

    def has_errors(self, of: Evaluation | ModelSpec, attack: AttackSpec | None = None) -> bool:
        """As `has_table`, of `errors`."""
        wanted = _evaluation(of, attack)
        return self.has_table("errors", wanted, wanted.attacked, _ERRORS)

    def has_table(self, kind: str, about: dict | Evaluation, of: Of, code: tuple[str, ...] = _OTHERS) -> bool:
        """Whether `table` has it, here or by whom the errors were released."""
        about = _about(about, of)
        return self.released.has(kind, about) or self._file(kind, about, of, code).exists()

    def model(self, spec: ModelSpec, epoch: int | None = None, description: str = "") -> MultiTaskModel:
        """The model after `epoch` (one of `spec.checkpoints`; None: the last), evaluating, frozen, on the store's
        device; trained now, with `description` beside the progress, where it is missing."""
        epoch = spec.epochs if epoch is None else epoch
        if epoch not in spec.checkpoints:
            raise ValueError(f"Parameter epoch should be one of {spec.checkpoints}. Found epoch = {epoch}.")
        return self._whole(spec, lambda: self._load_model(spec, epoch), description)

    def data(self, spec: ModelSpec, split: str, limit: int | None = None) -> Dataset:
        """The data of a model, "train" or "test", the first `limit` images."""
        return self._load_data(spec.data, spec.tasks, split, limit)

    def record(self, spec: ModelSpec) -> dict:
        """What is known of a trained model: spec, history by epoch, seconds, images, written_by, code."""
        if (released := self.released.record(spec)) is not None:
            return released
        if not self.has_model(spec):
            raise ValueError(f"The store {self.path} should have the model {spec.key} of {spec.tasks!r}. It has not.")
        return self._whole(spec, lambda: self._record(spec))

    def errors(
        self,
        of: Evaluation | ModelSpec,
        attack: AttackSpec | None = None,
        advance: Callable[[int], object] = lambda images: None,
    ) -> pd.DataFrame:
        """The errors of each image without and under the attack; attacked now where they are missing.

        `of` is the evaluation; or a model, after its training, and the `attack` on it. `advance` is told the number of
        images of each batch that is attacked. One row an image and trained task: `Evaluation.columns`, and task,
        image_id, clean_error, adversarial_error, clean_loss, adversarial_loss.
        """
        wanted = _evaluation(of, attack)

        def measure() -> pd.DataFrame:
            return evaluation.errors(
                self.model(wanted.model, wanted.epoch),
                self.data(wanted.model, "test", wanted.attack.images),
                wanted.attack,
                precision=wanted.model.precision,
                device=self.device,
                batch_size=64 if self.device.type == "cpu" else 256,
                advance=advance,
                source=wanted.source and self.model(wanted.source),
            )

        measured = self.table("errors", wanted, wanted.attacked, measure, _ERRORS)
        return pd.concat([pd.DataFrame(wanted.columns, index=measured.index), measured], axis=1)

    def table(
        self,
        kind: str,
        about: dict[str, Any] | Evaluation,
        of: Of,
        make: Callable[[], pd.DataFrame],
        code: tuple[str, ...] = _OTHERS,
    ) -> pd.DataFrame:
        """What was measured of models, such as errors; measured now where it is missing.

        Parameters
        ----------
        kind : its folder.
        about : all that decides the table beside the code and the models, as JSON knows it.
        of : the models that it is of, and their epochs.
        make : measures it.
        code : the parts of `sources.PARTS` that decide it, beside those of its models.
        """
        about = _about(about, of)
        if (released := self.released.table(kind, about)) is not None:
            return released
        path = self._file(kind, about, of, code)

        def read() -> pd.DataFrame:
            rows, words = tables.read(path)
            if words.get("about") != about:
                raise sealed.Damaged(path, "it is of something else")
            once = words.get("made_from", {})
            for name, sha256 in self._checkpoints(of).items():
                if once.get(name, sha256) != sha256:
                    raise sealed.Damaged(path, f"{name} is not what it was made from")
            return rows

        def measure() -> pd.DataFrame:
            rows, by = make(), self._written_by() | {"code": sources.digests(_parts(of, code))}
            tables.write(path, rows, {"about": about, "made_from": self._checkpoints(of), "written_by": by})
            return read()

        self._mark_format()
        return sealed.kept(path.with_name(f"{path.name}.lock"), path.exists, read, measure)

    def others(self) -> Iterator[tuple[str, dict, pd.DataFrame, dict[str, str]]]:
        """Every table beside the errors that this code measured: its kind, what it is of, the table, the code."""
        for path in sorted(self.path.glob("*/*/*.parquet")):
            if (kind := path.parents[1].name) == "errors":
                continue
            rows, words = tables.read(path)
            if (code := words["written_by"]["code"]) == sources.digests(code):
                yield kind, words["about"], rows, code

    def _file(self, kind: str, about: dict, of: Of, code: tuple[str, ...]) -> Path:
        return self.path / kind / sources.together(_parts(of, code)) / f"{key_of(about)}.parquet"

    def _checkpoints(self, of: Of) -> dict[str, str]:
        """The sha256 of checkpoints, by "models/<key> epoch <e>", as far as they are here."""
        found = {}
        for spec, epoch in [each for each in of if self.has_model(each[0])]:
            with suppress(sealed.Damaged):
                found[f"models/{spec.key} epoch {epoch}"] = self._sha256(spec, epoch)
        return found

    def _whole(self, spec: ModelSpec, read: Callable[[], T], description: str = "") -> T:
        """What `read` reads of a model; trained first where it is missing, and again where it is damaged."""

        def train() -> T:
            self._train(spec, description)
            return read()

        self._mark_format()
        return sealed.kept(self.folder(spec) / "lock", lambda: self.has_model(spec), read, train)

    def _train(self, spec: ModelSpec, description: str) -> None:
        folder = self.folder(spec)
        (folder / "record.json").unlink(missing_ok=True)  # not complete until its end
        sealed.write(folder / "spec.json", spec.model_dump_json(indent=1).encode())
        data = self.data(spec, "train", spec.images)
        history = training.fit(spec, data, folder, self.device, description)
        record = {
            "spec": spec.model_dump(mode="json"),
            "seconds": round(sum(epoch["seconds"] for epoch in history), 2),
            "images": len(data),
            "history": history,
            "written_by": self._written_by(),
            "code": sources.digests(sources.of_model(spec.data.name)),
        }
        sealed.seal(folder / "record.json", json.dumps(record, indent=1).encode())
        for path in (resume := folder / "resume.safetensors", sealed.partial(resume)):
            path.unlink(missing_ok=True)

    def _record(self, spec: ModelSpec) -> dict:
        path = self.folder(spec) / "record.json"
        record = json.loads(sealed.read(path))
        if not isinstance(record, dict) or record.get("spec") != spec.model_dump(mode="json"):
            raise sealed.Damaged(path, "it is of another model")
        return record

    def _sha256(self, spec: ModelSpec, epoch: int) -> str:
        return next(row["sha256"] for row in self._record(spec)["history"] if row["epoch"] == epoch)

    def _load_model(self, spec: ModelSpec, epoch: int) -> MultiTaskModel:
        content = sealed.read(training.checkpoint(self.folder(spec), epoch), self._sha256(spec, epoch))
        model = training.build(spec, spec.data.tasks)
        model.load_state_dict(load_tensors(content))
        return model.to(self.device).eval().requires_grad_(False)

    def _load_data(self, spec: DataSpec, tasks: str, split: str, limit: int | None) -> Dataset:
        if digest(spec.name, spec.folder) != spec.digest:
            told = "has changed since the parameters were read"
            raise ValueError(f"The description of the data in {spec.folder} {told}.")
        same = {"size": spec.size, "seed": spec.seed, "on_bad": spec.on_bad}
        data = load(spec.name, tasks=tasks, split=split, root=spec.folder, limit=limit, **same)
        if self.device.type == "cuda" and data.nbytes < 0.5 * torch.cuda.mem_get_info(self.device)[0]:
            return data.to(self.device)
        return data

    def _mark_format(self) -> None:
        if not (self.path / "format").exists():
            with sealed.locked(self.path / "format.lock"):
                sealed.write(self.path / "format", FORMAT.encode())

    def _written_by(self) -> dict:
        return machine.describe() | {"computed_on": self.device.type}


def _evaluation(of: Evaluation | ModelSpec, attack: AttackSpec | None) -> Evaluation:
    return of if isinstance(of, Evaluation) else Evaluation(model=of, attack=attack)


def _about(about: dict | Evaluation, of: Of) -> dict:
    """All that decides a table beside the code, as JSON reads it back."""
    if isinstance(about, Evaluation):
        return about.model_dump(mode="json")
    return json.loads(json.dumps({**about, "of": [[spec.model_dump(mode="json"), epoch] for spec, epoch in of]}))


def _parts(of: Of, code: Iterable[str]) -> tuple[str, ...]:
    """The parts of the sources that decide what is measured of models."""
    return tuple(dict.fromkeys([*(part for spec, _ in of for part in sources.of_model(spec.data.name)), *code]))


def _check_format(path: Path) -> None:
    """ValueError for a store of another format, with what to do."""
    mark = machine.folder(path, "the store", made=True) / "format"
    begun = any(path.glob("models/*")) or any(path.glob("errors/*"))
    found = mark.read_bytes() if mark.exists() else b"an older one, without the file format"
    if found != FORMAT.encode() and (begun or mark.exists()):
        raise ValueError(
            f"The store {path} should have the format {FORMAT.strip()!r}. Found {found[:80].decode(errors='replace')!r}"
            ". Move that folder away or give another store: its results are computed again."
        )
