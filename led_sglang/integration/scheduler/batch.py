"""Which LED request sits in which row of a batch. Host data; device tensors are made once per batch composition."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from led_sglang.config.fields import LedParams
from led_sglang.config.methods import METHOD_TABLE, METHODS
from led_sglang.config.request import ResolvedRequest
from led_sglang.integration.scheduler.methods.edits import is_edited
from led_sglang.integration.scheduler.methods.soft_inputs import keep_out_of_prefix_cache
from led_sglang.ops.types import LedRows, RowMeta
from led_sglang.wire import RESOLVED_KEY

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

T = TypeVar("T")
_INACTIVE = LedParams(depth=1, top_k=1)  # what LED's own tensors hold for rows of other methods
# The columns of our rows, in the order in which they travel to the device.
NUMBERS = ("seed", "sample", "start_state", "start_length", "method", "depth", "top_k", "latent_offset")
FLAGS = ("phase_all", "is_led", "exploit", "latent_norm", "normalize_layers", "trace")


@dataclass(frozen=True)
class RequestRow:
    """One request of the batch."""

    request: ResolvedRequest | None  # None: neither asked for LED nor on by default
    start_state: int = 0  # of the thinking automaton after the request's whole ids
    start_length: int = -1  # number of those ids: the state holds for the step that extends exactly them
    returns_mask: bool = False  # the request wants its sampling masks, and so both branches, traced or not
    is_edited: bool = False  # the request has penalties or a logit bias
    is_lost: bool = False  # a fault of ours has lost what was known of the row: it is the engine's from here on

    @property
    def is_ours(self) -> bool:
        return self.request is not None and self.request.params.method != "none"

    @property
    def method(self) -> int:
        """Of one with a request: index of METHODS."""
        assert self.request is not None
        return METHODS.index(self.request.params.method)

    @cached_property
    def values(self) -> tuple[int, ...]:
        """Of one of ours, in the order of NUMBERS and FLAGS."""
        request = self.request
        assert request is not None
        is_led = request.params.method == "led"
        led = request.params if is_led else _INACTIVE
        numbers = request.seed, request.sample, self.start_state, self.start_length, self.method
        requested = led.depth, led.top_k, led.latent_offset, led.phase == "all", is_led
        is_traced = led.trace or (is_led and self.returns_mask)
        return *numbers, *requested, led.exploit, led.latent_norm, led.normalize_layers, is_traced


@dataclass(frozen=True)
class MethodGroup:
    """The rows of a batch that another method than LED decodes."""

    rows: Tensor  # (n,) int64, positions among our R rows
    batch_rows: Tensor  # (n,) int64, positions in the batch
    params: tuple[LedParams, ...]
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def tensor(self, name: str, values: Callable[[], list[Any]], dtype: torch.dtype) -> Tensor:
        """Host data as a device tensor, made once per batch composition."""
        if name not in self._cache:
            self._cache[name] = torch.tensor(values(), dtype=dtype, device=self.rows.device)
        tensor: Tensor = self._cache[name]
        return tensor

    def column(self, key: str, dtype: torch.dtype) -> Tensor:
        """One parameter of every row by its key: (n,)."""
        return self.tensor(key, lambda: [params.get(key) for params in self.params], dtype)


@dataclass(frozen=True)
class DeviceRows(RowMeta):
    """Our rows' parameters on the device. `R` rows of a batch of `B`; "ours" is every method but plain sampling."""

    method: Tensor  # (R,) int64, indices of METHODS
    groups: dict[str, MethodGroup]  # the other methods' rows
    params: LedRows
    seeded: Tensor | None  # (S,) int64 positions among the R rows whose request named a seed; None = no such row
    seeded_masked: Tensor | None = None  # positions among the S rows that return sampling masks
    edited: Tensor | None = None  # (E,) positions among the R rows, of LED's rows with penalties or a logit bias


@dataclass(frozen=True)
class LedBatch:
    """LED's companion of a SamplingBatchInfo; immutable, filtered and merged on the host."""

    request_rows: tuple[RequestRow, ...]
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def our_rows(self) -> tuple[int, ...]:
        return tuple(i for i, request_row in enumerate(self.request_rows) if request_row.is_ours)

    @cached_property
    def returns_masks(self) -> bool:
        """Some row of ours does."""
        return any(self.request_rows[row].returns_mask for row in self.our_rows)

    @cached_property
    def is_traced(self) -> bool:
        """Some row of ours is."""
        return any(
            request.params.trace for request_row in self.request_rows if (request := request_row.request) is not None
        )

    @cached_property
    def rewrites_edited(self) -> bool:
        """A method that rewrites logits has a row with penalties or a logit bias."""
        return any(
            request_row.is_edited and request_row.is_ours and METHOD_TABLE[METHODS[request_row.method]].rewrite
            for request_row in self.request_rows
        )

    @cached_property
    def position(self) -> dict[int, int]:
        """Rows of the batch to positions among ours."""
        return {row: i for i, row in enumerate(self.our_rows)}

    @cached_property
    def lost_rows(self) -> tuple[int, ...]:
        return tuple(i for i, request_row in enumerate(self.request_rows) if request_row.is_lost)

    @staticmethod
    def lost(num_rows: int) -> "LedBatch":
        """Of a batch in which it is not known any more whose row is whose."""
        return LedBatch((RequestRow(None, is_lost=True),) * num_rows)

    def filter(self, keep: list[int]) -> "LedBatch | None":
        return LedBatch.of(tuple(self.request_rows[i] for i in keep))

    @staticmethod
    def of(request_rows: tuple[RequestRow, ...]) -> "LedBatch | None":
        return (
            LedBatch(request_rows)
            if any(request_row.request is not None or request_row.is_lost for request_row in request_rows)
            else None
        )

    @staticmethod
    def merge(left: "LedBatch | None", left_size: int, right: "LedBatch | None", right_size: int) -> "LedBatch | None":
        if left is None and right is None:
            return None
        empty = RequestRow(None)
        left_rows = left.request_rows if left else (empty,) * left_size
        return LedBatch(left_rows + (right.request_rows if right else (empty,) * right_size))

    def device_rows(self, sampling_info: "SamplingBatchInfo") -> DeviceRows:
        """The rows on the device."""
        return self.cached("rows", lambda: _to_device(self, sampling_info))

    def cached(self, name: str, make: Callable[[], T]) -> T:
        """Made at the first step after the batch changed."""
        if name not in self._cache:
            self._cache[name] = make()
        found: T = self._cache[name]
        return found


