"""LED's state in a scheduler process: capture, head, thinking states. One per model runner."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from sglang.srt.environ import envs
from sglang.srt.runtime_context import get_parallel
from torch import Tensor

from led_sglang import ops
from led_sglang.config.server import ServerConfig, server_config
from led_sglang.integration.hooks.guard import is_capturing, is_nobodys
from led_sglang.integration.http.faults import is_new
from led_sglang.integration.memory import (
    GraphSizes,
    Sizes,
    eager_tokens_of,
    memory_plan,
    num_free_bytes,
    rows_of,
    shortage,
)
from led_sglang.integration.scheduler.counters import Counts
from led_sglang.integration.scheduler.latents.capture import Capture, CaptureError
from led_sglang.integration.scheduler.latents.capture_plan import captured_layers
from led_sglang.integration.scheduler.latents.lm_head import build_head, refuse_lora, why_no_one_pass
from led_sglang.integration.scheduler.latents.one_pass import OnePassState
from led_sglang.integration.scheduler.methods.soft_inputs import SoftInputs, is_soft_enabled
from led_sglang.integration.scheduler.ranks import FailureCheck, RankCheck
from led_sglang.integration.support import in_effect, refuse_features
from led_sglang.ops import Backend
from led_sglang.ops.rows.automaton import ThinkingAutomaton
from led_sglang.ops.self_test import fault_of, fault_with
from led_sglang.ops.types import Head

logger = logging.getLogger(__name__)


def head_dtype(runner: Any) -> torch.dtype:
    """The model's."""
    dtype: torch.dtype = runner.dtype if isinstance(runner.dtype, torch.dtype) else runner.model_config.dtype
    return dtype


def backend_for(requested: str, device: torch.device, dtype: torch.dtype) -> tuple[Backend, str | None]:
    """The backend of the LED step, and why it is not the one that "auto" would have been.

    "auto" is "triton" on a GPU if its kernels, compiled there, do what plain torch does, else "fused".
    """
    chosen = ops.backend_for(requested, device)
    if requested != "auto" or chosen.name != "triton":
        return chosen, None
    fault = fault_of(chosen, device, dtype)
    if fault is None:
        return chosen, None
    logger.warning('LED: backend "triton" is not used here, "fused" is: %s', fault)
    return ops.backend_for("torch", device), fault


