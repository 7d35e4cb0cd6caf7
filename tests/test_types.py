"""What a face exports says what it takes and gives, for type checkers; `make types` checks what it says."""

import importlib
import inspect

import pytest

from mtrlib import machine

FACES = sorted(path.parent.name for path in (machine.root() / "mtrlib").glob("*/__init__.py"))


@pytest.mark.parametrize("room", FACES)
def test_what_a_face_exports_has_every_type_written(room):
    face = importlib.import_module(f"mtrlib.{room}")
    functions = {name: value for name, value in vars(face).items() if inspect.isfunction(value) and name[0] != "_"}
    missing = []
    for name, function in functions.items():
        signature = inspect.signature(function)
        taken = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]  # passed on
        empty = [each.name for each in taken if each.annotation is each.empty]
        empty += ["return"] if signature.return_annotation is signature.empty else []
        missing += [f"{name}: {', '.join(empty)}"] if empty else []
    assert missing == []


def test_the_package_says_that_it_is_typed():
    assert (machine.root() / "mtrlib" / "py.typed").exists()
