"""Small faults in a Python module, as edits of its syntax tree (used by `mutation_sample`). Pure: text in, text out.

Operators: comparison flipped or moved by its boundary, arithmetic exchanged, `and` for `or`, an operand dropped, `not` and signs
dropped, a condition negated, a filter dropped, numbers + 1 (1 becomes 0), names of keys and labels changed, neighboring arguments,
elements, keyword values and dictionary values swapped, a keyword argument dropped, min for max and other twin names, a statement
deleted, None returned. Docstrings, annotations, messages of errors and prints, and prose (text with a blank) stay as they are.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_PAIRS = (
    "min max, any all, argmin argmax, lower upper, low high, only_a only_b, first second, left right, start end, x1 y1"
)
TWINS = {a: b for pair in _PAIRS.split(", ") for a, b in (pair.split(), reversed(pair.split()))}
TEXT_CALLS = {"print", "say", "warn", "add_argument", "add_option", "parser", "unknown", "NoScore"}
WRAPPED = (ast.BinOp, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.IfExp, ast.Lambda, ast.JoinedStr)

Change = tuple[Any, Any, Any]  # (node or list, attribute or index, new value)


@dataclass(frozen=True)
class Mutant:
    """One edit of one module: the bytes from `start` to `end` become `text`."""

    module: str
    operator: str
    line: int
    start: int
    end: int
    text: str

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.module}:{self.start}:{self.end}:{self.text}".encode()).hexdigest()[:12]

    def apply(self, source: bytes) -> bytes:
        """The module with the fault in it."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """The changed lines, "-" before and "+" after."""
        before, after = source.decode().splitlines(), self.apply(source).decode().splitlines()
        lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[3:]
        return "\n".join(f"{line[0]} {line[1:].strip()}" for line in lines)


def mutants(module: str, source: bytes, cosmetic: set[str], skip_names: set[str]) -> list[Mutant]:
    """Every candidate of one module; `sample` drops those that change nothing."""
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    out: dict[str, Mutant] = {}
    for anchor, operator, change in _walk(ast.parse(source), None, {"help", "metavar", *cosmetic}, skip_names):
        text = change if isinstance(change, str) else _changed(anchor, change)
        start = offsets[anchor.lineno - 1] + anchor.col_offset
        mutant = Mutant(
            module, operator, anchor.lineno, start, offsets[anchor.end_lineno - 1] + anchor.end_col_offset, text
        )
        if text:
            out.setdefault(mutant.id, mutant)
    return list(out.values())


def sample(candidates: Sequence[Mutant], source: bytes, count: int, seed: int) -> list[Mutant]:
    """`count` mutants of one module, at most two per line; a larger count of the same seed contains a smaller one."""
    per_line: Counter[int] = Counter()
    original, chosen = ast.dump(ast.parse(source)), []
    for mutant in sorted(candidates, key=lambda m: hashlib.sha256(f"{seed}:{m.id}".encode()).hexdigest()):
        is_fault = False
        with contextlib.suppress(SyntaxError):
            is_fault = ast.dump(ast.parse(mutant.apply(source))) != original
        per_line[mutant.line] += is_fault
        if is_fault and per_line[mutant.line] <= 2 and len(chosen) < count:
            chosen.append(mutant)
        if len(chosen) == count:
            break
    return chosen


def _changed(anchor: Any, changes: Sequence[Change]) -> str:
    """The text of `anchor` after `changes`, which are then undone; "" where this Python cannot write a nested f-string."""
    before = [_put(*change) for change in changes]
    try:
        text = ast.unparse(anchor)
    except ValueError:
        text = ""
    for (holder, place, _), value in zip(changes, before, strict=True):
        _put(holder, place, value)
    return f"({text})" if text and isinstance(anchor, WRAPPED) else text


def _put(holder: Any, place: Any, value: Any) -> Any:
    """Set an attribute of a node or an element of a list; returns what was there."""
    if isinstance(holder, list):
        before, holder[place] = holder[place], value
    else:
        before = getattr(holder, place)
        setattr(holder, place, value)
    return before


def _walk(node: ast.AST, fstring: Any, text_keywords: set[str], skip: set[str]) -> Iterator[tuple[Any, str, Any]]:
    """(node to rewrite, operator, changes or new text); an f-string is rewritten as one, as its inner positions are not exact."""
    if fstring is None:
        yield from _of_statement(node)
    if isinstance(node, ast.expr):
        yield from ((fstring or node, operator, changes) for operator, changes in _of_expression(node, text_keywords))
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    if (
        isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))  # a docstring
        or (isinstance(node, ast.Call) and _name(node.func) in TEXT_CALLS)
        or (isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"))
        or any(_name(target) in {"__all__", *skip} for target in targets)
    ):
        return
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            is_text = isinstance(child, ast.keyword) and child.arg in text_keywords
            if (
                isinstance(child, ast.AST)
                and not is_text
                and field not in ("annotation", "returns", "decorator_list", "bases")
            ):
                inside = fstring or (child if isinstance(child, ast.JoinedStr) else None)
                yield from _walk(child, inside, text_keywords, skip)


def _of_statement(node: ast.AST) -> Iterator[tuple[Any, str, str]]:
    """Deleted statements, negated conditions, dropped filters, returned values."""
    if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await)):
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        if _name(getattr(call, "func", None)) not in TEXT_CALLS:
            yield node, "delete statement", "pass"
    elif isinstance(node, (ast.Raise, ast.AugAssign)) or (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Attribute, ast.Subscript))
    ):
        yield node, "delete statement", "pass"
    elif isinstance(node, ast.Return) and node.value is not None:
        yield node, "return None", "return None"
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield node.test, "negate condition", f"(not ({ast.unparse(node.test)}))"
    elif isinstance(node, ast.comprehension):
        yield from ((test, "drop filter", "True") for test in node.ifs)


def _of_expression(node: ast.expr, text_keywords: set[str]) -> Iterator[tuple[str, list[Change]]]:
    """(operator, changes) of one expression."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield from (("comparison", [(node.ops, i, other())]) for other in COMPARISONS[type(op)])
    elif (
        isinstance(node, ast.BinOp)
        and type(node.op) in ARITHMETIC
        and not (_is_text(node.left) or _is_text(node.right))
    ):
        yield "arithmetic", [(node, "op", ARITHMETIC[type(node.op)]())]
    elif isinstance(node, ast.BoolOp):
        yield "and/or", [(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())]
        for i in range(len(node.values)):
            yield "drop operand", [(node, "values", node.values[:i] + node.values[i + 1 :])]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "drop sign", [(node, "op", ast.UAdd())]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "drop not", [(node, "operand", ast.UnaryOp(ast.Not(), node.operand))]
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", [(node, "value", not node.value)]
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "constant", [(node, "value", 0 if node.value == 1 else node.value + 1)]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value and " " not in node.value:
        yield "string", [(node, "value", node.value + "_x")]
    elif isinstance(node, ast.Call):
        yield from (("swap arguments", changes) for changes in _swaps(node.args))
        for i, keyword in enumerate(node.keywords):
            if keyword.arg not in {"strict", *text_keywords}:
                yield "drop keyword", [(node, "keywords", node.keywords[:i] + node.keywords[i + 1 :])]
                before = node.keywords[i - 1] if i else keyword
                if before.arg and keyword.arg and before.arg not in {"strict", *text_keywords}:
                    yield "swap keywords", [(before, "value", keyword.value), (keyword, "value", before.value)]
    elif isinstance(node, ast.Dict) and None not in node.keys:
        yield from (("swap values", changes) for changes in _swaps(node.values))
    elif isinstance(node, (ast.Tuple, ast.List)):
        yield from (("swap elements", changes) for changes in _swaps(node.elts))
    elif _name(node) in TWINS:
        yield "twin name", [(node, "attr" if isinstance(node, ast.Attribute) else "id", TWINS[_name(node)])]


def _swaps(items: list[Any]) -> Iterator[list[Change]]:
    """Changes that exchange two neighbors."""
    for i, (one, other) in enumerate(itertools.pairwise(items)):
        if not isinstance(one, ast.Starred) and not isinstance(other, ast.Starred):
            yield [(items, i, other), (items, i + 1, one)]


def _is_text(node: ast.expr) -> bool:
    """Whether an operand is a string, so that the operator joins paths or texts."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _name(node: Any) -> str:
    """The last part of a dotted name, "" for other expressions."""
    return str(getattr(node, "attr", getattr(node, "id", "")))
