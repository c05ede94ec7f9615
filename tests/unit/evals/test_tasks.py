"""Rows of every data set's own shape, local files, and what is wrong with them."""

import base64
import json
import pickle
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from led_sglang.cli.endings import CommandError
from led_sglang.evals import readers
from led_sglang.evals.errors import EvalError
from led_sglang.evals.grade.code_grader import to_tests
from led_sglang.evals.prompts import STYLES
from led_sglang.evals.tasks import TASKS, Question, find_tasks, fingerprint, load, max_tokens


def write(folder: Path, task: str, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def only(folder: Path, task: str, *rows: Any) -> Question:
    (question,) = load(TASKS[task], write(folder, task, *rows), None, 0)
    return question


def test_gsm8k_as_published(tmp_path: Path) -> None:
    question = only(tmp_path, "gsm8k", {"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"})
    assert (question.id, question.gold) == ("gsm8k-0", "4")
    assert question.prompt.startswith("2 + 2?\n") and question.prompt.endswith("within \\boxed{}.")


def test_gpqa_as_published_is_shuffled_the_same_every_time(tmp_path: Path) -> None:
    wrong = {f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)}
    row = {"Question": "Which {one}?", "Correct Answer": "right", "Record ID": "rec1", **wrong}
    question = only(tmp_path, "gpqa_diamond", row)
    assert f"({question.gold}) right" in question.prompt
    assert question == only(tmp_path, "gpqa_diamond", row)
    assert question.id == "rec1"


def test_local_choices(tmp_path: Path) -> None:
    row = {"id": 7, "problem": "Pick", "choices": ["x", "y"], "expected_answer": "B"}
    question = only(tmp_path, "gpqa_diamond", row)
    assert (question.id, question.gold) == ("7", "B") and "(A) x\n(B) y" in question.prompt
    with pytest.raises(EvalError, match="none of AB"):
        only(tmp_path, "gpqa_diamond", {**row, "expected_answer": "C"})


def lcb_row(**changes: Any) -> dict[str, Any]:
    private = json.dumps([{"input": "3", "output": "6", "testtype": "stdin"}])
    packed = base64.b64encode(zlib.compress(pickle.dumps(private))).decode()
    to_dict = json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}])
    row = {
        "question_content": "Double it",
        "question_id": "q1",
        "contest_date": "2024-10-01T00:00:00",
        "metadata": "{}",
    }
    return {**row, "public_test_cases": to_dict, "private_test_cases": packed, **changes}


def test_livecodebench_as_published(tmp_path: Path) -> None:
    early = lcb_row(question_id="old", contest_date="2024-07-31T00:00:00")
    question = only(tmp_path, "livecodebench", early, lcb_row())
    assert question.id == "q1" and "stdin" in question.prompt
    assert [test["input"] for test in json.loads(question.gold)] == ["1", "3"]
    to_dict = json.dumps([{"input": "[1]", "output": "1", "testtype": "functional"}])
    row = lcb_row(public_test_cases=to_dict, private_test_cases="", starter_code="def f", metadata='{"func_name": "f"}')
    question = only(tmp_path, "livecodebench", row)
    assert "def f" in question.prompt and json.loads(question.gold)[0]["function"] == "f"