class Runtime:
    """Made at model load by `start`, read by the hooks and the sampler of this process."""

    def __init__(self, config: ServerConfig, runner: Any) -> None:
        self.config = config
        self.backend, self.backend_fault = backend_for(config.backend, torch.device(runner.device), head_dtype(runner))
        self.runner = runner
        self.num_layers = int(runner.model_config.num_hidden_layers)
        self.capture = Capture(runner.model, captured_layers(config), self.backend.allows_dynamic_shapes)
        self.num_led_layers = config.num_captured if "led" in config.methods else 0
        self.head: Head | None = None
        self.automaton: ThinkingAutomaton | None = None
        self.forward_batch: Any = None
        self.unedited_logits: dict[str, Tensor] = {}  # of the step under way, by method: `edits.unedited_logits`
        self.num_step_failures = 0
        self.has_started = False  # a forward has gone through: until then every fault is one of the start
        self.has_forward_failed = False  # the step under way is the engine's: its latents may not be there
        self.counts = Counts(config.max_depth, torch.device(runner.device))
        self.is_sanitized = bool(envs.SGLANG_SANITIZE_NAN_LOGITS.get())
        self._states: Tensor | None = None
        if config.open_ids and config.close_ids:
            self.automaton = ThinkingAutomaton(config.open_ids, config.close_ids, int(runner.model_config.vocab_size))
            self.tables = self.automaton.tables(runner.device)
        hidden_size, vocab_size = int(runner.model_config.hidden_size), int(runner.model_config.vocab_size)
        args = in_effect(runner.server_args)
        graphs = GraphSizes.of(args)
        max_rows = rows_of(runner.req_to_token_pool.req_to_token.shape[0], graphs)
        itemsize, eager = head_dtype(runner).itemsize, eager_tokens_of(args, graphs)
        self.memory = memory_plan(config, Sizes(max_rows, hidden_size, vocab_size, itemsize, graphs, eager))
        self._tell_memory(torch.device(runner.device))
        self.capture.allocate(max_rows, hidden_size, head_dtype(runner), runner.device)
        depth = config.max_depth if self.num_led_layers else 1
        self.is_deterministic = bool(getattr(runner.server_args, "enable_deterministic_inference", False))
        device = torch.device(runner.device)
        self.one_pass_state = OnePassState(
            config.form, self.backend, depth - 1, max_rows, device, self.is_deterministic
        )
        self.is_warm = self.backend.allows_dynamic_shapes  # no kernel is compiled at its first launch any more
        self.num_engine_head_steps = 0
        self.ranks = RankCheck.of(get_parallel().tp_group, max_rows, torch.device(runner.device))
        self.failed_ranks = FailureCheck.of(get_parallel().tp_group)
        self.soft = SoftInputs(runner, config, self.fail_mixture) if is_soft_enabled(config) else None

    def _tell_memory(self, device: torch.device) -> None:
        """Before it is taken."""
        logger.info("LED: %s", self.memory.text())
        num_free = num_free_bytes(device)
        short = None if num_free is None else shortage(self.memory, num_free)
        if short is not None:
            logger.warning("LED: %s", short)

    @property
    def states(self) -> Tensor:
        """Thinking state of every request slot: (slots,) int64."""
        if self._states is None:
            slots = self.runner.req_to_token_pool.req_to_token.shape[0]
            self._states = torch.zeros(slots + 1, dtype=torch.int64, device=self.runner.device)
        return self._states

    def forget_mixtures(self, slots: Tensor) -> None:
        """The next inputs of these slots, (n,), are tokens, whatever a soft step left there."""
        if self.soft is not None:
            self.soft.forget(slots)

    def fail_forward(self, forward_batch: Any) -> None:
        """After a fault before or in a forward: no row of its step is LED's, and no earlier one's mixture is fed."""
        self.has_forward_failed = True
        self.one_pass_state.is_one_pass = False
        self.capture.drop()
        try:
            self.forget_mixtures(forward_batch.req_pool_indices)
        except Exception:
            count_failure(self, "forget_mixtures")

    def fail_mixture(self, forward_batch: Any) -> None:
        """In the `except` block of a fault in the embedding of a forward. Raises it where nobody is served yet."""
        if is_nobodys(forward_batch):
            raise
        fail_step(self, "the mixtures of a soft method")
        self.fail_forward(forward_batch)

    def bind_head(self, logits_processor: Any, lm_head: Any) -> None:
        """Remember the head the first time the logits processor uses it."""
        if self.head is None:
            final_norm = getattr(getattr(self.runner.model, "model", None), "norm", None)
            head = build_head(logits_processor, lm_head, final_norm, get_parallel().tp_group)
            self.head = replace(head, is_batch_invariant=self.is_deterministic)
            self.one_pass_state.fault = why_no_one_pass(logits_processor, lm_head, self.head)
            if self.one_pass_state.fault and self.config.form == "one_pass":
                raise CaptureError(f"--led-form one_pass is not possible here: {self.one_pass_state.fault}; use auto")
        if not self.is_warm and not is_capturing():
            self.is_warm = True
            self._warm_up(self.head)

    def _warm_up(self, head: Head) -> None:
        """With the head that is served: whether the kernels are right, then all that requests can reach of them.

        At the first use of the head, which is the engine's own warm-up and comes before any graph capture. The ranks
        use one backend: where one of them finds a fault, none uses the kernels.
        """
        latents = self.capture.states[: self.num_led_layers] if self.num_led_layers else self._no_latents(head)
        if self.backend.name == "triton" and self.config.backend == "auto":
            self.backend_fault = fault_with(self.backend, head, latents, self.config.max_top_k)
        if self.config.backend == "auto" and is_true_anywhere(self.backend_fault is not None, head):
            self.backend_fault = self.backend_fault or "another tensor-parallel rank found a fault"
            logger.warning('LED: backend "triton" is not used here, "fused" is: %s', self.backend_fault)
            self.backend = self.one_pass_state.backend = ops.backend_for("torch", head.weight.device)
        vocab_size, max_rows = int(self.runner.model_config.vocab_size), len(self.one_pass_state.mask)
        tables = None if self.automaton is None else self.tables
        self.backend.warm_up(head, latents, vocab_size, max_rows, self.config.max_top_k, tables)

    def _no_latents(self, head: Head) -> Tensor:
        hidden_size = int(self.runner.model_config.hidden_size)
        return torch.empty(0, 1, hidden_size, dtype=head_dtype(self.runner), device=head.weight.device)

    @contextmanager
    def latent_rows(self, logits_processor: Any, is_decode: bool) -> Iterator[None]:
        """Around the engine's head of a forward of the one-pass form: its product covers the latent rows too."""
        if not is_decode:
            self.one_pass_state.is_one_pass = False
            yield
            return
        inner = logits_processor._compute_lm_head

        def multiply(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            assert self.head is not None
            plain = partial(_call, inner, args, kwargs)
            return self.one_pass_state.through(plain, hidden, self.head, self.capture.states)

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
            "methods": ["none", *self.config.methods],
            "capture_buffer_bytes": buffer.numel() * buffer.element_size() if buffer is not None else 0,
            "memory": self.memory.to_dict(),
            "step_failures": self.num_step_failures,
            "counters": self.counts.status(),
            "backend": self.config.backend,
            "backend_used": self.backend.public_name,
            "backend_fault": self.backend_fault,
            "form": self.one_pass_state.status(),
            "bench_explore_rate": self.config.bench_explore_rate,
            "head": self._head_status(),
        }

    def _head_status(self) -> dict[str, Any]:
        """`engine_steps`: steps whose latent rows were multiplied by the engine's own head, exact and slower."""
        kind = None if self.head is None else "weight" if self.head.project is None else "engine"
        return {"kind": kind, "engine_steps": self.num_engine_head_steps}


