"""The first token of a disaggregated request is a prefill server's; its record reaches the answer by a decode one's.

SGLang's metadata buffers carry what belongs to the token. Ours is the last of them: beside a server that has none the
others stay in their places.
"""

from typing import TYPE_CHECKING

import torch
from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST
from torch import Tensor

from led_sglang.integration.hooks.guard import Call, change_nothing, handler
from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.batch import LedBatch
from led_sglang.integration.scheduler.disaggregation import entry_row
from led_sglang.integration.scheduler.recovery import before_start, count_failure
from led_sglang.integration.scheduler.reports.records import StepRecord, entries_of, give, num_missing
from led_sglang.wire import FALLBACK, HANDOFF_WIDTH, RECORD_KEY, WIRE_KEY

if TYPE_CHECKING:
    from sglang.srt.disaggregation.decode import DecodeRequest, DecodeTransferQueue
    from sglang.srt.disaggregation.utils import MetadataBuffers
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.utils import GenerationBatchResult


def forget(call: Call) -> None:
    """After a fault of `remember`: no request is given an earlier step's record."""
    for req in call["batch"].reqs:
        req.led_handoff = None


@handler(count_failure, forget, before_start)
def remember(self: "Scheduler", batch: "ScheduleBatch", result: "GenerationBatchResult") -> None:
    """BEFORE process_batch_result_disagg_prefill: its requests know where their record is, once they need it.

    The record's tensors may be on their way from the device still.
    """
    info = getattr(result.logits_output, "customized_info", None) or {}
    record: StepRecord | None = info.get(RECORD_KEY)
    for row, req in enumerate(batch.reqs):
        req.led_handoff = None if record is None else (record, row)


@handler(count_failure, change_nothing, before_start)
def give_first(self: "Scheduler", req: "Req") -> None:
    """BEFORE checkpoint_disagg_prefill, which comes once the token is the request's, and before it is sent."""
    handoff, req.led_handoff = getattr(req, "led_handoff", None), None
    if handoff is not None:
        record, row = handoff
        give(record, row, req)


@handler(count_failure, change_nothing, before_start)
def add_buffer(result: tuple[list[int], list[int], list[int]], self: "MetadataBuffers") -> None:
    """AFTER MetadataBuffers.get_buf_infos: addresses, bytes, and bytes of a row."""
    addresses, num_bytes, num_row_bytes = result
    rows = _rows(self)
    addresses.append(rows.data_ptr())
    num_bytes.append(rows.nbytes)
    num_row_bytes.append(rows[0].nbytes)


def _rows(buffers: "MetadataBuffers") -> Tensor:
    """(slots, HANDOFF_WIDTH) int32, beside the engine's own."""
    if not hasattr(buffers, "led_rows"):
        first = buffers.output_ids
        buffers.led_rows = torch.zeros(len(first), HANDOFF_WIDTH, dtype=torch.int32, device=first.device)
    rows: Tensor = buffers.led_rows
    return rows


@handler(count_failure, change_nothing, before_start)
def write(returned: None, self: "MetadataBuffers", req: "Req") -> None:
    """AFTER MetadataBuffers.set_buf. A fault leaves an earlier request's row, whose room is not this one's."""
    entries = (req.customized_info or {}).get(WIRE_KEY) or [None]
    entry_row.write(_rows(self)[req.metadata_buffer_index], req.bootstrap_room or 0, entries[0])


@handler(count_failure, change_nothing, before_start)
def clear(returned: None, self: "MetadataBuffers", idx: int) -> None:
    """AFTER MetadataBuffers.clear_slot."""
    _rows(self)[idx] = 0


def fail_first(call: Call) -> None:
    """After a fault of `take_first`."""
    req = call["decode_req"].req
    if num_missing(req) > 0:
        _add_failed(req)


@handler(count_failure, fail_first, before_start)
def take_first(returned: None, self: "DecodeTransferQueue", decode_req: "DecodeRequest") -> None:
    """AFTER DecodeTransferQueue._commit_transfer_to_req: the token is the request's, if it has not been aborted.

    The prefill server has counted it. A token without a record, from a server without LED, counts here as failed.
    A token that is sent again, after a retraction, has its record.
    """
    req = decode_req.req
    if num_missing(req) <= 0:
        return
    entry = entry_row.read(_rows(self.metadata_buffers)[decode_req.metadata_buffer_index], req.bootstrap_room or 0)
    if entry is None:
        _add_failed(req)
    else:
        entries_of(req).append(entry)


def _add_failed(req: "Req") -> None:
    """Nobody's requests, of which no token was computed, do not count."""
    current = runtime.stage()
    assert current is not None
    if req.bootstrap_host == FAKE_BOOTSTRAP_HOST:
        entry: int | None = FALLBACK
    else:
        entry = StepRecord(LedBatch.lost(1), current.counts).failed_entry(0, req)
    if entry is not None:
        entries_of(req).append(entry)
