"""Spelling of LaTeX, Markdown and Unicode that carries no meaning."""

from __future__ import annotations

import re

from led_sglang.evals.answers.text import bracketed

__all__ = ["arithmetic_signs", "without_groups", "without_wrappers"]

WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|textnormal|mathrm|mathbf|mathit|mathsf|mathbb|boldsymbol|bm|mbox|hbox|"
    r"operatorname|emph|underline|fbox|boxed)\s*\{([^{}]*)\}"
)
# Between the digits of one number: 70{,}000 and 70\,000 and 70,\!000 and 70 000 and 70'000.
_SPACE = r"(?:\\[!,;: ]|\\(?:thinspace|medspace))"
_SEPARATORS = (
    rf"\{{\s*(?:[,.]|{_SPACE})?\s*\}}",
    rf",(?:\s*{_SPACE})+\s*",
    rf"\s*(?:{_SPACE}\s*)+",
    r"\\text\s*\{\s*,\s*\}",
    r"[,_'’~ \u00a0\u2009\u202f]",
)
_SEPARATOR = f"(?:{'|'.join(_SEPARATORS)})"
GROUPED = re.compile(rf"(?<![\w.,^])\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?!\d|\s*/\s*\d)")
GROUPED_INDIAN = re.compile(r"(?<![\w.,^])\d{1,2}(?:,\d{2})+,\d{3}(?!\d)")
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
SIGNS = {
    "−": "-",
    "×": "*",
    "·": "*",
    "⋅": "*",
    "∙": "*",
    "÷": "/",
    "⁄": "/",
    "½": " 1/2",
    "¼": " 1/4",
    "¾": " 3/4",
    "\\times": "*",
    "\\cdot": "*",
    "\\ast": "*",
    "\\div": "/",
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\cfrac": "\\frac",
}
SIGN = re.compile("|".join(re.escape(sign) + (r"(?![A-Za-z])" if sign[0] == "\\" else "") for sign in SIGNS))


def without_wrappers(text: str) -> str:
    r"""Fonts and boxes of words taken off, from the inside out, and braces around the whole: {\text{east}} = east."""
    while True:
        bare = WRAPPER.sub(r" \1 ", text).strip()
        if bare.startswith("{") and bracketed(bare, 1) == bare[1:-1]:
            bare = bare[1:-1].strip()
        if bare == text:
            return bare
        text = bare


def without_groups(text: str) -> str:
    """Numbers without what separates their thousands: `1,234,000`, `70{,}000`, `11,\\! 111`, `1 200`."""
    for pattern in (GROUPED, GROUPED_INDIAN):
        text = pattern.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    return text


def arithmetic_signs(text: str) -> str:
    """One spelling of minus, times, division, fractions and powers."""
    text = SIGN.sub(lambda found: SIGNS[found[0]], text)
    return re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: f"^{{{found[0].translate(SUPERSCRIPTS)}}}", text)
