"""Constraints on the rows of a table, as text, and how far a row is from keeping them (Simonetto et al. 2022, arXiv
2112.01156, table 1 and section 4).

The grammar is that of Python's expressions: numbers, names of features, + - * / ** and abs, exp, log, min, max;
comparisons <=, <, >=, >, == of these, also in a row (0 <= a <= b), and `in` a set, {36, 60}; joined by `and` and `or`.
Penalties are in the units of the compared values, 0 where a constraint holds and above 0 where it does not:

    a <= b      max(0, a - b)
    a < b       the same, and never 0 where a = b
    a == b      max(0, |a - b| - tolerance)
    a in {..}   the least penalty of a == each
    x and y     the sum; x or y : the lesser
"""

import ast
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

_STRICT = 1e-6  # the penalty of a < b where a = b
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_ARITHMETIC |= {ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos}
_FUNCTIONS = {"abs": torch.abs, "exp": torch.exp, "log": torch.log}
_FUNCTIONS |= {"min": lambda *v: reduce(torch.minimum, v), "max": lambda *v: reduce(torch.maximum, v)}
_COMPARED = {
    ast.LtE: lambda a, b, tolerance: (a - b).clamp(min=0),
    ast.GtE: lambda a, b, tolerance: (b - a).clamp(min=0),
    ast.Lt: lambda a, b, tolerance: torch.where(a < b, 0.0, a - b + _STRICT),
    ast.Gt: lambda a, b, tolerance: torch.where(a > b, 0.0, b - a + _STRICT),
    ast.Eq: lambda a, b, tolerance: ((a - b).abs() - tolerance).clamp(min=0),
}


@dataclass(frozen=True, eq=False)
class Domain:
    """What rows of a table may be. Values are float64, (B, F), in the units of the features.

    Attributes
    ----------
    names : of the features, in the order of the columns.
    low, high : (F,), the range of each.
    whole, mutable : (F,) bool, whether it takes whole numbers alone, and whether the adversary can change it.
    constraints : as text.
    tolerance : how far the two sides of == may be from each other.
    """

    names: tuple[str, ...]
    low: Tensor
    high: Tensor
    whole: Tensor
    mutable: Tensor
    constraints: tuple[str, ...]
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        trial = dict(zip(self.names, self.low[:, None], strict=True))
        for text in self.constraints:  # all parts of an expression are evaluated for any row: what passes once is known
            try:
                _penalty(ast.parse(text.strip(), mode="eval").body, trial, 0.0)
            except (SyntaxError, TypeError, KeyError, AttributeError, OverflowError) as error:
                known = f"comparisons (<=, <, >=, >, ==, in a set) of numbers and {', '.join(self.names)}, and, or"
                fault = error.args[0] if isinstance(error, KeyError) else text
                raise ValueError(f"A constraint should be of {known}. Found {fault!r} in {text!r}.") from None

    @property
    def _trees(self) -> list[ast.expr]:
        return [ast.parse(text.strip(), mode="eval").body for text in self.constraints]

    def penalties(self, values: Tensor) -> Tensor:
        """(B, C + 1): how far each row is from keeping each constraint and, last, its ranges (as shares of them) and
        whole numbers. A row keeps all where their sum is 0; what is not a number keeps nothing."""
        row = dict(zip(self.names, values.unbind(dim=1), strict=True))
        columns = [_penalty(tree, row, self.tolerance).expand(len(values)) for tree in self._trees]
        out = ((self.low - values).clamp(min=0) + (values - self.high).clamp(min=0)) / (self.high - self.low)
        broken = torch.where(self.whole, (values - values.round()).abs(), 0.0)
        return torch.stack([*columns, (out + broken).sum(dim=1)], dim=1).nan_to_num(nan=float("inf"), posinf=torch.inf)

    def to_unit(self, values: Tensor) -> Tensor:
        """(B, F) values to shares of their ranges, (B, 1, 1, F), as attacks take them."""
        return ((values - self.low) / (self.high - self.low))[:, None, None]

    def decode(self, points: Tensor, rows: Tensor) -> Tensor:
        """The values that points (B, 1, 1, F) stand for, as versions of `rows` (B, F).

        What is not mutable is as in the row; whole numbers are rounded towards the row's (their gradient passes). Where
        a constraint says `name == ...` or `name in {...}` of a mutable feature, that is what it gets, in the order of
        the constraints, as C-PGD and CAPGD (arXiv 2406.00775) repair equalities.
        """
        values = (self.low + points.flatten(1) * (self.high - self.low)).clamp(self.low, self.high)
        towards = rows + ((values - rows) * (1 + 1e-6)).trunc()
        values = values + torch.where(self.whole, towards - values, 0.0).detach()
        columns = list(torch.where(self.mutable, values, rows).unbind(dim=1))
        for tree in self._trees:
            match tree:
                case ast.Compare(left=ast.Name(id=name), ops=[ast.Eq() | ast.In()]):
                    number = self.names.index(name)
                    if self.mutable[number]:
                        row = dict(zip(self.names, columns, strict=True))
                        columns[number] = _repaired(tree, row).expand(len(rows))
        return torch.stack(columns, dim=1)


