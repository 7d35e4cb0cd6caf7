"""Files that appear whole or not at all, and that are found out when something has changed them since.

Beside a sealed file lies its checksum, `<name>.sha256`, as `sha256sum --check` reads it. What is damaged is renamed,
never deleted, and said in a warning; who reads it makes it again (`kept`).
"""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

T = TypeVar("T")


class Damaged(ValueError):
    """What is at `path` is not what was written there."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path} is damaged: {reason}.")
        self.path, self.reason = path, reason


def write(path: Path, content: bytes) -> str:
    """Write a file that is either whole or not there. Returns its sha256; OSError of one line where it cannot.

    Of several processes one at a time may write it: call this under a lock. What a killed one left is written over.
    """
    try:
        partial(path).write_bytes(content)
        os.replace(partial(path), path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # of a folder that cannot be written to: nothing is there to remove
            partial(path).unlink(missing_ok=True)
    return hashlib.sha256(content).hexdigest()


def partial(path: Path) -> Path:
    """Where `write` writes before the file is whole."""
    return path.with_name(f".{path.name}.partial")


def seal(path: Path, content: bytes) -> None:
    """As `write`, with the checksum beside it; the checksum first: a file without one is not whole."""
    write(_checksum(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
    write(path, content)


def read(path: Path, sha256: str | None = None) -> bytes:
    """The content of a file whose sha256 is known, else of a sealed one. Raises `Damaged` where it is another."""
    try:
        content = path.read_bytes()
        expected = sha256 or _checksum(path).read_text(encoding="ascii", errors="replace").split(" ")[0]
    except FileNotFoundError as error:
        raise Damaged(path, f"{Path(error.filename).name} is missing") from None
    if hashlib.sha256(content).hexdigest() != expected:
        raise Damaged(path, "its content is not that of its checksum")
    return content


def seal_table(path: Path, rows: pd.DataFrame, words: dict[str, Any], **options) -> None:
    """Seal a table as Parquet, which pandas reads as it is, with words of ours, as JSON, in its metadata; `options` are
    of `pyarrow.parquet.write_table`."""
    table, buffer = pa.Table.from_pandas(rows, preserve_index=False), io.BytesIO()
    metadata = {**table.schema.metadata, "mtrlib": json.dumps(words)}
    pq.write_table(table.replace_schema_metadata(metadata), buffer, **options)
    seal(path, buffer.getvalue())


def read_table(path: Path, what: str = "table of a store") -> tuple[pd.DataFrame, dict[str, Any]]:
    """A sealed table and its words. Raises `Damaged`, also where it is no such file."""
    content = read(path)
    try:
        table = pq.read_table(io.BytesIO(content))
        return table.to_pandas(), dict(json.loads(table.schema.metadata[b"mtrlib"]))
    except (pa.ArrowException, ValueError, LookupError, TypeError) as error:
        raise Damaged(path, f"it is no {what} ({error})") from error


def kept(
    lock: Path, there: Callable[[], bool], read: Callable[[], T], make: Callable[[], T | None] = lambda: None
) -> T | None:
    """What `read` gives of what is `there` and whole; what `make` gives where it is missing or damaged, which `read`
    says by raising `Damaged`: that is set aside. Of several processes one holds the `lock` and makes it; the others
    wait and read."""
    if there():
        with suppress(Damaged, FileNotFoundError):  # looked at again under the lock: another may have made it anew
            return read()
    with locked(lock):
        if there():
            try:
                return read()
            except Damaged as error:
                set_aside(error.path, error.reason)
        return make()


def set_aside(path: Path, reason: str) -> None:
    """Rename what is damaged, with its checksum, and say so in a warning. Call it under the lock of what it is."""
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
    aside = next(name for name in names if not name.exists())
    try:
        for old, new in ((path, aside), (_checksum(path), _checksum(aside))):
            if old.exists():
                os.replace(old, new)
    except OSError as error:
        raise unwritable(path, error) from error
    warnings.warn(f"{path} is damaged ({reason}). It is now {aside.name}; what it held is made again.", stacklevel=2)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, which the operating system gives back when its owner dies. Makes its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path).acquire()
    except (OSError, NotImplementedError) as error:
        raise unwritable(path, error) from error
    with lock:
        yield


def unwritable(path: Path, error: Exception) -> OSError:
    """One line for a file that cannot be written: why, and that nothing is lost; with the number of the error."""
    why = getattr(error, "strerror", None) or error
    advice = "What was finished before is kept: make room or give another folder, and run again."
    fault = OSError(f"{path} cannot be written: {why}. {advice}")
    fault.errno = getattr(error, "errno", None)
    return fault


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
