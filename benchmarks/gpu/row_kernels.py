"""The small kernels around a step against plain torch, bit by bit: inputs of rows, one-pass rows, tokens, counts."""

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from benchmarks.gpu.cases import gpu_backend, make_case, make_head
from benchmarks.gpu.scenarios import Size, everything
from led_sglang.ops import LedStep, RowInputs, RowMeta, ThinkingAutomaton
from led_sglang.ops.backends.torch import TorchBackend
from led_sglang.ops.rows.noise import torch_uniforms, uniforms
from led_sglang.ops.types import Counters

NUM_ROWS, NUM_OTHERS, VOCAB = 17, 4, 11
Check = Callable[[torch.device], str | None]  # what differs; None: nothing does


def _numbers(seed: int, device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def numbers(top: int, count: int = NUM_ROWS) -> Tensor:
        return torch.randint(0, top, (count,), generator=generator).to(device)

    return numbers


def _meta(device: torch.device, is_mixed: bool) -> RowMeta:
    numbers = _numbers(1, device)
    index = torch.arange(NUM_ROWS, device=device) + 2 if is_mixed else None
    is_led = numbers(2).bool() if is_mixed else None
    seed = numbers(1 << 62) - (1 << 61)
    return RowMeta(index, seed, numbers(99), numbers(6), numbers(3), numbers(2).bool(), is_led, True)


def check_inputs(device: torch.device) -> str | None:
    """Thinking states and noise before a token, states after it: prefill and decode, LED alone and among others."""
    automaton = ThinkingAutomaton([1, 2], [3], VOCAB)
    tables, numbers, batch = automaton.tables(device), _numbers(2, device), NUM_ROWS + NUM_OTHERS
    slots, positions = torch.randperm(batch).to(device), numbers(1 << 30, batch)
    for is_mixed in (False, True):
        meta = _meta(device, is_mixed)
        for lengths in (None, numbers(3, batch)):
            before, tokens = numbers(len(automaton.next_state), batch), numbers(VOCAB, batch)
            found = []
            for backend in ("triton", "fused"):
                chosen, states = gpu_backend(backend, device), before.clone()
                inputs = chosen.row_inputs(meta, slots, positions, lengths, states)
                chosen.advance(meta, tables, states, inputs, tokens)
                found.append({field.name: getattr(inputs, field.name) for field in fields(inputs)} | {"after": states})
            wrong = [name for name, value in found[0].items() if not torch.equal(value, found[1][name])]
            if wrong:
                return f"{', '.join(wrong)}; among others {is_mixed}, lengths {lengths is not None}"
    return None


def check_noise(device: torch.device) -> str | None:
    """A seed gives the same uniforms on every device."""
    meta, cpu = _meta(device, False), torch.device("cpu")
    arguments = meta.seed, meta.sample, _numbers(3, device)(1 << 30)
    expected = torch_uniforms(*(column.to(cpu) for column in arguments), 3)
    return None if torch.equal(uniforms(*arguments, 3).to(cpu), expected) else "uniforms differ from the CPU's"


def check_one_pass_rows(device: torch.device) -> str | None:
    """Which rows go through the head in one pass, and their temperatures."""
    head = make_head(101, 16, torch.bfloat16, device)
    case = everything(head, Size(NUM_ROWS, 101, 16, 4))
    row = torch.arange(NUM_ROWS, device=device)
    flags = {"latent_norm": row % 5 == 1, "latent_offset": (row % 6 == 1).long(), "exploit": row % 8 > 0}
    found = []
    for rows in (case.rows, replace(case.rows, **flags, any_norm=True, any_offset=True)):
        for index in (None, case.index):
            for backend in ("triton", "fused"):
                mask = torch.zeros(NUM_ROWS + NUM_OTHERS, dtype=torch.bool, device=device)
                tau = torch.full((NUM_ROWS + NUM_OTHERS,), 9.0, device=device)
                chosen = gpu_backend("triton", device) if backend == "triton" else TorchBackend(True)  # one threshold
                chosen.one_pass_mask(rows, case.mask_inputs, index, mask, tau)
                found.append((mask, tau))
    for (mask, tau), (other_mask, other_tau) in zip(found[::2], found[1::2], strict=True):
        if not torch.equal(mask, other_mask) or not torch.equal(tau, other_tau):
            return f"mask {mask.tolist()}, not {other_mask.tolist()}; tau {tau.tolist()}, not {other_tau.tolist()}"
    return None


def _step(device: torch.device) -> tuple[LedStep, Tensor]:
    """A step with broken and inactive rows."""
    head = make_head(101, 16, torch.bfloat16, device)
    row = torch.arange(NUM_ROWS, device=device)
    case = make_case(head, NUM_ROWS, 4, NUM_ROWS // 2, active=row % 5 > 0)
    case.batch_logits[3] = torch.nan
    return case.step("triton"), case.inputs.active


def _inputs(active: Tensor) -> RowInputs:
    numbers, noise = torch.arange(len(active), device=active.device), torch.zeros(len(active), dtype=torch.float64)
    noise = noise.to(active.device)
    return RowInputs(active, noise, noise, numbers, numbers, numbers % 2 == 0, numbers)


def check_tokens(device: torch.device) -> str | None:
    """Tokens written over the engine's, of both of its dtypes."""
    step, active = _step(device)
    for is_mixed in (False, True):
        for dtype in (torch.int32, torch.int64):
            found = []
            for backend in ("triton", "fused"):
                tokens = torch.arange(NUM_ROWS + (NUM_OTHERS if is_mixed else 0), device=device).to(dtype) + 1000
                gpu_backend(backend, device).write_tokens(_meta(device, is_mixed), tokens, _inputs(active), step)
                found.append(tokens)
            if not torch.equal(*found):
                return f"tokens {found[0].tolist()}, not {found[1].tolist()}; {dtype}, among others {is_mixed}"
    return None


def check_counts(device: torch.device) -> str | None:
    """Flags and counters of a step."""
    step, active = _step(device)
    method, counters = torch.arange(NUM_ROWS, device=device) % 3, [Counters.zeros(4, 3, device) for _ in range(2)]
    flags, expected = (
        gpu_backend(backend, device).count(_inputs(active), step, False, method, each)
        for backend, each in zip(("triton", "fused"), counters, strict=True)
    )
    one, other = counters
    if torch.equal(flags, expected) and torch.equal(one.values, other.values):
        return None
    return (
        f"flags {flags.tolist()}, not {expected.tolist()}; counters {one.values.tolist()}, not {other.values.tolist()}"
    )


CHECKS: dict[str, Check] = {
    "inputs": check_inputs,
    "noise": check_noise,
    "one_pass_rows": check_one_pass_rows,
    "tokens": check_tokens,
    "counts": check_counts,
}
