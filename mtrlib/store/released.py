"""The errors of a tier, in one sealed file: with it every table, figure and verdict comes out again without training.

The file is a Parquet table that pandas reads as it is: the errors table, with the key of each evaluation and its whole
specification as JSON; in its words the records of the models, the other tables that the notebooks read (gradients, what
the published code does), and the digests of the code that computed it all (`sources`). Released errors are the record
of the version that made them, so they are found by specification, whatever the code.
"""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from mtrlib import sealed
from mtrlib.specs import Evaluation, ModelSpec, key_of
from mtrlib.store import sources

_text = partial(json.dumps, sort_keys=True)
_PACKED = {"compression": "zstd", "dictionary_pagesize_limit": 2**25}
MEASURED = ["task", "image_id", "clean_error", "adversarial_error", "clean_loss", "adversarial_loss"]


class Released:
    """What a file of released errors holds; nothing where `path` is None.

    `any_precision` finds what was computed in another precision of convolutions, too. ValueError for a file that is
    missing, damaged or no file of released errors.
    """

    def __init__(self, path: Path | None = None, any_precision: bool = False):
        self.path, self.any_precision = path, any_precision
        self.code, self._records, self._tables = {}, {}, {}
        if path is None:
            return
        if not path.is_file():
            where = f"Found {path}. In the repository of mtrlib they are results/<tier>/errors.parquet and its .sha256."
            raise ValueError(f'Parameter released should be a file of released errors, or "" for none. {where}')
        rows, words = sealed.read_table(path, "file of released errors")
        try:
            self.code = words["code"]
            self._records = {self._key("model", record["spec"]): record for record in words["models"]}
            of_kind = {"errors": rows[["specification", *MEASURED]]}
            for kind, content in words["tables"].items():
                of_kind[kind] = pd.read_parquet(io.BytesIO(base64.b64decode(content)))
            for kind, rows in of_kind.items():
                values = rows.drop(columns="specification")
                for about, places in rows.groupby("specification", sort=False).indices.items():
                    self._tables[self._key(kind, json.loads(about))] = values, places
        except (LookupError, TypeError, ValueError) as error:  # ArrowInvalid among them
            raise sealed.Damaged(path, f"it is no file of released errors ({error})") from error

    def record(self, spec: ModelSpec) -> dict | None:
        """As `Store.record`; None for a model that is not in it."""
        return self._records.get(self._key("model", spec.model_dump(mode="json")))

    def records(self) -> list[dict]:
        """The records of all models."""
        return list(self._records.values())

    def has_table(self, kind: str, about: dict) -> bool:
        """Whether `table` has it."""
        return self._key(kind, about) in self._tables

    def table(self, kind: str, about: dict) -> pd.DataFrame | None:
        """The table as it was measured; None for one that is not in it."""
        values, places = self._tables.get(self._key(kind, about), (None, None))
        if values is None:
            return None
        rows = values.take(places).reset_index(drop=True)
        return rows if kind == "errors" else rows.dropna(axis=1, how="all")  # columns that only others have

    def changed(self) -> list[str]:
        """The parts of the code that have changed since."""
        now = sources.digests(part for part in self.code if part in sources.PARTS)
        return [part for part, digest in self.code.items() if now.get(part) != digest]

    def sentence(self) -> str:
        """What it is and what wrote it, in one line, and where the code has changed since; "" without a file."""
        if self.path is None:
            return ""
        records = self._records.values()
        by = dict.fromkeys("{mtrlib} at {commit}".format(**record["written_by"]) for record in records)
        precisions = " and ".join(dict.fromkeys(record["spec"]["precision"] for record in records))
        text = f"Released errors of {len(records)} models, computed by mtrlib {' and '.join(by)}, "
        text += f"convolutions in {precisions}."
        if changed := self.changed():
            text += f" Since then the code of {', '.join(changed)} has changed: what it gives now may differ."
        return text

    def _key(self, kind: str, about: dict) -> str:
        return key_of({"kind": kind, "of": _without_precision(about) if self.any_precision else about})


def _without_precision(content):
    if isinstance(content, dict):
        return {name: _without_precision(value) for name, value in content.items() if name != "precision"}
    return [_without_precision(each) for each in content] if isinstance(content, list) else content


def write(path: Path, store, models: Iterable[ModelSpec], evaluations: Iterable[Evaluation]) -> tuple[int, int, int]:
    """Write the errors of models and evaluations that a `Store` has, and all its other tables of these models that
    this code measured.

    Returns the numbers of models, evaluations and other tables; ValueError where the store lacks some of them.
    """
    models, evaluations = list(models), list(evaluations)
    untrained = sum(not store.has_model(spec) for spec in models)
    missing = sum(not store.has_errors(e) for e in evaluations)
    if untrained or missing or not evaluations:
        raise ValueError(
            f"The store {store.path} should have {len(models)} models and {len(evaluations)} attacks on them. It lacks "
            f"{untrained} and {missing}: run `make batch` for this tier first."
        )
    keys, code, others = {spec.key for spec in models}, {}, defaultdict(list)
    for file in sorted(store.path.glob("*/*/*.parquet")):
        if (kind := file.parents[1].name) != "errors":
            rows, words = sealed.read_table(file)
            about, by = words["about"], words["written_by"]["code"]
            if by == sources.digests(by) and {key_of(spec) for spec, _ in about["of"]} <= keys:
                others[kind].append(rows.assign(specification=_text(about)))
                code |= by
    records = [store.record(spec) for spec in models]
    for record in records:
        code |= record["code"]
    packed = {kind: pd.concat(rows).to_parquet(index=False, **_PACKED) for kind, rows in sorted(others.items())}
    packed = {kind: base64.b64encode(content).decode() for kind, content in packed.items()}
    words = {"code": code | sources.digests(["attacks"]), "models": records, "tables": packed}
    errors = [store.errors(e).assign(key=e.key, specification=_text(e.model_dump(mode="json"))) for e in evaluations]
    with sealed.locked(path.with_name(f".{path.name}.lock")):
        sealed.seal_table(path, pd.concat(errors, ignore_index=True), words, **_PACKED)
    return len(models), len(evaluations), sum(map(len, others.values()))
