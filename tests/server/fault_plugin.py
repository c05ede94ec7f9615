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

from led_sglang.integration.hooks.table import EAGLE_SAMPLE, HOOK_TARGETS, PP_PREPARE, PP_RECEIVE, WEIGHTS_CHANGED
from tests.server.servers import install_plugin

NAN, INF = float("nan"), float("inf")
LOGITS = {"nan logits": NAN, "inf logits": INF, "-inf logits": -INF, "one nan logit": NAN}
LATENTS = {"nan latents": NAN, "inf latents": INF}
STEP, REPORTS = "scheduler.step.", "scheduler.reports."
RAISING = {  # a fault -> what raises, below `LED`
    "begin": STEP + "inputs.SamplerInputs.begin",
    "decide": STEP + "decision.decide",
    "draw_seeded": STEP + "decision.draw_seeded",
    "write": STEP + "decision.Decision.write",
    "finish": STEP + "call.SamplerCall._finish",
    "record": REPORTS + "records.StepRecord.of",
    "entry": REPORTS + "records.StepRecord.entries",
}
VERIFY = "scheduler.speculation."
RAISING_IN_VERIFY = {  # the same of a verification of drafts
    "begin of a verification": VERIFY + "nodes.VerifyInputs.begin",
    "decision of a verification": VERIFY + "verify.decide",
    "outcome": VERIFY + "outcome.Verdict.apply",
    "states of a verification": VERIFY + "verify._advance",
    "record of a verification": REPORTS + "records.StepRecord.of_verify",
}
RANKS = ("other noise", "other tokens")  # on the last rank alone
ALONE = {"decide alone": RAISING["decide"]}  # so is this
SEEDS = {
    name: 70_000_000 + i for i, name in enumerate((*LOGITS, *LATENTS, *RAISING, *RAISING_IN_VERIFY, *RANKS, *ALONE))
}
LED = "led_sglang.integration."
SWITCH = "LED_FAULT_SWITCH"  # the file's place; its JSON: which target, and "first" or "last"
AT_START = (  # called before anybody is served, and never again
    "sglang.srt.model_executor.model_runner.ModelRunner.init_attention_backends",
    "sglang.srt.model_executor.model_runner.ModelRunner.init_cuda_graphs",
    "sglang.srt.layers.sampler.create_sampler",
)
IN_VERIFY = (EAGLE_SAMPLE,)  # called where drafts are verified, and nowhere else
IN_PIPELINE = (PP_PREPARE, PP_RECEIVE)  # called where there are several pipeline stages
BETWEEN_SERVERS = tuple(target for target in HOOK_TARGETS if ".disaggregation." in target)  # where two share a request
IN_UPDATES = (WEIGHTS_CHANGED,)  # called where the weights are another's from then on
ELSEWHERE = AT_START + IN_VERIFY + IN_PIPELINE + BETWEEN_SERVERS + IN_UPDATES
HOOKS = tuple(target for target in HOOK_TARGETS if target not in ELSEWHERE)
INNER = {  # what the engine reaches by way of the hooks, with what it raises
    "scheduler.latents.capture.Capture.store": torch.OutOfMemoryError,
    "scheduler.methods.soft_inputs.SoftInputs._mix": torch.OutOfMemoryError,
    STEP + "decision.Decision.rows_for_engine": ArithmeticError,
    "scheduler.runtime.Runtime.bind_head": ArithmeticError,
    STEP + "sampler.before_forward": ArithmeticError,
    "http.responses._report": ArithmeticError,
    "http.responses._take_out": ArithmeticError,
    "scheduler.batch.LedBatch.filter": ArithmeticError,
    REPORTS + "records.StepRecord.close": ArithmeticError,
}
PROCESSOR = "sglang.srt.layers.logits_processor.LogitsProcessor.forward"
num_calls: dict[str, int] = {}


