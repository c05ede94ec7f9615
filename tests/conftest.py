"""How pytest-xdist's two workers share the tests: those of one shared server stay together, so that it starts once."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

OF_EXACT_SERVER = ("test_exact", "test_seeds", "test_statistics")
WITH_OWN_SERVERS = ("test_identity", "test_methods", "test_models", "test_reasoning_parser", "test_refusals")


class ByServer(LoadScopeScheduling):
    """Work goes out by file, and by server where several files ask the same one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        name = path.rpartition("/")[2].removesuffix(".py")
        if not path.startswith("tests/server/") or name in WITH_OWN_SERVERS:
            return path
        return "exact server" if name in OF_EXACT_SERVER else "embedded server"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    return ByServer(config, log)
