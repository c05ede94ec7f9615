"""Reads functions out of a release of SGLang, installed or in a wheel, without importing any of it."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.metadata
import importlib.util
import re
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from led_sglang.cli.endings import CommandError

__all__ = ["Found", "Release", "find", "installed_release", "parameters", "source_sha256", "wheel_release"]

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Release:
    """A release of SGLang as text: `read` gives a file's source by its path in the wheel, or None."""

    version: str
    read: Callable[[str], str | None]


def installed_release() -> Release:
    """Raises CommandError where there is none."""
    spec = importlib.util.find_spec("sglang")  # finds the folder without running it
    if spec is None or not spec.submodule_search_locations:
        raise CommandError("sglang is not installed; give --wheel FILE")
    root = Path(spec.submodule_search_locations[0]).parent

    def read(path: str) -> str | None:
        file = root / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    return Release(importlib.metadata.version("sglang"), read)


def wheel_release(wheel: Path) -> Release:
    """Raises CommandError or OSError for a file that is no wheel of SGLang."""
    match = re.match(r"sglang-([^-]+)-", wheel.name)
    if match is None:
        raise CommandError(f"{wheel.name} is not named like a wheel of sglang (sglang-<version>-...)")
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
    except zipfile.BadZipFile as error:
        raise CommandError(f"{wheel} is not a wheel: {error}") from error

    def read(path: str) -> str | None:
        if path not in names:
            return None
        try:
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(path).decode("utf-8")
        except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError) as error:
            raise CommandError(f"{wheel}: {path} is damaged: {error}") from error

    return Release(match.group(1), read)


@dataclass(frozen=True)
class Found:
    """A function or class where a release defines it. The signature leaves annotations out: no call depends on them."""

    file: str
    signature: str
    sha256: str  # of the dedented source with its decorators, as inspect.getsource gives it


def find(release: Release, target: str) -> Found | None:
    """Looks a dotted path up through re-exports and base classes; None where it is gone."""
    found = _find(release, tuple(target.split(".")))
    if found is None:
        return None
    file, source, node = found
    return Found(file, _signature(node), source_sha256(_source(source, node)))


def source_sha256(source: str) -> str:
    return hashlib.sha256(textwrap.dedent(source).strip().encode()).hexdigest()


def _find(release: Release, parts: tuple[str, ...], depth: int = 0) -> tuple[str, str, Definition] | None:
    if depth > 8:  # a chain of re-exports that goes in circles
        return None
    for length in range(len(parts) - 1, 0, -1):
        stem = "/".join(parts[:length])
        for file in (f"{stem}.py", f"{stem}/__init__.py"):
            source = release.read(file)
            if source is not None:
                return _find_in(release, file, source, parts[length:], depth)
    return None


def _find_in(
    release: Release, file: str, source: str, names: tuple[str, ...], depth: int
) -> tuple[str, str, Definition] | None:
    tree = ast.parse(source, filename=file)
    node = _member(tree, names[0])
    if node is None:
        origin = _imported_from(tree, file, names[0])
        return None if origin is None else _find(release, (*origin, *names[1:]), depth + 1)
    for index, name in enumerate(names[1:], start=1):
        inner = _member(node, name)
        if inner is None:
            return _inherited(release, file, source, node, names[index:], depth)
        node = inner
    return file, source, node


def _inherited(
    release: Release, file: str, source: str, node: Definition, names: tuple[str, ...], depth: int
) -> tuple[str, str, Definition] | None:
    """A method that a base class defines: the first base that has it, in the order of the class statement."""
    if not isinstance(node, ast.ClassDef) or depth > 8:
        return None
    for base in node.bases:
        base_names = ast.unparse(base).partition("[")[0].split(".")
        found = _find_in(release, file, source, (*base_names, *names), depth + 1)
        if found is not None:
            return found
    return None


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a module or class, those under `if`, `try` and `with` included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
            if isinstance(child, ast.If | ast.Try | ast.With):
                yield from _statements(child)
        elif isinstance(child, ast.ExceptHandler):
            yield from _statements(child)


def _member(node: ast.AST, name: str) -> Definition | None:
    # The last one wins, as it does when Python runs the file: earlier ones are overloads.
    found = [s for s in _statements(node) if isinstance(s, Definition) and s.name == name]
    return found[-1] if found else None


def _imported_from(tree: ast.Module, file: str, name: str) -> tuple[str, ...] | None:
    package = Path(file).parent.parts
    for statement in _statements(tree):
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    base = package[: len(package) - statement.level + 1] if statement.level else ()
                    module = tuple(statement.module.split(".")) if statement.module else ()
                    return (*base, *module, alias.name)
    return None


def _signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}({', '.join(ast.unparse(base) for base in node.bases)})"
    arguments = copy.deepcopy(node.args)
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"{prefix}{node.name}({ast.unparse(arguments)})"


def parameters(signature: str) -> tuple[str, ...]:
    """The names in a signature, in `inspect.signature`'s order."""
    is_async = signature.startswith("async ")
    statement = ast.parse(f"async def {signature[6:]}: ..." if is_async else f"def {signature}: ...").body[0]
    assert isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
    given = statement.args
    groups = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return tuple(argument.arg for argument in groups if argument is not None)


def _source(source: str, node: Definition) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "".join(source.splitlines(keepends=True)[first - 1 : node.end_lineno])
