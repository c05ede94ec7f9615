"""A question as the model reads it: this project's prompts, or the order and format of the released evaluation's.

The released ones (AlbertTan404/LED, `led/constants.py`) put the instruction before the question, list choices as
`A. ...` and ask for the letter as `"answer": "C"`. Their order and format are reproduced; the wording of the longer
instructions is this project's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from led_sglang.evals.answers.choices import LETTERS

__all__ = ["STYLES", "PromptKind", "PromptStyle", "write_prompt"]

PromptStyle = Literal["ours", "released"]
PromptKind = Literal["plain", "boxed", "choice", "code", "function"]
STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE = "Please reason step by step, and put the letter of the right choice, and nothing else, within \\boxed{}."
RELEASED_CHOICE = (
    "Solve this multiple-choice question. Give the choice in the answer field, its letter and nothing else, e.g., "
    '"answer": "C".'
)
CODE = (
    "You will be given a question (problem specification) and will generate a correct Python program that matches the "
    "specification and passes all tests."
)
STDIN = (
    "Read the inputs from stdin, solve the problem and write the answer to stdout (do not test directly on the sample "
    "inputs)."
)


def _problem(problem: str) -> str:
    return problem


def _boxed(problem: str) -> str:
    return f"{problem}\n\n{BOXED}"


def _choice(problem: str, choices: list[str]) -> str:
    return f"{problem}\n\n{_listed(choices, '({}) {}')}\n\n{CHOICE}"


def _code(problem: str, starter: str) -> str:
    if starter.strip():
        form = f"Use this starter code and put the whole program into one block:\n{_block(starter)}"
    else:
        form = f"{STDIN} Put the whole program into one block:\n{_block('# your code')}"
    return f"{CODE}\n\n{problem}\n\n{form}"


def _function(problem: str) -> str:
    return f"Complete this Python function, and put the whole of it into one block:\n{_block(problem.rstrip())}"


def _released_boxed(problem: str) -> str:
    return f"{BOXED}\n\n{problem}"


def _released_choice(problem: str, choices: list[str]) -> str:
    return f"{RELEASED_CHOICE}\n\n{problem}\n{_listed(choices, '{}. {}')}"


def _released_code(problem: str, starter: str) -> str:
    """The question is labelled, and the text ends in an empty line."""
    if starter.strip():
        form = f"Write the solution with this starter code, and enclose it within delimiters.\n{_block(starter)}"
    else:
        form = (
            f"{STDIN} Enclose the code within delimiters as below; when the program runs, it must read the inputs, run "
            f"the algorithm and write its output to STDOUT.\n{_block('# YOUR CODE HERE')}"
        )
    return f"{CODE}\n\nQuestion: {problem}\n\n{form}\n\n"


def _listed(choices: list[str], form: str) -> str:
    return "\n".join(form.format(letter, choice) for letter, choice in zip(LETTERS, choices, strict=False))


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


PROMPTS: dict[PromptStyle, dict[PromptKind, Callable[..., str]]] = {
    "ours": {"plain": _problem, "boxed": _boxed, "choice": _choice, "code": _code, "function": _function},
    "released": {
        "plain": _problem,
        "boxed": _released_boxed,
        "choice": _released_choice,
        "code": _released_code,
        "function": _function,
    },
}


def write_prompt(style: PromptStyle, kind: PromptKind, slots: dict[str, Any]) -> str:
    """`slots`: `problem`, and `choices` or `starter` where the kind has them."""
    return PROMPTS[style][kind](**slots)
