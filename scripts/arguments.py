#!/usr/bin/env python3
"""The verdict on every argument of the newest supported SGLang, from patches/arguments.json, in docs/compat.md.

    .venv/bin/python scripts/arguments.py           # writes the tables between the page's markers
    .venv/bin/python scripts/arguments.py --check   # exits 1 if the page has others

Refused arguments are listed in `integration.support.UNSUPPORTED` alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.generated import ROOT, between, main

SOURCE = ROOT / "patches/arguments.json"
PAGE = ROOT / "docs/compat.md"
BEGIN, END = "<!-- scripts/arguments.py writes this -->", "<!-- until here -->"


def verdicts() -> dict[str, Any]:
    """`works`: field -> the test that has it; `untested`, `cannot matter`: what about them -> fields."""
    loaded: dict[str, Any] = json.loads(SOURCE.read_text(encoding="utf-8"))
    return loaded


@cache
def flags() -> dict[str, str]:
    """Field -> its flag as SGLang's own parser has it, in the field's own words where there are two."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    spellings: dict[str, list[str]] = {}
    for action in parser._actions:  # some have a deprecated flag beside their own, as another action
        spellings.setdefault(action.dest, []).extend(action.option_strings)
    spellings = {field: found for field, found in spellings.items() if found}
    own = {field: "--" + field.replace("_", "-") for field in spellings}
    return {field: own[field] if own[field] in found else max(found, key=len) for field, found in spellings.items()}


def flag(field: str) -> str:
    return flags().get(field, f"{field} (no flag)")


def table() -> str:
    from led_sglang.integration.support import UNSUPPORTED

    found = verdicts()
    by_test: dict[str, list[str]] = {}
    for field, test in found["works"].items():
        by_test.setdefault(test, []).append(field)
    by_reason: dict[str, list[str]] = {}
    for field, (_, why) in UNSUPPORTED.items():
        by_reason.setdefault(why, []).append(field)
    groups = {
        "works, in this test": {f"`{test}`": fields for test, fields in sorted(by_test.items())},
        "refused, because": by_reason,
        "untested": found["untested"],
        "cannot matter": found["cannot matter"],
    }
    lines = []
    for title, rows in groups.items():
        number = sum(map(len, rows.values()))
        lines += [f"| {title} | {number} arguments |", "|---|---|"]
        lines += [
            f"| {what} | {', '.join(f'`{flag(field)}`' for field in sorted(fields))} |" for what, fields in rows.items()
        ]
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """docs/compat.md as it should be."""
    return between(PAGE, BEGIN, END, table())


if __name__ == "__main__":
    sys.exit(main(__doc__, {PAGE: page()}))
