from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.models import zoo
from tests.models.farm import Farm


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with Farm(tmp_path_factory.mktemp("farm") / "log") as farm:
        yield farm


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a row's checkpoint, by name."""
    root, built = tmp_path_factory.mktemp("zoo"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in built:
            built[name] = zoo.build(name, root / name)
        return built[name]

    return folder
