"""A first token's record crosses from a prefill server to a decode one: each request's own, or a failed step's."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST, MetadataBuffers

from led_sglang.integration.hooks.register import HANDLERS
from led_sglang.integration.hooks.table import METADATA
from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.disaggregation import entry_row, handoff
from led_sglang.integration.scheduler.reports.counters import Counts
from led_sglang.integration.scheduler.reports.records import StepRecord
from led_sglang.wire import (
    ACTIVE,
    DEPTH_SHIFT,
    EXPLORED,
    FALLBACK,
    HANDOFF_SPACE,
    HANDOFF_WIDTH,
    RECORD_KEY,
    RESOLVED_KEY,
    THINKING,
    VALUE_COLUMNS,
    WIRE_KEY,
)  # fmt: skip
from tests.server import fault_plugin
from tests.unit.integration.fakes import batch_of, break_handler, forward_mode, request_row

SLOTS = 4
ROWS = (
    request_row("led"),
    request_row("none"),
    request_row("led", trace=True, top_k=2, depth=2),
    request_row(None),
)
FLAGS = [THINKING | ACTIVE | 3 << DEPTH_SHIFT, THINKING | ACTIVE | EXPLORED | 2 << DEPTH_SHIFT]
TRACE = (  # two rows of one token: confidence, entropy, logprob, candidates, exploit, explore, entropies
    *(torch.full((2, 1), value) for value in (0.5, 0.125, -1.25)),
    torch.tensor([[[7, 8]], [[9, 151_000]]]),
    *(torch.tensor([[[0.25, 0.75]], [[0.5, 0.375]]]) for _ in range(3)),
)
TRACED = (FLAGS[1], *(column[1, 0].tolist() for column in TRACE))
ENTRIES = [FLAGS[0], 0, TRACED, None]


class Stage:
    """As much of a scheduler process."""

    def __init__(self) -> None:
        self.counts = Counts(8, torch.device("cpu"))
        self.num_step_failures = 0
        self.failed_ranks = None


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    found = Stage()
    monkeypatch.setattr(runtime, "_runtime", found)
    return found


def buffers() -> MetadataBuffers:
    return MetadataBuffers(SLOTS, 8, torch.float32, 16)


def requests(room: int = 1 << 62) -> list[Any]:
    """One for each of ROWS, not in the order of their slots."""

    def custom(row: Any) -> Any:
        return None if row.request is None else {RESOLVED_KEY: row.request.to_wire()}

    return [
        SimpleNamespace(
            sampling_params=SimpleNamespace(custom_params=custom(row)),
            customized_info=None,
            output_ids=[],
            finished_len=None,
            bootstrap_host="127.0.0.1",
            bootstrap_room=room + i,
            metadata_buffer_index=(i + 1) % SLOTS,
        )
        for i, row in enumerate(ROWS)
    ]


def prefill(reqs: list[Any], metadata: MetadataBuffers, record: StepRecord | None) -> None:
    """As SGLang does it: the last chunk's result, the token, its record, the metadata."""
    info = {} if record is None else {RECORD_KEY: record}
    result = SimpleNamespace(logits_output=SimpleNamespace(customized_info=info))
    handoff.remember(None, SimpleNamespace(reqs=reqs), result)
    for req in reqs:
        req.output_ids.append(5)
        handoff.give_first(None, req)
        handoff.write(None, metadata, req)


def step(stage: Stage, is_counted: bool = False) -> StepRecord:
    return StepRecord(batch_of(*ROWS), stage.counts, torch.tensor(FLAGS)[:, None], trace=TRACE, is_counted=is_counted)


def transfer(source: MetadataBuffers, target: MetadataBuffers) -> None:
    """The last buffer, by what the servers told each other of it."""
    infos = []
    for metadata in (source, target):
        infos.append(([1], [2], [3]))
        handoff.add_buffer(infos[-1], metadata)
    (from_address, num_bytes, row_bytes), (to_address, *sizes) = ([column[-1] for column in info] for info in infos)
    assert sizes == [num_bytes, row_bytes] == [SLOTS * HANDOFF_WIDTH * 4, HANDOFF_WIDTH * 4]
    ctypes.memmove(to_address, from_address, num_bytes)


