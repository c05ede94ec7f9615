"""A second SGLang plugin, for the tests: breaks LED's step for the requests whose seed names a fault, and its hooks.

A hook breaks while a file names it, in every other call: first (before LED did anything) or last (when all is done).

Its hooks come from SGLang's own registry, also on targets that LED hooks itself; led_sglang has no code for it.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from led_sglang.integration.hooks.table import HOOK_TARGETS
from tests.server.servers import install_plugin

NAN, INF = float("nan"), float("inf")
LOGITS = {"nan logits": NAN, "inf logits": INF, "-inf logits": -INF, "one nan logit": NAN}
LATENTS = {"nan latents": NAN, "inf latents": INF}
RAISING = {
    "begin": "step.StepContext.begin",
    "decide": "step.StepContext.decide",
    "decide_plain": "step.StepContext.decide_plain",
    "apply": "step.StepContext.apply",
    "finish": "step.StepContext.finish",
    "record": "records.StepRecord.of",
    "entry": "records.StepRecord.entry",
}
RANKS = ("other noise", "other tokens")  # on the last rank alone
ALONE = {"decide alone": "step.StepContext.decide"}  # so is this
SEEDS = {name: 70_000_000 + i for i, name in enumerate((*LOGITS, *LATENTS, *RAISING, *RANKS, *ALONE))}
LED = "led_sglang.integration."
SWITCH = "LED_FAULT_SWITCH"  # the file's place; its JSON: which target, and "first" or "last"
AT_START = (  # called before anybody is served, and never again
    "sglang.srt.model_executor.model_runner.ModelRunner.init_attention_backends",
    "sglang.srt.layers.sampler.create_sampler",
)
HOOKS = tuple(target for target in HOOK_TARGETS if target not in AT_START)
INNER = {  # what the engine reaches by way of the hooks, with what it raises
    "capture.Capture.store": torch.OutOfMemoryError,
    "soft.SoftInputs._mix": torch.OutOfMemoryError,
    "step.StepContext.open_rows": ArithmeticError,
    "runtime.Runtime.see_head": ArithmeticError,
    "sampler.before_forward": ArithmeticError,
    "requests._tell": ArithmeticError,
    "requests._take_out": ArithmeticError,
    "batch.LedBatch.filter": ArithmeticError,
    "records.StepRecord.close": ArithmeticError,
}
PROCESSOR = "sglang.srt.layers.logits_processor.LogitsProcessor.forward"
num_calls: dict[str, int] = {}


def install(folder: Path) -> dict[str, str]:
    """The environment of a server that loads this plugin."""
    return install_plugin(folder, target="tests.server.fault_plugin:register")


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(PROCESSOR, poison_logits, HookType.AFTER)
    HookRegistry.register(LED + "step.StepContext.decide", poison_latents, HookType.BEFORE)
    HookRegistry.register(LED + "step.StepContext.begin", disturb_noise, HookType.AFTER)
    HookRegistry.register(LED + "step.StepContext.apply", disturb_tokens, HookType.AFTER)
    for name, target in (*RAISING.items(), *ALONE.items()):
        HookRegistry.register(LED + target, raising(name), HookType.AROUND)
    if SWITCH not in os.environ:
        return
    from led_sglang.integration.hooks.register import HANDLERS

    for target in HOOKS:
        HANDLERS[target].handler = partial(switched, target, ArithmeticError, HANDLERS[target].handler)
    for target, error in INNER.items():
        HookRegistry.register(LED + target, partial(switched, target, error), HookType.AROUND)


def switched(target: str, error: type[Exception], original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`original`, which fails while the switch says so."""
    requested = json.loads(Path(os.environ[SWITCH]).read_text())
    is_meant = requested.get("target") == target
    if is_meant:
        key = f"{target} {requested['when']}"
        num_calls[key] = num_calls.get(key, 0) + 1
        is_meant = num_calls[key] % 2 == 1
    if is_meant and requested["when"] == "first":
        raise error(f"forced in {target}")
    result = original(*args, **kwargs)
    if is_meant:
        raise error(f"forced in {target}")
    return result


def rows_with(led: Any, faults: Any) -> Iterator[tuple[int, str]]:
    """The rows of a batch whose request asked for one of the faults."""
    names = {SEEDS[name]: name for name in faults}
    for row, request_row in enumerate(led.request_rows if led is not None else ()):
        if request_row.request is not None and request_row.request.seed in names:
            yield row, names[request_row.request.seed]


def poison_logits(result: Any, self: Any, input_ids: Any, hidden: Any, head: Any, batch: Any, *args: Any) -> None:
    for row, name in rows_with(getattr(batch.sampling_info, "led", None), LOGITS):
        logits = result.next_token_logits[row]
        logits[logits.argmax() if name == "one nan logit" else slice(None)] = LOGITS[name]


def poison_latents(self: Any, logits: Any) -> None:
    for row, name in rows_with(self.runtime.forward_batch.sampling_info.led, LATENTS):
        self.runtime.capture.states[:, row] = LATENTS[name]


def raising(name: str) -> Callable[..., Any]:
    """Raises at every second of its steps, so that a lost thinking state would show in the steps between."""

    def hook(original: Callable[..., Any], *args: Any) -> Any:
        if is_meant(name, args):
            num_calls[name] = num_calls.get(name, 0) + 1
            if num_calls[name] % 2:
                raise ArithmeticError(f"forced in {name}")
        return original(*args)

    return hook


def is_meant(name: str, args: tuple[Any, ...]) -> bool:
    if name == "entry":
        record, row = args
        return any(found == row for found, _ in rows_with(record._led, [name]))
    if name in ALONE and not is_last_rank():
        return False
    led = args[1] if name in ("begin", "record") else args[0].runtime.forward_batch.sampling_info.led
    return any(True for _ in rows_with(led, [name]))


def is_last_rank() -> bool:
    from sglang.srt.runtime_context import get_parallel

    group = get_parallel().tp_group
    return bool(group.world_size > 1 and group.rank_in_group == group.world_size - 1)


def disturb_noise(result: Any, cls: Any, led: Any, *args: Any) -> None:
    if is_last_rank() and any(True for _ in rows_with(led, ["other noise"])):
        now = result.inputs
        result.inputs = replace(now, coin_uniform=(now.coin_uniform + 0.5) % 1.0, token=(now.token + 0.5) % 1.0)


def disturb_tokens(result: Any, self: Any, token_ids: torch.Tensor) -> None:
    for row, _ in rows_with(self.runtime.forward_batch.sampling_info.led, ["other tokens"]):
        if is_last_rank():
            token_ids[row] = (token_ids[row] + 1) % 700
