#!/usr/bin/env python3
"""Who may import whom in led_sglang, read from the syntax trees (nothing is imported).

The method (`ops`) must stay usable and testable without a server, the client side (`evals`) without torch, and every
line that depends on SGLang must sit where the hooks table can vouch for it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "led_sglang"


@dataclass(frozen=True)
class Rule:
    """Modules below `where` (but not below `except_where`) must not import anything below `forbidden`."""

    where: str
    forbidden: tuple[str, ...]
    why: str
    except_where: tuple[str, ...] = ()
    lazily_in: tuple[str, ...] = ()  # here the import is allowed inside a function


RULES = (
    Rule(
        where=f"{PACKAGE}.ops",
        forbidden=("sglang", f"{PACKAGE}.integration", f"{PACKAGE}.platform", f"{PACKAGE}.evals"),
        why="the method is pure",
    ),
    Rule(
        where=f"{PACKAGE}.evals",
        forbidden=(
            "sglang",
            "torch",
            "triton",
            "transformers",
            f"{PACKAGE}.ops",
            f"{PACKAGE}.integration",
            f"{PACKAGE}.platform",
        ),
        why="a client talks HTTP and nothing else",
    ),
    Rule(
        where=f"{PACKAGE}.platform",
        forbidden=(f"{PACKAGE}.integration", f"{PACKAGE}.ops"),
        why="the platform serves SGLang with or without LED",
    ),
    Rule(
        where=PACKAGE,
        forbidden=("training", "benchmarks", "tests"),
        why="what only developers use is not in the wheel",
    ),
    Rule(
        where=PACKAGE,
        forbidden=("sglang",),
        why="only integration and platform know SGLang",
        except_where=(f"{PACKAGE}.integration", f"{PACKAGE}.platform"),
        lazily_in=(f"{PACKAGE}.launch", f"{PACKAGE}.plugin"),
    ),
)


def is_below(module: str, parents: tuple[str, ...]) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def imports_of(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, int, bool]]:
    """Yields (imported dotted name, line, inside a function) for every import statement."""
    parts = module.split(".")
    package = parts if is_package else parts[:-1]

    def walk(node: ast.AST, in_function: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, inside
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                source = ".".join([*base, *([child.module] if child.module else [])])
                # `from led_sglang import ops` names a module too, hence the longer form.
                for alias in child.names:
                    yield f"{source}.{alias.name}", child.lineno, inside
            yield from walk(child, inside)

    return walk(tree, False)


def violations(root: Path) -> Iterator[str]:
    for path in sorted((root / PACKAGE).rglob("*.py")):
        relative = path.relative_to(root)
        is_package = path.name == "__init__.py"
        module = ".".join(relative.parent.parts if is_package else relative.with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(relative))
        rules = [rule for rule in RULES if is_below(module, (rule.where,)) and not is_below(module, rule.except_where)]
        for imported, line, in_function in imports_of(tree, module, is_package):
            for rule in rules:
                if is_below(imported, rule.forbidden) and not (in_function and is_below(module, rule.lazily_in)):
                    yield f"{relative}:{line}: {module} imports {imported}: {rule.why}"
                    break


def main(argv: list[str]) -> int:
    root = Path(argv[1]) if len(argv) > 1 else Path(__file__).resolve().parent.parent
    found = list(violations(root))
    for line in found:
        print(line)
    print(f"import rules: {len(found)} broken" if found else "import rules: kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
