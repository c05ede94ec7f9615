"""What each request of a soak is: drawn from its number, so that two runs of one seed ask the same."""

import random
from dataclasses import dataclass
from typing import Any, Literal

from led_sglang.config.methods import METHOD_TABLE
from led_sglang.embedded.tokenizer import END, END_THINK, THINK, build_backend

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
OTHER_METHODS = tuple(name for name, method in METHOD_TABLE.items() if not method.is_always_enabled)
OPEN_ID, CLOSE_ID, END_ID = map(build_backend().token_to_id, (THINK, END_THINK, END))
LONG_EVERY, NUM_LONG = 500, 20  # so many long answers at once need more tokens of cache than there are: retraction
Ending = Literal["read", "leave", "abort", "refused"]


@dataclass(frozen=True)
class Plan:
    number: int
    path: str
    body: dict[str, Any]
    method: str  # that will decode it
    num_samples: int
    max_tokens: int  # of each sample
    is_everywhere: bool  # phase "all": every token is one of LED's
    ending: Ending  # read to the end, leave in mid-stream, abort by id in mid-stream, or be refused
    prompt_ids: tuple[int, ...] | None  # where the thinking flags can be worked out

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def is_traced(self) -> bool:
        led = None if self.ending == "refused" else led_of(self.body)
        return isinstance(led, dict) and bool(led.get("trace"))


def led_of(body: dict[str, Any]) -> Any:
    """`custom_params.led` of a legal request."""
    holder = body.get("sampling_params", body)
    return (holder.get("custom_params") or {}).get("led")


def draw(number: int, seed: int, methods: tuple[str, ...] = OTHER_METHODS) -> Plan:
    """Request `number` of the soak with this seed; methods: those that the server has beside LED."""
    rng = random.Random(f"{seed} {number}")
    ending: Ending = rng.choices(("read", "leave", "abort", "refused"), (84, 6, 4, 6))[0]
    path = GENERATE if ending == "abort" else rng.choice((CHAT, COMPLETIONS, GENERATE, GENERATE))
    is_long = number % LONG_EVERY < NUM_LONG
    if is_long:
        ending, path = "read", GENERATE
    if ending == "refused":
        return Plan(number, path, refused_body(rng, path), "none", 0, 0, False, ending, None)
    led, method = draw_led(rng, methods)
    max_tokens = rng.choices((rng.randint(1, 8), rng.randint(9, 40)), (88, 12))[0]
    if ending in ("leave", "abort"):
        max_tokens = rng.randint(20, 60)
    elif is_long:
        max_tokens = rng.randint(100, 180)
    num_samples = rng.choices((1, 2, 3), (90, 7, 3))[0] if ending == "read" and not is_long else 1
    is_stream = ending in ("leave", "abort") or rng.random() < 0.4
    prompt_ids = draw_prompt(rng) if path == GENERATE else None
    body = legal_body(rng, path, prompt_ids, led, max_tokens, num_samples, is_stream)
    if ending == "abort":
        body["rid"] = f"soak-{seed}-{number}"
    is_everywhere = isinstance(led, dict) and led.get("phase") == "all"
    return Plan(number, path, body, method, num_samples, max_tokens, is_everywhere, ending, prompt_ids)


def draw_led(rng: random.Random, methods: tuple[str, ...]) -> tuple[Any, str]:
    """A value of custom_params.led and the method it means (the server's default is LED on)."""
    numbers = {"depth": rng.randint(1, 12), "top_k": rng.randint(1, 16)}
    kind = rng.randrange(10)
    if kind == 9 and methods:
        method = rng.choice(methods)
        return {"method": method}, method
    values: list[Any] = [None, True, {"trace": True}, {"trace": True, **numbers}, numbers]
    values += [{"phase": "all"}, {"phase": "all", "trace": True, "exploit": False}, False, {"method": "none"}]
    return values[kind % len(values)], "none" if kind in (7, 8) else "led"


def draw_prompt(rng: random.Random) -> tuple[int, ...]:
    """Ids of ordinary words and markers: the phase is never opened, open, closed, or opened again."""

    def words() -> list[int]:
        return [rng.randrange(700) for _ in range(rng.randint(1, 8))]

    parts: list[list[list[int]]] = [[], [[OPEN_ID]], [[OPEN_ID], words(), [CLOSE_ID]]]
    parts.append([[OPEN_ID], words(), [CLOSE_ID], words(), [OPEN_ID]])
    return (*words(), *(token for part in rng.choice(parts) for token in part), *words())


def legal_body(
    rng: random.Random, path: str, prompt_ids: Any, led: Any, max_tokens: int, num_samples: int, is_stream: bool
) -> dict[str, Any]:
    custom = {} if led is None else {"custom_params": {"led": led}}
    sampling: dict[str, Any] = {"temperature": rng.choice((0.0, 0.6, 1.0)), "n": num_samples, **custom}
    if path == GENERATE:
        # The phase changes often, and a long answer stays long.
        bias = {str(OPEN_ID): 9.0, str(CLOSE_ID): 9.0, str(END_ID): -100.0 if max_tokens >= 100 else 0.0}
        sampling |= {"max_new_tokens": max_tokens, "logit_bias": bias}
        if rng.random() < 0.3:
            sampling["sampling_seed"] = rng.randrange(1 << 20)
        return {"input_ids": list(prompt_ids), "sampling_params": sampling, "stream": is_stream}
    question = f"What is {rng.randint(1, 99)} + {rng.randint(1, 99)}?"
    prompt: dict[str, Any] = {"prompt": f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n"}
    if path == CHAT:
        prompt = {"messages": [{"role": "user", "content": question}]}
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if is_stream else {}
    if path == CHAT and not is_stream:
        more["return_meta_info"] = True
    return {"model": "led-embedded", **prompt, **sampling, "max_tokens": max_tokens, **more}


BAD_LED = ({"depth": 0}, {"depth": "8"}, {"top_k": 10**9}, {"depht": 3}, {"phase": "x"}, {"min_p": 2}, "on", 7, [True])


def refused_body(rng: random.Random, path: str) -> dict[str, Any]:
    """A request that must be answered with 400."""
    body = legal_body(rng, path, [5, 6], rng.choice(BAD_LED), 4, 1, rng.random() < 0.5)
    holder = body.get("sampling_params", body)
    kind = rng.randrange(4)
    if kind == 0:
        holder["custom_params"] = rng.choice((5, [1], "led", {"__led_sglang": {}}))
    elif kind == 1 and path != GENERATE:
        holder["custom_params"] = {}
        body["metadata"] = {"led": rng.choice(("{", '{"depth": -1}', "[]"))}
    elif kind == 1:
        holder["custom_params"] = {}
        body["input_ids"] = []
    return body