def test_a_pickle_that_wants_more_than_text_is_refused(tmp_path: Path) -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(readers.local_rows))).decode()
    with pytest.raises(EvalError, match=r"want to import led_sglang\.evals\.readers"):
        only(tmp_path, "livecodebench", lcb_row(private_test_cases=packed))


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("math500", ["{broken"], r"math500\.jsonl:1: not JSON"),
        ("math500", ["[1]"], "not a JSON object"),
        ("math500", [{"problem": "?"}], r"jsonl:1: no answer \(looked for expected_answer"),
        ("math500", [{"problem": "a", "answer": "1"}, {"problem": "b", "answer": " "}], "jsonl:2: no answer"),
        ("math500", [{"answer": "1"}], "no question"),
        ("math500", [{"id": 1, "problem": "a", "answer": "1"}] * 2, "comes twice"),
        ("math500", [], "no questions"),
        ("gsm8k", [{"question": "a", "answer": "#### many"}], "'many' is not a number"),
        ("livecodebench", [{"problem": "a", "tests": []}], "there are no tests"),
        ("livecodebench", [{"problem": "a", "tests": [{"input": "1"}]}], "without input and output"),
        (
            "math500",
            [{"id": 1, "problem": "a", "answer": "1"}, {"id": "1", "problem": "b", "answer": "1"}],
            r"jsonl:2: the id '1' comes twice, first in .*jsonl:1",
        ),
        ("math500", ["[" * 100_000], r"jsonl:1: not JSON that can be read"),
        ("math500", ['{"problem": "a", "answer": 1' + "0" * 5000 + "}"], r"jsonl:1: not JSON that can be read"),
        ("math500", ['{"problem": "a \\ud83d b", "answer": "1"}'], r"jsonl:1: \\ud83d is half a character"),
    ],
)
def test_unusable_data(tmp_path: Path, task: str, rows: list[Any], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        load(TASKS[task], write(tmp_path, task, *rows), None, 0)


RIGHT: dict[str, dict[str, Any]] = {
    "gsm8k": {"id": "q", "problem": "a", "answer": "1"},
    "math500": {"id": "q", "problem": "a", "answer": "1"},
    "gpqa_diamond": {"id": "q", "problem": "a", "choices": ["x", "y", "z"], "answer": "B"},
    "livecodebench": {"id": "q", "problem": "a", "tests": [{"input": "1", "output": "2"}]},
}
# What no answer of a model could ever match, and values of another kind than text.
NOT_TEXT: tuple[Any, ...] = (None, "", " \n", True, [], ["1"], {}, {"a": 1}, float("nan"), float("inf"))
NEVER_RIGHT: dict[str, tuple[Any, ...]] = {
    "gsm8k": ("NaN", "-Infinity", "sNaN", "many", "1/0", "5 apples", "#### ", "3 #### x"),
    "math500": ("$$", "\\text{ }", ".", "\\frac{1}{2", "1}", "{"),
    "gpqa_diamond": ("AB", "D", "d", "1", "()"),
    "livecodebench": (),
}
CALL = {"function": "f", "input": "[1]", "output": "1"}
WRONG_TESTS: tuple[Any, ...] = (
    None, 5, {}, [], [5], ["x"], [{"input": "1", "output": None}], [{"input": ["1"], "output": "1"}],
    [{"input": True, "output": "1"}], [{**CALL, "output": "x"}], [{**CALL, "output": "NaN"}], [{**CALL, "input": "{"}],
    [{**CALL, "function": "f(); g"}], [{**CALL, "function": ["f"]}],
)  # fmt: skip
WRONG_ROWS = [
    *((task, {"answer": value}) for task in ("gsm8k", "math500", "gpqa_diamond") for value in NOT_TEXT),
    *((task, {"problem": value}) for task in RIGHT for value in (*NOT_TEXT, 5)),
    *((task, {"id": value}) for task in RIGHT for value in (True, ["q"], {"q": 1}, float("nan"))),
    *((task, {"answer": value}) for task, values in NEVER_RIGHT.items() for value in values),
    *(("gpqa_diamond", {"choices": value}) for value in ("xyz", [], ["x"], ["x", None], ["x", ["y"]], ["x"] * 11, 5)),
    *(("livecodebench", {"tests": value}) for value in WRONG_TESTS),
    *(("livecodebench", {"tests": None, "metadata": value}) for value in ("{", "[]", [1], "5")),
    *(("livecodebench", {"tests": None, "private_test_cases": value}) for value in ("!", "bm8=", "5", [5], {"a": 1})),
]


@pytest.mark.parametrize(("task", "wrong"), WRONG_ROWS, ids=lambda value: str(value)[:40])
def test_rows_that_nothing_could_answer(task: str, wrong: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path, task, {**RIGHT[task], "id": "first"}, {**RIGHT[task], **wrong})
    with pytest.raises(CommandError, match=rf"{task}\.jsonl:2: "):
        load(TASKS[task], folder, None, 0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"aime2024\.jsonl is missing"):
        load(TASKS["aime2024"], tmp_path, None, 0)


def test_a_hub_that_cannot_be_reached_points_to_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))  # type: ignore[arg-type]
    with pytest.raises(EvalError, match=r"cannot load openai/gsm8k .*--data DIR"):
        load(TASKS["gsm8k"], None, None, 0)


@pytest.mark.parametrize("name", ["embedded", "countdown"])
def test_the_embedded_tasks_are_drawn_from_the_seed(name: str) -> None:
    one, same, other = (load(TASKS[name], None, 20, seed) for seed in (0, 0, 1))
    assert one == same and fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert len({question.prompt for question in one}) == 20


