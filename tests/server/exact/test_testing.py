"""`led_sglang.testing` as docs/testing.md shows it, and what its comparison notices."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from led_sglang import testing
from led_sglang.testing import Reply, Request, check_trace, compare
from led_sglang.testing.oracle import COLUMNS
from tests.server.checkpoints import CLOSE_ID, MARKERS, OPEN_ID
from tests.server.clients import Client, Oracle, thinking_prompt
from tests.server.servers import Server

pytestmark = pytest.mark.server

DOCS = Path(__file__).resolve().parents[3] / "docs/testing.md"


def test_the_documented_example(
    exact_server: Server, qwen3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the server of this folder; tests/server/test_models.py starts servers with `led_server`."""

    @contextmanager
    def shared_server(*arguments: str, log: Path) -> Iterator[testing.Client]:
        assert arguments[:4] == ("--model-path", str(qwen3_folder), "--dtype", "float32") and log.parent == tmp_path
        yield testing.Client(exact_server.url)

    monkeypatch.setattr(testing, "led_server", shared_server)
    [example] = re.findall(
        r"<!-- tests/server/exact/test_testing.py .*?```python\n(.*?)```", DOCS.read_text(), re.DOTALL
    )
    given = {"folder": qwen3_folder, "log": tmp_path / "led.log", "open_id": OPEN_ID, "close_id": CLOSE_ID}
    names: dict[str, Any] = {**given, "prompt_ids": thinking_prompt(900)}
    exec(example, names)
    assert names["comparison"].num_steps == 48


@pytest.fixture(scope="module")
def reply(client: Client) -> Reply:
    return client.generate(Request(thinking_prompt(901), num_tokens=16, seed=2))


@pytest.fixture(scope="module")
def steps(oracle: Oracle) -> testing.Oracle:
    return testing.Oracle(oracle.model, MARKERS)


def test_a_request_of_the_defaults_agrees(reply: Reply, steps: testing.Oracle) -> None:
    check_trace(reply.meta)
    comparison = testing.check(steps, reply)
    assert comparison.num_steps == 16 and comparison.num_active == len(comparison.depths) > 8
    assert 0 < comparison.worst <= testing.TOLERANCE


def other(value: Any) -> Any:
    """Another legal-looking value of a column; of a list, its first entry's."""
    match value:
        case bool():
            return not value
        case [first, *rest]:
            return [other(first), *rest]
        case int():
            return value % 8 + 1
        case _:
            return value + 0.01


@pytest.fixture(scope="module")
def exploring(client: Client) -> Reply:
    """Every token explores: with an exploit branch a coin's side cannot be recomputed."""
    return client.generate(Request(thinking_prompt(903), testing.Query(exploit=False), num_tokens=8, seed=2))


@pytest.mark.parametrize("column", COLUMNS)
def test_a_fault_in_any_column_is_noticed(column: str, exploring: Reply, steps: testing.Oracle) -> None:
    at = next(i for i, depth in enumerate(exploring.meta["led_depth"]) if depth)
    document = copy.deepcopy(dict(exploring.document))
    values = document["meta_info"][f"led_{column}"]
    values[at] = other(values[at])
    faulty = Reply(exploring.request, document)
    assert compare(steps, faulty).faults
    with pytest.raises(AssertionError, match="faults: token"):
        testing.check(steps, faulty)
    values.pop()
    assert f"number of led_{column}" in compare(steps, faulty).faults[0]
    with pytest.raises(AssertionError):
        check_trace(faulty.meta)


def test_another_token_and_another_number_of_tokens_are_noticed(reply: Reply, steps: testing.Oracle) -> None:
    document = copy.deepcopy(dict(reply.document))
    document["output_ids"][0] = next(i for i in range(700) if i not in reply.meta["led_candidates"][0])
    assert any("is none of the candidates" in fault for fault in compare(steps, Reply(reply.request, document)).faults)
    longer = Request(reply.request.prompt_ids, num_tokens=17)
    assert compare(steps, Reply(longer, reply.document)).faults[0].startswith("number of tokens")


def test_a_refusal_is_raised_in_the_servers_words(client: Client) -> None:
    with pytest.raises(testing.ServerError, match="depth"):
        client.generate(Request(thinking_prompt(902), testing.Query(depth=99)))
