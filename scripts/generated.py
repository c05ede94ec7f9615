"""Pages of docs/ that scripts write, whole or between two marks: written anew, or compared (--check)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def between(page: Path, begin: str, end: str, text: str) -> str:
    """The page as it stands, with `text` between the marks. Raises ValueError where it has not each of them once."""
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def stale(wanted: Mapping[Path, str]) -> list[Path]:
    """The pages that are missing or others than wanted."""
    return [page for page, text in wanted.items() if not page.is_file() or page.read_text(encoding="utf-8") != text]


def main(description: str | None, wanted: Mapping[Path, str]) -> int:
    """Writes what is not current and names it; with --check only names it, and the exit status is 1."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is not current")
    is_check, old = parser.parse_args().check, stale(wanted)
    for page in old:
        if not is_check:
            page.parent.mkdir(exist_ok=True)
            page.write_text(wanted[page], encoding="utf-8")
        print(f"{page.relative_to(ROOT)}{' is not current' if is_check else ''}")
    return int(is_check and bool(old))
