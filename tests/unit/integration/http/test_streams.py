"""Traces in streams, over SGLang's own code: each chunk holds the entries of exactly its new tokens, none is lost.

SGLang's functions that collect, coalesce, drain and abort run as they are; the scheduler's messages are made here. A
token's trace values are its own id, so that an entry shows which token it belongs to.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers import tokenizer_manager
from sglang.srt.managers.io_struct import AbortReq, BatchStrOutput, GenerateReqInput, wrap_as_pickle
from sglang.srt.managers.tokenizer_manager import ReqState, TokenizerManager
from sglang.srt.observability.req_time_stats import APIServerReqTimeStats

from led_sglang.config.request import parse_request
from led_sglang.config.server import ServerConfig, export_config
from led_sglang.integration.http import responses
from led_sglang.integration.http.request_view import RequestView
from led_sglang.wire import ACTIVE, DEPTH_SHIFT, EXPLORED, THINKING, TRACE_KEYS, VALUE_COLUMNS, WIRE_KEY

STOP = {"type": "stop", "matched": 0}
FLAGS = THINKING | ACTIVE | EXPLORED | 3 << DEPTH_SHIFT
CONFIG = ServerConfig()
NOT_LISTS = ("led_params", "led_stats")


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LED_SGLANG_CONFIG", "")
    export_config(CONFIG)
    serving = SimpleNamespace(batch_notify_size=16, skip_tokenizer_init=False)
    monkeypatch.setattr(tokenizer_manager, "get_serving", lambda: serving)
    monkeypatch.setattr(tokenizer_manager, "get_spec", lambda: SimpleNamespace(speculative_algorithm=None))


class Engine:
    """A TokenizerManager and the scheduler's messages to it."""

    def __init__(self, is_incremental: bool) -> None:
        self.manager: Any = TokenizerManager.__new__(TokenizerManager)
        self.manager.__dict__.update(
            rid_to_state={},
            incremental_streaming_output=is_incremental,
            enable_metrics=False,
            enable_lora=False,
            dump_requests_folder="",
            crash_dump_folder="",
            config_value=lambda name: None,
            request_logger=SimpleNamespace(log_finished_request=lambda *_, **__: None),
            request_metrics_exporter_manager=SimpleNamespace(exporter_enabled=lambda: False),
        )
        self.num_tokens: dict[str, int] = {}

    def ask(self, rid: str = "a", stream: bool = True, led: Any = None) -> AsyncIterator[Any]:
        sampling = {"custom_params": {"led": {"trace": True} if led is None else led}}
        request = GenerateReqInput(rid=rid, input_ids=[5], sampling_params=sampling, stream=stream)
        state = ReqState([], False, asyncio.Event(), request, APIServerReqTimeStats())
        params = parse_request(sampling["custom_params"]["led"], CONFIG)
        assert params is not None
        state.led_view = RequestView(params)  # as `requests.resolve_one` makes it
        self.manager.rid_to_state[rid] = state
        self.num_tokens[rid] = 0
        return responses.respond(TokenizerManager._wait_one_response, self.manager, request)

    def message(self, new: dict[str, int], finish: Any = None, is_reported: bool = True) -> BatchStrOutput:
        """So many new tokens of each request."""
        ids: list[list[int]] = []
        totals, entries = [], []
        for rid, number in new.items():
            first = self.num_tokens[rid]
            self.num_tokens[rid] += number
            ids.append(list(range(first, first + number)))
            totals.append(first + number)
            entries.append([entry(self.manager.rid_to_state[rid], token) for token in ids[-1]])
        nothing = dict.fromkeys(BatchStrOutput.__struct_fields__)
        fields: dict[str, Any] = {
            **nothing,
            "rids": list(new),
            "finished_reasons": [finish] * len(new),
            "output_strs": ["".join(f"{token} " for token in row) for row in ids],
            "output_ids": ids,
            "completion_tokens": totals,
            "customized_info": wrap_as_pickle({WIRE_KEY: entries}) if is_reported else None,
        }
        for name in ("prompt_tokens", "reasoning_tokens", "cached_tokens", "retraction_counts"):
            fields[name] = [0] * len(new)
        return BatchStrOutput(**fields)

    async def send(self, new: dict[str, int], finish: Any = None, is_reported: bool = True) -> None:
        await self.begin(self.message(new, finish, is_reported))

    def begin(self, message: BatchStrOutput) -> Awaitable[None]:
        """Our hook has run when this returns, SGLang's function when it has been awaited."""
        responses.take_entries(self.manager, message)
        return TokenizerManager._handle_batch_output(self.manager, message)


