"""Bad requests drawn from the server's own OpenAPI schema of LED's fields: every one must be 400, the server alive.

The values stand where LED reads them, on every endpoint, and where it does not, and in bodies of the inspector's.

    python -m benchmarks.fuzz --requests 5000 --append

A value counts as bad if the schema refuses it, so that the check does not rest on the code it checks.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema

from benchmarks.provenance import provenance
from led_sglang.cli import files, http_client
from led_sglang.cli.arguments import integer
from led_sglang.cli.endings import guarded
from led_sglang.config.fields import ALL_METHODS
from led_sglang.serving.child import Server

RESULTS = Path(__file__).parent / "results" / "fuzz.jsonl"
CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
RESPONSES, STREAM = "/v1/responses", "/led/stream"
OTHERS = ("/v1/messages", "/api/chat", "/api/generate", "/vertex_generate", "/invocations")
CLIENTS = 16
SCALARS: tuple[Any, ...] = (None, True, False, -1, 0, 1, 2, 13, 300, 2**31, 2**63, 10**30, -0.5, 0.5, 1.5, 1e308)
TEXTS = (
    "",
    "8",
    "led",
    "think",
    "all",
    "none",
    "true",
    "\x00",
    "\ud7ff",
    "\ud800",
    "é" * 50,
    "a" * 5000,
    "{}",
    "../..",
    "None",
)


def junk(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind < 2:
        return rng.choice(SCALARS)
    if kind < 4:
        return rng.choice((float("nan"), float("inf"), rng.uniform(-300, 300), rng.randint(-300, 300), *TEXTS))
    if kind == 4:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS): junk(rng, depth + 1) for _ in range(rng.randrange(4))}


def bad_values(schema: dict[str, Any], rng: random.Random) -> Iterator[Any]:
    """Values of `custom_params.led` that the schema refuses: junk, or an object of legal keys with some junk in it."""
    validator = jsonschema.Draft202012Validator(schema)
    objects = [option["properties"] for option in schema["anyOf"] if option.get("type") == "object"]
    keys = sorted({key for properties in objects for key in properties} | {"depht", "", "Depth", "__led_sglang"})
    while True:
        value = junk(rng)
        if rng.random() < 0.8:
            value = {key: junk(rng) for key in rng.sample(keys, rng.randint(1, 4))}
            if rng.random() < 0.5:
                value["method"] = rng.choice([properties["method"]["const"] for properties in objects])
        if not validator.is_valid(value):
            yield value


def misplaced(rng: random.Random, value: Any) -> tuple[str, bytes]:
    """Path and body, any value but null in a place where LED does not read it."""
    path = rng.choice((CHAT, COMPLETIONS, GENERATE, RESPONSES, *OTHERS))
    key = rng.choice(("LED", "led_depth", "Led", "custom_params.led", "__led"))
    holders = rng.sample(("extra_body", "custom_params", "metadata", "sampling_params", "options", "parameters"), 3)
    inner: Any = {key: 0 if value is None else value}
    for holder in holders[: rng.randrange(4)]:
        inner = {holder: rng.choice((inner, [inner], [{}, inner]))}
    return path, json.dumps({"model": "led-embedded", "stream": rng.random() < 0.5, "prompt": "1 +", **inner}).encode()


def bad_stream(rng: random.Random, value: Any) -> tuple[str, bytes]:
    """A body of the inspector's, the bad value where it reads LED's parameters or anything else."""
    asked: dict[str, Any] = {"prompt": "1 +", "sampling": {"max_new_tokens": 1}, "led": value}
    if not isinstance(value, dict) or "trace" in value:  # which the inspector sets itself
        asked = {**asked, "led": True, rng.choice(("seed", "n", "side", "messages", "sampling")): {"led": junk(rng)}}
    return STREAM, json.dumps(asked).encode()


def bad_request(rng: random.Random, value: Any) -> tuple[str, bytes]:
    """Path and body, the bad value in one of the places where LED reads it, or a value where it does not."""
    kind = rng.random()
    if kind < 0.3:
        return misplaced(rng, value) if kind < 0.2 else bad_stream(rng, value)
    path = rng.choice((CHAT, COMPLETIONS, GENERATE, RESPONSES))
    body: dict[str, Any] = {"stream": rng.random() < 0.5}
    if path == GENERATE:
        sampling = {"max_new_tokens": 1, "custom_params": {"led": value}}
        prompts = rng.choice(([5, 6], [[5, 6], [7]]))
        many = isinstance(prompts[0], list)
        params: Any = [{"max_new_tokens": 1}, sampling] if many and rng.random() < 0.5 else sampling
        return path, json.dumps({**body, "input_ids": prompts, "sampling_params": params}).encode()
    messages = [{"role": "user", "content": "1"}]
    prompt: dict[str, Any] = {CHAT: {"messages": messages}, COMPLETIONS: {"prompt": "1 +"}, RESPONSES: {"input": "1"}}[
        path
    ]
    place = {"metadata": {"led": json.dumps(value)}} if rng.random() < 0.3 else {"custom_params": {"led": value}}
    return path, json.dumps({"model": "led-embedded", **prompt, "max_tokens": 1, **body, **place}).encode()


async def fuzz(url: str, num_requests: int, seed: int) -> dict[str, Any]:
    """Send them; the summary's `faults` are the answers that were not 400, or whose words were not LED's."""
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    started = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        document = http_client.json_object(http_client.checked(await client.get("/openapi.json")))
        values = bad_values(document["components"]["schemas"]["LedParams"], rng)
        requests = (bad_request(rng, next(values)) for _ in range(num_requests))

        async def worker() -> None:
            for path, body in requests:
                answer = await client.post(path, content=body, headers={"content-type": "application/json"})
                statuses[answer.status_code] += 1
                is_told = path == STREAM or any(word in answer.text for word in ("led", "custom_params"))
                if answer.status_code != 400 or not is_told:
                    faults.append(f"{path} {body!r:.300} -> {answer.status_code} {answer.text:.300}")

        await asyncio.gather(*(worker() for _ in range(CLIENTS)))
        alive = await client.post(GENERATE, json={"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 2}})
        counters = http_client.json_object(http_client.checked(await client.get("/led/info")))["counters"]
    if alive.status_code != 200 or counters["step_failures"] or counters["report_failures"]:
        faults.append(f"afterwards: {alive.status_code} {alive.text:.200}, {counters}")
    return {
        "requests": num_requests,
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "num_faults": len(faults),
        "faults": faults[:10],
    }


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=integer(1), default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--append", action="store_true", help=f"append the result to {RESULTS.name} under results/")
    options = parser.parse_args()
    if options.append:
        files.check_file(RESULTS)
    with (
        tempfile.TemporaryDirectory() as folder,
        Server("--led-methods", ALL_METHODS, log=Path(folder) / "server.log") as server,
    ):
        found = asyncio.run(fuzz(server.url, options.requests, options.seed))
    line = json.dumps({**provenance(), **found})
    print(line)
    if options.append and not found["num_faults"]:
        files.append_line(RESULTS, line)
    return 1 if found["num_faults"] else 0


if __name__ == "__main__":
    sys.exit(guarded("fuzz", command))
