"""Disks that are full or may not be written to: one clear line, and nothing is lost."""

from __future__ import annotations

import errno
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from mtrlib.data import cache
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import Store

SMALL = {"encoder": "resnet18_tiny", "images": 16, "epochs": 2, "batch_size": 8}
SPEC = ModelSpec(data=DataSpec(size=16), tasks="sd", **SMALL)
ATTACK = AttackSpec(tasks="s", steps=1, images=4)


class Disk(NamedTuple):
    path: Path
    fill: Callable[[int], object]  # but for so many bytes
    free: Callable[[], object]
    read_only: Callable[[], object]


@pytest.fixture(params=["tmpfs", "patched"])
def disk(request, tmp_path, monkeypatch):
    """A disk of 192 MB: a tmpfs where this user may mount one, and, everywhere, writes that are made to fail."""
    path = tmp_path / "disk"
    path.mkdir()
    if request.param == "patched":
        yield Disk(path, *_patched(path, monkeypatch))
        return
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", path], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no tmpfs here, the patched disk alone is tested: {mount.stderr.strip()}")

    def fill(left: int) -> None:
        filler = path / "filler"
        with open("/dev/zero", "rb") as zeros, open(filler, "wb") as file, pytest.raises(OSError, match="No space"):
            shutil.copyfileobj(zeros, file, 1 << 20)
        with open(filler, "r+b") as file:
            file.truncate(filler.stat().st_size - left)

    remount = ["mount", "-o", "remount,ro", path]
    yield Disk(path, fill, (path / "filler").unlink, lambda: subprocess.run(remount, check=True))
    subprocess.run(["umount", "-l", path], check=True)


def _patched(path: Path, monkeypatch) -> tuple[Callable, Callable, Callable]:
    write = Path.write_bytes

    def fails(number: int, least: int) -> None:
        def refuse(self, content):
            if self.is_relative_to(path) and len(content) > least:
                with open(self, "wb") as file:  # as much as there is room for
                    file.write(content[:least])
                raise OSError(number, {errno.ENOSPC: "No space left on device"}.get(number, "Read-only file system"))
            return write(self, content)

        monkeypatch.setattr(Path, "write_bytes", refuse)

    return (
        lambda left: fails(errno.ENOSPC, left),
        lambda: monkeypatch.setattr(Path, "write_bytes", write),
        lambda: fails(errno.EROFS, 0),
    )


def files(path: Path) -> dict[str, bytes]:
    """All but locks and the filler, hidden ones too."""
    found = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(f): f.read_bytes() for f in found if "lock" not in f.name and f.name != "filler"}


@pytest.mark.parametrize("left", [100, 200_000])
def test_a_full_disk_is_one_line_and_nothing_is_lost(disk, tmp_path, left):
    other = SPEC.model_copy(update={"seed": 1})
    expected = Store(tmp_path / "elsewhere").errors(other, ATTACK)
    store = Store(disk.path / "store")
    before = store.errors(SPEC, ATTACK)
    written = files(store.path)
    disk.fill(left)
    with pytest.raises(
        OSError, match="cannot be written: No space left on device. What was finished .* is kept"
    ) as told:
        Store(store.path).errors(other, ATTACK)
    assert len(str(told.value).splitlines()) == 1
    assert told.value.errno == errno.ENOSPC
    now = files(store.path)
    assert {name: now[name] for name in written} == written
    assert not [name for name in now if Path(name).name.startswith(".")], "half a file is left"
    pd.testing.assert_frame_equal(Store(store.path).errors(SPEC, ATTACK), before)
    disk.free()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(Store(store.path).errors(other, ATTACK), expected)


def test_a_full_disk_while_errors_are_written(disk):
    store = Store(disk.path / "store")
    store.model(SPEC)
    disk.fill(0)
    with pytest.raises(OSError, match="cannot be written: No space left"):
        store.errors(SPEC, ATTACK)
    assert not list(store.path.glob("errors/*/*.parquet"))
    disk.free()
    assert len(store.errors(SPEC, ATTACK)) == 8


def test_a_disk_that_fills_up_while_the_cache_is_written(disk, monkeypatch):
    """The room is taken before: a write to a memory map without room would kill the process."""
    monkeypatch.setenv("MTRLIB_CACHE", str(disk.path / "cache"))
    layout = {"values": ((2, 1 << 20), np.float32)}

    def entry(name: str, meanwhile: Callable[[], object]) -> Path:
        def fill(arrays: dict) -> dict[int, str]:
            meanwhile()
            arrays["values"][:] = 7
            return {}

        return cache.entry(name, [name], layout, fill)

    with pytest.raises(OSError, match="cannot be written: No space left on device") as told:
        entry("one", lambda: disk.fill(0))
    assert len(str(told.value).splitlines()) == 1
    assert [path for path in (disk.path / "cache").iterdir() if path.suffix != ".lock"] == []
    disk.free()
    assert (cache.read(entry("one", lambda: None))[0]["values"] == 7).all()


def test_a_read_only_store_is_read_and_says_so_at_the_first_write(disk):
    """The patched disk refuses contents only: there, a folder or a lock may be made."""
    store = Store(disk.path / "store")
    errors, images = store.errors(SPEC, ATTACK), torch.rand(1, 3, 16, 16)
    expected = store.model(SPEC)(images)["d"]
    disk.read_only()
    again = Store(store.path)
    pd.testing.assert_frame_equal(again.errors(SPEC, ATTACK), errors)
    assert torch.equal(again.model(SPEC)(images)["d"], expected)
    for wanted in (SPEC.model_copy(update={"seed": 1}), SPEC):
        with pytest.raises(OSError, match="cannot be written: Read-only file system.*give another folder") as told:
            again.errors(wanted, ATTACK.model_copy(update={"steps": 2}))
        assert len(str(told.value).splitlines()) == 1


def test_a_read_only_cache_is_read_and_says_so_at_the_first_write(disk, monkeypatch):
    monkeypatch.setenv("MTRLIB_CACHE", str(disk.path / "cache"))
    layout = {"values": ((2, 2), np.float32)}
    entry = cache.entry("one", [], layout, lambda arrays: {1: "a note"})
    longer = cache.entry("rows", [], layout, lambda arrays, first: {}, ["a", "b"])
    cache._checked.clear()
    disk.read_only()
    fewer = {"values": ((1, 2), np.float32)}
    assert cache.entry("rows", [], fewer, lambda *_: pytest.fail("made again"), ["a"]) == longer, "no lock is needed"
    assert cache.entry("one", [], layout, lambda _: pytest.fail("made again")) == entry
    assert cache.read(entry)[1] == {1: "a note"}
    with pytest.raises(OSError, match="cannot be written: Read-only file system"):
        cache.entry("two", [], layout, lambda _: {})
