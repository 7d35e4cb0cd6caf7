"""What users bring: attacks, ways to weigh losses, encoders and weights of their own, from files or as they are.

A specification holds the name that `pinned` gives: "<file>.py:<name>@<digest>", or "here:<name>@<digest>" of an object
of this process. The digest is of what decides it, so that another source is another key. A file is run only where a
parameter or an argument names it, never for a name with its digest, such as records and released errors hold.
"""

import dis
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtrlib import machine

_KNOWN: dict[str, Any] = {}  # of this process, by name
_DIGEST = re.compile("@[0-9a-f]{16}$")
_NAME = re.compile(r"(?P<file>(?:[A-Za-z]:)?[^:]+\.py|here):(?P<name>[A-Za-z_]\w*)(?P<digest>@[0-9a-f]{16})?")


def pinned(brought: Any) -> Any:
    """The name, with its digest, of what a user brings; anything else as it is.

    Parameters
    ----------
    brought : "<file>.py:<name>", what a file defines. The file is run now, once for each content, and that is said. Its
        path may hold ~ and $NAME, and a relative one starts at `machine.root`; the digest is of the file alone, not of
        what it imports. Or a function, class or network, with a digest of its code, and of the values and functions
        that it uses, those of installed packages by name; this process alone knows it.

    ValueError of one line where a file gives no such thing, and for values whose content cannot be told.
    """
    if isinstance(brought, str):
        named = _NAME.fullmatch(brought)
        if named is None or named["digest"] or named["file"] == "here":
            return brought
        path = machine.place(named["file"])
        if not path.is_file():
            raise ValueError(f"The file of {brought!r} is missing: {path}.")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:16]
        shown = path.relative_to(machine.root()) if path.is_relative_to(machine.root()) else path
        name = f"{shown.as_posix()}:{named['name']}@{digest}"
        _KNOWN[name] = _defined(shown, content, f"mtrlib_own_{digest}", named["name"])
        return name
    return _named(brought) if callable(brought) else brought


def _named(brought: Any) -> str:
    name = re.sub(r"\W", "", getattr(brought, "__name__", type(brought).__name__))
    name = f"here:{name}@{digest_of(brought)}"
    _KNOWN[name] = brought
    return name


def pinned_weights(given: Any) -> Any:
    """As `pinned`, of weights: a path, whose file becomes "<path>@<digest>"; a state dict; else as it is."""
    if isinstance(given, dict) and given:
        return _named(given)
    if not isinstance(given, str) or _DIGEST.search(given):
        return pinned(given)
    path = machine.place(given)
    if not path.is_file():
        raise ValueError(f"pretrained should be a valid boolean or a file of weights. There is no file {path}.")
    shown = path.relative_to(machine.root()) if path.is_relative_to(machine.root()) else path
    name = f"{shown.as_posix()}@{_of_file(path, path.stat().st_size, path.stat().st_mtime_ns)}"
    _KNOWN[name] = path
    return name


@lru_cache
def _of_file(path: Path, size: int, changed: int) -> str:
    """The digest of a file, read again once its size or time has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def is_own(name: str, here: bool = False) -> bool:
    """Whether a name is one of `pinned`, of this process or another; `here`: of this process."""
    named = _NAME.fullmatch(name)
    return name in _KNOWN if here else named is not None and named["digest"] is not None


def short(name: str) -> str:
    """For tables and figures: "mine" of "my_file.py:mine", with or without a digest; else the name as it is."""
    named = _NAME.fullmatch(name)
    return named["name"] if named else name


def find(name: str) -> Any:
    """What `pinned` has named so in this process; no file is run for it."""
    if name not in _KNOWN:
        bare = name.split("@")[0]
        raise ValueError(f"{name} is not known in this process: give {bare} itself, with the source that it had.")
    return _KNOWN[name]


def weigh(weights: str, losses: Tensor, first: Tensor, norms: Tensor) -> Tensor:
    """The weights that a function of the user's gives, (T,): of the losses of a step, those of the first step, and the
    lengths of the tasks' gradients at the latent, each (T,). ValueError for another shape."""
    try:
        found = find(weights)(losses, first, norms)
    except Exception as error:  # of whatever type: it is not ours
        raise ValueError(f"The weights {weights} fail for {len(losses)} losses: {said(error)}.") from error
    if not isinstance(found, Tensor) or found.shape != losses.shape or not found.is_floating_point():
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"The weights {weights} should be floats, {tuple(losses.shape)}. Found {shape}.")
    return found.detach()


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")


