"""What tests/server/fault_plugin.py breaks by name is there: a renamed function fails here, and not on a server."""

import pkgutil

import pytest

from tests.server import fault_plugin


@pytest.mark.parametrize(
    "target", sorted({*fault_plugin.RAISING.values(), *fault_plugin.RAISING_IN_VERIFY.values(), *fault_plugin.INNER})
)
def test_a_broken_function_exists(target: str) -> None:
    assert callable(pkgutil.resolve_name(fault_plugin.LED + target))
