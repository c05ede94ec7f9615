#!/usr/bin/env python3
"""The house of led_sglang/ as rules over its syntax trees (nothing is imported): `RULES`, one line each.

The method (`ops`) stays usable and testable without a server, the client side (`evals`) without torch, the HTTP process
without what the scheduler needs, and every line that depends on SGLang where the hooks table can vouch for it.
tests/unit/test_house.py runs each rule as a case, and plants a breach of each.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from house_words import identifiers, instead_of

PACKAGE = "led_sglang"
MAX_FILES, MAX_LINES, MAX_ANY = 9, 300, 0.10
CPU = (".cpu_platform",)
HEAVY = ("torch", "numba", "triton", "transformers", "sglang")


@dataclass(frozen=True)
class Import:
    """`name` is dotted; of `from a import b` it is a.b, for b may be a module."""

    name: str
    line: int
    is_lazy: bool  # inside a function
    is_typing: bool  # under TYPE_CHECKING


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    shown: str  # path below the root
    is_package: bool
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, filename=self.shown)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        return tuple(self._imports(self.tree, False, False))

    def _imports(self, node: ast.AST, is_lazy: bool, is_typing: bool) -> Iterator[Import]:
        parts = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, is_lazy, is_typing)
            elif isinstance(child, ast.ImportFrom):
                base = parts[: len(parts) - child.level + 1] if child.level else []
                source = ".".join([*base, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield Import(f"{source}.{alias.name}", child.lineno, is_lazy, is_typing)
            lazy = is_lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = is_typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
            yield from self._imports(child, lazy, typing)


class House:
    """The package below `root`, parsed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = sorted((root / PACKAGE).rglob("*.py"))
        self.modules = {module.name: module for module in map(self._module, paths)}

    def _module(self, path: Path) -> Module:
        relative, is_package = path.relative_to(self.root), path.name == "__init__.py"
        name = ".".join(relative.parent.parts if is_package else relative.with_suffix("").parts)
        return Module(name, path, relative.as_posix(), is_package, path.read_text(encoding="utf-8"))

    def below(self, *rooms: str) -> Iterator[Module]:
        parents = dotted(rooms)
        yield from (module for name, module in self.modules.items() if is_below(name, parents))

    def target(self, imported: str) -> str | None:
        """The module of ours that an import names: `from a.b import c` names a.b.c if that is one, else a.b."""
        return next((n for n in (imported, imported.rpartition(".")[0]) if n in self.modules), None)


def dotted(names: tuple[str, ...]) -> tuple[str, ...]:
    """`.ops.kernels` -> led_sglang.ops.kernels, "." -> led_sglang; a name of somebody else's as it is."""
    return tuple((PACKAGE + name).rstrip(".") if name.startswith(".") else name for name in names)


def is_below(module: str, parents: tuple[str, ...]) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def imports(house: House, rooms: tuple[str, ...], is_broken: Callable[[str, Import], bool]) -> Iterator[str]:
    for module in house.below(*rooms):
        for found in module.imports:
            if is_broken(module.name, found):
                yield f"{module.shown}:{found.line}: imports {found.name}"


@dataclass(frozen=True)
class Never:
    """Nothing in `rooms`, but for `but`, imports anything of `forbidden`; in `lazily_in` not outside a function."""

    rooms: tuple[str, ...]
    forbidden: tuple[str, ...]
    but: tuple[str, ...] = ()
    lazily_in: tuple[str, ...] = ()

    def __call__(self, house: House) -> Iterator[str]:
        yield from imports(house, self.rooms, self.is_broken)

    def is_broken(self, module: str, found: Import) -> bool:
        is_allowed = is_below(module, dotted(self.but)) or (found.is_lazy and is_below(module, dotted(self.lazily_in)))
        return is_below(found.name, dotted(self.forbidden)) and not is_allowed


@dataclass(frozen=True)
class Only:
    """What is in `rooms` imports of ours what is there too, and `allowed`."""

    rooms: tuple[str, ...]
    allowed: tuple[str, ...] = ()

    def __call__(self, house: House) -> Iterator[str]:
        allowed = dotted(self.rooms + self.allowed)
        yield from imports(
            house, self.rooms, lambda _, found: is_below(found.name, (PACKAGE,)) and not is_below(found.name, allowed)
        )


@dataclass(frozen=True)
class OnlyBy:
    """Nobody but `rooms`, and what is there itself, imports what is below `target`."""

    target: str
    rooms: tuple[str, ...] = ()

    def __call__(self, house: House) -> Iterator[str]:
        [target], importers = dotted((self.target,)), dotted((self.target, *self.rooms))
        yield from imports(
            house, (".",), lambda module, found: is_below(found.name, (target,)) and not is_below(module, importers)
        )


