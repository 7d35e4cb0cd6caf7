"""Trained models and per-image errors on disk, by the content of their specification: nothing is computed twice.

    <path>/models/<key>/    spec.json, epoch_<e>.safetensors, record.json (written last: with it the model is complete)
    <path>/errors/<key>.parquet

Files appear whole or not at all. Two processes that want the same thing compute it once: each entry has a lock that
the operating system gives back when its owner dies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from safetensors.torch import load_file

from mtrlib import evaluation, machine, training
from mtrlib.data import Dataset, digest, load
from mtrlib.models import MultiTaskModel
from mtrlib.specs import AttackSpec, DataSpec, Evaluation, ModelSpec


class Store:
    """A folder of results.

    Parameters
    ----------
    path : the folder; made when first written to. A relative path starts at the repository.
    device : to train and attack on; by default the first CUDA device, else the CPU.
    """

    def __init__(self, path: str | Path, device: torch.device | str | None = None):
        self.path = machine.root() / path
        self.device = torch.device(device) if device is not None else machine.device()
        self._load_data = lru_cache(maxsize=2)(self._load_data)
        self._load_model = lru_cache(maxsize=3)(self._load_model)

    def has_model(self, spec: ModelSpec) -> bool:
        """Whether the model is trained."""
        return (self._folder(spec) / "record.json").exists()

    def has_errors(
        self, spec: ModelSpec, attack: AttackSpec, epoch: int | None = None, source: ModelSpec | None = None
    ) -> bool:
        """Whether the attack was run."""
        return self._errors_file(_evaluation(spec, attack, epoch, source)).exists()

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
        if not self.has_model(spec):
            self._train(spec, description)
        return self._load_model(spec, epoch)

    def data(self, spec: ModelSpec, split: str, limit: int | None = None) -> Dataset:
        """The data of a model, "train" or "test", the first `limit` images."""
        return self._load_data(spec.data, spec.tasks, split, limit)

    def record(self, spec: ModelSpec) -> dict:
        """What is known of a trained model: its specification, history by epoch, seconds, and what wrote it."""
        return json.loads((self._folder(spec) / "record.json").read_text())

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
        path = self._errors_file(wanted)
        if not path.exists():
            model = self.model(spec, wanted.epoch)
            other = None if source is None else self.model(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    measured = evaluation.errors(
                        model,
                        self._load_data(spec.data, spec.tasks, "test", attack.images),
                        attack,
                        precision=spec.precision,
                        device=self.device,
                        batch_size=64 if self.device.type == "cpu" else 256,
                        advance=advance,
                        source=other,
                    )
                    _write_parquet(path, measured, {"spec": wanted.model_dump(mode="json"), **_written_by(self.device)})
        measured = pd.read_parquet(path)
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

    def _train(self, spec: ModelSpec, description: str) -> None:
        folder = self._folder(spec)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if self.has_model(spec):
                return
            _write_text(folder / "spec.json", spec.model_dump_json(indent=1))
            data = self._load_data(spec.data, spec.tasks, "train", spec.images)
            history = training.fit(spec, data, folder, self.device, description)
            record = {
                "spec": spec.model_dump(mode="json"),
                "seconds": round(sum(epoch["seconds"] for epoch in history), 2),
                "images": len(data),
                "history": history,
                **_written_by(self.device),
            }
            _write_text(folder / "record.json", json.dumps(record, indent=1))
            (folder / "resume.safetensors").unlink(missing_ok=True)

    def _load_model(self, spec: ModelSpec, epoch: int) -> MultiTaskModel:
        model = training.build(spec, spec.data.tasks)
        model.load_state_dict(load_file(training.checkpoint(self._folder(spec), epoch)))
        return model.to(self.device).eval().requires_grad_(False)

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

    def _folder(self, spec: ModelSpec) -> Path:
        return self.path / "models" / spec.key

    def _errors_file(self, wanted: Evaluation) -> Path:
        return self.path / "errors" / f"{wanted.key}.parquet"


def _evaluation(spec: ModelSpec, attack: AttackSpec, epoch: int | None, source: ModelSpec | None) -> Evaluation:
    return Evaluation(model=spec, attack=attack, epoch=spec.epochs if epoch is None else epoch, source=source)


def _written_by(device: torch.device) -> dict:
    return {"written_by": {**machine.describe(), "computed_on": device.type}}


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _write_parquet(path: Path, frame: pd.DataFrame, metadata: dict) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), "mtrlib": json.dumps(metadata)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary)
    os.replace(temporary, path)
