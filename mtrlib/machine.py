"""Where a run happens: device, precision, versions, commit; the folders that paths start from; how far it is."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import cycle, takewhile
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

import mtrlib


def device() -> torch.device:
    """The first CUDA device, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def gpu(folder: Path) -> Iterator[str | None]:
    """One GPU of this machine for as long as the context lasts, shared out among the processes that name one folder.

    CUDA_VISIBLE_DEVICES is set to it and yielded (None without a GPU), so enter before anything asks CUDA. A GPU is a
    lock in `folder`, given back when its owner dies. Without GPUs and in a job of Slurm with its own nothing is done.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(torch.cuda.device_count()))) if given is None else _devices(given)
    if not names or (given is not None and "SLURM_JOB_ID" in os.environ):
        yield given if names else None
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in cycle(names):  # a moment for each, until one is free
        lock = FileLock(folder / f"{platform.node()}-gpu{name}.lock".replace("/", "-"))
        with suppress(Timeout):
            lock.acquire(timeout=0.1)
            break
    os.environ["CUDA_VISIBLE_DEVICES"] = name
    try:
        yield name
    finally:
        lock.release()
        os.environ.pop("CUDA_VISIBLE_DEVICES") if given is None else os.environ.update(CUDA_VISIBLE_DEVICES=given)


def _devices(given: str) -> list[str]:
    """What CUDA takes from CUDA_VISIBLE_DEVICES: all before the first that is neither an index nor the name of a GPU,
    such as -1, "NoDevFiles" or nothing."""
    return list(takewhile(re.compile(r"\d+|(GPU|MIG)-.+").fullmatch, (name.strip() for name in given.split(","))))


def precision() -> str:
    """Of convolutions here: "bfloat16" where they are faster in it (CUDA from compute capability 8.0 on, processors
    with AVX512-BF16, AMX or Arm's bf16), else "float32"."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    flags = Path("/proc/cpuinfo")
    fast = flags.exists() and {"avx512_bf16", "amx_bf16", "bf16"} & set(flags.read_text().split())
    return "bfloat16" if fast else "float32"


def exact():
    """A context in which cuDNN repeats its results bit by bit and float32 is float32, not TF32."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def is_repository(folder: Path) -> bool:
    """Whether the folder holds `notebooks` and `params`."""
    return (folder / "notebooks").is_dir() and (folder / "params").is_dir()


@cache
def root() -> Path:
    """Where relative paths of parameters start: the nearest repository above the current folder, or else above this
    package; the current folder where there is none."""
    here = Path.cwd()
    return next(filter(is_repository, (here, *here.parents, *Path(mtrlib.__file__).parents)), here)


def place(named: str | Path) -> Path:
    """Where a parameter or an option points to: `expanded`, and a relative path starts at `root`."""
    return root() / expanded(named)


def expanded(named: str | Path) -> str:
    """A path in which $NAME and ${NAME} are the environment's, and then a first ~ or ~user is a home folder.

    ValueError for a variable or a home that there is not. An empty one counts as none: files would lie elsewhere.
    """
    if not isinstance(named, str | Path):
        raise ValueError(f"A path should be a text. Found {named!r}.")

    def value(match: re.Match) -> str:
        if content := os.environ.get(match[1] or match[2]):
            return content
        raise ValueError(f"The environment variable {match[1] or match[2]} of {str(named)!r} is not set.")

    path = os.path.expanduser(re.sub(r"\$(?:(\w+)|\{([^}]*)\})", value, str(named), flags=re.ASCII))
    if path.startswith("~"):
        raise ValueError(f"{path.split('/')[0]!r} has no home folder. A name that begins with ~ is written './~'.")
    return path


def folder(path: Path, what: str, made: bool = False) -> Path:
    """The path of a folder; ValueError of one line where it is missing, unless it is yet to be made, or is a file."""
    stands = next((each for each in (path, *path.parents) if os.path.lexists(each)), path)
    if os.path.lexists(stands) and not stands.is_dir():
        raise ValueError(f"The folder of {what} cannot be {path}: {stands} is no folder.")
    if stands != path and not made:
        raise ValueError(f"The folder of {what} is missing: {path}.")
    return path


@cache
def processor() -> str:
    """The device in words, such as "cpu (x86_64, 2 threads)"."""
    where = device()
    name = torch.cuda.get_device_name() if where.type == "cuda" else platform.processor() or platform.machine()
    return f"{where.type} ({name}, {torch.get_num_threads()} threads)"


@cache
def describe() -> dict[str, str]:
    """What a result was computed by: versions, commit, device; recorded beside everything in the store."""
    import torchvision  # takes long; its version here names the build, that of its package does not

    return {
        "mtrlib": mtrlib.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": processor(),
        "bfloat16": f"{'fast' if precision() == 'bfloat16' else 'slow'} here",
    }


def _commit() -> str:
    """The commit of the library, "-dirty" where tracked files differ from it: all but the notebooks, which executing
    them changes. "unknown" where it is not at the top of a repository: one that it lies in is another's."""
    own = Path(mtrlib.__file__).resolve().parents[1]
    git = partial(subprocess.check_output, cwd=own, text=True, stderr=subprocess.DEVNULL)
    with suppress(OSError, subprocess.CalledProcessError):
        if Path(git(["git", "rev-parse", "--show-toplevel"]).rstrip("\n")).resolve() == own:
            commit = git(["git", "describe", "--always", "--abbrev=12"]).strip()
            changed = git(["git", "diff", "--name-only", "HEAD", "--", ":/", ":(top,exclude)notebooks"])
            return f"{commit}-dirty" if changed else commit
    return "unknown"


def bar(total: int, description: str, unit: str, initial: int = 0) -> tqdm:
    """A tqdm bar of `total` units, `initial` of which an earlier run has done; `unit` is their name in the singular.
    In a notebook one line of output, updated in place (no widgets, so that an executed notebook keeps its last state);
    in a log one line every five seconds."""
    kind, how = tqdm, dict[str, bool | int](leave=False)
    if _in_notebook() or not sys.stderr.isatty():
        kind, how = _Lines, {"mininterval": 1 if _in_notebook() else 5}
    return kind(total=total, desc=description, unit=f" {unit}", initial=initial, **how)


class _Lines(tqdm):
    """Shows itself as a line of its own each time; in a notebook as one plain text that is updated."""

    shown = None
    disable: bool

    def display(self, msg=None, pos=None):
        from IPython.display import Pretty, display

        line = tqdm.format_meter(**{**self.format_dict, "ascii": True, "ncols": None}).replace("\r", "")
        if not _in_notebook():
            self.fp.write(f"{line}\n")
            self.fp.flush()
        elif self.shown is None:
            self.shown = display(Pretty(line), display_id=True)
        else:
            self.shown.update(Pretty(line))

    def close(self):
        if not self.disable:
            self.display()
        self.disable = True


def _in_notebook() -> bool:
    from IPython import get_ipython  # takes long

    return hasattr(get_ipython(), "kernel")