def test_unknown_tasks() -> None:
    with pytest.raises(EvalError, match="unknown task poker; known: embedded"):
        find_tasks("gsm8k,poker")
    with pytest.raises(EvalError, match="none given"):
        find_tasks(" ")


CHOICE_ROW = {"problem": "Pick {it}", "choices": ["x", "y"], "answer": "B"}
STDIN_ROW = {"problem": "Double it", "tests": [{"input": "1", "output": "2"}]}
STARTER_ROW = {**STDIN_ROW, "starter_code": "def f(x):"}


@pytest.mark.parametrize(
    ("task", "row", "start", "parts", "end"),
    [
        ("gsm8k", {"problem": "Q?", "answer": "1"}, "Please reason", ["\\boxed{}.\n\nQ?"], "Q?"),
        ("math500", {"problem": "Q?", "answer": "1"}, "Please reason", ["\\boxed{}.\n\nQ?"], "Q?"),
        ("gpqa_diamond", CHOICE_ROW, "Solve", ['"answer": "C".\n\nPick {it}\nA. x\nB. y'], "B. y"),
        ("livecodebench", STDIN_ROW, "You will", ["\n\nQuestion: Double it\n\n", "stdin"], "# YOUR CODE HERE\n```\n\n"),
        ("livecodebench", STARTER_ROW, "You will", ["\n\nQuestion: Double it\n\n"], "\n```python\ndef f(x):\n```\n\n"),
    ],
)
def test_released_prompts(
    task: str, row: dict[str, Any], start: str, parts: list[str], end: str, tmp_path: Path
) -> None:
    """Order and format of the released evaluation."""
    folder = write(tmp_path, task, row)
    (released,), (ours,) = (load(TASKS[task], folder, None, 0, style) for style in ("released", "ours"))
    assert released.prompt.startswith(start) and released.prompt.endswith(end)
    assert all(part in released.prompt for part in parts)
    assert (released.id, released.gold) == (ours.id, ours.gold) and released.prompt != ours.prompt
    assert ours == load(TASKS[task], folder, None, 0)[0], "ours is the default"
    assert fingerprint([released]) != fingerprint([ours])


def test_tasks_without_instructions_read_the_same_in_both_styles() -> None:
    for task in ("embedded", "countdown"):
        assert len({fingerprint(load(TASKS[task], None, 5, 0, style)) for style in STYLES}) == 1


def test_token_limits_of_models() -> None:
    task = TASKS["gsm8k"]
    for name in ("MiMo-7B-RL", "XiaomiMiMo/MiMo-7B-RL", "/models/mimo-7b-rl/"):
        assert max_tokens(task, name) == 28 * 1024
    assert max_tokens(task, "Qwen/Qwen3-4B-Thinking-2507") == 32_768
    assert max_tokens(TASKS["countdown"], "MiMo-7B-RL") == 256


def test_a_published_answer_that_is_wrong_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"problem": "Eight circles of radius $34$ can be placed ...", "answer": "480"}
    assert only(tmp_path, "aime2024", row).gold == "197"
    assert "480" in capsys.readouterr().err
    assert only(tmp_path, "aime2024", {**row, "answer": "481"}).gold == "481"
    assert only(tmp_path, "aime2024", {**row, "problem": "Nine circles"}).gold == "480"
    assert not capsys.readouterr().err


HUMANEVAL_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(n):\n    """Double it."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def test_humaneval_as_published(tmp_path: Path) -> None:
    question = only(tmp_path, "humaneval", HUMANEVAL_ROW)
    assert question.id == "HumanEval/0" and '"""Double it."""\n```' in question.prompt
    (test,) = to_tests(json.loads(question.gold))
    assert (test.function, test.setup, test.check) == ("double", HUMANEVAL_ROW["prompt"], HUMANEVAL_ROW["test"])
    for change, reason in (
        ({"test": "def check("}, "no Python"),
        ({"test": "assert True"}, "no check"),
        ({"prompt": "def double(n"}, "no Python"),
        ({"entry_point": "2x"}, "no name of a function"),
        ({"test": ""}, "no test"),
    ):
        with pytest.raises(EvalError, match=reason):
            only(tmp_path, "humaneval", {**HUMANEVAL_ROW, **change})
