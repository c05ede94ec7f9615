"""How pytest-xdist's workers share the tests: those of one server stay together, so that it starts once.

And the package as it is released and installed, which tests with and without a server need.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
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

ROOT = Path(__file__).resolve().parents[1]
LONGEST = ("tests/server/test_soak.py", "tests/server/speculation/test_same_text.py")
OWN_SERVERS = "tests/server/speculation"  # the folder whose files start servers of their own


class ByServer(LoadScopeScheduling):
    """Work goes out by file. A folder whose files ask one server stays whole; the matrix of models too."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        parts = file.split("/")
        if parts[:2] == ["tests", "models"]:
            return "/".join(parts[:2])
        is_shared = parts[:2] == ["tests", "server"] and not file.startswith(OWN_SERVERS)
        return "/".join(parts[:3]) if is_shared else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    config.option.loadscopereorder = False  # many tests of a file do not make it long
    return ByServer(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help='run the tests marked "full" too')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what `make test` runs. What takes longest begins first, or one worker would end with it alone."""
    for item in items:
        is_unit = item.nodeid.startswith("tests/unit/")
        if is_unit and not any(item.get_closest_marker(mark) for mark in ("slow", "full", "server")):
            item.add_marker("quick")
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    items.sort(
        key=lambda item: next((i for i, file in enumerate(LONGEST) if item.nodeid.startswith(file)), len(LONGEST))
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is released."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and this one's packages beside it but for the repository (no editable install)."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, capture_output=True)
    # A folder that a .pth file names is searched, but its own .pth files (an editable install) are not read.
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder
