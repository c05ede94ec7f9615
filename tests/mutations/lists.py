"""What the lists hold: a TOML file each, of [[mutation]] tables."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))
KEYS = {"finding", "fault", "file", "old", "new", "tests"}


@dataclass(frozen=True)
class Mutation:
    finding: str  # of the review, or the kernel
    fault: str  # what the changed code does
    file: str
    old: str  # occurs once in the file
    new: str
    tests: tuple[str, ...]  # pytest's ids; one of them fails. Of `check_` functions, without parameters

    def applied(self, text: str) -> str:
        """Raises ValueError where the file has changed so that `old` does not occur in it once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {text.count(self.old)} times what {self.fault!r} replaces")
        return text.replace(self.old, self.new)


def read(name: str) -> list[Mutation]:
    """Raises ValueError for a table with other keys."""
    found = []
    for table in tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))["mutation"]:
        if set(table) != KEYS:
            raise ValueError(f"{name}: a mutation has {sorted(KEYS)}, not {sorted(table)}")
        found.append(Mutation(**{**table, "tests": tuple(table["tests"])}))
    return found
