"""Files that appear whole or not at all, and that are found out when something has changed them since.

Beside a sealed file lies its checksum, `<name>.sha256`, as `sha256sum --check` reads it. What is damaged is renamed,
never deleted, and said in a warning; who reads it makes it again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock


class Damaged(ValueError):
    """What is at `path` is not what was written there."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path} is damaged: {reason}.")
        self.path, self.reason = path, reason


def write(path: Path, content: bytes) -> str:
    """Write a file that is either whole or not there. Returns its sha256; OSError of one line where it cannot.

    Of several processes one at a time may write it: call this under a lock. What a killed one left is written over.
    """
    temporary = partial(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # of a folder that cannot be written to: nothing is there to remove
            temporary.unlink(missing_ok=True)
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


def set_aside(path: Path, reason: str) -> None:
    """Rename what is damaged, with its checksum, and say so in a warning. Call it under the lock of what it is."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        if path.exists():
            os.replace(path, aside)
        if _checksum(path).exists():
            os.replace(_checksum(path), _checksum(aside))
    except OSError as error:
        raise unwritable(path, error) from error
    warnings.warn(f"{path} is damaged ({reason}). It is now {aside.name}; what it held is made again.", stacklevel=2)


def table(
    path: Path,
    about: dict,
    make: Callable[[], pd.DataFrame],
    written_by: dict | None = None,
    made_from: Callable[[], dict[str, str]] = dict,
) -> pd.DataFrame:
    """The table in a Parquet file; made now where it is missing, damaged, about something else, or made from files that
    have changed since.

    Parameters
    ----------
    path : of the file. Of several processes one makes it.
    about : what the table is of, as JSON knows it; it lies in the file and is compared.
    make : computes the table.
    written_by : lies in the file, too.
    made_from : gives what names the content of the files behind the table, by their names, asked after `make` and as
        the table is read; of those only that are there.
    """

    def found() -> pd.DataFrame:
        rows, said = stored(path)
        if said["about"] != about:
            raise Damaged(path, "it is of something else")
        once = said["made_from"]
        changed = [name for name, digest in made_from().items() if once.get(name, digest) != digest]
        if changed:
            raise Damaged(path, f"{changed[0]} is not what it was made from")
        return rows

    if path.exists():
        try:
            return found()
        except Damaged:
            pass  # looked at again under the lock: another process may have made it anew
    with locked(path.with_name(f"{path.name}.lock")):
        if path.exists():
            try:
                return found()
            except Damaged as error:
                set_aside(path, error.reason)
        content = pa.Table.from_pandas(make(), preserve_index=False)
        metadata = json.dumps({"about": about, "made_from": made_from(), "written_by": written_by or {}})
        content = content.replace_schema_metadata({**(content.schema.metadata or {}), "mtrlib": metadata})
        buffer = io.BytesIO()
        pq.write_table(content, buffer)
        seal(path, buffer.getvalue())
        return found()


def stored(path: Path) -> tuple[pd.DataFrame, dict]:
    """What `table` wrote: the table, and about, made_from and written_by. Raises `Damaged`."""
    content = io.BytesIO(read(path))
    try:
        found = pq.read_table(content)
        said = json.loads(found.schema.metadata[b"mtrlib"])
        return found.to_pandas(), {**said, "about": said["about"], "made_from": dict(said.get("made_from", {}))}
    except (pa.ArrowException, ValueError, LookupError, TypeError) as error:
        raise Damaged(path, "it is no table of a store") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, which the operating system gives back when its owner dies. Makes its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(path: Path, error: Exception) -> OSError:
    """One line for a file that cannot be written: why, and that nothing is lost."""
    reason = getattr(error, "strerror", None) or str(error)
    told = OSError(
        f"{path} cannot be written: {reason}. What was finished before is kept: "
        "make room or give another folder, and run again."
    )
    told.errno = getattr(error, "errno", None)
    return told


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