def received(reqs: list[Any], metadata: MetadataBuffers) -> list[Any]:
    """The entry of each; None: it has none."""
    for req in reqs:
        decode_req = SimpleNamespace(req=req, metadata_buffer_index=req.metadata_buffer_index)
        if not req.output_ids:
            req.output_ids.append(5)
        handoff.take_first(None, SimpleNamespace(metadata_buffers=metadata), decode_req)
    entries = [(req.customized_info or {}).get(WIRE_KEY, [None]) for req in reqs]
    assert all(len(entry) == 1 for entry in entries)
    return [entry[0] for entry in entries]


def test_every_request_has_its_own_record(stage: Stage) -> None:
    """On both servers, and only the first of them has counted."""
    sent, source, target = requests(), buffers(), buffers()
    prefill(sent, source, step(stage))
    assert [(req.customized_info or {}).get(WIRE_KEY, [None])[0] for req in sent] == ENTRIES
    counted = stage.counts.status()
    assert counted["led_tokens"] == 2
    transfer(source, target)
    assert received(requests(), target) == ENTRIES
    assert stage.counts.status() == counted


def test_a_server_without_records_is_noticed(stage: Stage) -> None:
    """Its first tokens count as failed steps where they arrive."""
    target = buffers()
    assert received(requests(), target) == [FALLBACK, 0, FALLBACK, None]
    assert stage.counts.status()["fallbacks"] == 2


def test_no_record_is_another_requests(stage: Stage) -> None:
    """Neither of an earlier step, nor of a request that had the slot before, nor of one that is in another room."""
    source, target = buffers(), buffers()
    sent = requests()
    prefill(sent, source, step(stage))
    transfer(source, target)
    assert received(requests(room=99), target) == [FALLBACK, 0, FALLBACK, None]
    again = requests()
    for req in again:
        handoff.clear(None, target, req.metadata_buffer_index)
    assert received(again, target) == [FALLBACK, 0, FALLBACK, None]
    for req in sent:
        req.output_ids, req.customized_info = [], None
    prefill(sent, source, None)
    assert all(req.customized_info is None for req in sent)
    transfer(source, target)
    assert received(requests(), target) == [FALLBACK, 0, FALLBACK, None]


def test_a_token_that_is_sent_again_has_its_record(stage: Stage) -> None:
    """After a retraction; and an aborted request has no token."""
    source, target = buffers(), buffers()
    prefill(requests(), source, step(stage))
    transfer(source, target)
    for tokens, entries in (([5, 6], [1, 2]), ([], [])):
        req = requests()[0]
        req.output_ids, req.customized_info = tokens, {WIRE_KEY: list(entries)}
        decode_req = SimpleNamespace(req=req, metadata_buffer_index=req.metadata_buffer_index)
        handoff.take_first(None, SimpleNamespace(metadata_buffers=target), decode_req)
        assert req.customized_info[WIRE_KEY] == entries


def test_a_prompt_of_several_chunks(stage: Stage) -> None:
    """Its record is the last one's: a chunk's step has a record too, and no token."""
    sent, source = requests(), buffers()
    early = SimpleNamespace(logits_output=SimpleNamespace(customized_info={RECORD_KEY: "never read"}))
    handoff.remember(None, SimpleNamespace(reqs=sent), early)
    prefill(sent, source, step(stage))
    assert [(req.customized_info or {}).get(WIRE_KEY, [None])[0] for req in sent] == ENTRIES


def test_warm_ups_do_not_count(stage: Stage) -> None:
    """A decode server's own requests come without a prefill server."""
    reqs = requests()
    for req in reqs:
        req.bootstrap_host = FAKE_BOOTSTRAP_HOST
    assert received(reqs, buffers())[0] == FALLBACK
    assert stage.counts.status()["fallbacks"] == 0


def fail(*_: Any) -> None:
    raise ArithmeticError


