"""The reference tables of the documentation: `python scripts/reference_tables.py` prints them."""

import json
import sys

from led_sglang.config.arguments import ARGUMENTS, SWITCH, Argument
from led_sglang.config.fields import FIELDS, METHODS, Field

__all__ = ["HEADER", "argument_rows", "rows_of"]

HEADER = "| key | legal | default | meaning |\n|---|---|---|---|"


def rows_of(method: str) -> list[str]:
    """One row of Markdown for each key of the method, `method` itself left out."""
    return [_row(row) for row in FIELDS.values() if method in row.methods]


def argument_rows() -> list[str]:
    """One row of Markdown for each `--led` argument: flag, legal values, the words of --help."""
    return [_argument_row(argument) for argument in (SWITCH, *ARGUMENTS)]


def _argument_row(argument: Argument) -> str:
    words = argument.help.replace("<think> ... </think>", "`<think> ... </think>`").replace("|", "\\|")
    legal = argument.legal.describe().replace('"', "")
    return f"| `{argument.flag}` | {legal} | {words} |"


def _row(row: Field) -> str:
    default = f"`{json.dumps(row.default)}`" if isinstance(row.default, str | bool) else f"{row.default:g}"
    if row.server_default:
        default = f"`--led-{row.key.replace('_', '-')}` ({default})"
    return f"| `{row.key}` | {row.legal.describe()} | {default} | {row.meaning} |"


def main() -> int:
    for method in METHODS:
        if rows := rows_of(method):
            print(f"{method}:\n\n{HEADER}", *rows, "", sep="\n")
    print("| argument | legal | meaning |\n|---|---|---|", *argument_rows(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