def entry(state: Any, token: int) -> Any:
    led = state.obj.sampling_params["custom_params"]["led"]
    if led is False:
        return 0
    return (FLAGS, *[token] * len(VALUE_COLUMNS)) if led.get("trace") else FLAGS


class Client:
    """Puts a stream together, and looks at every chunk of it."""

    def __init__(self, is_incremental: bool) -> None:
        self.is_incremental = is_incremental
        self.ids: list[int] = []
        self.trace: list[int] = []
        self.sizes: list[int] = []
        self.last: dict[str, Any] = {}

    def see(self, chunk: dict[str, Any]) -> None:
        new = chunk["output_ids"] if self.is_incremental else chunk["output_ids"][len(self.ids) :]
        meta = chunk["meta_info"]
        assert {key: len(meta[key]) for key in TRACE_KEYS} == dict.fromkeys(TRACE_KEYS, len(new))
        assert meta["led_confidence"] == meta["led_depth_entropy"] == list(new)
        assert meta["led_depth"] == [3] * len(new)
        self.ids += new
        self.trace += meta["led_logprob"]
        self.sizes.append(len(new))
        self.last = chunk
        assert meta["led_stats"]["led_tokens"] == len(self.ids) == meta["completion_tokens"], "cumulative"
        assert meta["led_params"]["trace"] is True


both = pytest.mark.parametrize("is_incremental", [False, True])


async def rest(stream: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in stream]


@both
async def test_a_chunk_holds_the_trace_of_its_own_tokens(is_incremental: bool) -> None:
    """One token, several at once (stream_interval, tokens held back for a stop string), none at the end."""
    engine, client = Engine(is_incremental), Client(is_incremental)
    stream = engine.ask()
    for number in (1, 1, 4, 1):
        await engine.send({"a": number})
        client.see(await anext(stream))
        assert not engine.manager.rid_to_state["a"].led_view.waiting, "what was sent is kept no longer"
    await engine.send({"a": 0}, STOP)
    client.see(await anext(stream))
    assert await rest(stream) == []
    assert client.sizes == [1, 1, 4, 1, 0]
    assert client.ids == client.trace == list(range(7))


@both
async def test_what_a_slow_client_is_given_at_once(is_incremental: bool) -> None:
    """SGLang joins the chunks that wait, or drops all but the last."""
    engine, client = Engine(is_incremental), Client(is_incremental)
    stream = engine.ask()
    for number in (1, 2, 1):
        await engine.send({"a": number})
    client.see(await anext(stream))
    await engine.send({"a": 1})
    await engine.send({"a": 2}, STOP)
    client.see(await anext(stream))
    assert client.sizes == [4, 3]
    assert client.trace == list(range(7))


@both
async def test_entries_that_arrive_before_their_chunk_wait_for_it(is_incremental: bool) -> None:
    """SGLang pauses within a message of many requests: a reader may wake when the hook has run for its next token."""
    engine, client = Engine(is_incremental), Client(is_incremental)
    stream = engine.ask()
    await engine.send({"a": 1})
    handling = engine.begin(engine.message({"a": 2}, STOP))
    client.see(await anext(stream))
    await handling
    client.see(await anext(stream))
    assert client.sizes == [1, 2]


@both
@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_messages_and_reads(is_incremental: bool, seed: int) -> None:
    rng = random.Random(seed)
    engine, clients = Engine(is_incremental), {rid: Client(is_incremental) for rid in "abc"}
    streams = {rid: engine.ask(rid) for rid in clients}

    async def read() -> None:
        for rid, client in clients.items():
            if engine.manager.rid_to_state[rid].out_list and rng.random() < 0.5:
                client.see(await anext(streams[rid]))

    for _ in range(30):
        rids = rng.sample(sorted(clients), rng.randint(1, 3))
        handling = engine.begin(engine.message({rid: rng.randint(0, 3) for rid in rids}))
        await read()
        await handling
        await read()
    await engine.send(dict.fromkeys(clients, 1), STOP)
    for rid, client in clients.items():
        client.see(await anext(streams[rid]))
        assert client.ids == client.trace == list(range(engine.num_tokens[rid]))


