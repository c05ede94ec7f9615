"""How pytest-xdist's two workers share the tests: those of one shared server stay together, so that it starts once."""

from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# A machine may be busy, and a red test stays red.
settings.register_profile("led", deadline=None, derandomize=True)
settings.load_profile("led")

GROUPS = {
    "embedded server": ("api/", "test_evals", "test_inspector", "test_metrics", "test_readme", "test_trace"),
    "exact server": ("test_exact", "test_seeds", "test_statistics"),
    "features server": ("features/",),
    "spare server": ("test_rollouts", "test_two_replicas"),
}


class ByServer(LoadScopeScheduling):
    """Work goes out by file, and by server where several files ask the same one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        name = path.removeprefix("tests/server/").removesuffix(".py")
        return next((group for group, names in GROUPS.items() if name.startswith(names)), path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    return ByServer(config, log)
