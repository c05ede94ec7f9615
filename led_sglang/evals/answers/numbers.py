r"""The number that an answer names: in \boxed{...}, behind "answer is" or "####", else the last one of the text."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from led_sglang.evals.answers.latex import arithmetic_signs, without_groups, without_wrappers
from led_sglang.evals.answers.text import last_boxed

__all__ = ["Found", "find_number", "to_number"]

MAX_CHARS = 8000  # from the end of a text; an answer further up is none
MAX_RUN_CHARS = 200
MAX_BITS = 4096  # of a power
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Between an answer and a number that explains it: "60 km in 2 hours" is 60, "3 and 4" is two answers.
EXPLAINS = {"in", "for", "per", "after", "at", "of", "from", "with", "over", "by", "every", "each", "within", "during"}
LISTS = (",", ";", "&", "and", "or")
MARKER = re.compile(
    r"#{4}|(?i:\b(?:answer|result)\b\s*(?:(?:is|are|was|equals|would\s+be|will\s+be|should\s+be|comes\s+to)\b\s*:?|[:=]))"
)
REASON = re.compile(r"\b(?:because|since|as|where|given|which)\b|\\because", re.IGNORECASE)
EQUALS = re.compile(r"=|≈|⇒|→|\\(?:approx|equiv|Rightarrow|implies|to)(?![A-Za-z])")
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
CLOCK = re.compile(r"(?<![\d:])(\d{1,3})\s*:\s*(\d{1,3})(?![\d:])")
REMARK = re.compile(r"[(\[][^()\[\]]*[A-Za-z][^()\[\]]*[)\]]")  # in brackets, with words
BRACED = r"(?:\{([^{}]*)\}|(\d))"
FRACTION = re.compile(rf"\\frac\s*{BRACED}\s*{BRACED}")
UNIT_FRACTION = re.compile(r"\\frac\s*\{(\s*[A-Za-z]+\s*)\}\s*\{(\s*[A-Za-z]+\s*)\}")
UNIT_POWER = re.compile(r"([A-Za-z°]\s*[)}]?)\s*\^\s*\{?\s*-?\d+\s*\}?")
RUN = re.compile(r"(?<![\w.])(?:[-+(]\s?|sqrt\s?\(){0,9}(?:\d|\.\d)(?:[\d.+\-*/() ]|sqrt\s*\()*")
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Found:
    """An answer as written, and what it may mean; no value where it is none or several numbers."""

    text: str
    values: tuple[Fraction, ...]


@dataclass(frozen=True)
class _Run:
    """Arithmetic without words, its values, and where it stands."""

    values: tuple[Fraction, ...]
    start: int
    end: int


def to_number(text: str) -> Fraction | None:
    """Of a text that is one number and nothing else: `$1,234.50`, `-3`, `\\frac{1}{2}`."""
    spelled = _spelled(text).strip().removesuffix(".").strip()
    return _value(spelled) if not re.search("[A-Za-z]", spelled) else None


def find_number(text: str) -> Found | None:
    """None where the text has no number."""
    boxed = last_boxed(text)
    if boxed is not None and re.search(r"\d", boxed):
        return _read(boxed[:MAX_CHARS])
    text = _without_markup(text[-MAX_CHARS:])
    for mark in reversed(list(MARKER.finditer(text))):
        clause = _clause(text[mark.end() :])
        if clause is not None:
            return _read(clause)
    for sentence in reversed(SENTENCE_END.split(text)):
        if found := _last(sentence):
            return found
    return None


def _without_markup(text: str) -> str:
    """Markdown's emphasis, bullets and numbers of lists."""
    text = re.sub(r"\s*\n\s*", "\n", re.sub(r"[ \t]+", " ", text))
    text = re.sub(r"(?m)^(?:[-*•>]|\d{1,2}[.)]) (?=\S)", "", text)
    return re.sub(r"\*\*|__|`", "", text)


def _clause(rest: str) -> str | None:
    """Up to the end of the sentence; where that has no number, the next line that has one, if it follows at once."""
    for part in [part for part in SENTENCE_END.split(rest, maxsplit=4)[:4] if part.strip()][:2]:
        if re.search(r"\d", part):
            return part.strip()
    return None


def _read(written: str) -> Found:
    """Of a text that is meant as the answer."""
    text = REASON.split(_spelled(written))[0]
    if clock := CLOCK.search(text):  # a time or a ratio; five o'clock is 5
        is_hour = clock[2] == "00" and int(clock[1]) <= 24
        return Found(written, (Fraction(clock[1]),) if is_hour else ())
    sides = [side for side in EQUALS.split(text) if re.search(r"\d", side)]
    side = _without_remarks(sides[-1]) if sides else ""
    runs = _runs(side)
    if not runs:
        return Found(written, ())
    return Found(written, () if _are_several(side, runs) else runs[0].values)


