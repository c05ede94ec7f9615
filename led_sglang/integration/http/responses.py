"""Answers on their way out: LED's entries leave the scheduler's answer, and join `meta_info` as the client reads it."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.io_struct import unwrap_from_pickle, wrap_as_pickle

from led_sglang.integration.faults import is_new
from led_sglang.integration.hooks.guard import Call, handler
from led_sglang.integration.http.request_view import RequestView
from led_sglang.integration.http.workers.answers import Answers
from led_sglang.wire import WIRE_KEY

if TYPE_CHECKING:
    from fastapi import Request
    from sglang.srt.managers.io_struct import BatchStrOutput, GenerateReqInput
    from sglang.srt.managers.tokenizer_manager import ReqState, TokenizerManager

logger = logging.getLogger(__name__)


ANSWERS = Answers()


def count_failure(where: str) -> None:
    """Called in the `except` block of a fault of ours. What is new is logged, counted are all."""
    ANSWERS.add_report_failure()
    if is_new(where):
        logger.exception("LED could not report (%s); what it lost is counted as `unreported` in led_stats", where)


def lose_entries(call: Call) -> None:
    """After a fault of `take_entries`: no entry reaches a client as it is; the views count what they have missed."""
    try:
        _take_out(call["recv_obj"])
    except Exception:
        call["recv_obj"].customized_info = None


@handler(count_failure, lose_entries)
def take_entries(self: "TokenizerManager", recv_obj: "BatchStrOutput") -> None:
    """BEFORE TokenizerManager._handle_batch_output: take our entries out of the scheduler's answer."""
    per_request = _take_out(recv_obj)
    if per_request is None:
        return
    for rid, entries, num_tokens in zip(recv_obj.rids, per_request, recv_obj.completion_tokens, strict=True):
        view = _view(self.rid_to_state.get(rid))
        if view is not None:
            view.add(entries, num_tokens)


def _take_out(recv_obj: "BatchStrOutput") -> list[Any] | None:
    """Our entries, by request; None where there are none. What is left is another's."""
    wrapped = getattr(recv_obj, "customized_info", None)
    if wrapped is None:
        return None
    info = unwrap_from_pickle(wrapped)
    if not isinstance(info, dict) or WIRE_KEY not in info:
        return None
    per_request: list[Any] = info.pop(WIRE_KEY)
    recv_obj.customized_info = wrap_as_pickle(info) if info else None
    return per_request


def respond_anyway(call: Call) -> AsyncIterator[Any]:
    """After a fault of `respond`."""
    return _with_led(call.once(), None, _count_unreported)


@handler(count_failure, respond_anyway)
def respond(
    original: Call, self: "TokenizerManager", obj: "GenerateReqInput", request: "Request | None" = None
) -> AsyncIterator[Any]:
    """AROUND TokenizerManager._wait_one_response: led_params, led_stats and the trace join `meta_info`.

    That yields once without `stream`, and chunks of the server's own cadence with it.
    """
    state = self.rid_to_state.get(obj.rid)
    return _with_led(original(self, obj, request), state, _report)


async def _with_led(
    answers: AsyncGenerator[Any], state: "ReqState | None", report: "Callable[[dict[str, Any], ReqState | None], None]"
) -> AsyncIterator[Any]:
    async with aclosing(answers):
        async for answer in answers:
            if isinstance(answer, dict) and "meta_info" in answer:
                try:
                    report(answer, state)
                except Exception:
                    count_failure("an answer")
                    _count_unreported(answer, state)
            yield answer


def _count_unreported(answer: dict[str, Any], state: "ReqState | None") -> None:
    """Of an answer of which LED knows no more."""
    meta = answer["meta_info"]
    meta.setdefault("led_stats", {"unreported": meta.get("completion_tokens", 0)})


def _report(answer: dict[str, Any], state: "ReqState | None") -> None:
    view = _view(state)
    if view is None:
        return
    assert state is not None
    meta = answer["meta_info"]
    ids: list[int] = state.output_ids
    meta.update(view.report(meta.get("completion_tokens", 0)))
    if view.params.trace and answer.get("output_ids") is ids:
        # SGLang goes on filling this list; in a batch, before the chunk is written: its ids would outrun its trace.
        answer["output_ids"] = list(ids)


def _view(state: "ReqState | None") -> RequestView | None:
    """Of a request that `resolve_one` has resolved for LED; counted at its first answer."""
    view: RequestView | None = getattr(state, "led_view", None)
    if view is not None and not view.is_counted:
        view.is_counted = True
        ANSWERS.add_request(view.params.method)
    return view
