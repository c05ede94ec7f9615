"""The Python program in a text: in a fence of Markdown, closed or not, or in the text itself."""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass

__all__ = ["find_program"]

FENCE = re.compile(r"^(?P<indent>[ \t>]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^`\n]*$")
PYTHON = ("python", "python3", "py", "py3", "python2", "pypy", "pypy3")
UNNAMED = ("", "code", "plaintext", "text", "txt")
CODE_LINE = re.compile(
    r"(?:from\s+\w[\w.]*\s+import\b|import\s+\w|def\s+\w|async\s+def\s|class\s+\w|@\w|if\s.*:|for\s.*:|while\s.*:|try:|with\s.*:"
    r"|print\(|sys\.|[A-Za-z_][\w, ]*\s*=\s*\S|#!)"
)
MAX_LINES = 400  # of a text without fences
INPUT_NAMES = ("input", "stdin", "open", "fileinput", "read")


@dataclass(frozen=True)
class _Block:
    language: str
    source: str
    tree: ast.Module | None  # None: no Python


def find_program(text: str, functions: frozenset[str] = frozenset()) -> str | None:
    """The program that answers; None where the text holds none.

    `functions`: names that the tests call, empty where they run a program with stdin. Among several blocks the last
    one is taken that defines them, or reads its input; else the last one in Python; else the last one.
    """
    blocks = [_Block(language, source, _parse(source)) for language, source in _fenced(text)]
    if not blocks:
        return _unfenced(text)
    python = [b for b in blocks if b.language in PYTHON or (b.language in UNNAMED and _is_program(b.tree))]
    parsed = [block for block in python if block.tree is not None]
    fitting = [block for block in parsed if _fits(block.tree, functions)]
    best = fitting or [block for block in parsed if block.language in PYTHON] or parsed or python or blocks
    return best[-1].source


def _fenced(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fence; the last may be open. Indentation of the fence is taken off its content."""
    blocks: list[tuple[str, str]] = []
    opening: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.splitlines():
        fence = FENCE.match(line)
        if opening is None:
            opening, lines = fence, []
        elif fence and fence["fence"].startswith(opening["fence"]) and not fence["language"]:
            blocks.append((opening["language"].lower(), _unindented(lines, opening["indent"])))
            opening = None
        else:
            lines.append(line)
    if opening is not None and any(line.strip() for line in lines):
        blocks.append((opening["language"].lower(), _unindented(lines, opening["indent"])))
    return blocks


def _unindented(lines: list[str], indent: str) -> str:
    bare = [line[len(indent) :] if line.startswith(indent) else line.lstrip() for line in lines]
    source = "".join(f"{line}\n" for line in bare)
    return source if _parse(source) else textwrap.dedent(source)


def _parse(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_program(tree: ast.Module | None) -> bool:
    """Whether it does something: text and numbers may be Python too."""
    does = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Call | ast.Assign | ast.For | ast.While
    return tree is not None and any(isinstance(node, does) for node in ast.walk(tree))


def _fits(tree: ast.Module | None, functions: frozenset[str]) -> bool:
    """Whether it defines one of the functions, or reads input where none is called."""
    nodes = list(ast.walk(tree)) if tree is not None else []
    if functions:
        defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        return bool(defined & functions)
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return any(name in INPUT_NAMES for name in names | attributes)


def _unfenced(text: str) -> str | None:
    """The longest run of whole paragraphs, from a line that looks like code, that is a program."""
    lines = textwrap.dedent(text).splitlines()[:MAX_LINES]
    is_code = [bool(CODE_LINE.match(line.lstrip())) for line in lines]
    ends = [i for i in range(len(lines), 0, -1) if i == len(lines) or not lines[i].strip() or not lines[i][0].isspace()]
    for start in range(len(lines)):
        if not is_code[start] or (start and is_code[start - 1]):
            continue
        for end in ends:
            if end <= start:
                break
            source = _without_prose(textwrap.dedent("\n".join(lines[start:end])) + "\n")
            if _is_program(_parse(source)):
                return source
    return None


def _without_prose(source: str) -> str:
    """Without lines at its end that are Python by chance: `Done`, `Time: O(n)`."""
    tree = _parse(source)
    while tree is not None and tree.body:
        last = tree.body[-1]
        is_word = isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call | ast.Await)
        if not is_word and not (isinstance(last, ast.AnnAssign) and last.value is None):
            break
        source = "".join(f"{line}\n" for line in source.splitlines()[: last.lineno - 1])
        tree = _parse(source)
    return source
