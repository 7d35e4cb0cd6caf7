"""The errors of a tier, in one sealed file: with it every table, figure and verdict comes out again without training.

A Parquet table that pandas reads as it is: the errors table, with the key of each evaluation and its specification as
JSON; in its words the records of the models, the other tables that notebooks read, and the digests of the code that
computed it all (`sources`). Released errors are found by specification, whatever the code.
"""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from mtrlib.data import sealed
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
        try:
            tables, self.code, records = _content(path)
            self._records = {self._key("model", record["spec"]): record for record in records}
            for kind, rows in tables.items():
                values = rows[MEASURED] if kind == "errors" else rows.drop(columns="specification")
                for about, places in rows.groupby("specification", sort=False).indices.items():
                    self._tables[self._key(kind, json.loads(about))] = values, places
        except sealed.Damaged:
            raise
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
        return [part for part, digests in self.code.items() if digests != [now.get(part)]]

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
        if self.any_precision:
            about = json.loads(
                json.dumps(about), object_hook=lambda of: {k: v for k, v in of.items() if k != "precision"}
            )
        return key_of({"kind": kind, "of": about})


def write(
    path: Path, store, models: Iterable[ModelSpec], evaluations: Iterable[Evaluation], add: bool = False
) -> tuple[int, int, int]:
    """Write the errors of models and evaluations that a `Store` has, and all its other tables of these models that
    this code measured.

    `add` keeps what the file holds of others, such as other seeds, which this store need not have. Returns the numbers
    of models, evaluations and other tables that were written; ValueError where the store lacks some of them, or where
    the file has other trainings of the same models, whose errors would stand beside these.
    """
    models, evaluations = list(models), list(evaluations)
    untrained = sum(not store.has_model(spec) for spec in models)
    missing = sum(not store.has_errors(e) for e in evaluations)
    if untrained or missing or not evaluations:
        wanted = f"{len(models)} models and {len(evaluations)} attacks on them"
        lacks = f"It lacks {untrained} and {missing}: run `make batch` for this tier first."
        raise ValueError(f"The store {store.path} should have {wanted}. {lacks}")
    keys, measured, tables = {spec.key for spec in models}, [sources.digests(["attacks"])], defaultdict(list)
    for file in sorted(store.path.glob("*/*/*.parquet")):
        if (kind := file.parents[1].name) != "errors":
            rows, words = sealed.read_table(file)
            about, by = words["about"], words["written_by"]["code"]
            if by == sources.digests(by) and {key_of(spec) for spec, _ in about["of"]} <= keys:
                tables[kind].append(rows.assign(specification=_text(about)))
                measured.append(by)
    counts = len(models), len(evaluations), sum(map(len, tables.values()))
    records = [store.record(spec) for spec in models]
    tables["errors"] = [
        store.errors(e).assign(key=e.key, specification=_text(e.model_dump(mode="json"))) for e in evaluations
    ]
    code = defaultdict(set)
    for part, digest in (item for by in [*measured, *(record["code"] for record in records)] for item in by.items()):
        code[part].add(digest)
    with sealed.locked(path.with_name(f".{path.name}.lock")):
        if add and path.exists():
            others, by, kept = _content(path)
            for kind, rows in others.items():
                known = {about for each in tables[kind] for about in each.specification.unique()}
                tables[kind].insert(0, rows[~rows.specification.isin(known)])
            for part, digests in by.items():
                code[part] |= set(digests)
            trained = {_text(record["spec"]): record["history"][-1]["sha256"] for record in reversed([*kept, *records])}
            if any(trained[_text(record["spec"])] != record["history"][-1]["sha256"] for record in records):
                raise ValueError(f"{path} has models of other trainings of the same specifications: release it anew.")
            known = [record["spec"] for record in records]
            records = [record for record in kept if record["spec"] not in known] + records
        whole = {kind: pd.concat(rows, ignore_index=True) for kind, rows in sorted(tables.items())}
        errors = whole.pop("errors")
        packed = {kind: rows.to_parquet(index=False, **_PACKED) for kind, rows in whole.items()}
        packed = {kind: base64.b64encode(content).decode() for kind, content in packed.items()}
        words = {"code": {part: sorted(code[part]) for part in sorted(code)}, "models": records, "tables": packed}
        sealed.seal_table(path, errors, words, **_PACKED)
    return counts


def _content(path: Path) -> tuple[dict[str, pd.DataFrame], dict[str, list[str]], list[dict]]:
    """Tables by kind, with the specification of each row, the digests of each part of the code, and records."""
    rows, words = sealed.read_table(path, "file of released errors")
    tables = {"errors": rows}
    for kind, content in words["tables"].items():
        tables[kind] = pd.read_parquet(io.BytesIO(base64.b64decode(content)))
    code = {part: [digests] if isinstance(digests, str) else digests for part, digests in words["code"].items()}
    return tables, code, words["models"]