def domain(description: Mapping[str, Any]) -> Domain:
    """A domain from a mapping, as of YAML: `features`, by name {low, high, whole: false, mutable: true}, `constraints`,
    a list of texts, and perhaps `tolerance`. ValueError for anything else."""
    allowed = {"features", "constraints", "tolerance"}
    if not {"features"} <= set(description) <= allowed:
        raise ValueError(f"A domain should have features, constraints, tolerance. Found {', '.join(description)}.")
    features = description["features"]
    for name, given in features.items():
        known = {"low", "high"} <= set(given) <= {"low", "high", "whole", "mutable"}
        if not name.isidentifier() or not known or not given["low"] < given["high"]:
            wanted = "low < high, perhaps whole and mutable, under a name of letters, digits and _"
            raise ValueError(f"A feature should have {wanted}. Found {name}: {given}.")

    def column(key: str, default: bool | None, dtype: torch.dtype) -> Tensor:
        return torch.tensor([given.get(key, default) for given in features.values()], dtype=dtype)

    ends = [column(key, None, torch.float64) for key in ("low", "high")]
    kinds = [column("whole", False, torch.bool), column("mutable", True, torch.bool)]
    texts = tuple(description.get("constraints", ()))
    return Domain(tuple(features), *ends, *kinds, texts, **{k: description[k] for k in {"tolerance"} & {*description}})


def _value(tree: ast.expr, row: Mapping[str, Tensor]) -> Tensor:
    """(B,) or (): an expression of the features of rows; TypeError or KeyError for what the grammar does not have."""
    value = partial(_value, row=row)
    match tree:
        case ast.Name(id=name):
            return row[name]
        case ast.Constant(value=int() | float() as number):
            return torch.tensor(number, dtype=torch.float64)
        case ast.UnaryOp(op=kind, operand=part):
            return _ARITHMETIC[type(kind)](value(part))
        case ast.BinOp(left=left, op=kind, right=right):
            return _ARITHMETIC[type(kind)](value(left), value(right))
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]):
            return _FUNCTIONS[name](*map(value, parts))
    raise TypeError(ast.unparse(tree))


def _penalty(tree: ast.expr, row: Mapping[str, Tensor], tolerance: float) -> Tensor:
    """(B,): see the table above."""
    if isinstance(tree, ast.BoolOp):
        parts = [_penalty(part, row, tolerance) for part in tree.values]
        return reduce(operator.add if isinstance(tree.op, ast.And) else torch.minimum, parts)
    total, left = torch.zeros((), dtype=torch.float64), tree.left
    for kind, right in zip(tree.ops, tree.comparators, strict=True):
        if isinstance(kind, ast.In):
            each = [_COMPARED[ast.Eq](_value(left, row), _value(member, row), tolerance) for member in right.elts]
            found = reduce(torch.minimum, each)
        else:
            found = _COMPARED[type(kind)](_value(left, row), _value(right, row), tolerance)
        total, left = total + found.nan_to_num(nan=float("inf"), posinf=float("inf")), right
    return total


def _repaired(tree: ast.Compare, row: Mapping[str, Tensor]) -> Tensor:
    """The value that makes `name == expression` or `name in {...}` true; of a set, the nearest."""
    if isinstance(tree.ops[0], ast.Eq):
        return _value(tree.comparators[0], row)
    now = _value(tree.left, row)
    members = torch.stack([_value(member, row).expand(len(now)) for member in tree.comparators[0].elts])
    return members.gather(0, (members - now).abs().argmin(dim=0)[None])[0]
