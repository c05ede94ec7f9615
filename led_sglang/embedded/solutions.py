"""Writes one line of thought for an expression, choosing at random among equally right ones.

The choices make the trained model uncertain where several continuations are right: which operation comes first,
whether a step is done at once or in parts and in which parts, how operands are ordered, whether a result is checked,
and the words.
"""

from __future__ import annotations

import random

from led_sglang.embedded.expressions import Expression, Node, ready_nodes, reduce_at, show, value

__all__ = ["ANSWERS", "CHECKS", "FIRST", "NEXT", "OPENERS", "REST", "write_answer", "write_thinking"]

OPENERS = ("Let me see.", "I need", "We have", "The task is", "Okay, so", "I want", "Let us find", "Here is")
FIRST = ("First", "Start with", "I begin with", "Take", "We can do", "One part is", "Let me do", "Look at")
NEXT = ("Then", "Next", "After that", "So", "Also", "And", "We get", "I do")
REST = ("Now", "This leaves", "It becomes", "What remains is", "We have", "So it is")
CHECKS = ("Check:", "Let me check:", "Going back,", "Indeed")
ANSWERS = ("The answer is {answer}.", "It is {answer}.", "The result is {answer}.", "{shown} = {answer}.")


def write_thinking(expression: Expression, rng: random.Random) -> str:
    sentences = [f"{rng.choice(OPENERS)} {show(expression)}."]
    starters = FIRST
    while isinstance(expression, Node):
        path, node = rng.choice(list(ready_nodes(expression)))
        sentences.append(f"{rng.choice(starters)} {_step(node, rng)}.")
        expression = reduce_at(expression, path)
        starters = NEXT
        if isinstance(expression, Node):
            sentences.append(f"{rng.choice(REST)} {show(expression)}.")
        elif rng.random() < 0.2:
            sentences.append(_check(node, rng))
    return " ".join(sentences)


def write_answer(shown: str, answer: int, rng: random.Random) -> str:
    return rng.choice(ANSWERS).format(shown=shown, answer=answer)


def _step(node: Node, rng: random.Random) -> str:
    assert isinstance(node.left, int) and isinstance(node.right, int)
    left, right = node.left, node.right
    if node.op != "-" and rng.random() < 0.3:
        left, right = right, left
    whole = f"{left} {node.op} {right} = {value(node)}"
    parts = _parts(node.op, left, right, rng)
    return whole if parts is None or rng.random() < 0.4 else f"{parts}, so {whole}"


def _parts(op: str, left: int, right: int, rng: random.Random) -> str | None:
    """The same step as two smaller ones; None where it is small already."""
    if op == "*":
        return _product_parts(left, right, rng)
    tens, ones = right - right % 10, right % 10
    if not tens or not ones:
        return None
    here, there = (tens, ones) if rng.random() < 0.5 else (ones, tens)
    middle = value(Node(op, left, here))
    return f"{left} {op} {here} = {middle}, {middle} {op} {there} = {value(Node(op, middle, there))}"


def _product_parts(left: int, right: int, rng: random.Random) -> str | None:
    if min(left, right) < 4 or rng.random() < 0.5:
        return None
    part = rng.choice((left - 1, 2, left // 2))
    first, second = part * right, (left - part) * right
    return f"{part} * {right} = {first}, {left - part} * {right} = {second}, {first} + {second} = {first + second}"


def _check(node: Node, rng: random.Random) -> str:
    """Goes back from the result to an operand, for sums and differences; a product is only said the other way round."""
    result = value(node)
    if node.op == "*":
        undone = f"{node.right} * {node.left} = {result}"
    elif node.op == "+":
        undone = f"{result} - {node.right} = {node.left}"
    else:
        undone = f"{result} + {node.right} = {node.left}"
    return f"{rng.choice(CHECKS)} {undone}."