def cycles(house: House) -> Iterator[str]:
    """Strongly connected modules; imports inside functions count, those for type checkers alone do not."""
    edges = defaultdict(set)
    for module in house.below("."):
        targets = {house.target(found.name) for found in module.imports if not found.is_typing}
        edges[module.name] = {target for target in targets if target} - {module.name}
    reach = {name: _reachable(name, edges) for name in house.modules}
    groups = {tuple(sorted(m for m in reach[n] if n in reach[m])) for n in reach if n in reach[n]}
    yield from (f"cycle: {', '.join(group)}" for group in sorted(groups))


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def folders(house: House) -> Iterator[str]:
    counts = Counter(module.path.parent for module in house.below(".") if not module.is_package)
    for folder, count in sorted(counts.items()):
        if count > MAX_FILES:
            yield f"{folder.relative_to(house.root)}: {count} Python files"


def long_files(house: House) -> Iterator[str]:
    for module in house.below("."):
        if (count := len(module.source.splitlines())) > MAX_LINES:
            yield f"{module.shown}: {count} lines"


def typed(house: House) -> Iterator[str]:
    if not (house.root / PACKAGE / "py.typed").is_file():
        yield f"{PACKAGE}/py.typed is missing"


def untyped_parameters(house: House) -> Iterator[str]:
    """Parameters, but self and cls, annotated `Any` or `Any | None`: their share, and the files with most of them."""
    total, counts = Counter[str](), Counter[str]()
    for module in house.below(".integration"):
        for parameter in _parameters(module.tree):
            total[module.shown] += 1
            counts[module.shown] += _is_any(parameter.annotation)
    if counts.total() > MAX_ANY * total.total():
        yield f"{counts.total()} of {total.total()} parameters are Any: {counts.total() / total.total():.0%}"
        yield from (f"{name}: {count} of {total[name]}" for name, count in counts.most_common(12))


def _parameters(tree: ast.AST) -> Iterator[ast.arg]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            each = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
            yield from (arg for arg in each if arg is not None and arg.arg not in ("self", "cls"))


def _is_any(annotation: ast.expr | None) -> bool:
    return annotation is None or ast.unparse(annotation).strip("'\"") in ("Any", "typing.Any", "Any | None")


def private_words(house: House) -> Iterator[str]:
    for module in house.below("."):
        for part in module.name.split("."):
            if say := instead_of(part):
                yield f"{module.shown}: module {part}: say {say}"
        for line, name in sorted(set(identifiers(module.tree))):
            if say := instead_of(name):
                yield f"{module.shown}:{line}: {name}: say {say}"


HTTP, SCHEDULER = ".integration.http", ".integration.scheduler"
Rule = Callable[[House], Iterator[str]]
RULES: dict[str, Rule] = {
    "no import cycles": cycles,
    "wire imports nothing of ours": Only((".wire",)),
    "config imports nothing of ours but wire": Only((".config",), (".wire",)),
    "wire and config need no heavy library": Never((".wire", ".config"), HEAVY),
    "ops imports neither config nor what serves": Never(
        (".ops",), ("sglang", ".config", ".integration", ".evals", *CPU)
    ),
    "kernels are for rows and backends": OnlyBy(
        ".ops.kernels", (".ops.rows", ".ops.backends", ".ops.self_test", ".ops.warm_up")
    ),
    "kernels alone import triton": OnlyBy("triton", (".ops.kernels",)),
    "hooks resolve handlers by name": Never((".integration.hooks",), (HTTP, SCHEDULER)),
    "http never imports scheduler": Never((HTTP,), (SCHEDULER,)),
    "scheduler never imports http": Never((SCHEDULER,), (HTTP, "fastapi", "starlette")),
    "http needs neither ops nor torch": Never((HTTP,), ("torch", "numba", "triton", ".ops")),
    "evals talk HTTP and nothing else": Never((".evals",), (*HEAVY, ".ops", ".integration", *CPU)),
    "the CPU platform serves with or without LED": Never(CPU, (".integration", ".ops")),
    "what only developers use is not imported": Never((".",), ("training", "benchmarks", "tests", "scripts")),
    "testing is for plugin authors, not for us": OnlyBy(".testing"),
    "integration and the CPU platform alone know SGLang": Never(
        (".",), ("sglang",), but=(".integration", *CPU), lazily_in=(".launch", ".plugin")
    ),
    "at most 9 Python files in a folder": folders,
    "no file over 300 lines": long_files,
    "py.typed is there": typed,
    "at most 10 % of integration's parameters are Any": untyped_parameters,
    "the field's words": private_words,
}


def main(argv: list[str]) -> int:
    house = House(Path(argv[1]) if len(argv) > 1 else Path(__file__).resolve().parent.parent)
    num_broken = 0
    for name, rule in RULES.items():
        if found := list(rule(house)):
            num_broken += 1
            print(f"{name}: broken {len(found)} times", *found, sep="\n  ")
    print(f"house rules: {num_broken} of {len(RULES)} broken" if num_broken else f"house rules: {len(RULES)} kept")
    return 1 if num_broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
