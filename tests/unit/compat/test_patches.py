"""The manifests tell the truth about the installed release and notice what moves in another one."""

import inspect
import pkgutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from led_sglang import patches
from led_sglang.compat.sources import Release, find, installed_release, parameters, source_sha256
from led_sglang.integration.hooks.table import HOOK_TARGETS

SUPPORTED = ("0.5.17", "0.5.23")
TARGET = "sglang.srt.layers.sampler.create_sampler"
FILE = "sglang/srt/layers/sampler.py"


@pytest.fixture(scope="module")
def installed() -> Release:
    return installed_release()


def changed(release: Release, file: str, old: str, new: str) -> Release:
    """`release` with one edit, as a later release would have it."""
    source = release.read(file)
    assert source is not None
    assert old in source
    edited = source.replace(old, new)
    return Release(release.version, lambda path: edited if path == file else release.read(path))


def changes(release: Release) -> list[tuple[str, str]]:
    _, manifest = patches.load_manifest(release.version)
    return [(change.kind, change.target) for change in patches.check(release, manifest)]


def test_installed_release_is_the_one_in_its_manifest(installed: Release) -> None:
    version, manifest = patches.load_manifest(installed.version)
    if version != installed.version:
        pytest.skip(f"no manifest for SGLang {installed.version}")
    assert manifest == patches.manifest_of(installed)
    assert changes(installed) == []


@pytest.mark.parametrize("version", SUPPORTED)
def test_both_ends_of_the_range_have_a_manifest_of_todays_table(version: str) -> None:
    found, manifest = patches.load_manifest(version)
    assert found == version
    assert {target: function.how for target, function in manifest.items()} == patches.targets(version)
    for target, hook in HOOK_TARGETS.items():
        if target in manifest:
            assert parameters(manifest[target].signature) == hook.parameters


def test_a_changed_signature_is_fatal(installed: Release) -> None:
    release = changed(installed, FILE, "def create_sampler(", "def create_sampler(device, ")
    assert changes(release) == [("parameters", TARGET), ("signature", TARGET)]


def test_a_missing_target_is_fatal(installed: Release) -> None:
    release = changed(installed, FILE, "def create_sampler(", "def make_sampler(")
    assert changes(release) == [("gone", TARGET)]


def test_a_missing_module_is_fatal(installed: Release) -> None:
    without = Release(installed.version, lambda path: None if path == FILE else installed.read(path))
    assert ("gone", TARGET) in changes(without)


def test_a_changed_body_is_reported_but_not_fatal(installed: Release) -> None:
    source = installed.read(FILE) or ""
    start = source.index("def create_sampler(")
    line = next(text for text in source[start:].splitlines() if text.strip().startswith("return"))
    release = changed(installed, FILE, source[start:], source[start:].replace(line, f"{line}  # changed", 1))
    _, manifest = patches.load_manifest(installed.version)
    [change] = patches.check(release, manifest)
    assert (change.kind, change.target, change.is_fatal) == ("body", TARGET, False)


def test_changed_annotations_are_no_changed_signature(installed: Release) -> None:
    function = find(installed, TARGET)
    assert function is not None
    assert ":" not in function.signature


def test_a_wheel_is_checked_without_importing_it(installed: Release, tmp_path: Path, capsys: object) -> None:
    files: dict[str, str] = {}

    def note(path: str) -> str | None:
        text = installed.read(path)
        if text is not None:
            files[path] = text
        return text

    patches.manifest_of(Release(installed.version, note))
    wheel = tmp_path / "sglang-0.5.99-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, "raise SystemExit('imported')\n" if path == "sglang/__init__.py" else text)
    assert patches.main(["check", "--wheel", str(wheel)]) == 0
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text.replace("def create_sampler(", "def create_sampler(device, "))
    assert patches.main(["check", "--wheel", str(wheel)]) == 1
    out = capsys.readouterr().out  # type: ignore[attr-defined]
    assert f"signature  {TARGET} (around)" in out
    assert "SGLang 0.5.99 against the manifest of 0.5.23" in out


def test_the_command_imports_neither_sglang_nor_torch() -> None:
    code = "import sys, led_sglang.patches; sys.exit('sglang' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_record_writes_what_check_reads(installed: Release, tmp_path: Path) -> None:
    file = patches.record(installed, tmp_path)
    assert file.name == f"sglang-{installed.version}.json"
    assert patches.main(["check", "--strict", "--patches", str(tmp_path)]) == 0


def test_the_hash_is_that_of_inspect() -> None:
    found = find(installed_release(), "sglang.srt.sampling.sampling_params.SamplingParams.verify")
    function = pkgutil.resolve_name("sglang.srt.sampling.sampling_params:SamplingParams.verify")
    assert found is not None
    assert found.sha256 == source_sha256(inspect.getsource(inspect.unwrap(function)))


@pytest.mark.parametrize(
    ("files", "target", "expected"),
    [
        pytest.param({"m.py": "def f(a: int = 1, *, b) -> int: ..."}, "m.f", "f(a=1, *, b)", id="plain"),
        pytest.param({"m.py": "class A:\n  async def g(self): ...\n"}, "m.A.g", "async g(self)", id="method"),
        pytest.param(
            {"m.py": "class B:\n  def g(self, x): ...\nclass A(B[int]): ...\n"}, "m.A.g", "g(self, x)", id="base"
        ),
        pytest.param({"p/__init__.py": "from .m import f", "p/m.py": "def f(): ..."}, "p.f", "f()", id="re-export"),
        pytest.param(
            {"m.py": "if X:\n  def f(a): ...\nelse:\n  def f(b): ...\n"}, "m.f", "f(b)", id="conditional-last-wins"
        ),
        pytest.param({"m.py": "from m import f"}, "m.f", None, id="circle"),
        pytest.param({"m.py": "def f(): ..."}, "m.f.g", None, id="gone-inside"),
    ],
)
def test_find_follows_python(files: dict[str, str], target: str, expected: str | None) -> None:
    found = find(Release("0", files.get), target)
    assert (found.signature if found else None) == expected
