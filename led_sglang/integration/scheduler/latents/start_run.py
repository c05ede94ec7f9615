"""Forwards of the start: a prefill and a decode step of random tokens through the engine's own dispatch.

Made of SGLang's own requests and batches, so that whatever a model wants of one (slots, mamba states, positions) is
there. Runs before a scheduler serves anybody; the pools are cleared afterwards.
"""

import inspect
from array import array
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.model_executor.runner.eager_runner import EagerRunner
from sglang.srt.runtime_context import get_parallel
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.utils import require_mlp_tp_gather
from torch import Tensor

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

# Of the prompts: different, so that a wrong row shows. Four requests and 16 tokens are sizes of SGLang's own graphs, so
# that a replay and an eager step compute in the same shapes.
LENGTHS = (5, 7, 1, 3)
SEED = 20260201


class NoPrefixes(SimpleNamespace):
    """As much of a prefix cache as a batch asks of it: it holds nothing."""

    def supports_swa(self) -> bool:
        return False

    def supports_mamba(self) -> bool:
        return False

    def supports_prefix_sharing(self) -> bool:
        return True

    def is_chunk_cache(self) -> bool:
        return False

    def is_tree_cache(self) -> bool:
        return True

    def evict(self, params: object) -> None:
        """Nothing is held."""

    def maybe_hand_to_session(self, req: object) -> None:
        """No request belongs to one."""


class StartRun:
    """A batch of random prompts. Every rank makes the same one."""

    def __init__(self, runner: "ModelRunner", lengths: tuple[int, ...] = LENGTHS) -> None:
        self.runner = runner
        self.was_replayed = False  # the last forward was a graph's
        generator = torch.Generator().manual_seed(SEED)
        vocab_size = int(runner.model_config.vocab_size)
        requests = [
            _request(number, torch.randint(vocab_size, (length,), generator=generator).tolist())
            for number, length in enumerate(lengths)
        ]
        self._batch = ScheduleBatch.init_new(
            reqs=requests,
            req_to_token_pool=runner.req_to_token_pool,
            token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
            tree_cache=NoPrefixes(
                page_size=runner.token_to_kv_pool_allocator.page_size,
                device=runner.device,
                token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
            ),
            model_config=runner.model_config,
            enable_overlap=False,
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )

    def step(self, name: str) -> Tensor:
        """The logits (B, V) of a "prefill", or of the "decode" step behind it."""
        return self.prefill() if name == "prefill" else self.decode()

    def prefill(self) -> Tensor:
        self._batch.prepare_for_extend()
        waiting = getattr(self._batch, "prefill_input_ids_cpu", None)
        if self._batch.input_ids is None and waiting is not None:
            self._batch.input_ids = waiting.to(self._batch.device)
            self._batch.prefill_input_ids_cpu = None
        self._say_sizes(int(self._batch.extend_num_tokens or 0), is_prefill=True)
        return self._forward()

    def _say_sizes(self, num_tokens: int, is_prefill: bool) -> None:
        """What a scheduler asks of the other ranks under data-parallel attention: all of them make the same batch."""
        batch, parallel = self._batch, get_parallel()
        if parallel.attn_dp_size == 1:
            return
        num_ranks = parallel.attn_dp_size if require_mlp_tp_gather() else 1
        batch.global_num_tokens = [num_tokens] * num_ranks
        batch.global_num_tokens_for_logprob = [batch.batch_size()] * num_ranks
        batch.is_extend_in_batch = is_prefill
        batch.can_run_decode_cuda_graph = batch.can_run_dp_prefill_cuda_graph = False

    def decode(self) -> Tensor:
        """Of the prompts' first tokens once more, whatever the prefill would have sampled."""
        first = [req.origin_input_ids[0] for req in self._batch.reqs]
        self._batch.input_ids = torch.tensor(first, dtype=torch.int64, device=self._batch.device)
        self._batch.prepare_for_decode()
        self._say_sizes(self._batch.batch_size(), is_prefill=False)
        return self._forward()

    @torch.no_grad()
    def _forward(self) -> Tensor:
        batch = ForwardBatch.init_new(self._batch, self.runner, return_hidden_states_before_norm=False)
        output = self.runner.forward(batch, pp_proxy_tensors=self._received(len(batch.positions)))
        self.was_replayed = bool(output.can_run_graph)
        logits: Tensor = output.logits_output.next_token_logits
        return logits

    def _received(self, num_tokens: int) -> PPProxyTensors | None:
        """What an earlier pipeline stage would have sent: random states, as good as any to see how layers end."""
        if get_parallel().pp_size == 1:
            return None
        generator = torch.Generator().manual_seed(SEED)
        shape = num_tokens, int(self.runner.model_config.hidden_size)
        states = {
            name: torch.randn(shape, generator=generator).to(self.runner.device, self.runner.dtype)
            for name in ("hidden_states", "residual")
        }
        return PPProxyTensors(states)

    def close(self) -> None:
        self.runner.req_to_token_pool.clear()
        self.runner.token_to_kv_pool_allocator.clear()


def _request(number: int, token_ids: list[int]) -> Req:
    req = Req(
        rid=f"led-start-{number}",
        origin_input_text="",
        origin_input_ids=array("q", token_ids),
        sampling_params=SamplingParams(temperature=0, max_new_tokens=1),
    )
    req.full_untruncated_fill_ids = req.origin_input_ids
    req.logprob_start_len = -1
    if hasattr(req, "set_extend_range"):  # SGLang 0.5.17
        req.set_extend_range(0, len(token_ids))
    else:
        req.extend_end = len(token_ids)
    return req


def prepare_eager(runner: "ModelRunner") -> None:
    """Let a runner run forwards before it has captured its graphs; its own `init_cuda_graphs` comes afterwards."""
    accepted = inspect.signature(EagerRunner).parameters
    options: dict[str, Any] = {"run_warmup": False} if "run_warmup" in accepted else {}
    runner.eager_runner = EagerRunner(runner, **options)
    runner.prefill_cuda_graph_runner, runner.decode_cuda_graph_runner = runner.eager_runner, None
