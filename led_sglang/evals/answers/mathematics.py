"""Whether two mathematical answers are the same: as written, or by math-verify once both are spelled alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from led_sglang.evals.answers.choices import choice_in_box
from led_sglang.evals.answers.latex import arithmetic_signs, without_groups, without_wrappers

__all__ = ["bare_latex", "is_same", "parse"]

RELATION = r"(<=|>=|<|>|≤|≥|\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt)(?![A-Za-z]))"
VARIABLE = r"[A-Za-z]|\\(?:theta|alpha|beta|lambda|phi)"
CHAIN = re.compile(rf"(.+?)\s*{RELATION}\s*({VARIABLE})\s*{RELATION}\s*(.+)")
BOUND_RIGHT = re.compile(rf"({VARIABLE})\s*{RELATION}\s*(.+)")
BOUND_LEFT = re.compile(rf"(.+?)\s*{RELATION}\s*({VARIABLE})")
UNION = re.compile(r"\s*(?:\\cup|\\lor|\\vee|,?\s*\bor\b)\s*")
MEMBER = re.compile(rf"^(?:{VARIABLE})\s*\\in\s*")
LABEL = re.compile(r"^(?:[A-Za-z]\w*|\\[a-z]+)(?:_\{?\w+\}?)?(?:\s*\([a-z]\))?\s*=\s*(?=\S)")
COLUMN = re.compile(r"\\begin\s*\{([pbvBV]?matrix|array)\}(?:\{[^{}]*\})?(.*?)\\end\s*\{\1\}", re.DOTALL)
ANGLE = re.compile(r"\\langle(.*?)\\rangle", re.DOTALL)
BASE = re.compile(r"^([0-9A-Fa-f]+)_\{?\s*(?:base\s*)?([0-9]+|[a-z]+)\s*\}?$")
BASE_WORDS = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    "twelve": "12",
    "sixteen": "16",
}
UNITS = {
    name: unit
    for unit, names in {
        "mm": "mm millimeter millimeters millimetre millimetres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "m": "m meter meters metre metres",
        "km": "km kilometer kilometers kilometre kilometres",
        "in": "in inch inches",
        "ft": "ft foot feet",
        "yd": "yd yard yards",
        "mi": "mi mile miles",
        "unit": "unit units",
        "s": "s sec secs second seconds",
        "min": "min mins minute minutes",
        "h": "h hr hrs hour hours",
        "day": "day days",
        "week": "week weeks",
        "month": "month months",
        "year": "year years yr yrs",
        "mg": "mg milligram milligrams",
        "g": "g gram grams",
        "kg": "kg kilogram kilograms",
        "lb": "lb lbs pound pounds",
        "oz": "oz ounce ounces",
        "ml": "ml mL milliliter milliliters",
        "L": "L liter liters litre litres",
        "cent": "cent cents",
        "dollar": "dollar dollars",
        "degree": "degree degrees",
        "radian": "rad radian radians",
    }.items()
    for name in names.split()
}
UNIT_NAMES = "|".join(sorted(UNITS, key=len, reverse=True))
UNIT = re.compile(
    rf"(?P<value>.*[\d)}}])\s*(?P<shape>square|sq\.?|cubic|cu\.?)?\s*(?P<name>{UNIT_NAMES})\.?"
    r"\s*(?:\^\s*\{?\s*(?P<power>\d)\s*\}?|(?P<word>squared|cubed))?$",
    re.DOTALL,
)
POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}


def is_same(answer: str, gold: str) -> bool:
    """Raises whatever a parser of mathematics does with what a model wrote."""
    if _is_written_alike(answer, gold):
        return True
    mine, right = _spelled(answer), _spelled(gold)
    if re.fullmatch(r"\([A-J]\)", right):
        return str(choice_in_box(answer)) == right[1]
    if _base(mine) or _base(right):
        return _same_numeral(mine, right)
    if _num_values(right) != _num_values(mine) and not re.search(r"[(\[]|\\in\b|\\begin|\\langle", mine + right):
        return False
    mine_value, mine_unit, right_value, right_unit = *_unit(mine), *_unit(right)
    if mine_unit and right_unit:
        return mine_unit == right_unit and is_same(mine_value, right_value)
    pairs = [(answer, gold), *_respelled(mine, right)]
    if (mine_unit and "\\" in answer) or (right_unit and "\\" in gold):
        pairs.append((mine_value, right_value))
    return any(_is_written_alike(*pair) or _is_equal(*pair) for pair in pairs)


def parse(text: str) -> list[Any]:
    """What math-verify finds. Without time limits of its own, which need the main thread: the judge process has one."""
    from math_verify import parse  # type: ignore[import-untyped,unused-ignore]

    return list(parse(text, parsing_timeout=None))


def _is_equal(answer: str, gold: str) -> bool:
    from math_verify import verify  # type: ignore[import-untyped,unused-ignore]

    found = parse(f"\\boxed{{{answer}}}")
    return bool(found) and bool(verify(parse(f"\\boxed{{{gold}}}"), found, timeout_seconds=None))


def _is_written_alike(answer: str, gold: str) -> bool:
    mine, right = bare_latex(answer), bare_latex(gold)
    return mine == right or (len(right) > 1 and right.isalpha() and mine.casefold() == right.casefold())


def bare_latex(text: str) -> str:
    """Spelling that carries no meaning taken out, so that words ("\\text{ Evelyn }") compare too."""
    text = re.sub(r"\\(?:left|right|displaystyle|[!,;:])", "", without_wrappers(text))
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.replace("^\\circ", "").replace("^{\\circ}", "").replace("\\$", "").replace("\\ ", "")
    return re.sub(r"\s+", "", text).strip("$.").replace("°", "")


def _spelled(text: str) -> str:
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|(?<!\\)\\[!,;: ]", " ", without_groups(text))
    text = without_wrappers(text.strip().strip("$").removesuffix("."))
    return re.sub(r"\s+", " ", re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°", " degrees", arithmetic_signs(text))).strip()


def _base(text: str) -> str | None:
    """The base that a numeral names: `2516_8`, `2516_{\\text{eight}}`."""
    found = BASE.match(text.replace(" ", ""))
    return BASE_WORDS.get(found[2], found[2]) if found else None


def _same_numeral(one: str, other: str) -> bool:
    """Digit by digit; a base that one of them leaves out is the question's."""
    bases = {base for text in (one, other) if (base := _base(text))}
    digits = {text.partition("_")[0].replace(" ", "").lstrip("0").upper() for text in (one, other)}
    return len(bases) == 1 and len(digits) == 1


