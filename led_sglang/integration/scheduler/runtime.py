"""LED's state in a scheduler process: capture, head, thinking states. One per model runner."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.environ import envs
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.runtime_context import get_parallel
from torch import Tensor

from led_sglang.config.methods import captured_layers
from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.memory import (
    GraphSizes,
    MemoryPlan,
    Sizes,
    eager_tokens_of,
    memory_plan,
    num_free_bytes,
    rows_of,
    shortage,
    tokens_per_request_of,
)
from led_sglang.integration.scheduler.latents.capture import Capture
from led_sglang.integration.scheduler.latents.lm_head import build_head, copy_for_lse, head_group, why_no_one_pass
from led_sglang.integration.scheduler.latents.one_pass import OnePassState
from led_sglang.integration.scheduler.latents.start_check import StartCheck
from led_sglang.integration.scheduler.methods.soft_inputs import SoftInputs
from led_sglang.integration.scheduler.pipeline.earlier import EarlierStage
from led_sglang.integration.scheduler.ranks import RankCheck, row_group
from led_sglang.integration.scheduler.served_backend import ServedBackend
from led_sglang.integration.scheduler.stage import Stage, count_failure, fail_step
from led_sglang.integration.soft_support import is_soft_enabled
from led_sglang.integration.support import in_effect
from led_sglang.ops.backend import Backend
from led_sglang.ops.rows.automaton import ThinkingTables
from led_sglang.ops.types import Head, RowInputs, RowMeta

if TYPE_CHECKING:
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)


def head_dtype(runner: "ModelRunner") -> torch.dtype:
    """The model's."""
    dtype: torch.dtype = runner.dtype if isinstance(runner.dtype, torch.dtype) else runner.model_config.dtype
    return dtype


def is_capturing() -> bool:
    """A CUDA graph is being captured on the current stream."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def is_dummy(forward_batch: "ForwardBatch") -> bool:
    """The engine's own batch, of a start: a warm-up or the capture of a graph."""
    return getattr(forward_batch, "sampling_info", None) is None or is_capturing()