def install(folder: Path) -> dict[str, str]:
    """The environment of a server that loads this plugin."""
    return install_plugin(folder, target="tests.server.fault_plugin:register")


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(PROCESSOR, poison_logits, HookType.AFTER)
    HookRegistry.register(LED + RAISING["decide"], poison_latents, HookType.BEFORE)
    HookRegistry.register(LED + RAISING["begin"], disturb_noise, HookType.AFTER)
    HookRegistry.register(LED + RAISING["write"], disturb_tokens, HookType.AFTER)
    HookRegistry.register(LED + RAISING_IN_VERIFY["begin of a verification"], disturb_noise, HookType.AFTER)
    HookRegistry.register(LED + VERIFY + "verify._led_step", disturb_nodes, HookType.AFTER)
    for name, target in (*RAISING.items(), *RAISING_IN_VERIFY.items(), *ALONE.items()):
        HookRegistry.register(LED + target, raising(name), HookType.AROUND)
    if SWITCH not in os.environ:
        return
    switch_handlers()
    for target, error in INNER.items():
        HookRegistry.register(LED + target, partial(switched, target, error), HookType.AROUND)


def switch_handlers() -> None:
    """Of all hooks; a handler is still imported where it is first called."""
    from led_sglang.integration.hooks.guard import Guarded, Handler

    find = Guarded.handler.func

    def found(self: Guarded) -> Handler:
        handler = find(self)
        if self.target not in HOOKS + IN_VERIFY:
            return handler
        return replace(handler, function=partial(switched, self.target, ArithmeticError, handler.function))

    Guarded.handler.func = found


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
    led = getattr(batch.sampling_info, "led", None)
    for row, name in rows_with(led, LOGITS):
        nodes = len(result.next_token_logits) // len(led.request_rows)  # of a verification, the request's token first
        logits = result.next_token_logits[row * nodes]
        logits[logits.argmax() if name == "one nan logit" else slice(None)] = LOGITS[name]


def poison_latents(inputs: Any, logits: Any, *args: Any) -> None:
    for row, name in rows_with(led_of(inputs), LATENTS):
        inputs.runtime.capture.states[:, row] = LATENTS[name]


def raising(name: str) -> Callable[..., Any]:
    """Raises at every second of its steps, so that a lost thinking state would show in the steps between."""

    def hook(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if is_meant(name, args):
            num_calls[name] = num_calls.get(name, 0) + 1
            if num_calls[name] % 2:
                raise ArithmeticError(f"forced in {name}")
        return original(*args, **kwargs)

    return hook


def is_meant(name: str, args: tuple[Any, ...]) -> bool:
    if name == "entry":
        record, row, _ = args
        return any(found == row for found, _ in rows_with(record._led, [name]))
    if name in ALONE and not is_last_rank():
        return False
    found = next(arg for arg in args if hasattr(getattr(arg, "inputs", arg), "info") or hasattr(arg, "request_rows"))
    led = found if hasattr(found, "request_rows") else led_of(found)
    return any(True for _ in rows_with(led, [name]))


def is_last_rank() -> bool:
    from sglang.srt.runtime_context import get_parallel

    group = get_parallel().tp_group
    return bool(group.world_size > 1 and group.rank_in_group == group.world_size - 1)


def led_of(step: Any) -> Any:
    """The LedBatch of a step, from its inputs or from what holds them."""
    return getattr(step, "inputs", step).info.led


def disturb_noise(result: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
    led = next(arg for arg in args if hasattr(arg, "request_rows"))
    if not is_last_rank() or not any(True for _ in rows_with(led, ["other noise"])):
        return None
    before = result.row_inputs
    other = {name: (getattr(before, name) + 0.5) % 1.0 for name in ("coin_uniform", "token_uniform")}
    return replace(result, row_inputs=replace(before, **other))


def disturb_nodes(result: Any, inputs: Any, logits: torch.Tensor) -> None:
    for row, _ in rows_with(led_of(inputs), ["other tokens"]):
        if is_last_rank():
            nodes = result.token_ids.view(inputs.tree.states.shape)[row]
            nodes.copy_((nodes + 1) % 700)


def disturb_tokens(result: Any, decision: Any, token_ids: torch.Tensor) -> None:
    for row, _ in rows_with(led_of(decision), ["other tokens"]):
        if is_last_rank():
            token_ids[row] = (token_ids[row] + 1) % 700
