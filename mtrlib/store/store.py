"""Trained models and what was measured of them on disk, by the content of their specification: nothing is computed
twice.

    <path>/format                       what wrote the store; another format is refused
    <path>/models/<code>/<key>/         spec.json, epoch_<e>.safetensors, record.json (written last: with it the model
                                        is complete)
    <path>/errors/<code>/<key>.parquet  errors of each image; tables of other kinds in folders named after them

<code> is the digest of the sources that decide the result (`sources`): what other code computed stays where it is, and
is not taken for what this code gives. Errors that were released (`released`) are the other way round a record of the
code that made them: a store that is given their file finds them there, before it computes anything.

Files appear whole or not at all. Each is checked by its sha256 when it is read (that of a checkpoint lies in
record.json, those of others beside them): what is damaged, or of another key, is set aside and computed again. So are
the errors of a model that was trained again since and came out otherwise, as it may on another machine. Two processes
that want the same thing compute it once: each entry has a lock that the operating system gives back when its owner
dies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
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
from mtrlib.store import evaluation, sources
from mtrlib.store.released import Released

_CODE = ("attacks",)  # that decides errors, beside what decides the models
FORMAT = "mtrlib store 3\n"  # of the files, not of what is in them: that is part of the keys
T = TypeVar("T")


class Store:
    """A folder of results.

    Parameters
    ----------
    path : the folder; made when first written to. A relative path starts at the repository.
    device : to train and attack on; by default the first CUDA device, else the CPU.
    released : a file of released errors, where there is one. What is in it is not computed, whatever code made it;
        a model is trained only when its outputs are asked for. A relative path starts at the repository.
    precision : "auto" takes released errors of any precision of convolutions, others those of that precision.

    Raises
    ------
    ValueError : for a folder in which another version has written its results, and for a file of released errors that
        is missing or damaged.
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

    def has_model(self, spec: ModelSpec) -> bool:
        """Whether the model is trained: its record and all its checkpoints are there."""
        folder = self.folder(spec)
        files = (folder / "record.json", *(training.checkpoint(folder, epoch) for epoch in spec.checkpoints))
        return all(file.exists() for file in files)

    def has_record(self, spec: ModelSpec) -> bool:
        """Whether the model is trained, here or by whom the errors were released."""
        return self.has_model(spec) or self.released.record(spec) is not None

    def has_errors(
        self, spec: ModelSpec, attack: AttackSpec, epoch: int | None = None, source: ModelSpec | None = None
    ) -> bool:
        """Whether the attack was run, here or by whom the errors were released."""
        wanted = _evaluation(spec, attack, epoch, source)
        about = wanted.model_dump(mode="json")
        return self.released.has("errors", about) or self._file("errors", about, _attacked(wanted), _CODE).exists()

    def model(self, spec: ModelSpec, epoch: int | None = None, description: str = "") -> MultiTaskModel:
        """The trained model, in evaluation mode, frozen, on the device of the store; trained now where it is missing.

        Parameters
        ----------
        spec : the model and its training.
        epoch : one of `spec.checkpoints`; None for the last.
        description : shown with the progress of the training.
        """
        epoch = spec.epochs if epoch is None else epoch
        if epoch not in spec.checkpoints:
            raise ValueError(f"Parameter epoch should be one of {spec.checkpoints}. Found epoch = {epoch}.")
        return self._whole(spec, lambda: self._load_model(spec, epoch), description)

    def data(self, spec: ModelSpec, split: str, limit: int | None = None) -> Dataset:
        """The data of a model, "train" or "test", the first `limit` images."""
        return self._load_data(spec.data, spec.tasks, split, limit)

    def record(self, spec: ModelSpec) -> dict:
        """What is known of a trained model: its specification, history by epoch, seconds, number of images, what wrote
        it and by which code."""
        if (released := self.released.record(spec)) is not None:
            return released
        if not self.has_model(spec):
            raise ValueError(f"The store {self.path} should have the model {spec.key} of {spec.tasks!r}. It has not.")
        return self._whole(spec, lambda: self._record(spec))

    def errors(
        self,
        spec: ModelSpec,
        attack: AttackSpec,
        epoch: int | None = None,
        advance: Callable[[int], object] = lambda images: None,
        source: ModelSpec | None = None,
    ) -> pd.DataFrame:
        """The errors of each image without and under the attack; attacked now where they are missing.

        `advance` is told the number of images of each batch that is attacked. With a `source` the attack is made on
        that model, after its training, and shown to this one.

        Returns
        -------
        One row an image and trained task, with the columns of the errors table: model_id, trained_tasks, main,
        encoder, weights, seed, epoch, attack ("pgd on <model id>" with a source), norm, eps_255, steps, attacked_tasks,
        task, image_id, clean_error, adversarial_error, clean_loss, adversarial_loss.
        """
        wanted = _evaluation(spec, attack, epoch, source)

        def measure() -> pd.DataFrame:
            return evaluation.errors(
                self.model(spec, wanted.epoch),
                self._load_data(spec.data, spec.tasks, "test", attack.images),
                attack,
                precision=spec.precision,
                device=self.device,
                batch_size=64 if self.device.type == "cpu" else 256,
                advance=advance,
                source=None if source is None else self.model(source),
            )

        measured = self._table("errors", wanted.model_dump(mode="json"), _attacked(wanted), measure, _CODE)
        columns = {
            "model_id": spec.key,
            "trained_tasks": spec.tasks,
            "main": spec.tasks[0],
            **{name: getattr(spec, name) for name in ("encoder", "weights", "seed")},
            "epoch": wanted.epoch,
            "attack": attack.name if source is None else f"{attack.name} on {source.key}",
            **{name: getattr(attack, name) for name in ("norm", "eps_255", "steps")},
            "attacked_tasks": attack.tasks,
        }
        return pd.concat([pd.DataFrame(columns, index=measured.index), measured], axis=1)

    def table(
        self,
        kind: str,
        about: dict[str, Any],
        of: Iterable[tuple[ModelSpec, int]],
        make: Callable[[], pd.DataFrame],
        code: tuple[str, ...] = ("attacks", "theory"),
    ) -> pd.DataFrame:
        """What was measured of models beside errors, kept as errors are; measured now where it is missing.

        Parameters
        ----------
        kind : the name of the folder that it lies in.
        about : all that decides the table beside the code and the models, as JSON knows it.
        of : the models that it is of, and their epochs.
        make : measures it.
        code : the parts of `sources.PARTS` that decide it, beside those of its models.
        """
        return self._table(kind, _about_models(about, of), of, make, code)

    def has_table(self, kind: str, about: dict, of: list, code: tuple[str, ...] = ("attacks", "theory")) -> bool:
        """Whether `table` has it, here or by whom the errors were released."""
        about = _about_models(about, of)
        return self.released.has(kind, about) or self._file(kind, about, of, code).exists()

    def others(self) -> Iterator[tuple[str, dict, pd.DataFrame, dict[str, str]]]:
        """Every table beside the errors that this code measured: its kind, what it is of, the table, the code."""
        for path in sorted(self.path.glob("*/*/*.parquet")):
            kind = path.parent.parent.name
            if kind != "errors":
                rows, said = sealed.stored(path)
                if (code := said["written_by"]["code"]) == sources.digests(code):
                    yield kind, said["about"], rows, code

    def _table(self, kind: str, about: dict, of: list, make, code: tuple[str, ...]) -> pd.DataFrame:
        if (released := self.released.table(kind, about)) is not None:
            return released
        path = self._file(kind, about, of, code)
        if not path.exists():
            self._mark_format()
        written_by = {**_written_by(self.device), "code": sources.digests(_parts(of, code))}
        return sealed.table(path, about, make, written_by, lambda: self._checkpoints(of))

    def _file(self, kind: str, about: dict, of: list, code: tuple[str, ...]) -> Path:
        return self.path / kind / sources.together(_parts(of, code)) / f"{key_of(about)}.parquet"

    def _checkpoints(self, of: Iterable[tuple[ModelSpec, int]]) -> dict[str, str]:
        """The sha256 of checkpoints, by "models/<key> epoch <e>", as far as they are here."""
        found = {}
        for spec, epoch in of:
            if self.has_model(spec):
                with suppress(sealed.Damaged):
                    written = {row["epoch"]: row.get("sha256") for row in self._record(spec)["history"]}
                    found[f"models/{spec.key} epoch {epoch}"] = written[epoch]
        return found

    def _whole(self, spec: ModelSpec, read: Callable[[], T], description: str = "") -> T:
        """What `read` reads of a model; trained first where it is missing, and again where it is damaged."""
        folder = self.folder(spec)
        if self.has_model(spec):
            try:
                return read()
            except sealed.Damaged:
                pass
            with sealed.locked(folder / "lock"):
                try:
                    return read()  # another process may have trained it again
                except sealed.Damaged as error:
                    sealed.set_aside(error.path, error.reason)
                    (folder / "record.json").unlink(missing_ok=True)  # no longer complete
        self._train(spec, description)
        return read()

    def _train(self, spec: ModelSpec, description: str) -> None:
        folder = self.folder(spec)
        self._mark_format()
        with sealed.locked(folder / "lock"):
            if self.has_model(spec):
                return
            sealed.write(folder / "spec.json", spec.model_dump_json(indent=1).encode())
            data = self._load_data(spec.data, spec.tasks, "train", spec.images)
            history = training.fit(spec, data, folder, self.device, description)
            record = {
                "spec": spec.model_dump(mode="json"),
                "seconds": round(sum(epoch["seconds"] for epoch in history), 2),
                "images": len(data),
                "history": history,
                "written_by": _written_by(self.device),
                "code": sources.digests(sources.of_model(spec.data.name)),
            }
            sealed.seal(folder / "record.json", json.dumps(record, indent=1).encode())
            resume = folder / "resume.safetensors"
            for path in (resume, sealed.partial(resume)):
                path.unlink(missing_ok=True)

    def _record(self, spec: ModelSpec) -> dict:
        path = self.folder(spec) / "record.json"
        record = json.loads(sealed.read(path))
        if not isinstance(record, dict) or record.get("spec") != spec.model_dump(mode="json"):
            raise sealed.Damaged(path, "it is of another model")
        return record

    def _load_model(self, spec: ModelSpec, epoch: int) -> MultiTaskModel:
        written = {row["epoch"]: row.get("sha256") for row in self._record(spec)["history"]}
        content = sealed.read(training.checkpoint(self.folder(spec), epoch), written[epoch])
        model = training.build(spec, spec.data.tasks)
        model.load_state_dict(load_tensors(content))
        return model.to(self.device).eval().requires_grad_(False)

    def _mark_format(self) -> None:
        if not (self.path / "format").exists():
            with sealed.locked(self.path / "format.lock"):
                sealed.write(self.path / "format", FORMAT.encode())

    def _load_data(self, spec: DataSpec, tasks: str, split: str, limit: int | None) -> Dataset:
        if digest(spec.name, spec.folder) != spec.digest:
            raise ValueError(
                f"The description of the data in {spec.folder} has changed since the parameters were read."
            )
        options = {"size": spec.size, "seed": spec.seed, "on_bad": spec.on_bad}
        data = load(spec.name, tasks=tasks, split=split, root=spec.folder, limit=limit, **options)
        if self.device.type == "cuda" and data.nbytes < 0.5 * torch.cuda.mem_get_info(self.device)[0]:
            return data.to(self.device)
        return data

    def folder(self, spec: ModelSpec) -> Path:
        """Where a model of this code is kept."""
        return self.path / "models" / sources.together(sources.of_model(spec.data.name)) / spec.key


