"""Small arithmetic expressions: drawn at random, printed with the fewest brackets, reduced one operation at a time."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

__all__ = [
    "MAX_VALUE",
    "OPERATIONS",
    "Expression",
    "Node",
    "draw",
    "is_allowed",
    "ready_nodes",
    "reduce_at",
    "show",
    "value",
]

MAX_VALUE = 99  # every value met on the way stays in 0..99, so that one step is one look-up in a small table
MAX_FACTOR = 12
MAX_LEAF = 20

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True)
class Node:
    """`left op right`; a child is a number or another node."""

    op: str
    left: Node | int
    right: Node | int

    def is_ready(self) -> bool:
        return isinstance(self.left, int) and isinstance(self.right, int)


Expression = Node | int
Path = tuple[str, ...]  # which child to take at each level, "left" or "right"


def value(expression: Expression) -> int:
    if isinstance(expression, int):
        return expression
    return OPERATIONS[expression.op](value(expression.left), value(expression.right))


def is_allowed(op: str, left: int, right: int) -> bool:
    if op == "*" and not (2 <= min(left, right) and max(left, right) <= MAX_FACTOR):
        return False
    return 0 <= OPERATIONS[op](left, right) <= MAX_VALUE


def draw(rng: random.Random, num_operands: int) -> Expression:
    """A random tree with `num_operands` leaves; children are drawn again until the operation is allowed on them."""
    if num_operands == 1:
        return rng.randint(1, MAX_LEAF)
    op = rng.choice("+-*")
    while True:
        num_left = rng.randint(1, num_operands - 1)
        left, right = draw(rng, num_left), draw(rng, num_operands - num_left)
        if is_allowed(op, value(left), value(right)):
            return Node(op, left, right)


def show(expression: Expression) -> str:
    """Infix text that reads back as the same tree: left to right, `*` before `+` and `-`, brackets where needed."""
    if isinstance(expression, int):
        return str(expression)
    left = _show_child(expression.left, is_bracketed=expression.op == "*" and _is_sum(expression.left))
    right_needs = isinstance(expression.right, Node) and (expression.op == "*" or _is_sum(expression.right))
    return f"{left} {expression.op} {_show_child(expression.right, right_needs)}"


def _is_sum(expression: Expression) -> bool:
    return isinstance(expression, Node) and expression.op != "*"


def _show_child(child: Expression, is_bracketed: bool) -> str:
    return f"({show(child)})" if is_bracketed else show(child)


def ready_nodes(expression: Expression, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Every operation whose two operands are numbers: any of them may be done next."""
    if isinstance(expression, int):
        return
    if expression.is_ready():
        yield path, expression
    yield from ready_nodes(expression.left, (*path, "left"))
    yield from ready_nodes(expression.right, (*path, "right"))


def reduce_at(expression: Expression, path: Path) -> Expression:
    """The expression with the operation at `path` replaced by its value."""
    if not path:
        return value(expression)
    assert isinstance(expression, Node)
    if path[0] == "left":
        return replace(expression, left=reduce_at(expression.left, path[1:]))
    return replace(expression, right=reduce_at(expression.right, path[1:]))
