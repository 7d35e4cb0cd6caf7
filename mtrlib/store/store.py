"""Trained models and what was measured of them, on disk by the content of their specification: nothing twice.

    <path>/format                       what wrote the store; another format is refused
    <path>/models/<code>/<key>/         spec.json, epoch_<e>.safetensors, record.json (written last: with it the model
                                        is complete)
    <path>/errors/<code>/<key>.parquet  errors of each image; tables of other kinds in folders named after them

<code> is the digest of the sources that decide the result (`sources`). Each file is checked by its sha256 when it is
read (that of a checkpoint lies in record.json): what is damaged, or of another key, is set aside and computed again. So
are errors of a model that was trained again and came out otherwise. Of two processes that want a thing one computes it.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from safetensors.torch import load as load_tensors

from mtrlib import machine, training
from mtrlib.data import Dataset, digest, load, sealed
from mtrlib.models import MultiTaskModel
from mtrlib.specs import AttackSpec, DataSpec, Evaluation, ModelSpec, key_of
from mtrlib.store import evaluation, sources
from mtrlib.store.released import Released

FORMAT = "mtrlib store 3\n"  # of the files, not of what is in them: that is part of the keys
T = TypeVar("T")
Of = Sequence[tuple[ModelSpec, int]]  # models and their epochs
_CODE = ("attacks", "theory")  # parts of `sources.PARTS` that decide a table, beside those of its models
_FEW = 512  # images that a constant is taken from, at most


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
        self.path = machine.folder(machine.place(path), "the store", made=True)
        mark, begun = self.path / "format", any(any(self.path.glob(f"{kind}/*")) for kind in ("models", "errors"))
        older = b"an older one, without the file format" if begun else FORMAT.encode()
        if (written := mark.read_bytes() if mark.exists() else older) != FORMAT.encode():
            wanted, found = FORMAT.strip(), written[:80].decode(errors="replace")
            advice = "Move that folder away or give another store: its results are computed again."
            raise ValueError(f"The store {self.path} should have the format {wanted!r}. Found {found!r}. {advice}")
        self.released = Released(machine.place(released) if released else None, any_precision=precision == "auto")
        self.device = machine.device() if device is None else torch.device(device)
        self._load_data = lru_cache(maxsize=2)(self._load_data)
        self._load_model = lru_cache(maxsize=3)(self._load_model)

    def folder(self, spec: ModelSpec) -> Path:
        """Where a model of this code is kept."""
        return self.path / "models" / sources.together(sources.of_model(spec)) / spec.key

    def has_model(self, spec: ModelSpec) -> bool:
        """Whether the model is trained: its record and all its checkpoints are there."""
        folder = self.folder(spec)
        files = (folder / "record.json", *(training.checkpoint(folder, epoch) for epoch in spec.checkpoints))
        return all(map(Path.exists, files))

    def has_record(self, spec: ModelSpec) -> bool:
        """Whether the model is trained, here or by whom the errors were released."""
        return self.has_model(spec) or self.released.record(spec) is not None

    def has_errors(self, of: Evaluation | ModelSpec, attack: AttackSpec | None = None) -> bool:
        """Whether `errors` has them, here or by whom they were released."""
        of = _evaluation(of, attack)
        return self.has_table("errors", of, of.attacked, ("attacks",))

    def has_table(self, kind: str, about: dict | Evaluation, of: Of, code: tuple[str, ...] = _CODE) -> bool:
        """Whether `table` has it, here or by whom the errors were released."""
        about, path, _ = self._place(kind, about, of, code)
        return path.exists() or self.released.has_table(kind, about)

    def model(self, spec: ModelSpec, epoch: int | None = None, description: str = "") -> MultiTaskModel:
        """The model after `epoch` (one of `spec.checkpoints`; None: the last), evaluating, frozen, on the store's
        device; trained now, with `description` beside the progress, where it is missing."""
        epoch = spec.epochs if epoch is None else epoch
        if epoch not in spec.checkpoints:
            raise ValueError(f"Parameter epoch should be one of {spec.checkpoints}. Found epoch = {epoch}.")
        return self._of_model(spec, lambda: self._load_model(spec, epoch), description)

    def data(self, spec: ModelSpec, split: str, limit: int | None = None) -> Dataset:
        """The data of a model, "train" or "test", the first `limit` images."""
        return self._load_data(spec.data, spec.tasks, split, limit)

    def record(self, spec: ModelSpec) -> dict:
        """What is known of a trained model: spec, history by epoch, seconds, images, written_by, code."""
        if (released := self.released.record(spec)) is not None:
            return released
        if not self.has_model(spec):
            raise ValueError(f"The store {self.path} should have the model {spec.key} of {spec.tasks!r}. It has not.")
        return self._of_model(spec, lambda: self._record(spec))

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
        of = _evaluation(of, attack)

        def measure() -> pd.DataFrame:
            more = "".join(letter for letter in of.attack.tasks if letter not in of.model.tasks)  # of the source alone
            data = self._load_data(of.model.data, of.model.tasks + more, "test", of.attack.images)
            model = self.model(of.model, of.epoch)
            size = 64 if self.device.type == "cpu" else 256
            options = {"precision": of.model.precision, "device": self.device, "batch_size": size, "advance": advance}
            return evaluation.errors(model, data, of.attack, source=of.source and self.model(of.source), **options)

        measured = self.table("errors", of, of.attacked, measure, ("attacks",))
        return pd.concat([pd.DataFrame(of.columns, index=measured.index), measured], axis=1)

    def constant_errors(self, data: DataSpec, letter: str, train: int | None, test: int) -> pd.Series | None:
        """`evaluation.constant_errors` of a task at the first `test` images, by image_id, from the first `train` (at
        most 512) training images; None where errors were released without it."""
        train = min(train or _FEW, _FEW)
        about = {"data": data.model_dump(mode="json"), "task": letter, "train": train, "test": test}
        code = (sources.of_data(data.name), "attacks")
        if self.released.path is not None and not self.has_table("constants", about, [], code):
            return None

        def measure() -> pd.DataFrame:
            numbers = {"train": train, "test": test}
            return evaluation.constant_errors(*(self._load_data(data, letter, *of) for of in numbers.items()))

        return self.table("constants", about, [], measure, code).set_index("image_id").constant_error

    def table(
        self,
        kind: str,
        about: dict[str, Any] | Evaluation,
        of: Of,
        make: Callable[[], pd.DataFrame],
        code: tuple[str, ...] = _CODE,
    ) -> pd.DataFrame:
        """What was measured of models, such as errors; measured now, by `make`, where it is missing.

        `kind` names its folder. What decides it: `about`, as JSON knows it; the models and their epochs, `of`; and the
        code, in the parts of `sources.PARTS` that decide those models, and in the parts `code`.
        """
        about, path, digests = self._place(kind, about, of, code)
        if (released := self.released.table(kind, about)) is not None:
            return released

        def read() -> pd.DataFrame:
            rows, words = sealed.read_table(path)
            if words.get("about") != about:
                raise sealed.Damaged(path, "it is of something else")
            once = words.get("made_from", {})
            for name, sha256 in self._checkpoints(of).items():
                if once.get(name, sha256) != sha256:
                    raise sealed.Damaged(path, f"{name} is not what it was made from")
            return rows

        def measure() -> pd.DataFrame:
            rows, by = make(), machine.describe() | {"computed_on": self.device.type, "code": digests}
            sealed.seal_table(path, rows, {"about": about, "made_from": self._checkpoints(of), "written_by": by})
            return read()

        return self._kept(path.with_name(f"{path.name}.lock"), path.exists, read, measure)

    def _place(self, kind: str, about: dict | Evaluation, of: Of, code: Sequence[str]) -> tuple[dict, Path, dict]:
        """All that decides a table beside the code, as JSON reads it back; its file; the digests of the code."""
        if isinstance(about, Evaluation):
            about = about.model_dump(mode="json")
        else:
            models = [[spec.model_dump(mode="json"), epoch] for spec, epoch in of]
            about = json.loads(json.dumps({**about, "of": models}))
        parts = [part for spec, _ in of for part in sources.of_model(spec)] + list(code)
        path = self.path / kind / sources.together(parts) / f"{key_of(about)}.parquet"
        return about, path, sources.digests(parts)

    def _checkpoints(self, of: Of) -> dict[str, str]:
        """The sha256 of checkpoints, by "models/<key> epoch <e>", as far as they are here."""
        sums = {}
        for spec, epoch in of:
            with suppress(sealed.Damaged):
                sums[f"models/{spec.key} epoch {epoch}"] = self._record(spec)["history"][epoch - 1]["sha256"]
        return sums

    def _of_model(self, spec: ModelSpec, read: Callable[[], T], description: str = "") -> T:
        """What `read` reads of a model; trained first where it is missing, and again where it is damaged."""
        folder = self.folder(spec)

        def train() -> T:
            (folder / "record.json").unlink(missing_ok=True)  # not complete until its end
            sealed.write(folder / "spec.json", spec.model_dump_json(indent=1).encode())
            data = self.data(spec, "train", spec.images)
            start = {each.tasks: self.model(each, description=f"{description} (start)") for each in spec.starts}
            history = training.fit(spec, data, folder, self.device, description, start)
            seconds = round(sum(epoch["seconds"] for epoch in history), 2)
            record = {"spec": spec.model_dump(mode="json"), "seconds": seconds, "images": len(data), "history": history}
            record["written_by"] = machine.describe() | {"computed_on": self.device.type}
            record["code"] = sources.digests(sources.of_model(spec))
            sealed.seal(folder / "record.json", json.dumps(record, indent=1).encode())
            for path in (resume := folder / "resume.safetensors", sealed.partial(resume)):
                path.unlink(missing_ok=True)
            return read()

        return self._kept(folder / "lock", lambda: self.has_model(spec), read, train)

    def _kept(self, *what: Any) -> Any:
        """As `sealed.kept`, in a folder that says which store it is."""
        if not (self.path / "format").exists():
            with sealed.locked(self.path / "format.lock"):
                sealed.write(self.path / "format", FORMAT.encode())
        return sealed.kept(*what)

    def _record(self, spec: ModelSpec) -> dict:
        path = self.folder(spec) / "record.json"
        record = json.loads(sealed.read(path))
        if not isinstance(record, dict) or record.get("spec") != spec.model_dump(mode="json"):
            raise sealed.Damaged(path, "it is of another model")
        return record

    def _load_model(self, spec: ModelSpec, epoch: int) -> MultiTaskModel:
        sha256 = self._record(spec)["history"][epoch - 1]["sha256"]
        content = sealed.read(training.checkpoint(self.folder(spec), epoch), sha256)
        model = training.build(spec, spec.data.tasks)
        model.load_state_dict(load_tensors(content))
        return model.to(self.device).eval().requires_grad_(False)

    def _load_data(self, spec: DataSpec, tasks: str, split: str, limit: int | None) -> Dataset:
        folder = spec.folder
        if digest(spec.name, folder) != spec.digest:
            raise ValueError(f"The description of the data in {folder} has changed since the parameters were read.")
        options = {"size": spec.size, "seed": spec.seed, "on_bad": spec.on_bad}
        data = load(spec.name, tasks=tasks, split=split, root=folder, limit=limit, **options)
        on_device = self.device.type == "cuda" and data.nbytes < 0.5 * torch.cuda.mem_get_info(self.device)[0]
        return data.to(self.device) if on_device else data


def _evaluation(of: Evaluation | ModelSpec, attack: AttackSpec | None) -> Evaluation:
    return of if isinstance(of, Evaluation) else Evaluation(model=of, attack=attack)
