"""The lines of a log that reach the terminal: errors and LED's warnings, none of what a healthy start writes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from led_sglang.serving.log_lines import STAGES, ErrorLines, stage_of

ROOT = Path(__file__).resolve().parents[3]
STAMP = "[2026-11-30 19:19:33 TP0] "
HEALTHY = """\
/x/sglang/srt/layers/quantization/awq/awq.py:53: UserWarning: Only CUDA, HIP and XPU support AWQ currently.
  warnings.warn(f"Only CUDA, HIP and XPU support AWQ currently.")
[2026-11-30 19:19:34] Fail to set RLIMIT_NOFILE: current limit exceeds maximum limit
[2026-11-30 19:20:55] Ignore import error when loading sglang.srt.models.mamba: cannot import name 'causal_conv1d_fn'
[2026-11-30 19:21:58] LED: 94.5 MB of device memory for batches of up to 4112 rows (capture buffer 23.2 MB)
[2026-11-30 19:21:58] LED: methods none, led; captured layers [1, 2, 3]
[2026-11-30 19:22:02] LED: the start check of Qwen3ForCausalLM passed: {'norm_error': 0.0}
[2026-11-30 19:22:03] INFO:     127.0.0.1:45704 - "GET /health HTTP/1.1" 503 Service Unavailable
[2026-11-30 19:22:06] INFO:     127.0.0.1:42156 - "POST /generate HTTP/1.1" 400 Bad Request
[2026-11-30 19:22:04] The server is fired up and ready to roll!"""
FAILED = """\
[2026-11-30 19:22:04] Scheduler hit an exception: Traceback (most recent call last):
  File "a.py", line 1, in f
    g()
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 2, in g
RuntimeError: LED refuses"""


def shown(text: str) -> list[str]:
    errors = ErrorLines()
    return [line for line in text.splitlines() if errors.includes(line)]


def test_a_healthy_start_shows_nothing() -> None:
    assert shown(HEALTHY) == []


def test_a_traceback_is_shown_whole_and_what_follows_is_not() -> None:
    after = "[2026-11-30 19:22:05] Decode batch, #running-req: 1"
    found = [line for line in shown(f"{HEALTHY}\n{FAILED}\n{after}") if line]
    assert found == [line for line in FAILED.splitlines() if line]


@pytest.mark.parametrize(
    "line",
    [
        "led_sglang: cannot listen on --host 127.0.0.1 --port 30000: Address already in use",
        "launch_server.py: error: argument --tp: invalid int value: 'x'",
        "torch.OutOfMemoryError: CUDA out of memory",
        STAMP + "ERROR:    Application startup failed",
        STAMP + 'INFO:     127.0.0.1:1 - "POST /generate HTTP/1.1" 500 Internal Server Error',
    ],
)
def test_an_error_is_shown(line: str) -> None:
    assert shown(line) == [line]


def our_messages() -> Iterator[tuple[str, str, str]]:
    """Place, level and beginning of every message that this package logs, its values filled in."""
    for path in sorted((ROOT / "led_sglang").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger.") and node.args:
                text = ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else ""
                level = ast.unparse(node.func).removeprefix("logger.")
                yield f"{path.name}:{node.lineno}", level, text


def test_every_warning_of_ours_is_shown_and_no_report_is() -> None:
    messages = list(our_messages())
    assert {level for _, level, _ in messages} >= {"info", "warning"}
    for place, level, text in messages:
        value = "94.5 MB of device memory" if level == "info" else "too little is left"
        filled = STAMP + text.replace("%s", value)
        assert bool(shown(filled)) == (level != "info"), f"{place}: {filled}"


def test_every_stage_has_a_line_and_words_of_its_own() -> None:
    assert len(set(STAGES.values())) == len(STAGES)
    for beginning, stage in STAGES.items():
        assert stage_of(f"{STAMP}{beginning} and more") == stage
    assert [stage for line in HEALTHY.splitlines() if (stage := stage_of(line))] == [STAGES["LED: methods "]]