def _num_values(text: str) -> int:
    """How many answers a list has; a ± counts twice."""
    depth, items = 0, [""]
    for piece in re.split(r"(\\?[{}()\[\]]|[,;]|\band\b|\bor\b)", text.removeprefix("\\{").removesuffix("\\}")):
        depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(piece[-1:], 0) if len(piece) <= 2 else 0
        if depth == 0 and piece in (",", ";", "and", "or"):
            items.append("")
        else:
            items[-1] += piece
    return sum(2 if "\\pm" in item or "±" in item else 1 for item in items if item.strip())


def _unit(text: str) -> tuple[str, str]:
    """(value, unit with its power); no unit where there is none that is known."""
    if money := re.match(r"\\?\$\s*(.+)", text):
        return money[1], "dollar^1"
    found = UNIT.match(text)
    if not found:
        return text, ""
    shape = (found["shape"] or found["word"] or "").rstrip(".")
    power = found["power"] or POWERS.get(shape, "1")
    return found["value"].strip(), f"{UNITS[found['name']]}^{power}"


def _respelled(answer: str, gold: str) -> Iterator[tuple[str, str]]:
    """Both in other words: without fonts, without `x =`, intervals for inequalities, tuples for vectors."""
    yield answer, gold
    if "=" not in gold and (label := LABEL.match(answer)):
        yield answer[label.end() :], gold
    intervals = _interval(answer), _interval(gold)
    if any(intervals):
        yield intervals[0] or MEMBER.sub("", answer), intervals[1] or MEMBER.sub("", gold)
    tuples = _tuple(answer), _tuple(gold)
    if any(tuples):
        yield tuples[0] or answer, tuples[1] or gold


def _interval(text: str) -> str | None:
    r"""`1 < x \le 2` as (1, 2], several of them as their union; None for anything else."""
    text = re.sub(rf"^\\\{{\s*(?:{VARIABLE})\s*(?:\\mid|\||:)\s*(.*)\\\}}$", r"\1", text).strip()
    parts = [_one_interval(part.strip()) for part in UNION.split(text)]
    return " \\cup ".join(part for part in parts if part) if all(parts) else None


def _one_interval(text: str) -> str | None:
    if found := CHAIN.fullmatch(text):
        low, first, _, second, high = found.groups()
        if _is_less(first) != _is_less(second):
            return None
        if not _is_less(first):
            low, first, second, high = high, second, first, low
        return f"{'[' if _is_closed(first) else '('}{low}, {high}{']' if _is_closed(second) else ')'}"
    if found := BOUND_RIGHT.fullmatch(text):
        _, relation, bound = found.groups()
        is_upper = _is_less(relation)
    elif found := BOUND_LEFT.fullmatch(text):
        bound, relation, _ = found.groups()
        is_upper = not _is_less(relation)
    else:
        return None
    if is_upper:
        return f"(-\\infty, {bound}{']' if _is_closed(relation) else ')'}"
    return f"{'[' if _is_closed(relation) else '('}{bound}, \\infty)"


def _is_less(relation: str) -> bool:
    return "<" in relation or "≤" in relation or relation.startswith("\\l")


def _is_closed(relation: str) -> bool:
    return "=" in relation or relation in "≤≥" or "e" in relation


def _tuple(text: str) -> str | None:
    """A matrix of one row or one column, or what stands in angle brackets, as (a, b, c)."""
    if (angle := ANGLE.fullmatch(text)) is not None:
        return f"({angle[1].strip()})"
    if (matrix := COLUMN.fullmatch(text)) is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", matrix[2]) if row.strip()]
    if len(rows) > 1 and any(len(row) > 1 for row in rows):
        return None
    return f"({', '.join(cell.strip() for row in rows for cell in row)})"
