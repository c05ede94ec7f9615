#!/usr/bin/env python3
"""The models that LED is shown to read rightly, from the rows of the matrix of tests, in docs/compat.md.

    .venv/bin/python scripts/models.py           # writes the tables between the page's markers
    .venv/bin/python scripts/models.py --check   # exits 1 if the page has others

A family is in the table because a test computes its layers anew; what no test has computed is in no row.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.generated import ROOT, between, main

PAGE = ROOT / "docs/compat.md"
BEGIN, END = "<!-- scripts/models.py writes this -->", "<!-- the models end here -->"
MATRIX = "tests/models/test_matrix.py"
SERVED = {  # rows of tests.server.checkpoints: family, reasoning parser, test
    "qwen3": ("Qwen3", "qwen3", "tests/server/exact/test_exact.py"),
    "qwen3_moe": ("Qwen3-MoE", "qwen3-thinking", "tests/server/test_models.py"),
    "qwen2": ("Qwen2, QwQ, R1-Distill-Qwen", "deepseek-r1", "tests/server/test_models.py"),
    "llama": ("Llama, R1-Distill-Llama", "deepseek-r1", "tests/server/test_models.py"),
    "mimo": ("MiMo-7B", "qwen3", "tests/server/test_models.py"),
}


def table() -> str:
    from tests.models.zoo import ENTRIES
    from tests.server.checkpoints import ARCHITECTURES

    columns = ("family", "SGLang's class", "layers end", "shown by", "LM head", "parser", "opens and closes a thought")
    lines = [row(*columns), row(*["---"] * len(columns))]
    for name, (family, parser, test) in SERVED.items():
        shown = f"served and recomputed, `{test}`"
        lines.append(row(family, f"`{ARCHITECTURES[name].served_as}`", "", shown, "as it is", *markers_of((parser,))))
    for entry in ENTRIES.values():
        cells = (entry.family, f"`{entry.model_class}`", entry.ending, shown_by(entry), entry.head)
        lines.append(row(*cells, *markers_of(entry.parsers)))
    return "\n".join([*lines, "", *refused()])


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def shown_by(entry: object) -> str:
    """`recomputed`: `test_layers` of the matrix has compared every captured layer with transformers in float64."""
    said = ["recomputed"]
    if entry.has_ranks:  # type: ignore[attr-defined]
        said.append("also on two ranks")
    if entry.has_stand_ins:  # type: ignore[attr-defined]
        said.append("parts of it in plain torch")
    if not entry.is_final_same:  # type: ignore[attr-defined]
        said.append("the engine's final logits are not transformers'")
    return ", ".join(said)


def markers_of(parsers: tuple[str, ...]) -> tuple[str, str]:
    from led_sglang.integration.thinking.parser_markers import parser_markers

    if not parsers:
        return "none", "`<think>` `</think>` where each is one token, else `--led-think-open/close`"
    pairs = []
    for parser in parsers:
        found = parser_markers(SimpleNamespace(reasoning_parser=parser), None)  # type: ignore[arg-type]
        assert found is not None, parser
        opening, closing = (found.texts[0], *found.more_open), (found.texts[1], *found.more_close)
        pairs.append(f"{code(opening)} … {code(closing)}")
    return code(parsers), "; ".join(dict.fromkeys(pairs))


def code(texts: tuple[str, ...]) -> str:
    return " ".join(f"`{text}`".replace("|", "\\|") for text in texts)


def refused() -> list[str]:
    from led_sglang.integration.model_support import NO_LAYER_OUTPUT, STREAMS, STREAMS_BY_CONFIG

    by_reason: dict[str, list[str]] = {}
    for name, reason in NO_LAYER_OUTPUT.items():
        by_reason.setdefault(reason, []).append(f"`{name}`")
    for name, setting in STREAMS_BY_CONFIG.items():
        by_reason[STREAMS].append(f"`{name}` with `{setting}`")
    lines = [row("refused by name, because", "SGLang's classes"), row("---", "---")]
    return [*lines, *(row(reason, ", ".join(sorted(names))) for reason, names in by_reason.items())]


def page() -> str:
    """docs/compat.md as it should be."""
    return between(PAGE, BEGIN, END, table() + "\n")


if __name__ == "__main__":
    sys.exit(main(__doc__, {PAGE: page()}))
