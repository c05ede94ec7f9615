"""The reference tables of the documentation: `python -m led_sglang.config.reference` prints them."""

import json
import sys

from led_sglang.config.fields import FIELDS, METHODS, Field

HEADER = "| key | legal | default | meaning |\n|---|---|---|---|"


def rows_of(method: str) -> list[str]:
    """One row of Markdown for each key of the method, `method` itself left out."""
    return [_row(row) for row in FIELDS.values() if method in row.methods]


def _row(row: Field) -> str:
    default = f"`{json.dumps(row.default)}`" if isinstance(row.default, str | bool) else f"{row.default:g}"
    if row.server_default:
        default = f"`--led-{row.name.replace('_', '-')}` ({default})"
    return f"| `{row.name}` | {row.legal.describe()} | {default} | {row.meaning} |"


def main() -> int:
    for method in METHODS:
        if rows := rows_of(method):
            print(f"{method}:\n\n{HEADER}", *rows, "", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
