"""The nodes of a batch's draft trees as token rows: what their requests ask for, and what they start from.

Shape letters as in `led_sglang.ops.rows.draft_tree`: `B` requests of the batch, `N` nodes of each, `T` = B * N rows.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from led_sglang.integration.scheduler.batch import DeviceRows, LedBatch
from led_sglang.integration.scheduler.runtime import Runtime
from led_sglang.ops.rows.draft_tree import Drafts, DraftTree
from led_sglang.ops.types import LedRows, RowInputs, RowMeta

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
    from sglang.srt.speculative.eagle_info import EagleVerifyInput
    from sglang.srt.speculative.ngram_info import NgramVerifyInput


@dataclass(frozen=True)
class NodeRows:
    """What every node's request asks for; made once per batch composition and number of nodes.

    All nodes of the batch are rows, in order, and those of requests that are not ours are never active: rows of logits
    are read where they lie.
    """

    meta: RowMeta  # (T,)
    params: LedRows  # (T,)
    method: Tensor  # (T,) int64, indices of METHODS
    number: Tensor  # (T,) int64: 0 to T - 1
    request_idx: Tensor  # (T,) int64, rows of the batch
    is_ours: Tensor  # (B,) bool
    seeded: Tensor | None  # (S,) int64, nodes of our requests that named a seed; None: no such request
    edited: Tensor | None  # (E,) int64, nodes of our requests with penalties or a logit bias

    @classmethod
    def of(cls, led: LedBatch, rows: DeviceRows, num_nodes: int) -> "NodeRows":
        num_requests, device = len(led.request_rows), rows.seed.device
        request_idx = torch.arange(num_requests, device=device).repeat_interleave(num_nodes)
        position = torch.zeros(num_requests, dtype=torch.int64, device=device)  # of a request among ours; 0: any
        position[rows.in_batch] = torch.arange(rows.num_rows, device=device)
        is_ours = torch.zeros(num_requests, dtype=torch.bool, device=device).index_fill_(0, rows.in_batch, True)
        among_ours, ours = position[request_idx], is_ours[request_idx]
        meta = rows.take(among_ours)
        in_batch = rows.in_batch
        return cls(
            meta=replace(meta, is_led=ours if meta.is_led is None else meta.is_led & ours),
            params=rows.params.take(among_ours),
            method=rows.method[among_ours],
            number=torch.arange(len(request_idx), device=device),
            request_idx=request_idx,
            is_ours=is_ours,
            seeded=None if rows.seeded is None else _nodes_of(in_batch[rows.seeded], num_nodes),
            edited=None if rows.edited is None else _nodes_of(in_batch[rows.edited], num_nodes),
        )


def _nodes_of(batch_rows: Tensor, num_nodes: int) -> Tensor:
    """(n,) -> (n * N,)."""
    return (batch_rows[:, None] * num_nodes + torch.arange(num_nodes, device=batch_rows.device)).flatten()


@dataclass(frozen=True)
class VerifyInputs:
    """What a verification starts from, before any token of it is known."""

    runtime: Runtime
    rows: DeviceRows
    nodes: NodeRows
    info: "SamplingBatchInfo"
    tree: DraftTree
    row_inputs: RowInputs  # (T,)
    slots: Tensor  # (B,) int64, of the requests

    @classmethod
    def begin(
        cls,
        current: Runtime,
        led: LedBatch,
        batch: "ScheduleBatch",
        verify_input: "EagleVerifyInput | NgramVerifyInput",
    ) -> "VerifyInputs":
        info, num_nodes, num_requests = batch.sampling_info, verify_input.draft_token_num, len(batch.seq_lens)
        rows = led.device_rows(info)
        nodes = led.cached(f"nodes {num_nodes}", lambda: NodeRows.of(led, rows, num_nodes))
        slots = batch.req_pool_indices.long()
        links = verify_input.draft_token, verify_input.retrieve_next_token, verify_input.retrieve_next_sibling
        drafts = Drafts(*(link.view(num_requests, num_nodes).long() for link in links))
        # The state of a request is that after its last token, which is the root's.
        tree = current.backend.draft_tree(drafts, current.states[slots], current.tables)
        positions = verify_input.positions.long()
        row_inputs = current.backend.row_inputs(nodes.meta, nodes.number, positions, None, tree.states.view(-1))
        return cls(current, rows, nodes, info, tree, row_inputs, slots)

    def of_requests(self, last: Tensor) -> RowInputs:
        """Of our requests, at the last nodes of all requests' paths, (B,) token rows; in the requests' slots."""
        rows = self.rows.pick(last)
        columns = {field.name: getattr(self.row_inputs, field.name)[rows] for field in fields(RowInputs)}
        return RowInputs(**columns | {"slots": self.rows.pick(self.slots)})

    @property
    def active(self) -> Tensor:
        """(T,) bool: LED decides them, inside their phase."""
        return self.row_inputs.active
