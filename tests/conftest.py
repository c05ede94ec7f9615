"""How pytest-xdist's workers share the tests: those of one server stay together, so that it starts once."""

import os
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# A machine may be busy, and a red test stays red.
settings.register_profile("led", deadline=None, derandomize=True)
settings.load_profile("led")

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test fetches anything, nor does a server that it starts

# Their asserts show what they compared, like a test's.
pytest.register_assert_rewrite("tests.server.bystanders", "tests.server.exact.exactness")

LONGEST = "tests/server/test_soak.py"


class ByServer(LoadScopeScheduling):
    """Work goes out by file. A folder under tests/server stays whole, for its files ask one server; the matrix too."""

    def _split_scope(self, nodeid: str) -> str:
        parts = nodeid.split("::")[0].split("/")
        if parts[:2] == ["tests", "models"]:
            return "/".join(parts[:2])
        return "/".join(parts[:3] if parts[:2] == ["tests", "server"] else parts)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    config.option.loadscopereorder = False  # many tests of a file do not make it long
    return ByServer(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help='run the tests marked "full" too')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest begins first, or one worker would end with it while the other has nothing left."""
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
