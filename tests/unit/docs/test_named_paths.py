"""Documentation names files, modules and functions that exist, and links that lead somewhere."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HISTORY = ROOT / "docs/log.md"  # what it names existed at the time
DECISIONS = ROOT / "docs/decisions"  # what was tried, and may be gone
KINDS = ("tutorials", "how-to", "reference")
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(page for kind in KINDS for page in (ROOT / "docs" / kind).glob("*.md")),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("benchmarks/*/README.md"),
    }
    - {HISTORY, ROOT / "CHANGELOG.md"}
)
# Tests have a test of their own: test_named_tests.py.
TOPS = ("led_sglang", "training", "benchmarks", "scripts", "docs", "patches", "server_configs", "deploy", "examples")
ROOMS = ("config", "ops", "integration", "cpu_platform", "evals", "serving", "inspector", "embedded", "cli", "compat")
PATH = re.compile(rf"(?<![\w./<-])(?:{'|'.join(TOPS)})/[\w./-]*\w")
SHORT = re.compile(rf"`((?:{'|'.join(ROOMS)})/[\w/]+\.py)`")  # below led_sglang/
MODULE = re.compile(r"(?<![\w./-])(?:led_sglang|training|scripts)(?:\.\w+)+")
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")
PATTERN = re.compile(r"[\w./-]*(?:<\w+>|\*|\.\.\.)[\w./-]*")  # of no one file
FILE = re.compile(r"`(?!test_)(\w+\.py)`")  # somewhere in the repository
MADE = {"benchmarks/results/gpu.jsonl"}  # by a run on a GPU
OUTPUT = re.compile(r"--(?:out|runs)[ =]\S+")  # what a command writes


@cache
def file_names() -> set[str]:
    return {path.name for top in (*TOPS, "tests") for path in (ROOT / top).rglob("*.py")}


def module_of(name: str) -> bool:
    """The dotted name is a module, a folder, or a name that a module binds (attributes of that are not looked into)."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.is_file() or place.is_dir():
            rest = parts[length:]
            return not rest or (file.is_file() and rest[0] in bound_in(file))
    return False


def bound_in(file: Path) -> set[str]:
    found = {"__all__", "__version__"}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def faults(page: Path, text: str) -> Iterator[str]:
    """What the text, as a part of the page, names in vain."""
    plain = OUTPUT.sub(" ", PATTERN.sub(" ", text))
    for path in PATH.findall(plain):
        if not (ROOT / path).exists() and path not in MADE:
            yield path
    for path in SHORT.findall(text):
        if not (ROOT / "led_sglang" / path).is_file():
            yield path
    yield from (name for name in FILE.findall(text) if name not in file_names())
    for name in MODULE.findall(plain):
        if not module_of(name):
            yield name
    for target, anchor in LINK.findall(text):
        place = page.parent / target if target else page
        if not place.exists() or (anchor and place.suffix == ".md" and anchor not in anchors(place)):
            yield f"{target}#{anchor}" if anchor else target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page: Path) -> None:
    assert list(faults(page, page.read_text())) == []


@pytest.mark.parametrize("page", sorted(DECISIONS.glob("*.md")), ids=lambda page: page.name)
def test_links_of_decisions_lead_somewhere(page: Path) -> None:
    assert [target for target, _ in LINK.findall(page.read_text()) if not (page.parent / target).exists()] == []


def test_a_name_that_is_gone_is_seen() -> None:
    page = ROOT / "docs/api.md"
    gone = ["led_sglang/gone.py", "scripts/gone", "ops/gone.py", "gone.py", "led_sglang.gone", "led_sglang.ops.gone.x"]
    links = ["gone.md", "api.md#gone"]
    text = " ".join((*(f"`{name}`" for name in gone), *(f"[a]({link})" for link in links)))
    assert list(faults(page, text)) == [*gone, *links]
    here = (
        "led_sglang/wire.py",
        "led_sglang.ops.led_step",
        "led_sglang.config.fields.LedParams.depth",
        "ops/reference.py",
    )
    written = "`led_sglang/ops/methods/<name>.py` [a](api.md#refused) --out docs/results/new"
    assert list(faults(page, " ".join((*(f"`{name}`" for name in here), written)))) == []
