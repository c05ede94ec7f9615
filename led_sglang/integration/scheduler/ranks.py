"""Tensor-parallel ranks choose their tokens without asking each other; this notices when they no longer agree.

Ranks that disagree compute on mixed-up tokens and, once one of them ends a request and another does not, wait for each
other for ever. Every rank keeps a digest of its noise and tokens, and now and then the digests are compared. And a rank
that left a step by an exception makes sure that all the others did so too: they would wait in a collective for it.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from sglang.srt.runtime_context import get_parallel
from torch import Tensor
from torch.distributed import distributed_c10d

from led_sglang.integration.faults import RankDivergence

if TYPE_CHECKING:
    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from torch._C._distributed_c10d import Store

MULTIPLIER = 6364136223846793005  # odd: a step's difference stays in the digest
CUDA_INTERVAL = 32  # a small collective costs about 0.1 ms there: 3 us a step
MEETING_LIMIT_S = 10.0  # the ranks are in step: what fails on all of them fails within milliseconds


def row_group() -> "GroupCoordinator":
    """The ranks that share a batch's rows: those of one data-parallel rank of the attention, else all tensor-parallel
    ranks. Others have other batches, or none, and may be in no collective of this one's.
    """
    parallel = get_parallel()
    group: GroupCoordinator = parallel.attn_tp_group if parallel.attn_dp_size > 1 else parallel.tp_group
    return group


class RankCheck:
    """Compares digests over `all_gather` ((1,) -> (ranks, 1)) at every `interval`-th step.

    On the CPU that is every step, before the first collective that depends on a coin: gloo would answer ranks that call
    different collectives with an error about sizes. On CUDA the number of collectives does not depend on coins, and the
    verdict of one check is read at the next, so that nothing waits for the device.
    """

    def __init__(
        self,
        all_gather: Callable[[Tensor], Tensor],
        max_rows: int,
        device: torch.device,
        broadcast: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._all_gather = all_gather
        self._broadcast = broadcast
        self._digest = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._interval = CUDA_INTERVAL if device.type == "cuda" else 1
        self._num_steps = 0
        self._verdict = torch.zeros((), dtype=torch.bool, pin_memory=True) if device.type == "cuda" else None

    @classmethod
    def of(cls, tp_group: "GroupCoordinator", max_rows: int, device: torch.device) -> "RankCheck | None":
        """None where there is one rank."""
        if tp_group.world_size == 1:
            return None
        return cls(lambda digest: tp_group.all_gather(digest.unsqueeze(0), dim=0), max_rows, device, tp_group.broadcast)

    def check(self, noise: Tensor) -> None:
        """Before a step, with its noise (2, R) float64. Raises RankDivergence."""
        digest = self._digest[: noise.shape[1]]
        for stream in noise.view(torch.int64):
            digest.bitwise_xor_(stream)
        self._num_steps += 1
        if self._num_steps % self._interval == 0:
            digests = self._all_gather(self._digest.sum().view(1))  # (ranks, 1)
            self._judge((digests != digests[0]).any())

    def note(self, token_ids: Tensor) -> None:
        """After a step, with the tokens that our rows really got: (R,)."""
        self._digest[: token_ids.shape[0]].mul_(MULTIPLIER).bitwise_xor_(token_ids)

    def agree(self, token_ids: Tensor) -> Tensor:
        """The first rank's tokens, (T,) int64, on every rank: what is accepted sets the shapes of what follows.

        The digest has each rank's own, so that ranks that differ are found at the next check.
        """
        self.note(token_ids)
        return token_ids if self._broadcast is None else self._broadcast(token_ids)

    def _judge(self, differ: Tensor) -> None:
        has_diverged = bool(differ if self._verdict is None else self._verdict)
        if has_diverged:
            raise RankDivergence(
                f"LED: the tensor-parallel ranks disagree about noise or tokens (found at LED step {self._num_steps}). "
                f"The server stops, for its answers would be mixed up. SYNC_TOKEN_IDS_ACROSS_TP=1 makes SGLang compare "
                f"the tokens of every step."
            )
        if self._verdict is not None:
            self._verdict.copy_(differ, non_blocking=True)


class FailureCheck:
    """The ranks whose step failed meet, at a counter in the store that they were initialised with.

    A request that makes a step fail does so on every rank, and all go on with the engine's tokens. A rank that fails
    alone has left the others in the middle of a step.
    """

    def __init__(self, store: "Store", num_ranks: int, name: str) -> None:
        self._store = store
        self._num_ranks = num_ranks
        self._name = name
        self._num_failures = 0

    @classmethod
    def of(cls, tp_group: "GroupCoordinator") -> "FailureCheck | None":
        """None where there is one rank."""
        if tp_group.world_size == 1:
            return None
        return cls(distributed_c10d._get_default_store(), tp_group.world_size, str(tp_group.ranks))

    def meet(self, limit_s: float = MEETING_LIMIT_S) -> None:
        """After a failed step. Raises RankDivergence if not every rank's failed."""
        self._num_failures += 1
        deadline = time.monotonic() + limit_s
        num_here = self._store.add(self._key(self._num_failures), 1)
        while num_here < self._num_ranks:
            if time.monotonic() > deadline:
                raise RankDivergence(
                    f"LED: a step failed on {num_here} of {self._num_ranks} tensor-parallel ranks, and the others wait "
                    f"for it in the middle of theirs. The server stops, for it would hang."
                )
            time.sleep(0.001)
            num_here = self._store.add(self._key(self._num_failures), 0)
        self._store.delete_key(self._key(self._num_failures - 1))  # everybody has left the meeting before this one

    def _key(self, number: int) -> str:
        return f"led_sglang/{self._name}/failure {number}"
