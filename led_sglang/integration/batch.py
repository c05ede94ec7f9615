"""Which LED request sits in which row of a batch. Host data; device tensors are made once per batch composition."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from led_sglang.integration.soft import SOFT_METHODS, keep_out_of_prefix_cache
from led_sglang.ops.types import LedRows
from led_sglang.params import STAMP_KEY, LedParams, StampedParams

_INACTIVE = LedParams(depth=1, top_k=1)  # what LED's own tensors hold for rows of other methods


@dataclass(frozen=True)
class RowSeat:
    """One request of the batch."""

    request: StampedParams | None  # None: neither asked for LED nor on by default
    start_state: int = 0  # of the thinking machine after the request's whole ids
    start_length: int = -1  # number of those ids: the state holds for the step that extends exactly them

    @property
    def is_ours(self) -> bool:
        return self.request is not None and self.request.params.method != "none"


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
        """One parameter of every row: (n,)."""
        return self.tensor(key, lambda: [getattr(p, key) for p in self.params], dtype)


@dataclass(frozen=True)
class DeviceRows:
    """Our rows' parameters on the device. `R` rows of a batch of `B`; "ours" is every method but plain sampling."""

    index: Tensor | None  # (R,) int64 rows of the batch; None = all of them in order
    seed: Tensor  # (R,) int64
    sample: Tensor  # (R,) int64
    start_state: Tensor  # (R,) int64
    start_length: Tensor  # (R,) int64
    phase_all: Tensor  # (R,) bool
    is_led: Tensor | None  # (R,) bool; None = all of them
    groups: dict[str, MethodGroup]  # the other methods' rows
    params: LedRows  # `active` is filled in at every step
    seeded: Tensor | None  # (S,) int64 positions among the R rows whose request named a seed; None = no such row
    any_phase_all: bool

    def pick(self, batch_tensor: Tensor) -> Tensor:
        return batch_tensor if self.index is None else batch_tensor.index_select(0, self.index)


@dataclass(frozen=True)
class LedBatch:
    """LED's companion of a SamplingBatchInfo; immutable, filtered and merged on the host."""

    seats: tuple[RowSeat, ...]
    _cache: dict[str, DeviceRows] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def our_rows(self) -> tuple[int, ...]:
        return tuple(i for i, seat in enumerate(self.seats) if seat.is_ours)

    def filter(self, keep: list[int]) -> "LedBatch | None":
        return LedBatch.of(tuple(self.seats[i] for i in keep))

    @staticmethod
    def of(seats: tuple[RowSeat, ...]) -> "LedBatch | None":
        return LedBatch(seats) if any(seat.request is not None for seat in seats) else None

    @staticmethod
    def merge(left: "LedBatch | None", left_size: int, right: "LedBatch | None", right_size: int) -> "LedBatch | None":
        if left is None and right is None:
            return None
        empty = RowSeat(None)
        left_seats = left.seats if left else (empty,) * left_size
        return LedBatch(left_seats + (right.seats if right else (empty,) * right_size))

    def device_rows(self, sampling_info: Any) -> DeviceRows:
        """The rows on the device; made at the first step after the batch changed."""
        if "rows" not in self._cache:
            self._cache["rows"] = _to_device(self, sampling_info)
        return self._cache["rows"]


def seat_request(req: Any, machine: Any) -> RowSeat:
    """A scheduler request's stamped parameters and thinking state after all of its ids (prompt + output)."""
    wire = (req.sampling_params.custom_params or {}).get(STAMP_KEY)
    if wire is None:
        return RowSeat(None)
    request = StampedParams.from_wire(wire)
    if request.params.method in SOFT_METHODS:
        keep_out_of_prefix_cache(req)
    ids = list(req.origin_input_ids) + list(req.output_ids)
    state = machine.run(ids) if machine is not None else 0
    return RowSeat(request, state, len(ids))


def _to_device(batch: LedBatch, info: Any) -> DeviceRows:
    rows = batch.our_rows
    seats = [batch.seats[i] for i in rows]
    requests = [seat.request for seat in seats if seat.request is not None]
    params = [request.params for request in requests]
    device = info.temperatures.device
    pin = device.type == "cuda"

    def put(values: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, pin_memory=pin).to(device, non_blocking=True)

    index = None if len(rows) == len(batch.seats) else put(list(rows), torch.int64)
    temperature = info.temperatures.view(-1).float()
    greedy = info.top_ks <= 1
    if index is not None:
        temperature, greedy = temperature[index], greedy[index]
    led = [p if p.method == "led" else _INACTIVE for p in params]
    any_norm = any(p.latent_norm for p in led)
    led_rows = LedRows(
        active=torch.empty(0, dtype=torch.bool, device=device),
        depth=put([p.depth for p in led], torch.int64),
        top_k=put([p.top_k for p in led], torch.int64),
        temperature=temperature,
        greedy=greedy,
        exploit=put([p.exploit for p in led], torch.bool),
        latent_norm=put([p.latent_norm for p in led], torch.bool),
        normalize_layers=put([p.normalize_layers for p in led], torch.bool),
        latent_offset=put([p.latent_offset for p in led], torch.int64),
        min_p=put([p.min_p for p in led], torch.float32),
        full=put([p.trace for p in led], torch.bool),
        max_depth=max((p.depth for p in led), default=1),
        max_top_k=max((p.top_k for p in led), default=1),
        any_full=any(p.trace for p in led),
        any_norm=any_norm,
        all_norm=any_norm and all(p.latent_norm for p in led),
        any_min_p=any(p.min_p > 0 for p in led),
        mixed_top_k=len({p.top_k for p in led}) > 1,
        mixed_depth=len({p.depth for p in led}) > 1,
        any_greedy=info.is_any_greedy,
        any_normalize=any(p.normalize_layers for p in led),
        any_offset=any(p.latent_offset for p in led),
    )
    seeded = [i for i, request in enumerate(requests) if request.is_seeded]
    seed, sample = (put([getattr(r, key) for r in requests], torch.int64) for key in ("seed", "sample"))
    return DeviceRows(
        index=index,
        seed=seed,
        sample=sample,
        start_state=put([seat.start_state for seat in seats], torch.int64),
        start_length=put([seat.start_length for seat in seats], torch.int64),
        phase_all=put([p.phase == "all" for p in led], torch.bool),
        is_led=None if all(p.method == "led" for p in params) else put([p.method == "led" for p in params], torch.bool),
        groups=_groups(rows, params, put),
        params=led_rows,
        seeded=put(seeded, torch.int64) if seeded else None,
        any_phase_all=any(p.phase == "all" for p in led),
    )


def _groups(rows: tuple[int, ...], params: list[LedParams], put: Any) -> dict[str, MethodGroup]:
    groups = {}
    for method in dict.fromkeys(p.method for p in params if p.method != "led"):
        members = [i for i, p in enumerate(params) if p.method == method]
        groups[method] = MethodGroup(
            put(members, torch.int64), put([rows[i] for i in members], torch.int64), tuple(params[i] for i in members)
        )
    return groups


def activate(rows: LedRows, active: Tensor) -> LedRows:
    """The same rows with this step's activity."""
    return replace(rows, active=active)
