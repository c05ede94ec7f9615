r"""The letter that an answer chooses: in \boxed{}, as JSON, behind "answer", called right, alone, last in brackets."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass

from led_sglang.evals.answers.latex import without_wrappers
from led_sglang.evals.answers.text import last_boxed

__all__ = ["LETTERS", "Chosen", "choice_in_box", "find_choice", "to_letter"]

LETTERS = "ABCDEFGHIJ"
MAX_CHARS = 8000  # from the end of a text
# A letter that stands for a choice: not the article, not the pronoun, not the D of D-glucose.
_FOLLOWS = "is|was|and|or|but|because|since|as|for|with|which|not|rather|must|seems|if|due|in|on|by"
_NO_ARTICLE = rf"(?!(?<=A)\s+(?!(?:{_FOLLOWS})\b)[a-z])"
_NO_PRONOUN = r"(?!(?<=I)\s+(?:think|believe|would|will|am|have|had|do|did|can|guess|choose|chose|pick)\b)"
_LETTER = (
    r"(?<![\w'’-])(?:\(\s*(?P<{0}1>[A-Ja-j])\s*\)|\[\s*(?P<{0}2>[A-Ja-j])\s*\]|"
    rf"(?P<{{0}}3>[A-J])(?![\w'’]|-\w){_NO_ARTICLE}{_NO_PRONOUN}|(?P<{{0}}4>[a-j])(?=\s*(?:[).,:;!?\]]|$)))"
)
_KIND = r"(?:(?i:option|choice|letter|answer|alternative)\s+)?"
_IS = r"(?:is|was|would\s+be|must\s+be|should\s+be|has\s+to\s+be)"
LETTER = _KIND + _LETTER.format("a")
ANOTHER = re.compile(rf"\s*(?:,\s*)?(?:/|,|&|\+|\bor\b|\band\b)\s*{_KIND}{_LETTER.format('b')}")
LIST_END = re.compile(r"\s*(?:[.;)\]!?]|$)")
JSON_ANSWER = re.compile(r"""["']?\banswer["']?\s*:\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""", re.IGNORECASE)
LABELLED = re.compile(
    rf"(?i:\b(?:answer|choice|option|solution)\b(?:\s+{_IS}\b|\s*[:=–—-])"
    rf"(?:\s+(?:clearly|therefore|thus|indeed|definitely))?\s*[:=]?)\s*[\"']?{LETTER}"
)
CALLED_RIGHT = re.compile(
    rf"(?<!\w){LETTER}(?i:\s+(?:{_IS}|seems)\s+(?:(?:the|clearly|indeed|therefore|thus)\s+)*"
    r"(?:right|correct|true|best|answer)\b)"
)
CONCLUDED = re.compile(
    r"(?i:\b(?:choose|chose|pick|select|go\s+with|settle\s+on|so|thus|hence|therefore|but|leaves?|leaving|conclude)\b"
    rf"(?:\s*,)?(?:\s+(?:it\s+is|it's|it\s+must\s+be|that|only|us\s+with|with))?)\s*{LETTER}"
    r"(?!\s+(?i:is|are|was|does|has|would|cannot|can't|isn't)\b)"
)
CALLED = re.compile(
    rf"(?i:(?:\b{_IS}|'s|\bsay|\bthink))\s+{LETTER}(?=\s*(?:[.,;:!?]|$)|\s+(?i:rather|because|since|not|and\s+not)\b)"
)
ALONE = re.compile(rf"^[^\w(\[]*{LETTER}(?=\W*$|\s*[).:,;]\s|\s*[-–—]\s|\s+(?i:because|since|as|for)\b)")
STATEMENTS = (LABELLED, CALLED_RIGHT, CONCLUDED, CALLED)  # the clearest first; of each the last one counts
NEGATED = re.compile(r"\b(?:not|no|wrong|incorrect|false|violates?|fails?|isn't|cannot|neither)\b", re.IGNORECASE)
BRACKETED = re.compile(r"\(\s*([A-J])\s*\)")


@dataclass(frozen=True)
class Chosen:
    """The letters named as the answer, in order: one, or several, which is no choice."""

    letters: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.letters)


def to_letter(gold: str) -> str:
    """`(c)`, `C.` and `C` are C."""
    return gold.strip("()[]. ").upper()


def find_choice(text: str) -> Chosen | None:
    """None where no letter is named."""
    boxed = last_boxed(text)
    if boxed is not None and (chosen := choice_in_box(boxed)):
        return chosen
    text = without_wrappers(re.sub(r"\*\*|__|[`$]|\\[()\[\]]", "", text[-MAX_CHARS:]))
    if chosen := _in_json(text):
        return chosen
    for pattern in STATEMENTS:
        if found := list(pattern.finditer(text)):
            return _letters(text, found[-1])
    return _alone(text) or _last_in_brackets(text)


def choice_in_box(boxed: str) -> Chosen | None:
    """Of a text that is meant as the answer."""
    text = without_wrappers(boxed).replace("\\ ", " ").strip(" .$*")
    if re.fullmatch(r"\W*[A-Ja-j]\W*", text):
        return Chosen((re.sub(r"\W", "", text).upper(),))
    found = LABELLED.search(text) or re.match(rf"\W*{LETTER}", text)
    return _letters(text, found) if found else None


def _in_json(text: str) -> Chosen | None:
    """The last `"answer": "C"`, whatever object it stands in."""
    for found in reversed(list(JSON_ANSWER.finditer(text))):
        try:
            value = str(json.loads(found[1]) if found[1][0] == '"' else ast.literal_eval(found[1]))
        except (ValueError, SyntaxError):
            continue
        if chosen := choice_in_box(value):
            return chosen
    return None


def _letters(text: str, found: re.Match[str]) -> Chosen:
    """Of a statement: with those that it lists beside the first, unless these begin another clause."""
    letters, end = [_letter(found, "a")], found.end()
    while more := ANOTHER.match(text, end):
        letters.append(_letter(more, "b"))
        end = more.end()
    return Chosen(tuple(dict.fromkeys(letters)) if LIST_END.match(text, end) else (letters[0],))


def _letter(found: re.Match[str], name: str) -> str:
    return next(letter for i in range(1, 5) if (letter := found[f"{name}{i}"])).upper()


def _alone(text: str) -> Chosen | None:
    """A line that is a letter, or begins with one: the last line first, then the first one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in (*lines[-1:], *lines[:1]):
        if found := ALONE.search(line):
            return _letters(line, found)
    return None


def _last_in_brackets(text: str) -> Chosen | None:
    """Of the last sentence that names one and does not rule it out."""
    for sentence in reversed(re.split(r"(?<=[.!?])\s+|\n", text)):
        if (found := BRACKETED.findall(sentence)) and not NEGATED.search(sentence):
            return Chosen((found[-1],))
    return None