def _evaluation(spec: ModelSpec, attack: AttackSpec, epoch: int | None, source: ModelSpec | None) -> Evaluation:
    return Evaluation(model=spec, attack=attack, epoch=spec.epochs if epoch is None else epoch, source=source)


def _attacked(wanted: Evaluation) -> list[tuple[ModelSpec, int]]:
    """The models of an evaluation, and their epochs."""
    source = wanted.source
    return [(wanted.model, wanted.epoch), *([] if source is None else [(source, source.epochs)])]


def _about_models(about: dict, of: Iterable[tuple[ModelSpec, int]]) -> dict:
    """Both together, as JSON reads them back."""
    return json.loads(json.dumps({**about, "of": [[spec.model_dump(mode="json"), epoch] for spec, epoch in of]}))


def _parts(of: Iterable[tuple[ModelSpec, int]], code: Iterable[str]) -> tuple[str, ...]:
    """The parts of the sources that decide what is measured of models."""
    return tuple(dict.fromkeys([*(part for spec, _ in of for part in sources.of_model(spec.data.name)), *code]))


def _written_by(device: torch.device) -> dict:
    return {**machine.describe(), "computed_on": device.type}


def _check_format(path: Path) -> None:
    """ValueError for a store of another format, with what to do."""
    mark = machine.folder(path, "the store", made=True) / "format"
    try:
        found = mark.read_bytes()
    except FileNotFoundError:
        if not any(entry for kind in ("models", "errors") for entry in path.glob(f"{kind}/*")):
            return
        found = b"an older one, without the file format"
    if found != FORMAT.encode():
        raise ValueError(
            f"The store {path} should have the format {FORMAT.strip()!r}. "
            f"Found {found[:80].decode(errors='replace')!r}. "
            "Move that folder away or give another store: its results are computed again."
        )
