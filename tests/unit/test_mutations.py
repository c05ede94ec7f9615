"""The lists of mutations stay applicable: `python -m tests.mutations` runs them, for hours."""

import ast
from pathlib import Path

import pytest

from tests.mutations.lists import LISTS, ROOT, Mutation, read

MUTATIONS = [pytest.param(mutation, id=f"{mutation.finding}: {mutation.fault}") for n in LISTS for mutation in read(n)]


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_changes_the_code_and_names_a_test(mutation: Mutation) -> None:
    before = (ROOT / mutation.file).read_text()
    changed = mutation.applied(before)
    assert changed != before
    ast.parse(changed)
    for test in mutation.tests:
        file, *function = test.split("::")
        assert (ROOT / file).is_file() and set(function) <= functions(ROOT / file), test


def test_what_does_not_apply_any_more_is_said() -> None:
    mutation = Mutation("x", "a fault", "a.py", "one", "two", ())
    assert mutation.applied("one line") == "two line"
    for text in ("another", "one and one"):
        with pytest.raises(ValueError, match=r"a\.py holds [02] times what 'a fault' replaces"):
            mutation.applied(text)
