"""The other methods' rows in a step: they rewrite the engine's logits, or force a token and the next input."""

import pkgutil
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from led_sglang.config.fields import FIELDS, MAX_SOFT_TOP_K
from led_sglang.config.legal import Choice, Integer
from led_sglang.config.methods import METHOD_TABLE, Method
from led_sglang.config.server import ServerConfig
from led_sglang.integration.scheduler.batch import MethodGroup
from led_sglang.integration.scheduler.methods.edits import unedited
from led_sglang.ops.methods.rows import MethodRows
from led_sglang.ops.methods.soft_thinking import Filters, cold_stop, soft_mixture
from led_sglang.ops.rows.noise import uniforms

if TYPE_CHECKING:
    from led_sglang.integration.scheduler.step.inputs import SamplerInputs

FUNCTIONS = "led_sglang.ops.methods."  # of the methods that rewrite logits
Override = tuple[Tensor, Tensor, Tensor]  # batch rows (n,), token ids (n,), bool (n,): really forced
Handler = Callable[["SamplerInputs", MethodGroup, Tensor], Override | None]


def rewrite_logits(method: Method) -> Handler:
    """The handler of a method whose function takes MethodRows and returns logits."""
    assert method.rewrite is not None
    function: Callable[[MethodRows], Tensor] = pkgutil.resolve_name(FUNCTIONS + method.rewrite)

    def handle(inputs: "SamplerInputs", group: MethodGroup, logits: Tensor) -> None:
        logits[group.batch_rows] = function(method_rows(method, inputs, group, logits)).to(logits.dtype)

    return handle


def method_rows(method: Method, inputs: "SamplerInputs", group: MethodGroup, logits: Tensor) -> MethodRows:
    """Of a group's rows of the batch's final logits (B, V)."""
    current = inputs.runtime
    assert current.head is not None
    final = logits[group.batch_rows]

    def layer_indices() -> list[int]:
        return [current.capture.layers.index(layer) for layer in method.layers(current.config, None)]

    def candidates() -> list[list[bool]]:
        layers = method.layers(current.config, None)
        return [[layer in method.layers(current.config, params) for layer in layers] for params in group.params]

    unedited_logits = current.unedited_logits.get(method.name)
    picked = group.tensor("picked", layer_indices, torch.int64)
    edits = (None, None) if unedited_logits is None else unedited(inputs.info, group, final, unedited_logits)
    return MethodRows(
        final,
        current.capture.states[picked[:, None], group.batch_rows[None, :]],
        group.tensor("candidates", candidates, torch.bool),
        current.head,
        partial(_column, group),
        lambda: _noise(inputs, group, 1)[:, 0],
        partial(largest_legal, current.config),
        *edits,
    )


def _column(group: MethodGroup, key: str, dtype: torch.dtype) -> Tensor:
    """One parameter of every row by its key, of a choice its place among the legal values: (n,)."""
    legal = FIELDS[key].legal
    if not isinstance(legal, Choice):
        return group.column(key, dtype)
    return group.tensor(key, lambda: [legal.values.index(params.get(key)) for params in group.params], dtype)


def largest_legal(config: ServerConfig, key: str) -> int:
    """Of an integer parameter. Raises TypeError for another one, KeyError for an unknown key."""
    legal = FIELDS[key].legal
    if not isinstance(legal, Integer):
        raise TypeError(f"{key} is no integer parameter: {legal.describe()}")
    return legal.highest(config)


def soft(inputs: "SamplerInputs", group: MethodGroup, logits: Tensor) -> Override:
    """Soft Thinking (arXiv 2505.15778), with Gumbel noise (2508.03440) if requested: the heaviest token is reported."""
    tables, batch, before = inputs.runtime.soft, inputs.runtime.forward_batch, inputs.row_inputs
    assert tables is not None and batch is not None
    rows, slots, thinking = group.rows, before.slots[group.rows], before.thinking[group.rows]
    is_gumbel = group.params[0].method == "soft_thinking_gumbel"
    max_k = MAX_SOFT_TOP_K  # of every batch: with a width of the neighbours' a row's sums would round otherwise
    step = soft_mixture(
        logits[group.batch_rows],
        inputs.rows.params.temperature[rows],
        inputs.rows.params.greedy[rows],
        group.column("max_topk", torch.int64),
        group.column("gumbel_temperature", torch.float32),
        _noise(inputs, group, max_k) if is_gumbel else None,
        max_k,
        _filters(inputs, group),
    )
    count = tables.num_low_entropy[slots] if batch.forward_mode.is_decode() else torch.zeros_like(slots)
    count, stop = cold_stop(
        step.entropy,
        count,
        group.column("early_stop_entropy", torch.float32),
        group.column("early_stop_length", torch.int64),
    )
    forced = torch.where(stop, tables.close_id, step.ids[:, 0])
    is_forced = thinking & step.ok
    tables.write(slots, step.ids, step.weights, is_forced & (forced != tables.close_id), count)
    return group.batch_rows, forced, is_forced


def _filters(inputs: "SamplerInputs", group: MethodGroup) -> Filters | None:
    """None where no row of the group has its filters act on mixtures: the vocabulary is not sorted for nothing."""
    if not any(params.filters_first for params in group.params):
        return None
    info, rows = inputs.info, group.batch_rows
    is_first = group.column("filters_first", torch.bool)
    return Filters(info.top_ks[rows].long(), info.top_ps[rows], info.min_ps[rows], is_first)


def _noise(inputs: "SamplerInputs", group: MethodGroup, num_columns: int) -> Tensor:
    """(n, num_columns), of streams of their own: the first two are LED's coin and token."""
    rows, own = inputs.rows, group.rows
    return uniforms(rows.seed[own], rows.sample[own], inputs.row_inputs.positions[own], 2 + num_columns)[2:].T


HANDLERS: dict[str, Handler] = {
    name: soft if method.feeds_mixtures else rewrite_logits(method)
    for name, method in METHOD_TABLE.items()
    if method.feeds_mixtures or method.rewrite is not None
}
