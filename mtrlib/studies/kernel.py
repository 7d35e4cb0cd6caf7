"""What a notebook's kernel is told: a fault is one line, and parameters stay as they were checked.

A reader runs cells again, in any order. Cells computed from parameters that were changed or misspelt after their check
would show tables of others in silence; here they fail. Outside IPython nothing is done.
"""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

NEAR = 0.75  # of two names, by difflib: "stpes" and "steps" are 0.8
HERE = str(Path(__file__).parents[1])
AGAIN = "run the cell with parameters.check again"
_REFUSE = f"__import__({__name__!r}, fromlist=['refuse_changed']).refuse_changed()"


def shell() -> Any:
    """The IPython that this runs in, or None."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def faults_in_one_line() -> None:
    """Show an interrupt, and what the library found wrong, in a line; others keep their traceback. The cell fails as
    it would."""
    if shell():
        shell().set_custom_exc((ValueError, OSError, FloatingPointError, KeyboardInterrupt), _shown)


def watch(namespace: dict[str, Any], declared: Collection[str], checked: bool) -> bool:
    """From the next cell on, refuse cells while parameters are others than now. Whether `namespace` is a notebook's.

    Parameters
    ----------
    namespace : the globals of the notebook; that of anything else is not watched.
    declared : the names of its parameters.
    checked : whether their values are good; those that were good before stay otherwise.
    """
    running = shell()
    if running is None or namespace is not running.user_ns:
        return False
    watched = next((t for t in running.ast_transformers if isinstance(t, _Watched)), None)
    if watched is None or watched.declared != set(declared):
        running.ast_transformers[:] = [t for t in running.ast_transformers if t is not watched]
        watched = _Watched(namespace, set(declared))
        running.ast_transformers.append(watched)
    if checked:
        watched.values = {name: repr(namespace[name]) for name in declared if name in namespace}
    return True


def refuse_changed() -> None:
    """ValueError where parameters of the running notebook are others than those checked; cells call it."""
    watched = (transformer for transformer in shell().ast_transformers if isinstance(transformer, _Watched))
    if faults := [line for each in watched for line in each.faults()]:
        raise ValueError("\n".join(faults))


class _Watched:
    """An AST transformer: IPython passes it each cell before it runs.

    A cell that only assigns constants, as the one with the parameters does, computes nothing and always runs; names in
    it are taken for parameters where it sets one, or where they nearly are one's name."""

    def __init__(self, namespace: dict[str, Any], declared: set[str]):
        self.namespace, self.declared = namespace, declared
        self.values: dict[str, str] = {}

    def faults(self) -> list[str]:
        found = {name: repr(self.namespace.get(name)) for name in self.values}
        changed = [
            f"Parameter {name} is {found[name]}, but was {was} when the parameters were checked: {AGAIN}."
            for name, was in self.values.items()
            if found[name] != was
        ]
        typed = self.namespace.get("_checked_names", set()) - self.declared
        unknown = sorted(typed & set(self.namespace)) if self.values else []
        return changed + [
            f"Unknown parameter {name} = {self.namespace[name]!r}: correct it and {AGAIN}." for name in unknown
        ]

    def visit(self, cell: ast.Module) -> ast.Module:
        if (names := _assigned(cell, self.declared)) is not None:
            self._typed(names)
            return cell
        source = ast.unparse(cell)
        if "check(globals()" in source or "parameters.check(" in source:
            return cell
        begins = next((i for i, line in enumerate(cell.body) if getattr(line, "module", "") != "__future__"), 0)
        body = []
        for number, line in enumerate(cell.body):
            sets = {
                node.id for node in ast.walk(line) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            before = [_refusal()] if number == begins and self.faults() else []
            body += [*before, line, *([_refusal()] if sets & self.declared else [])]
        cell.body = body
        return cell

    def _typed(self, names: set[str]) -> None:
        known, right = self.namespace.get("_checked_names", set()), names & self.declared
        if 2 * len(right) > len(self.declared):  # the cell of the parameters: what is no longer in it was corrected
            known = set()
        corrected = {name for name in known - self.declared if get_close_matches(name, right, 1, NEAR)}
        own = {name for name in names if right or get_close_matches(name, self.declared, 1, NEAR)}
        self.namespace["_checked_names"] = known - corrected | own


def _refusal() -> ast.stmt:
    return ast.parse(_REFUSE).body[0]


def _assigned(cell: ast.Module, declared: set[str]) -> set[str] | None:
    """The names that a cell sets, where it does nothing but assign constants, or most parameters; else None."""
    names, constant = set(), True
    for line in cell.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        if not isinstance(line, ast.Assign | ast.AnnAssign) or not all(isinstance(t, ast.Name) for t in targets):
            return None
        constant &= line.value is None or not any(isinstance(n, ast.Name | ast.Call) for n in ast.walk(line.value))
        names |= {target.id for target in targets}
    return names if constant or 2 * len(names & declared) > len(declared) else None


def _shown(running: Any, kind: type[BaseException], fault: BaseException, trace: Any, tb_offset: int | None = None):
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    ours = [file.startswith(HERE) for file in files]
    if kind is KeyboardInterrupt or ours[-1] or (any(ours) and isinstance(fault, OSError)):
        line = f"{kind.__name__}: {fault}" if str(fault) else f"{kind.__name__}: stopped; run the cell again to go on"
        fault._render_traceback_ = lambda: [line]
    return running.showtraceback((kind, fault, trace), tb_offset=tb_offset)
