"""One call of the sampler: what LED's rows need, what they get, and where their thinking goes from there."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from led_sglang.integration import transforms
from led_sglang.integration.batch import DeviceRows, LedBatch, activate
from led_sglang.integration.runtime import Runtime
from led_sglang.ops import host, led_step, uniforms
from led_sglang.ops.plain import sample_filtered
from led_sglang.ops.types import LedStep, Noise

SANITIZER = 1e30  # SGLang's stand-in for infinity


@dataclass
class StepContext:
    """One call of the sampler that has LED rows."""

    runtime: Runtime
    rows: DeviceRows
    info: Any  # SamplingBatchInfo
    states: Tensor  # (R,) thinking states before this token
    slots: Tensor  # (R,)
    thinking: Tensor  # (R,) bool
    active: Tensor  # (R,) bool
    noise: Tensor  # (2, R)
    positions: Tensor  # (R,) int64
    is_riding: bool = False  # this step's form is one pass
    is_decided: bool = False
    is_applied: bool = False
    is_finished: bool = False
    step: LedStep | None = None
    failed: bool = False
    overrides: list[transforms.Override] = field(default_factory=list)  # tokens that another method forces
    plain_ids: Tensor | None = None  # (S,) tokens of the seeded rows, for where they are outside their phase
    plain_rows: Tensor | None = None  # (S,) their rows of the batch
    plain_active: Tensor | None = None  # (S,) bool: inside their phase after all

    @classmethod
    def begin(cls, led: LedBatch, info: Any, positions: Tensor, current: Runtime) -> "StepContext":
        rows = led.device_rows(info)
        slots, states = states_before(rows, len(led.seats), current)
        if current.machine is None:
            thinking = torch.zeros_like(rows.phase_all)
        else:
            thinking = current.tables.thinking(states)
        active = thinking | rows.phase_all if rows.any_phase_all else thinking
        if rows.is_led is not None:
            active = active & rows.is_led
        row_positions = rows.pick(positions[: len(led.seats)]).long()
        noise = uniforms(rows.seed, rows.sample, row_positions)
        rate = current.config.bench_explore_rate
        if rate is not None:  # a benchmark: coin 0 always explores, coin 1 never does
            noise = torch.stack([(noise[0] >= rate).to(noise.dtype), noise[1]])
        return cls(current, rows, info, states, slots, thinking, active, noise, row_positions)

    def decide(self, logits: Tensor) -> None:
        """Run the LED step on the engine's final logits (B, V), before the engine turns them into probabilities.

        DoLa and Confident Decoding rewrite their rows of `logits` in place, for the engine to sample from.
        """
        self.is_decided = True
        if self.runtime.ranks is not None:
            self.runtime.ranks.check(self.noise)
        engine_logits = logits
        if self.runtime.is_sanitized:
            logits = _as_before_sanitizing(logits)
        for method, group in self.rows.groups.items():
            forced = transforms.HANDLERS[method](self, group, logits)
            self.overrides += [forced] if forced is not None else []
        if self.runtime.is_sanitized and self.rows.groups:
            engine_logits.copy_(logits.nan_to_num(nan=-SANITIZER, posinf=SANITIZER, neginf=-SANITIZER))
        capture, head = self.runtime.capture, self.runtime.head
        if host.can_look(logits.device) and not any(self.active.tolist()):
            return
        num_rows = logits.shape[0]
        if capture.buffer is None:
            buffer = logits.new_empty(0, num_rows, 1)
        else:
            buffer = capture.buffer[: self.runtime.num_led_layers, :num_rows]
        latents = buffer if self.rows.index is None else buffer.index_select(1, self.rows.index)
        assert head is not None
        ride, params = self.runtime.ride, activate(self.rows.params, self.active)
        ride.num_steps["one_pass" if self.is_riding else "coin_first"] += 1
        self.runtime.num_engine_head_steps += head.project is not None
        self.step = led_step(
            self.rows.pick(logits),
            latents,
            head,
            params,
            Noise(self.noise[0], self.noise[1]),
            backend=self.runtime.config.backend,
            ridden=ride.ridden(self.rows, params, num_rows) if self.is_riding else None,
        )

    def decide_plain(self, probs: Tensor) -> None:
        """A request that named its seed keeps it outside its phase too: the engine ignores seeds by default."""
        picked = self.rows.seeded
        if picked is None or self.info.sampling_seed is not None:
            return
        if host.can_look(probs.device):
            picked = picked[self.active[picked].logical_not()]
            if not len(picked):
                return
        batch_rows = picked if self.rows.index is None else self.rows.index[picked]
        info = self.info
        self.plain_ids = sample_filtered(
            probs[batch_rows],
            info.top_ks[batch_rows],
            info.top_ps[batch_rows],
            info.min_ps[batch_rows],
            self.noise[1][picked],
        )
        self.plain_rows, self.plain_active = batch_rows, self.active[picked]

    def open_rows(self) -> Tensor | None:
        """Rows of the batch whose token is still the engine's to sample, at least one; None: leave all to it.

        On a CPU the engine's draw over the vocabulary costs as much as the whole of LED: nobody waits for a token that
        is not used. All of them: where a request of the batch is not LED's, whose draw from the engine's generator must
        be that of a stock server; where the engine tells more than the token (a seed, a sampling mask).
        """
        rows, info = self.rows, self.info
        is_all_led = rows.index is None and rows.is_led is None
        tells_more = info.sampling_seed is not None or getattr(info, "sampling_mask_batch_indices", None) is not None
        if self.step is None or not is_all_led or tells_more or not host.can_look(self.active.device):
            return None
        open_rows = (self.active & self.step.ok).logical_not().nonzero().squeeze(1)
        return open_rows if len(open_rows) else torch.zeros(1, dtype=torch.int64)

    def apply(self, token_ids: Tensor) -> None:
        """Write the LED tokens over the engine's, in place; rows that are not ok keep the engine's token."""
        if self.is_applied:
            return
        self.is_applied = True
        if self.plain_ids is not None:
            assert self.plain_rows is not None and self.plain_active is not None
            kept = token_ids[self.plain_rows]
            token_ids[self.plain_rows] = torch.where(self.plain_active, kept, self.plain_ids.to(kept.dtype))
        for rows, forced, is_forced in self.overrides:
            token_ids[rows] = torch.where(is_forced, forced.to(token_ids.dtype), token_ids[rows])
        if self.step is None:
            return
        engine_ids = self.rows.pick(token_ids)
        chosen = torch.where(self.active & self.step.ok, self.step.token_ids.to(engine_ids.dtype), engine_ids)
        if self.rows.index is None:
            token_ids.copy_(chosen)
        else:
            token_ids[self.rows.index] = chosen

    def finish(self, token_ids: Tensor) -> None:
        """Advance the thinking states with the tokens that were really chosen."""
        chosen = self.rows.pick(token_ids).long()
        advance(self.runtime, self.slots, self.states, chosen)
        if self.runtime.ranks is not None:
            self.runtime.ranks.note(chosen)
        self.is_finished = True


def _as_before_sanitizing(logits: Tensor) -> Tensor:
    """SGLANG_SANITIZE_NAN_LOGITS writes 1e30 for infinity and -1e30 for NaN and what a grammar forbids.

    To LED a forbidden token is -inf, or the latent layers could bring it back, and infinity no number.
    """
    forbidden = logits.masked_fill(logits <= -0.1 * SANITIZER, -torch.inf)  # 1e30 itself is rounded in bfloat16
    return forbidden.masked_fill_(logits >= 0.1 * SANITIZER, torch.nan)


def states_before(rows: DeviceRows, num_rows: int, current: Runtime) -> tuple[Tensor, Tensor]:
    """Slots of our rows and their thinking states before this token: (R,), (R,)."""
    batch = current.forward_batch
    slots = rows.pick(batch.req_pool_indices[:num_rows])
    states = current.states[slots]
    if not batch.forward_mode.is_decode():
        is_start = rows.pick(batch.seq_lens[:num_rows]) == rows.start_length
        states = torch.where(is_start, rows.start_state, states)
    return slots, states


def advance(current: Runtime, slots: Tensor, states: Tensor, token_ids: Tensor) -> None:
    if current.machine is not None:
        current.states[slots] = current.tables.advance(states, token_ids)