@both
async def test_a_batch_is_written_after_more_has_arrived(is_incremental: bool) -> None:
    """The chunk of a batch passes through a task: its ids are those of its trace, however late it is written."""
    engine, client = Engine(is_incremental), Client(is_incremental)
    streams = engine.ask("a"), engine.ask("b")
    chunks = TokenizerManager._stream_batch_responses(engine.manager, streams, ["a", "b"])
    await engine.send({"a": 1})
    first = await anext(chunks)
    await engine.send({"a": 2})
    assert first["index"] == 0
    client.see(first)
    await engine.send({"a": 1, "b": 1}, STOP)
    for chunk in await rest(chunks):
        (client if chunk["index"] == 0 else Client(is_incremental)).see(chunk)
    assert client.trace == list(range(4))


@both
@pytest.mark.parametrize("num_pending", [0, 2])
async def test_an_abort_in_the_queue_after_some_tokens(is_incremental: bool, num_pending: int) -> None:
    """Of a retracted request. With incremental output SGLang's last chunk repeats the last id: it has no new entry."""
    engine, client = Engine(is_incremental), Client(is_incremental)
    stream = engine.ask()
    await engine.send({"a": 3})
    client.see(await anext(stream))
    if num_pending:
        await engine.send({"a": num_pending})
    TokenizerManager._handle_abort_req(engine.manager, AbortReq(rid="a"))
    [last] = await rest(stream)
    assert last["meta_info"]["finish_reason"]["type"] == "abort"
    if is_incremental:
        assert last["output_ids"].pop() == 2 + num_pending
    client.see(last)
    assert client.sizes == [3, num_pending]


@pytest.mark.parametrize("stream", [False, True])
@both
async def test_no_token_at_all(is_incremental: bool, stream: bool) -> None:
    engine, client = Engine(is_incremental), Client(is_incremental)
    answers = engine.ask(stream=stream)
    await engine.send({"a": 0}, {"type": "length", "length": 0})
    client.see(await anext(answers))
    assert client.sizes == [0]


async def test_without_stream_the_lists_are_whole() -> None:
    engine, client = Engine(True), Client(False)
    answers = engine.ask(stream=False)
    for number in (1, 50, 3):
        await engine.send({"a": number})
    await engine.send({"a": 2}, STOP)
    [answer] = await rest(answers)
    client.see(answer)
    assert client.sizes == [56]


@both
@pytest.mark.parametrize(("led", "keys"), [(False, {"led_params"}), ({"phase": "all"}, set(NOT_LISTS))])
async def test_no_trace_where_none_was_asked_for(is_incremental: bool, led: Any, keys: set[str]) -> None:
    engine = Engine(is_incremental)
    stream = engine.ask(led=led)
    for number, finish in ((1, None), (2, STOP)):
        await engine.send({"a": number}, finish)
        meta = (await anext(stream))["meta_info"]
        assert {key for key in meta if key.startswith("led_")} == keys
    if led:
        assert meta["led_stats"]["led_tokens"] == 3


@both
async def test_a_lost_entry_shifts_nobody_elses(is_incremental: bool) -> None:
    """A token of which nothing was told stands as one of the engine's."""
    engine = Engine(is_incremental)
    stream = engine.ask()
    reported: list[Any] = []
    for is_reported in (True, False, True):
        await engine.send({"a": 1}, is_reported=is_reported)
        reported += (await anext(stream))["meta_info"]["led_confidence"]
    assert reported == [0, None, 2]


async def test_a_fault_in_an_answer_is_counted_and_the_answer_goes_out(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(False)
    stream = engine.ask()
    await engine.send({"a": 1})
    engine.manager.rid_to_state["a"].led_view.waiting = [(FLAGS, 1)]  # too few values
    before = responses.ANSWERS.to_dict()["report_failures"]
    chunk = await anext(stream)
    assert chunk["output_ids"] == [0]
    assert responses.ANSWERS.to_dict()["report_failures"] == before + 1
    assert "could not report" in caplog.text