def is_true_anywhere(value: bool, head: Head) -> bool:
    """On any rank that holds a part of the head; every one of them has to ask."""
    if head.all_gather is None:
        return value
    own = torch.full((1,), float(value), device=head.weight.device)
    return bool(head.all_gather(own).any())


def _call(inner: Any, args: Any, kwargs: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = inner(hidden, *args, **kwargs)
    return logits


_runtime: Runtime | None = None


def start(runner: Any) -> Runtime:
    """Begin capturing. Raises CaptureError, which stops the server, where LED cannot work."""
    global _runtime
    config = server_config()
    assert config is not None
    _refuse_unsupported(runner)
    _refuse_another_model(config, runner.model_config)
    _runtime = Runtime(config, runner)
    _runtime.backend.prepare()
    status = _runtime.status()
    logger.info(
        "LED: methods %s; captured layers %s",
        ", ".join(status["methods"]),
        status["captured_layers"],
    )
    return _runtime


def count_failure(current: Runtime, where: str = "its step") -> None:
    """Called in the `except` block of an exception of ours. What is new is logged, counted are all."""
    current.num_step_failures += 1
    if is_new(where):
        logger.exception("LED step failed in %s; the engine's own result stands", where)


def fail_step(current: Runtime, where: str = "its step") -> None:
    """The same where tokens or thinking states depend on it. Raises RankDivergence if it failed on some ranks only."""
    count_failure(current, where)
    if current.failed_ranks is not None:
        current.failed_ranks.meet()


def runtime() -> Runtime | None:
    return _runtime


def _refuse_unsupported(runner: Any) -> None:
    refuse_features(runner.server_args)
    if getattr(runner, "is_draft_worker", False) or not runner.spec_algorithm.is_none():
        raise CaptureError(
            "LED does not work with speculative decoding, which bypasses the sampler: drop --speculative-algorithm or "
            "start with --led disabled"
        )
    refuse_lora(getattr(runner.model, "lm_head", None))


def _refuse_another_model(config: ServerConfig, model_config: Any) -> None:
    """The Engine takes its arguments again, after `launch.enable` had some."""
    for what, configured, found in (
        ("layers", config.num_layers, int(model_config.num_hidden_layers)),
        ("tokens in its vocabulary", config.vocab_size, int(model_config.vocab_size)),
    ):
        if configured != found:
            raise CaptureError(
                f"LED was switched on for a model with {configured} {what}, and this one has {found}: give "
                f"launch.enable the arguments of the Engine"
            )
