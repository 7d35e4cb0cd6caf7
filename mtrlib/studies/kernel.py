"""What a notebook's kernel is told: a fault is one line, and parameters stay as they were checked.

A reader runs cells again, in any order. Cells computed from parameters that were changed or misspelt after their check
would show tables of others in silence; here they fail. Outside IPython nothing is done."""

import ast
import re
import sys
import traceback
from collections.abc import Collection
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

NEAR = 0.75  # of two names, by difflib: "stpes" and "steps" are 0.8
HERE = str(Path(__file__).parents[1])
AGAIN = "run the cell with parameters.check again"
_CHECK = re.compile(r"check\(globals\(\)|parameters\.check\(")
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
    """From the next cell on, refuse cells while parameters (the names `declared`) are others than now, if their values
    are good (`checked`), or than the last good ones. Whether `namespace` is the globals of a notebook: nothing else is
    watched."""
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
        now = {name: repr(self.namespace.get(name)) for name in self.values}
        faults = [
            f"Parameter {name} is {now[name]}, but was {was} when the parameters were checked: {AGAIN}."
            for name, was in self.values.items()
            if now[name] != was
        ]
        typed = self.namespace.get("_checked_names", set()) - self.declared
        unknown = sorted(typed & set(self.namespace)) if self.values else []
        return faults + [f"Unknown parameter {x} = {self.namespace[x]!r}: correct it and {AGAIN}." for x in unknown]

    def visit(self, cell: ast.Module) -> ast.Module:
        if (names := _assigned(cell, self.declared)) is not None:
            self._typed(names)
        elif not _CHECK.search(ast.unparse(cell)):
            places = [place for place, line in enumerate(cell.body, 1) if getattr(line, "module", "") == "__future__"]
            first = max(places, default=0)
            refusal = ast.parse(_REFUSE).body  # first, and after each statement but an expression: its value is shown
            after = ([line] if isinstance(line, ast.Expr) else [line, *refusal] for line in cell.body[first:])
            cell.body[first:] = [*refusal, *chain.from_iterable(after)]
        return cell

    def _typed(self, names: set[str]) -> None:
        known, right = self.namespace.get("_checked_names", set()), names & self.declared
        if 2 * len(right) > len(self.declared):  # the cell of the parameters: what is no longer in it was corrected
            known = set()
        corrected = {name for name in known - self.declared if get_close_matches(name, right, 1, NEAR)}
        own = {name for name in names if right or get_close_matches(name, self.declared, 1, NEAR)}
        self.namespace["_checked_names"] = known - corrected | own


def _assigned(cell: ast.Module, declared: set[str]) -> set[str] | None:
    """The names that a cell sets, where it does nothing but assign constants, or most parameters; else None."""
    if not all(isinstance(line, ast.Assign | ast.AnnAssign) for line in cell.body):
        return None
    targets = [target for line in cell.body for target in getattr(line, "targets", None) or [line.target]]
    names = {getattr(target, "id", None) for target in targets}
    parts = [part for line in cell.body if line.value for part in ast.walk(line.value)]
    constant = not any(isinstance(part, ast.Name | ast.Call) for part in parts)
    return names if None not in names and (constant or 2 * len(names & declared) > len(declared)) else None


def _shown(running: Any, kind: type[BaseException], fault: BaseException, trace: Any, tb_offset: int | None = None):
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    ours = [file.startswith(HERE) for file in files]
    if kind is KeyboardInterrupt or ours[-1] or (any(ours) and isinstance(fault, OSError)):
        line = f"{kind.__name__}: {fault}" if str(fault) else f"{kind.__name__}: stopped; run the cell again to go on"
        fault._render_traceback_ = lambda: [line]
    return running.showtraceback((kind, fault, trace), tb_offset=tb_offset)
