"""What concerns a whole run: the soak beside it, and how pytest-xdist's workers would share the tests."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# A machine may be busy, and a red test stays red.
settings.register_profile("led", deadline=None, derandomize=True)
settings.load_profile("led")

SOAK_MINUTES = 10
SOAK_TEST = "test_ten_minutes_of_soak"
# Its outcome's place, for the process that runs the test: a worker of pytest-xdist does not start it.
SOAK_RESULT = "LED_SOAK_RESULT"
SOAK = pytest.StashKey[subprocess.Popen[bytes]]()


def _start_soak(config: pytest.Config, node_ids: list[str]) -> None:
    """Its ten minutes fit beside the other tests, which leave a core half idle; they come first, it is niced."""
    if SOAK in config.stash or not any(node_id.endswith(SOAK_TEST) for node_id in node_ids):
        return
    path = Path(os.environ[SOAK_RESULT])
    arguments = ["--minutes", str(SOAK_MINUTES), "--seed", "11", "--memory-growth", "0.1"]
    command = ["nice", "-n", "10", sys.executable, "-m", "benchmarks.soak", *arguments]
    with path.open("w") as out, path.with_suffix(".err").open("w") as err:
        config.stash[SOAK] = subprocess.Popen(command, cwd=config.rootpath, stdout=out, stderr=err)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ[SOAK_RESULT] = str(Path(tempfile.mkdtemp(prefix="led-soak-")) / "result.json")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.name == SOAK_TEST)  # the last, when its minutes are over


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        _start_soak(config, [item.nodeid for item in session.items])


def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    _start_soak(node.config, ids)


def pytest_unconfigure(config: pytest.Config) -> None:
    process = config.stash.get(SOAK, None)
    if process is not None and process.poll() is None:  # the run was stopped
        process.terminate()
        process.wait()
    if not hasattr(config, "workerinput"):
        shutil.rmtree(Path(os.environ.pop(SOAK_RESULT)).parent)


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