@pytest.mark.parametrize("target", fault_plugin.BETWEEN_SERVERS)
def test_a_fault_is_counted_and_the_engines_call_stands(
    target: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the hook, with its recovery: the request has the entry of a failed step, or none yet."""
    hook = HANDLERS[target]
    break_handler(monkeypatch, hook, fail)
    req = requests()[0]
    req.led_handoff = (step(stage), 0)
    req.output_ids.append(5)
    arguments = {"batch": SimpleNamespace(reqs=[req]), "req": req, "decode_req": SimpleNamespace(req=req)}
    assert hook(*[None] * (hook.spec.kind == "after"), *map(arguments.get, hook.spec.parameters)) is None
    assert stage.num_step_failures == 1
    if "batch" in hook.spec.parameters:
        assert req.led_handoff is None
    assert req.customized_info == ({WIRE_KEY: [FALLBACK]} if "decode_req" in hook.spec.parameters else None)


@pytest.mark.parametrize("begins_decoding", [False, True])
@pytest.mark.parametrize("is_decode", [False, True])
def test_a_decode_server_has_the_states_of_whole_ids(begins_decoding: bool, is_decode: bool) -> None:
    """Where no prefill ran, a decode step may be a request's first; elsewhere it never is."""
    current = object.__new__(runtime.Runtime)
    current._begins_decoding, current._states = begins_decoding, torch.zeros(3, dtype=torch.int64)
    seen: list[Any] = []
    backend = SimpleNamespace(row_inputs=lambda *arguments: seen.append(arguments[3]))
    current.served_backend = SimpleNamespace(backend=backend)  # type: ignore[assignment]
    lengths = torch.tensor([6, 9])
    current.forward_batch = SimpleNamespace(  # type: ignore[assignment]
        forward_mode=forward_mode(is_decode), seq_lens=lengths, req_pool_indices=None
    )
    current.row_inputs(None, lengths - 1)  # type: ignore[arg-type]
    assert seen == [None if is_decode and not begins_decoding else lengths]


def test_the_buffer_is_the_last_one(stage: Stage) -> None:
    """A server without it has the others in their places, and stops before it."""
    metadata = buffers()
    infos = metadata.get_buf_infos()
    known = [list(column) for column in infos]
    HANDLERS[METADATA + "get_buf_infos"](infos, metadata)
    assert [column[:-1] for column in infos] == known


ANY: dict[str, Any] = {
    "nothing": None,
    "flags": FLAGS[0],
    "a plain token": 0,
    "an engine's token": (FALLBACK, *[None] * len(VALUE_COLUMNS)),
    "a trace": TRACED,
    "without depths": (*TRACED[:-1], None),
    "one candidate": (FLAGS[0], 1.0, 0.0, 0.0, [3], [1.0], [1.0], [0.0]),
    "not finite": (FLAGS[0], float("inf"), 0.0, float("-inf"), [3], [1.0], [1.0], [0.0]),
    "the longest": (FLAGS[0], 1.0, 0.5, 0.25, *[list(range(256))] * 3, [0.0] * (HANDOFF_SPACE - 768)),
}


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("room", [0, 1, 2**63, 2**64 - 1])
def test_what_is_read_is_what_was_written(name: str, room: int) -> None:
    row = torch.full((HANDOFF_WIDTH,), 77, dtype=torch.int32)
    entry_row.write(row, room, ANY[name])
    assert entry_row.read(row, room) == ANY[name]
    assert entry_row.read(row, room ^ 1) is None and entry_row.read(row, room ^ 2**63) is None


def test_a_trace_that_does_not_fit() -> None:
    entry = (FLAGS[0], 1.0, 0.5, 0.25, *[list(range(256))] * 3, [0.0] * (HANDOFF_SPACE - 767))
    with pytest.raises(ValueError, match=f"{HANDOFF_SPACE + 1} values does not fit a row of {HANDOFF_SPACE}"):
        entry_row.write(torch.zeros(HANDOFF_WIDTH, dtype=torch.int32), 1, entry)