def _are_several(side: str, runs: list[_Run]) -> bool:
    """Whether what follows the first number is another answer, and no explanation of it."""
    if len(runs) == 1:
        return False
    between = [word.lower() for word in re.findall(r"[A-Za-z]+|[,;&]", side[runs[0].end : runs[1].start])]
    is_list = len(between) == 1 and between[0] in LISTS
    is_same = {value for run in runs for value in run.values} == set(runs[0].values)
    return is_list or not (is_same or EXPLAINS & set(between))


def _last(sentence: str) -> Found | None:
    """The last number of a sentence that may hold others."""
    text = _spelled(sentence)
    times = list(CLOCK.finditer(text))
    for side in reversed(EQUALS.split(text)):
        bare = _without_remarks(side)
        if runs := _runs(CLOCK.sub(lambda found: " " * len(found[0]), bare)):
            last = bare[runs[-1].start : runs[-1].end].strip()
            is_clock = bool(times) and CLOCK.search(bare, runs[-1].end) is not None
            return Found(times[-1][0], ()) if is_clock else Found(last, runs[-1].values)
        if CLOCK.search(bare):
            return Found(times[-1][0], ())
    return None


def _without_remarks(text: str) -> str:
    bare = REMARK.sub(lambda found: " " * len(found[0]), text.replace("sqrt(", "√"))
    return (bare if re.search(r"\d", bare) else text.replace("sqrt(", "√")).replace("√", "sqrt(")


def _spelled(text: str) -> str:
    """LaTeX and typography to arithmetic as Python has it, words and units kept."""
    text = re.sub(r"\\?[$€£¥]|\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\^\s*\{?\s*\\circ\s*\}?", " ", text)
    text = without_wrappers(without_groups(text)).replace("\\%", "%")
    text = arithmetic_signs(text)
    text = re.sub(r"\\[!,;: ]|~", " ", text)
    text = UNIT_FRACTION.sub(r" \1/\2", text)
    while (step := FRACTION.sub(_fraction, text)) != text:
        text = step
    text = re.sub(r"\\sqrt\s*(?:\{([^{}]*)\}|(\d+))", lambda found: f"sqrt({found[1] or found[2]})", text)
    text = UNIT_POWER.sub(r"\1", text)
    text = re.sub(r"\^\s*\{([^{}]*)\}", r"**(\1)", text).replace("^", "**")
    text = re.sub(r"(?<=\d)[eE]([+-]?\d+)\b", r"*10**(\1)", text)
    text = re.sub(r"(?<=\d)\s+x\s+(?=\d)", "*", text)
    # 3 1/2 and 3\frac{1}{2} are mixed numbers.
    text = re.sub(r"(?<![\d./*])(\d+)\s*\(\((\d+)\)/\((\d+)\)\)", r"((\1)+(\2)/(\3))", text)
    text = re.sub(r"(?<![\d./*])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"((\1)+(\2)/(\3))", text)
    return re.sub(r"(?<=[\d)])\(", "*(", text)


def _fraction(found: re.Match[str]) -> str:
    above, below = found[1] or found[2], found[3] or found[4]
    return f"(({above})/({below}))"


def _runs(text: str) -> list[_Run]:
    """Each piece of arithmetic in the text, from left to right."""
    runs = []
    for found in RUN.finditer(text):
        written = _balanced(found[0])
        value = _value(written)
        if value is None:
            runs.append(_Run((), found.start(), found.end()))
            continue
        end = found.start() + len(written)
        values = [value]
        if unit := re.match(r"\s*(%|[A-Za-z]+)", text[end:]):
            scale = Fraction(1, 100) if unit[1] == "%" else Fraction(SCALES.get(unit[1].lower(), 1))
            values += [value * scale] if scale != 1 else []
        runs.append(_Run(tuple(values), found.start(), end))
    return runs


def _balanced(run: str) -> str:
    """Without operators and open brackets at its end, and without what follows a bracket that it never opened."""
    depth = 0
    for position, sign in enumerate(run):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth < 0:
            run = run[:position]
            break
    run = re.sub(r"(?:[-+*/. ]|sqrt\(|\()+$", "", run)
    return run.lstrip("( ") if run.count("(") > run.count(")") else run


def _value(text: str) -> Fraction | None:
    """Of arithmetic; None for what is none, and for what is too large to be an answer."""
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text.strip())
    if not text or len(text) > MAX_RUN_CHARS:
        return None
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr) -> Fraction:
    """Raises ValueError for anything but arithmetic of bounded size, ZeroDivisionError."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(repr(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _evaluate(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Call) and len(node.args) == 1:  # sqrt: `RUN` has no other name
        return _root(_evaluate(node.args[0]))
    raise ValueError(f"no arithmetic: {ast.dump(node)[:80]}")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator != 1 or bits * abs(exponent) > MAX_BITS:
        raise ValueError("a power without an exact value, or too large")
    return base ** int(exponent)


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise ValueError("a root of a negative number")
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise ValueError("a root without an exact value")
    return root
