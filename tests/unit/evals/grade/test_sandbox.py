"""Hostile programs: each ends as a counted outcome, in bounded time, and nothing outside its folder changes."""

import time
from pathlib import Path

import pytest

from led_sglang.evals.grade import sandbox
from led_sglang.evals.grade.code_grader import CodeTest, grade_code, same_output
from led_sglang.evals.grade.sandbox import Limits

LIMITS = Limits(wall_s=1.0, memory_bytes=512 << 20, file_bytes=1 << 20)
PATIENT = Limits(wall_s=20.0, memory_bytes=512 << 20, file_bytes=1 << 20)  # for those that end by themselves

HOSTILE = {
    "endless loop": ("while True: pass", {"timeout"}),
    "sleep": ("import time; time.sleep(100)", {"timeout"}),
    "fork bomb": ("import os\nwhile True: os.fork()", {"blocked"}),
    "stubborn fork bomb": ("import os\nwhile True:\n try: os.fork()\n except OSError: pass", {"timeout"}),
    "subprocess": ("import subprocess; subprocess.run(['ls'])", {"blocked"}),
    "deletion": ("import shutil; shutil.rmtree({folder!r})", {"blocked"}),
    "removal": ("import os; os.remove({victim!r})", {"blocked"}),
    "reading": ("open({victim!r})", {"blocked"}),
    "reading the project": ("open({project!r})", {"blocked"}),
    "listing": ("import os; os.listdir({folder!r})", {"blocked"}),
    "reading its tests": ("import os; os.listdir('..')", {"blocked"}),
    "overwriting": ("open({victim!r}, 'w').write('gone')", {"blocked"}),
    "moving": ("import os; os.rename({victim!r}, 'mine')", {"blocked"}),
    "network": ("import socket; socket.create_connection(('127.0.0.1', 1))", {"blocked"}),
    "killing": ("import os; os.kill(os.getppid(), 9)", {"blocked"}),
    "memory": ("x = []\nwhile True: x.append(bytearray(10**7))", {"memory"}),
    "flood": ("print('x' * (5 << 20))", {"too_much_output"}),
    "large file": ("open('f', 'w').write('x' * (5 << 20))", {"too_much_output"}),
    "own driver": ("open('../program.py', 'w')", {"blocked"}),
    "crash": ("import ctypes; ctypes.string_at(0)", {"crashed"}),
    "exit": ("raise SystemExit(3)", {"crashed"}),
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("alive")
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program(name: str, victim: Path) -> None:
    source, statuses = HOSTILE[name]
    limits = LIMITS if statuses == {"timeout"} else PATIENT
    started = time.monotonic()
    names = {"folder": victim.parent, "victim": victim, "project": Path(__file__).parents[4] / "pyproject.toml"}
    for key, path in names.items():
        source = source.replace(f"{{{key}!r}}", repr(str(path)))
    result = sandbox.run(source, limits=limits)
    assert result.status in statuses, result
    assert time.monotonic() - started < limits.wall_s + 8
    assert victim.read_text() == "alive"


def test_the_kernel_holds_what_python_does_not_see(victim: Path) -> None:
    """ctypes goes past the audit hook; the calls still fail where the kernel can forbid them."""
    path = repr(str(victim).encode())
    calls = f"l.fork(), l.socket(2, 1, 0), l.unlink({path}), l.open({path}, 0)"
    result = sandbox.run(f"import ctypes; l = ctypes.CDLL(None); print(({calls}))", limits=PATIENT)
    if not (result.layers.get("files") and result.layers.get("syscalls")):
        pytest.skip(f"this kernel permits no filter: {result.layers}")
    assert result.stdout == "(-1, -1, -1, -1)\n"
    assert victim.read_text() == "alive"


def test_without_the_kernel_the_hook_is_left(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "USE_KERNEL", False)
    monkeypatch.setattr(sandbox, "namespace_prefix", lambda: ())
    assert sandbox.describe() == {
        "network": "Python audit hook only",
        "processes": "rlimit and Python audit hook only",
        "files": "Python audit hook only",
    }
    for source in (
        "import socket; socket.socket()",
        f"open({str(victim)!r}, 'w')",
        f"open({str(victim)!r})",
        "import os; os.fork()",
    ):
        assert sandbox.run(source, limits=PATIENT).status == "blocked"
    assert sandbox.run("while True: pass", limits=Limits(wall_s=1.0)).status == "timeout"
    assert victim.read_text() == "alive"


def test_a_decent_program() -> None:
    source = "import threading\nt = threading.Thread(target=print, args=(int(input()) + 1,))\nt.start(); t.join()\n"
    source += "open('f', 'w').write('x')\nimport os; os.remove('f')\nprint(os.environ.get('HOME') == os.getcwd())"
    result = sandbox.run(source, "41\n", PATIENT)
    assert (result.status, result.stdout) == ("ok", "42\nTrue\n")


@pytest.mark.parametrize("uses_kernel", [True, False])
def test_a_program_reads_what_it_needs(uses_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "USE_KERNEL", uses_kernel)
    source = "import numpy, decimal, zoneinfo, datetime, os\nopen('mine', 'w').write('4')\n"
    source += "print(open('/dev/stdin').read(), os.listdir('.'), os.listdir(), open('mine').read())\n"
    source += "print(numpy.linalg.det(numpy.eye(3)), zoneinfo.ZoneInfo('UTC'), datetime.datetime.now().year > 2000)"
    result = sandbox.run(source, "41", PATIENT)
    assert (result.status, result.stdout) == ("ok", "41 ['mine'] ['mine'] 4\n1.0 UTC True\n"), result


def test_secrets_of_the_environment_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert sandbox.run("import os; print('OPENAI_API_KEY' in os.environ)", limits=PATIENT).stdout == "False\n"


def block(source: str) -> str:
    return f"Here it is:\n```python\n{source}\n```\n"


DOUBLE = [CodeTest("2\n", "4"), CodeTest("5\n", "10.0")]
ADD = [CodeTest("[1, 2]\n3", "[4, 5]", "add"), CodeTest("[]\n1", "[]", "add")]

METHOD = """\
class Solution:
    def add(self, xs: List[int], y):
        print("noise")
        return [x + y for x in xs]
"""


@pytest.mark.parametrize(
    ("source", "tests", "outcome", "detail"),
    [
        ("print(2 * int(input()))", DOUBLE, "right", "2 tests"),
        ("print(2 + int(input()))", DOUBLE, "wrong", "wrong_output in test 2 of 2"),
        ("import nothing_like_it", DOUBLE, "wrong", "crashed in test 1 of 2"),
        (METHOD, ADD, "right", "2 tests"),
        ("def add(xs, y): return [x + y for x in xs]", ADD, "right", "2 tests"),
        ("def add(xs, y): return xs", ADD, "wrong", "wrong_output in test 1 of 2"),
    ],
)
def test_programs(source: str, tests: list[CodeTest], outcome: str, detail: str) -> None:
    verdict = grade_code(block(source), tests, PATIENT)
    assert (verdict.outcome, verdict.detail) == (outcome, detail)


def test_no_program() -> None:
    assert grade_code("I give up.", DOUBLE).outcome == "no_answer"


def test_outputs_compare_by_word_and_value() -> None:
    assert same_output("1  2\n3 \n", "1 2\n3.0")
    assert not same_output("1 2 3", "1 2\n3")
    assert not same_output("YES", "Yes")
