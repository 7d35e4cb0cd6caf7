"""Digests of the sources that decide a result, so that nobody gets old numbers for new code.

What counts is what the code does: comments, docstrings, layout, imports, the order of definitions and the file that
they stand in change nothing. Tables (CSV) beside the code count as they are.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from mtrlib.specs import ModelSpec

# What decides results, by part: files of the package, or folders of it.
PARTS = {
    "rooms": ("rooms",),
    "reading of files": (
        *("data/cache.py", "data/decoding.py", "data/description.py", "data/listing.py", "data/example.py"),
        *("data/fields.py", "data/folder.py", "data/pixels.py", "data/taskonomy.py", "data/cityscapes.py"),
        *("data/cityscapes.yaml", "data/nyuv2.yaml", "data/derived.py", "rooms/labels.py"),
    ),
    "training": ("dataset.py", "data/loading.py", "tasks.py", "models", "training"),
    "attacks": ("attacks", "store/evaluation.py"),
    "theory": ("metrics/theory.py", "studies/measurements.py"),
    "fidelity": ("studies/fidelity/changes.py",),
}
# Beside them in these folders, and on the way to no stored result.
ASIDE = (
    *("attacks/constrained.py", "attacks/constraints.py", "attacks/search.py", "data/loans.py", "rooms/changes.py"),
    *("models/described.py", "models/libmtl.yaml", "models/vandenhende.yaml"),
)


def of_model(spec: ModelSpec) -> tuple[str, ...]:
    """The parts that decide a trained model."""
    return (of_data(spec.data.name), "training", *([] if spec.adversarial is None else ["attacks"]))


def of_data(name: str) -> str:
    """The part that decides the data set of this name."""
    return "rooms" if name == "rooms" else "reading of files"


def digests(parts: Iterable[str]) -> dict[str, str]:
    """8 hexadecimal digits for each of the parts."""
    return {part: _part(part) for part in parts}


def together(parts: Iterable[str]) -> str:
    """8 hexadecimal digits for all of the parts together."""
    return _hash(f"{part} {digest}" for part, digest in sorted(digests(parts).items()))


def digest(sources: Iterable[str]) -> str:
    """8 hexadecimal digits that name what Python sources do, together: of their definitions, whatever their order."""
    return _hash(sorted(repr(definition) for source in sources for definition in _form(ast.parse(source).body)))


@cache
def _part(part: str) -> str:
    package = Path(__file__).parents[1]
    places, aside = [package / name for name in PARTS[part]], [package / name for name in ASIDE]
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    files = [file for file in files if file not in aside]
    texts = {file: file.read_text(encoding="utf-8") for file in files if file.suffix in (".py", ".csv", ".yaml")}
    return digest(text if file.suffix == ".py" else f"content = {text!r}" for file, text in texts.items())


def _form(node):
    """A syntax tree as nested lists that every version of Python writes alike: without places, docstrings, imports
    (None here), and fields that are empty."""
    match node:
        case list():
            return [form for each in node if (form := _form(each)) is not None]
        case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
            return None
        case ast.AST():
            fields = [(name, _form(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
            return [type(node).__name__, *fields]
    return repr(node)


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
