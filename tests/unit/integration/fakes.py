"""As much of an engine as the rows of a batch need."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from led_sglang.config.fields import LedParams
from led_sglang.config.request import ResolvedRequest
from led_sglang.integration.hooks.guard import Guarded
from led_sglang.integration.scheduler.batch import LedBatch, RequestRow

CLOSE_ID = 7


def sampling_params(**changes: Any) -> Any:
    """As much of a SamplingParams: nothing touches the logits."""
    penalties = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    return SimpleNamespace(**penalties | {"min_new_tokens": 0, "logit_bias": None} | changes)


def request_row(method: str | None, seed: int = 1, is_seeded: bool = True, **params: Any) -> RequestRow:
    """A row; None: a request that is not ours at all."""
    if method is None:
        return RequestRow(None)
    return RequestRow(
        ResolvedRequest(LedParams(method, **params), seed, is_seeded, 0), start_state=seed % 2, start_length=5
    )


def batch_of(*request_rows: RequestRow) -> LedBatch:
    led = LedBatch.of(request_rows)
    assert led is not None
    return led


def sampling_info(led: LedBatch, temperatures: list[float] | None = None, greedy: list[bool] | None = None) -> Any:
    num_rows = len(led.request_rows)
    is_greedy = greedy or [False] * num_rows
    return SimpleNamespace(
        led=led,
        temperatures=torch.tensor(temperatures or [1.0] * num_rows)[:, None],
        top_ks=torch.tensor([1 if row else 1 << 30 for row in is_greedy]),
        is_any_greedy=any(is_greedy),
        is_all_greedy=all(is_greedy),
        sampling_seed=None,
        need_top_p_sampling=False,
        need_top_k_sampling=any(is_greedy),
        need_min_p_sampling=False,
    )


def forward_mode(is_decode: bool = True) -> Any:
    return SimpleNamespace(is_decode=lambda: is_decode)


def break_handler(patch: pytest.MonkeyPatch, hook: Guarded, function: Callable[..., Any]) -> None:
    """The hook's handler is `function` from here on, with the recovery that it has."""
    patch.setattr(hook, "handler", replace(hook.handler, function=function))


class CapturedModel(nn.Module):
    """A model whose layers can be captured."""

    def __init__(self, num_layers: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(num_layers))


def raise_fault(batch: Any) -> None:
    raise


def forward_batch(lengths: list[int] | None = None, num_tokens: int = 0, is_verify: bool = False, **led: Any) -> Any:
    """As much of a ForwardBatch as a capture reads. lengths: of a prefill's prompts, None = a decode of `num_tokens`.

    led: the LED rows; without it the batch is the engine's own.
    """
    is_decode = lengths is None
    mode = SimpleNamespace(is_decode_or_idle=lambda: is_decode, is_target_verify=lambda: is_verify)
    return SimpleNamespace(
        forward_mode=mode,
        req_pool_indices=None,
        positions=torch.zeros(num_tokens if lengths is None else sum(lengths)),
        extend_seq_lens=None if lengths is None else torch.tensor(lengths),
        sampling_info=SimpleNamespace(**led) if led else None,
        residual_stream=None,
    )


class InnerModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 3)


class EmbeddingModel(nn.Module):
    """A model that is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.model = InnerModel()

    def forward(self, input_ids: Tensor, positions: Tensor, forward_batch: Any) -> Any:
        return self.model.embed_tokens(input_ids)


def decode_graph_sizes(max_rows: int, is_padded: bool) -> list[int]:
    """SGLang's own list."""
    from sglang.srt.arg_groups.cuda_graph_hook import generate_decode_cuda_graph_batch_sizes

    args = SimpleNamespace(disable_cuda_graph_padding=not is_padded, speculative_algorithm=None)
    sizes: list[int] = generate_decode_cuda_graph_batch_sizes(args, max_rows)
    return sizes
