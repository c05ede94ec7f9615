"""What we change in SGLang, written down per release, and what moved in another one.

    python -m led_sglang.patches record [--wheel FILE]    write patches/sglang-<version>.json
    python -m led_sglang.patches check  [--wheel FILE]    compare with the manifest of that release, or the nearest one

Without --wheel it is the installed release. SGLang's sources are read, never imported, so a release that cannot run on
this machine can be checked all the same. `check` exits 1 when a target is gone or its signature changed; a changed body
is told, because a hook may still be right, but somebody has to look.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from led_sglang.cli import files
from led_sglang.cli.endings import CommandError, guarded
from led_sglang.compat.sources import Release, find, installed_release, parameters, wheel_release
from led_sglang.integration.hooks.relied_on import RELIED_ON, RELIED_ON_SINCE
from led_sglang.integration.hooks.table import HOOK_TARGETS, hooks_of, numbers_of

__all__ = ["Change", "Function", "check", "load_manifest", "main", "manifest_of", "record"]

RELIED = "relied on"
FORMAT = 1


@dataclass(frozen=True)
class Function:
    """One target in one release; see `compat.sources`."""

    how: str  # "before", "after", "around" or "relied on"
    file: str
    signature: str
    sha256: str


def targets(version: str) -> dict[str, str]:
    """Every dotted path of that release that LED uses, and how."""
    hooks = {path: hook.kind for path, hook in hooks_of(version).items()}
    later = [pairs for since, pairs in RELIED_ON_SINCE.items() if numbers_of(since) <= numbers_of(version)]
    return hooks | {path: RELIED for pairs in (RELIED_ON, *later) for path, _ in pairs}


def describe(release: Release, target: str, how: str) -> Function | None:
    found = find(release, target)
    return None if found is None else Function(how, found.file, found.signature, found.sha256)


def manifest_of(release: Release) -> dict[str, Function]:
    """Describes every target that the release has; `check` reports the others."""
    described = {target: describe(release, target, how) for target, how in targets(release.version).items()}
    return {target: function for target, function in sorted(described.items()) if function is not None}


def manifests_dir() -> Path:
    """`patches/` of the repository, or the copy inside an installed wheel."""
    packaged = Path(__file__).parent / "_patches"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "patches"


def load_manifest(version: str, folder: Path | None = None) -> tuple[str, dict[str, Function]]:
    """The manifest of `version`, else of the newest release before it, else of the oldest: (its version, functions).

    Raises CommandError.
    """
    known = {numbers_of(file.stem.removeprefix("sglang-")): file for file in _manifest_files(folder)}
    if not known:
        where = folder or manifests_dir()
        raise CommandError(f"no manifest in {where}; write one with: python -m led_sglang.patches record")
    expected = numbers_of(version)
    nearest = max((key for key in known if key <= expected), default=min(known))
    data = files.json_document(known[nearest])
    try:
        return str(data["sglang"]), {target: Function(**fields) for target, fields in data["functions"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{known[nearest]} is no manifest of ours ({error!r}): record it again") from error


def _manifest_files(folder: Path | None) -> Iterable[Path]:
    return (folder or manifests_dir()).glob("sglang-*.json")


@dataclass(frozen=True)
class Change:
    """One difference between a release and a manifest."""

    kind: str  # "gone", "parameters", "signature", "body", "how" or "unlisted"
    target: str
    how: str
    detail: str = ""

    @property
    def is_fatal(self) -> bool:
        return self.kind != "body"

    def __str__(self) -> str:
        return f"{self.kind:<10} {self.target} ({self.how}){': ' if self.detail else ''}{self.detail}"


def check(release: Release, manifest: dict[str, Function]) -> Iterator[Change]:
    """Yields what differs in `release` for every function we hook or rely on."""
    for target, how in targets(release.version).items():
        now, then = describe(release, target, how), manifest.get(target)
        if now is None:
            yield Change("gone", target, how)
            continue
        if how != RELIED and parameters(now.signature) != HOOK_TARGETS[target].parameters:
            expected = ", ".join(HOOK_TARGETS[target].parameters)
            yield Change("parameters", target, how, f"the hook was written for ({expected}), found {now.signature}")
        if then is None:
            yield Change("unlisted", target, how, "not in the manifest, record it again")
        elif then.how != how:
            yield Change("how", target, how, f"the manifest says {then.how}, record it again")
        elif now.signature != then.signature:
            yield Change("signature", target, how, f"{then.signature} -> {now.signature}")
        elif now.sha256 != then.sha256:
            yield Change("body", target, how, f"look at {now.file}")


def record(release: Release, folder: Path) -> Path:
    functions = {target: asdict(function) for target, function in manifest_of(release).items()}
    file = folder / f"sglang-{release.version}.json"
    data = {"format": FORMAT, "sglang": release.version, "functions": functions}
    files.write_text(file, json.dumps(data, indent=1) + "\n")
    return file


def command(argv: list[str] | None) -> int:
    """Raises CommandError."""
    parser = argparse.ArgumentParser(prog="python -m led_sglang.patches", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=["record", "check"])
    parser.add_argument("--wheel", type=Path, help="a wheel of sglang instead of the installed release")
    parser.add_argument("--strict", action="store_true", help="check: a changed body is a failure too")
    parser.add_argument("--patches", type=Path, help="folder of the manifests")
    arguments = parser.parse_args(argv)
    if arguments.command == "record":
        files.check_folder(arguments.patches or manifests_dir())
    release = wheel_release(arguments.wheel) if arguments.wheel else installed_release()
    if arguments.command == "record":
        print(record(release, arguments.patches or manifests_dir()))
    version, manifest = load_manifest(release.version, arguments.patches)
    changes = list(check(release, manifest))
    for change in changes:
        print(change)
    fatal = sum(change.is_fatal or arguments.strict for change in changes)
    print(
        f"SGLang {release.version} against the manifest of {version}: {len(targets(release.version))} functions, "
        f"{len(changes)} differences, {fatal} of them fatal"
    )
    return 1 if fatal else 0


def main(argv: list[str] | None = None) -> int:
    return guarded("patches", lambda: command(argv))


if __name__ == "__main__":
    sys.exit(main())