class Runtime(Stage):
    """Made at model load (`startup.start`), read by the hooks and the sampler of this process, which samples."""

    def __init__(self, config: ServerConfig, runner: "ModelRunner") -> None:
        device, dtype, model_config = torch.device(runner.device), head_dtype(runner), runner.model_config
        super().__init__(config, runner, device)
        self.sends_records = get_parallel().pp_size > 1  # another process answers for the steps of this one
        self._processors = {id(module) for module in runner.model.modules() if isinstance(module, LogitsProcessor)}
        self.served_backend = ServedBackend(config.backend, device, dtype)
        self.num_layers = int(model_config.num_hidden_layers)
        self.hidden_size = int(model_config.hidden_size)
        self.is_deterministic = bool(getattr(runner.server_args, "enable_deterministic_inference", False))
        self._begins_decoding = getattr(runner.server_args, "disaggregation_mode", "null") == "decode"
        self.is_sanitized = bool(envs.SGLANG_SANITIZE_NAN_LOGITS.get())

        self.tables: ThinkingTables | None = None if self.automaton is None else self.automaton.tables(runner.device)
        self._states: Tensor | None = None

        self.memory = self._memory_plan(device, dtype)
        max_rows = self.memory.max_rows
        self.capture = Capture(runner.model, captured_layers(config), self.num_layers, self.fail_capture)
        self.capture.allocate(max_rows, self.hidden_size, dtype, device)
        self.start_check = StartCheck(runner, self.capture)
        self.num_led_layers = config.num_captured if "led" in config.methods else 0
        num_latents = config.max_depth - 1 if self.num_led_layers else 0
        self.one_pass_state = OnePassState(
            config.form, self.backend, num_latents, max_rows, device, self.is_deterministic, config.head_lse
        )
        self.soft = SoftInputs(runner, config, self.fail_mixture) if is_soft_enabled(config) else None
        self.head: Head | None = None
        self.is_warm = self.allows_dynamic_shapes  # no kernel is compiled at its first launch any more

        self.num_engine_head_steps = 0
        self.ranks = RankCheck.of(row_group(), max_rows, device)
        self.has_started = False  # a forward has gone through: until then every fault is one of the start

        # Of the step under way.
        self.forward_batch: ForwardBatch | None = None
        self.unedited_logits: dict[str, Tensor] = {}  # by method: `edits.unedited_logits`
        self.has_forward_failed = False  # the step is the engine's: its latents may not be there

    def owns(self, logits_processor: "LogitsProcessor") -> bool:
        """It is the served model's, not a draft model's."""
        return id(logits_processor) in self._processors

    @property
    def backend(self) -> Backend:
        return self.served_backend.backend

    @property
    def allows_dynamic_shapes(self) -> bool:
        """See Backend."""
        return self.backend.allows_dynamic_shapes

    def _memory_plan(self, device: torch.device, dtype: torch.dtype) -> MemoryPlan:
        """Logged before it is taken."""
        args = in_effect(self.runner.server_args)
        graphs = GraphSizes.of(args)
        num_slots = self.runner.req_to_token_pool.req_to_token.shape[0]
        padding = get_parallel().attn_tp_size - 1  # the engine fills a batch up to a multiple of it
        max_rows = rows_of(num_slots + padding, graphs, tokens_per_request_of(self.runner.server_args))
        eager_tokens = eager_tokens_of(args, graphs)
        plan = memory_plan(
            self.config, Sizes(max_rows, self.hidden_size, self.vocab_size, dtype.itemsize, graphs, eager_tokens)
        )
        logger.info("LED: %s", plan.text())
        num_free = num_free_bytes(device)
        short = None if num_free is None else shortage(plan, num_free)
        if short is not None:
            logger.warning("LED: %s", short)
        return plan

    @property
    def states(self) -> Tensor:
        """Thinking state of every request slot: (slots,) int64."""
        if self._states is None:
            slots = self.runner.req_to_token_pool.req_to_token.shape[0]
            self._states = torch.zeros(slots + 1, dtype=torch.int64, device=self.runner.device)
        return self._states

    def row_inputs(self, rows: RowMeta, positions: Tensor) -> RowInputs:
        """Of our rows before this token; positions: (B,).

        A decode server's requests begin with a decode step, which has the states of their whole ids.
        """
        batch = self.forward_batch
        assert batch is not None
        lengths = None if batch.forward_mode.is_decode() and not self._begins_decoding else batch.seq_lens
        return self.backend.row_inputs(rows, batch.req_pool_indices, positions, lengths, self.states)

    def advance(self, rows: RowMeta, before: RowInputs, token_ids: Tensor) -> None:
        """The thinking states follow the tokens, (B,)."""
        if self.tables is not None:
            self.backend.advance(rows, self.tables, self.states, before, token_ids)

    def forget_mixtures(self, slots: Tensor) -> None:
        """The next inputs of these slots, (n,), are tokens, whatever a soft step left there."""
        if self.soft is not None:
            self.soft.forget(slots)

    def fail_forward(self, forward_batch: "ForwardBatch") -> None:
        """After a fault before or in a forward: no row of its step is LED's, and no earlier one's mixture is fed."""
        self.has_forward_failed = True
        self.one_pass_state.is_one_pass = False
        try:
            self.forget_mixtures(forward_batch.req_pool_indices)
        except Exception:
            count_failure(self, "forget_mixtures")

    def fail_capture(self, forward_batch: "ForwardBatch") -> None:
        """In the `except` block of a fault behind a layer of a forward. Raises it where nobody is served yet."""
        self._fail_in_forward(forward_batch, "the capture of a layer")

    def fail_mixture(self, forward_batch: "ForwardBatch") -> None:
        """In the `except` block of a fault in the embedding of a forward. Raises it where nobody is served yet."""
        self._fail_in_forward(forward_batch, "the mixtures of a soft method")

    def _fail_in_forward(self, forward_batch: "ForwardBatch", where: str) -> None:
        if is_dummy(forward_batch) or not self.has_started:
            raise
        fail_step(self, where)
        self.fail_forward(forward_batch)

    def bind_head(self, logits_processor: "LogitsProcessor", lm_head: "ParallelLMHead") -> None:
        """Remember the head the first time the logits processor uses it."""
        if self.head is None:
            head = build_head(
                logits_processor,
                lm_head,
                self.capture.final_norm,
                head_group(lm_head),
                head_dtype(self.runner),
                self.start_check.head_scale,
            )
            copy = copy_for_lse(head) if self.config.head_lse == "fp8" else None
            self.head = replace(head, is_batch_invariant=self.is_deterministic, lse_copy=copy)
            self.one_pass_state.fault = why_no_one_pass(logits_processor, lm_head, self.head)
            if self.one_pass_state.fault and self.config.form == "one_pass":
                raise CaptureError(f"--led-form one_pass is not possible here: {self.one_pass_state.fault}; use auto")
        if not self.is_warm and not is_capturing():
            self.is_warm = True
            self._warm_up(self.head)

    def follow_weights(self) -> None:
        """After an update of the weights, which keep their places. No copy is left where it cannot follow."""
        head = self.head
        if head is not None and head.lse_copy is not None:
            self.head = replace(head, lse_copy=None)
            head.lse_copy.refresh(head.weight)
            self.head = head

    def _warm_up(self, head: Head) -> None:
        if self.num_led_layers:
            latents = self.capture.states[: self.num_led_layers]
        else:
            latents = torch.empty(0, 1, self.hidden_size, dtype=head_dtype(self.runner), device=head.weight.device)
        max_rows = len(self.one_pass_state.mask)
        self.served_backend.warm_up(head, latents, self.vocab_size, max_rows, self.config.max_top_k, self.tables)
        self.one_pass_state.use_backend(self.backend)

    @contextmanager
    def latent_rows(self, logits_processor: "LogitsProcessor", is_decode: bool) -> Iterator[None]:
        """Around the engine's head of a forward of the one-pass form: its product covers the latent rows too."""
        if not is_decode:
            self.one_pass_state.is_one_pass = False
            yield
            return
        inner = logits_processor._compute_lm_head

        def multiply(hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
            assert self.head is not None

            def engine_product(rows: Tensor) -> Tensor:
                logits: Tensor = inner(rows, *args, **kwargs)
                return logits

            return self.one_pass_state.through(engine_product, hidden, self.head, self.capture.states)

        logits_processor._compute_lm_head = multiply
        try:
            yield
        finally:
            del logits_processor._compute_lm_head
            self.one_pass_state.is_one_pass = False

    def status(self) -> dict[str, Any]:
        """For /led/info."""
        buffer = self.capture.buffer
        return {
            "num_layers": self.num_layers,
            "captured_layers": sorted(self.capture.layers),
            "start_check": self.start_check.numbers,
            "methods": ["none", *self.config.methods],
            "capture_buffer_bytes": buffer.numel() * buffer.element_size() if buffer is not None else 0,
            "memory": self.memory.to_dict(),
            "step_failures": self.num_step_failures,
            "counters": self.counts.status(),
            "backend": self.config.backend,
            "backend_used": self.backend.public_name,
            "backend_fault": self.served_backend.fault,
            "form": self.one_pass_state.status(),
            "head": self._head_status(),
        }

    def _head_status(self) -> dict[str, Any]:
        """`engine_steps`: steps whose latent rows were multiplied by the engine's own head, exact and slower."""
        kind = None if self.head is None else "weight" if self.head.project is None else "engine"
        copy = None if self.head is None else self.head.lse_copy
        num_bytes = 0 if copy is None else copy.num_bytes
        steps = self.num_engine_head_steps
        return {"kind": kind, "engine_steps": steps, "lse": self.config.head_lse, "copy_bytes": num_bytes}


_runtime: Runtime | None = None
_earlier: EarlierStage | None = None


def runtime() -> Runtime | None:
    """None: LED has not started in this process, or its stage samples nothing."""
    return _runtime


def stage() -> Stage | None:
    """None: LED has not started in this process."""
    return _earlier if _runtime is None else _runtime


def install(current: Runtime | EarlierStage) -> None:
    global _runtime, _earlier
    if isinstance(current, EarlierStage):
        _earlier = current
    else:
        _runtime = current
