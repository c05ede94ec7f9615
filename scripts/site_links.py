"""MkDocs hook: pages and files of the repository outside docs/ are part of the site where a page links to them.

README.md is the site's first page. A linked source file is copied; a linked folder is named without a link.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()(?!https?://|#|mailto:)([^)#\s]+)([^)]*\))")
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/gpu/README.md")  # at the same place in the site
HOME = "index.md"  # README.md
SOURCES = "source"  # where the others are in the site


def place_of(target: Path) -> str | None:
    """Where a file or folder of the repository is in the site; None where it is not in it."""
    name = target.relative_to(ROOT).as_posix()
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if name == "README.md":
        return HOME
    return name if name in PAGES else None if target.is_dir() else f"{SOURCES}/{name}"


def origin_of(page: str) -> Path:
    """The file of the repository that a page of the site is."""
    if page == HOME:
        return ROOT / "README.md"
    return ROOT / page if page in PAGES else ROOT / "docs" / page


def links_of(page: str, text: str) -> dict[str, tuple[Path, str | None]]:
    """Each relative link of a page, with its target in the repository and in the site."""
    found = {}
    for match in LINK.finditer(text):
        target = (origin_of(page).parent / match[2]).resolve()
        if target.exists() and target.is_relative_to(ROOT):
            found[match[2]] = target, place_of(target)
    return found


def on_files(files: Files, config: Any) -> Files:
    for page in (HOME, *PAGES):
        if origin_of(page).is_file():
            files.append(File.generated(config, page, content=origin_of(page).read_text(encoding="utf-8")))
    for file in list(files.documentation_pages()):
        for target, place in links_of(file.src_uri, origin_of(file.src_uri).read_text(encoding="utf-8")).values():
            if place is not None and place.startswith(f"{SOURCES}/") and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, content=target.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = page.file.src_uri
    places = links_of(here, markdown)

    def rewritten(match: re.Match[str]) -> str:
        if match[2] not in places:
            return match[0]  # a dead link: MkDocs reports it
        place = places[match[2]][1]
        if place is None:
            return f"{match[1]}#)"
        return f"{match[1]}{posixpath.relpath(place, posixpath.dirname(here) or '.')}{match[3]}"

    return LINK.sub(rewritten, markdown)