def _defined(path: Path, content: bytes, module: str, name: str) -> Any:
    if module not in sys.modules:
        _tell(f"Importing {path}, which a parameter names.")
        run = types.ModuleType(module)
        run.__file__ = str(path)
        sys.modules[module] = run
        try:
            exec(compile(content, str(path), "exec"), vars(run))
        except (Exception, SystemExit) as error:  # of whatever type: the file may hold anything
            del sys.modules[module]
            raise ValueError(f"{path} cannot be imported: {said(error)}.") from error
    found = vars(sys.modules[module])
    if name not in found:
        defined = [key for key, value in found.items() if getattr(value, "__module__", None) == module]
        raise ValueError(f"{path} should define {name}. It defines {', '.join(defined) or 'no function or class'}.")
    if not callable(found[name]) and not isinstance(found[name], dict):
        raise ValueError(f"{name} of {path} should be a function, a class or a network. Found {found[name]!r:.80}.")
    return found[name]


def _tell(line: str) -> None:
    """In a notebook a plain output, else a line on stderr."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        from IPython.display import Pretty, display

        display(Pretty(line))
    else:
        sys.stderr.write(f"{line}\n")


def digest_of(value: Any) -> str:
    """16 hexadecimal digits for what a value is and does."""
    digest = hashlib.sha256()
    _feed(value, digest.update, ())
    return digest.hexdigest()[:16]


def _feed(value: Any, update: Callable[[bytes], object], above: tuple) -> None:
    """Hands on all that decides a value; `above` are those that it is part of, which may come again in it."""
    if any(each is value for each in above):
        update(b"again")
        return
    feed = partial(_feed, update=update, above=(*above, value))
    update(f"<{type(value).__qualname__}>".encode())
    match value:
        case Tensor() | np.ndarray():
            array = value.detach().cpu().contiguous() if isinstance(value, Tensor) else value
            content = array.flatten().view(torch.uint8).numpy() if isinstance(value, Tensor) else array
            update(f"{array.dtype} {tuple(array.shape)}".encode() + content.tobytes())
        case types.ModuleType() | types.BuiltinFunctionType():
            update(value.__name__.encode())
        case type() | types.FunctionType() if _installed(value.__module__):
            update(f"{value.__module__}.{value.__qualname__}".encode())
        case types.FunctionType():
            update(_source(value))
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            inside = {name: cell.cell_contents for name, cell in cells if name != "__class__"}
            used = {name: value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__}
            feed([value.__defaults__, value.__kwdefaults__, inside, used])
        case types.MethodType() | staticmethod() | classmethod():
            feed([value.__func__, getattr(value, "__self__", None)])
        case property():
            feed([value.fget, value.fset])
        case partial():
            feed([value.func, value.args, value.keywords])
        case type():
            written = {name: part for name, part in vars(value).items() if name not in _UNWRITTEN}
            feed([value.__bases__, written])
        case nn.Module():
            plain = {name: part for name, part in vars(value).items() if name not in vars(nn.Module())}
            feed([type(value), repr(value), dict(value.state_dict()), plain])
        case dict():
            feed(list(value.items()))
        case list() | tuple():
            for each in value:
                feed(each)
        case _ if hasattr(value, "__dict__"):
            feed([type(value), vars(value)])
        case _ if " at 0x" in repr(value):
            raise ValueError(f"What decides {value!r:.80} cannot be told: name a function of a file instead.")
        case _:
            update(repr(value).encode())


_UNWRITTEN = ("__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__")


def _installed(module: str) -> bool:
    """Whether it is a module of Python, of this package or of one that is installed, not of the user's."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    if module == "__main__":  # whose file may be the one that runs a notebook or the tests
        return False
    return module.split(".")[0] in sys.stdlib_module_names | {"mtrlib", "builtins"} or "-packages" in file


def _source(function: types.FunctionType) -> bytes:
    """The text of a function; of one that has none, such as of a shell, its byte code."""
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError):
        return repr(_code(function.__code__)).encode()


def _code(code: types.CodeType) -> list:
    return [code.co_code, *(_code(part) if isinstance(part, types.CodeType) else part for part in code.co_consts)]


def _names(code: types.CodeType) -> list[str]:
    """The global names that code, and the functions in it, use."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    own = [each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    return sorted({*own, *inner})
