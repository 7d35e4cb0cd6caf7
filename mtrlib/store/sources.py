"""Digests of the sources that decide a result, so that nobody gets old numbers for new code.

What counts is what the code does: comments, docstrings, layout, imports, the order of definitions and the file that
they stand in change nothing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# What decides results, by part: files of the package, or folders of it.
PARTS = {
    "rooms": ("rooms",),
    "reading of files": (
        *("data/cache.py", "data/decoding.py", "data/description.py", "data/listing.py", "data/example.py"),
        *("data/folder.py", "data/pixels.py", "data/taskonomy.py", "data/cityscapes.py"),
        *("data/cityscapes.yaml", "data/nyuv2.yaml"),
    ),
    "training": ("dataset.py", "data/loading.py", "tasks.py", "models", "training"),
    "attacks": ("attacks", "store/evaluation.py"),
    "theory": ("metrics/theory.py", "studies/rq2.py", "studies/masking.py", "studies/rq4.py"),
    "fidelity": ("studies/fidelity/changes.py",),
}


def of_model(data: str) -> tuple[str, ...]:
    """The parts that decide a model that is trained on the data set of this name."""
    return ("rooms" if data == "rooms" else "reading of files", "training")


def digests(parts: Iterable[str]) -> dict[str, str]:
    """8 hexadecimal digits for each of the parts."""
    return {part: _part(part) for part in parts}


def together(parts: Iterable[str]) -> str:
    """8 hexadecimal digits for all of the parts together."""
    return _hash(f"{part} {digest}" for part, digest in sorted(digests(parts).items()))


def digest(sources: Iterable[str]) -> str:
    """8 hexadecimal digits that name what Python sources do, together: of their definitions, whatever their order."""
    return _hash(sorted(repr(_form(node)) for source in sources for node in ast.parse(source).body if _counts(node)))


@cache
def _part(part: str) -> str:
    places = [Path(__file__).parents[1] / name for name in PARTS[part]]
    files = [file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    return digest(text if file.suffix == ".py" else f"content = {text!r}" for file, text in texts.items())


def _form(node):
    """A syntax tree as nested lists that every version of Python writes alike: without places, docstrings, imports,
    and fields that are empty."""
    if isinstance(node, ast.AST):
        fields = [(name, _form(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]
    if isinstance(node, list):
        return [_form(each) for each in node if _counts(each)]
    return repr(node)


def _counts(node) -> bool:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return not text and not isinstance(node, (ast.Import, ast.ImportFrom))


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
