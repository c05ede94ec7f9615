"""The package as its users get it: public names, what importing it loads, and the files of the wheel."""

import ast
import email
import importlib.metadata
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import led_sglang

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "sglang", "transformers", "numba", "numpy", "fastapi")
PUBLIC_NAMES = {"LedParamError", "LedParams", "ServerConfig", "__version__", "enable"}
# Rooms whose modules other code imports by name; `integration` and `ops` are private but for `led_sglang.ops` itself.
PRIVATE = ("led_sglang/integration/", "led_sglang/ops/", "led_sglang/wire.py")
MODEL = "led_sglang/embedded/model/model.safetensors"
MAX_FILE_BYTES = 1 << 20  # of every file of the wheel but the embedded model
MAX_WHEEL_BYTES = 10_000_000
KINDS = {
    "led_sglang": {".py", ".typed"},
    "led_sglang/inspector": {".py", ".js", ".css", ".html"},
    "led_sglang/embedded/model": {".json", ".safetensors"},
    "led_sglang/_patches": {".json", ".md"},
}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_public_names() -> None:
    assert set(led_sglang.__all__) == PUBLIC_NAMES <= set(dir(led_sglang))
    assert all(getattr(led_sglang, name) is not None for name in led_sglang.__all__)
    with pytest.raises(AttributeError, match="'led_sglang' has no attribute 'magic'"):
        led_sglang.magic  # noqa: B018


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES))
def test_a_public_name_loads_nothing_heavy(name: str) -> None:
    code = f"import sys, led_sglang; assert led_sglang.{name}; print(*({HEAVY!r} & sys.modules.keys()))"
    assert run(code.replace(repr(HEAVY), repr(set(HEAVY)))).split() == []


def public_modules() -> Iterator[Path]:
    for path in sorted((ROOT / "led_sglang").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(PRIVATE) and path.name != "__main__.py":
            yield path


@pytest.mark.parametrize("path", list(public_modules()), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_public_module_says_what_is_public(path: Path) -> None:
    tree = ast.parse(path.read_text())
    bound = {name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = bound | {node.name for node in tree.body if isinstance(node, definitions)}
    defined |= {
        alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names
    }
    if not any(isinstance(node, (*definitions, ast.Assign)) for node in tree.body):
        return  # a folder's docstring
    found = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    assert len(found) == 1, "no __all__"
    assert set(ast.literal_eval(found[0])) <= defined


def faults_of(files: dict[str, int]) -> list[str]:
    """What a wheel with these files (name: bytes) breaks of the rule."""
    faults = []
    for name, size in files.items():
        folder = str(PurePosixPath(name).parent)
        kinds = KINDS.get(folder, {".py"} if folder.startswith("led_sglang/") else set())
        if PurePosixPath(name).suffix not in kinds:
            faults.append(f"{name}: no such file belongs into {folder}")
        if size > MAX_FILE_BYTES and name != MODEL:
            faults.append(f"{name}: {size} bytes")
    return faults


def wheel_sources() -> dict[str, int]:
    """What hatchling packs, by the settings in pyproject.toml: name in the wheel to bytes."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert settings == {"packages": ["led_sglang"], "force-include": {"patches": "led_sglang/_patches"}}
    listed = subprocess.run(["git", "ls-files", "led_sglang", "patches"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        names = listed.stdout.split()
    else:  # a copy without .git
        every = (path for folder in ("led_sglang", "patches") for path in (ROOT / folder).rglob("*"))
        names = [p.relative_to(ROOT).as_posix() for p in every if p.is_file() and p.parent.name != "__pycache__"]
    sizes = {name: (ROOT / name).stat().st_size for name in names if (ROOT / name).is_file()}
    return {
        f"led_sglang/_{name}" if name.startswith("patches/") else name: size for name, size in sorted(sizes.items())
    }


def test_the_wheel_holds_the_package_and_nothing_of_developers() -> None:
    files = wheel_sources()
    assert faults_of(files) == []
    assert {"led_sglang/py.typed", MODEL, "led_sglang/inspector/index.html"} <= files.keys()
    assert {"led_sglang/_patches/sglang-0.5.23.json", "led_sglang/launch.py"} <= files.keys()


@pytest.mark.parametrize(
    "name",
    [
        "training/train.py",
        "benchmarks/load.py",
        "tests/conftest.py",
        "led_sglang/embedded/model_sft/config.json",
        "led_sglang/evals/data.jsonl",
        "led_sglang/inspector/page.png",
    ],
)
def test_a_developers_file_breaks_the_rule(name: str) -> None:
    assert faults_of({name: 1}) == [f"{name}: no such file belongs into {PurePosixPath(name).parent}"]
    assert faults_of({"led_sglang/trace.py": MAX_FILE_BYTES + 1})


def test_a_built_wheel_has_these_files_and_is_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        infos = [info for info in archive.infolist() if ".dist-info/" not in info.filename]
    assert {info.filename: info.file_size for info in infos} == wheel_sources()
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_the_wheel_needs_sglang_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert [str(each) for each in required if each.marker is None] == ["sglang<0.6,>=0.5.17"]


# Third-party modules that belong to an extra; the commands that need them say which one.
EXTRAS = {"matplotlib", "math_verify", "rich", "datasets", "latex2sympy2_extended", "sympy"}


def test_what_is_imported_comes_with_sglang() -> None:
    provided = importlib.metadata.packages_distributions()
    closure = requirements_of("sglang")
    missing = {}
    for path in sorted((ROOT / "led_sglang").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {name.split(".")[0] for name in names}
            for top in tops - set(sys.stdlib_module_names) - EXTRAS - {"led_sglang", ""}:
                if not {canonicalize_name(name) for name in provided.get(top, [])} & closure:
                    missing[top] = path.relative_to(ROOT).as_posix()
    assert missing == {}


def requirements_of(name: str) -> set[str]:
    """A distribution and all that its installation brings."""
    found: set[str] = set()
    waiting = [canonicalize_name(name)]
    while waiting:
        each = waiting.pop()
        try:
            texts = importlib.metadata.requires(each) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if each not in found:
            found.add(each)
            for need in map(Requirement, texts):
                if need.marker is None or need.marker.evaluate({"extra": ""}):
                    waiting.append(canonicalize_name(need.name))
    return found


def in_installed(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LED_SGLANG_CONFIG")}
    program = [str(installed / "bin" / command[0]), *command[1:]]
    return subprocess.run(program, cwd=installed, env=env, capture_output=True, text=True, timeout=500)


def test_an_installed_wheel_is_the_one_that_runs(installed: Path) -> None:
    code = "import led_sglang, sglang; print(led_sglang.__file__, led_sglang.__version__)"
    done = in_installed(installed, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    place, version = done.stdout.split()
    assert place.startswith(str(installed)) and version == led_sglang.__version__
    assert in_installed(installed, "led-sglang", "--version").stdout.strip() == f"led_sglang {led_sglang.__version__}"


@pytest.mark.slow
def test_an_installed_wheel_would_serve_the_embedded_model(installed: Path) -> None:
    """All that a start does before it loads weights: entry points are found, hooks are verified."""
    done = in_installed(installed, "led-sglang", "check")
    assert done.returncode == 0, done.stderr
    assert f"led_sglang: ok, model: {installed}" in done.stdout
    assert "layers captured: 11" in done.stdout
    manifest = in_installed(installed, "python", "-m", "led_sglang.patches", "check", "--strict")
    assert manifest.returncode == 0, manifest.stdout + manifest.stderr