def request_row_of(req: "Req", automaton: Any) -> RequestRow:
    """A scheduler request's stamped parameters and thinking state after all of its ids (prompt + output)."""
    wire = (req.sampling_params.custom_params or {}).get(RESOLVED_KEY)
    if wire is None or "seed" not in wire:  # `resolve_one` has not seen it
        return RequestRow(None)
    request = ResolvedRequest.from_wire(wire)
    if METHOD_TABLE[request.params.method].feeds_mixtures:
        keep_out_of_prefix_cache(req)
    ids = list(req.origin_input_ids) + list(req.output_ids)
    state = automaton.run(ids) if automaton is not None else 0
    returns_mask = bool(getattr(req, "return_sampling_mask", False))
    return RequestRow(request, state, len(ids), returns_mask, is_edited(req.sampling_params))


def _to_device(batch: LedBatch, info: "SamplingBatchInfo") -> DeviceRows:
    rows = batch.our_rows
    request_rows = [batch.request_rows[i] for i in rows]
    requests = [request_row.request for request_row in request_rows if request_row.request is not None]
    params = [request.params for request in requests]
    device = info.temperatures.device
    pin = device.type == "cuda"

    def put(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, pin_memory=pin).to(device, non_blocking=True)

    index = None if len(rows) == len(batch.request_rows) else put(list(rows))
    temperature = info.temperatures.view(-1).float()
    greedy = info.top_ks <= 1
    if index is not None:
        temperature, greedy = temperature[index], greedy[index]
    # A Triton kernel is compiled for the alignment of its pointers: every column begins at a multiple of 16.
    padded = *request_rows, *(request_rows[-1],) * (-len(request_rows) % 16)
    requested = dict(
        zip((*NUMBERS, *FLAGS), zip(*(request_row.values for request_row in padded), strict=True), strict=True)
    )
    table = torch.from_numpy(np.array(list(requested.values()), np.int64))  # (columns, R or more)
    values = (table.pin_memory() if pin else table).to(device, non_blocking=True)  # one copy for all columns
    numbers = dict(zip(NUMBERS, values[: len(NUMBERS), : len(request_rows)].unbind(), strict=True))
    flags = dict(zip(FLAGS, values[len(NUMBERS) :].bool()[:, : len(request_rows)].unbind(), strict=True))
    min_p = [p.min_p for p in params]
    any_min_p = any(min_p)
    led_rows = LedRows(
        depth=numbers["depth"],
        top_k=numbers["top_k"],
        temperature=temperature,
        greedy=greedy,
        exploit=flags["exploit"],
        latent_norm=flags["latent_norm"],
        normalize_layers=flags["normalize_layers"],
        latent_offset=numbers["latent_offset"],
        min_p=put(min_p, torch.float32) if any_min_p else torch.zeros(len(rows), device=device),
        trace=flags["trace"],
        max_depth=max(requested["depth"]),
        max_top_k=max(requested["top_k"]),
        any_trace=any(requested["trace"]),
        any_norm=any(requested["latent_norm"]),
        all_norm=all(requested["latent_norm"]),
        any_min_p=any_min_p,
        mixed_top_k=len(set(requested["top_k"])) > 1,
        mixed_depth=len(set(requested["depth"])) > 1,
        any_greedy=info.is_any_greedy,
        any_normalize=any(requested["normalize_layers"]),
        any_offset=any(requested["latent_offset"]),
    )
    seeded = [i for i, request in enumerate(requests) if request.is_seeded]
    masked = [s for s, i in enumerate(seeded) if request_rows[i].returns_mask]
    edited = [i for i, request_row in enumerate(request_rows) if request_row.is_edited and requested["is_led"][i]]
    is_all_led = all(requested["is_led"])
    return DeviceRows(
        index=index,
        **{key: numbers[key] for key in ("seed", "sample", "start_state", "start_length", "method")},
        phase_all=flags["phase_all"],
        is_led=None if is_all_led else flags["is_led"],
        any_phase_all=any(requested["phase_all"]),
        groups={} if is_all_led else _groups(rows, params, put),
        params=led_rows,
        seeded=put(seeded) if seeded else None,
        seeded_masked=put(masked) if masked else None,
        edited=put(edited) if edited else None,
    )


def _groups(rows: tuple[int, ...], params: list[LedParams], put: Any) -> dict[str, MethodGroup]:
    groups = {}
    for method in dict.fromkeys(p.method for p in params if p.method != "led"):
        members = [i for i, p in enumerate(params) if p.method == method]
        groups[method] = MethodGroup(put(members), put([rows[i] for i in members]), tuple(params[i] for i in members))
    return groups
