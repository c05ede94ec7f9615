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

LONGEST = "tests/server/test_soak.py"


class ByServer(LoadScopeScheduling):
    """Work goes out by file; a folder under tests/server stays whole, for its files ask one server."""

    def _split_scope(self, nodeid: str) -> str:
        parts = nodeid.split("::")[0].split("/")
        return "/".join(parts[:3] if parts[:2] == ["tests", "server"] else parts)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    config.option.loadscopereorder = False  # many tests of a file do not make it long
    return ByServer(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, or one worker would end with it while the other has nothing left."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
