#!/usr/bin/env python3
"""Which tokens LED takes that plain sampling would not, and where, from traces of a running server.

    python scripts/where_it_explores.py --url http://127.0.0.1:30000 --problems 200

A place is what stands before the token: after "=" one number is right and all others are wrong; elsewhere several
words, numbers or operations will do. Prints a Markdown table, in per cent of the place's tokens.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from led_sglang.cli import http_client
from led_sglang.cli.arguments import integer, number, url
from led_sglang.cli.endings import guarded
from led_sglang.embedded import countdown

RARE = 0.01  # a token that the final layer gives less is one that plain sampling hardly ever takes


def traces(url: str, num_problems: int, temperature: float) -> Iterator[dict[str, Any]]:
    """One traced answer to each problem."""

    def ask(problem: countdown.Countdown) -> dict[str, Any]:
        body = {
            "model": "led-embedded",
            "messages": [{"role": "user", "content": problem.question}],
            "temperature": temperature,
            "max_tokens": 256,
            "seed": 1,
            "custom_params": {"led": {"trace": True}},
            "return_meta_info": True,
            "logprobs": True,
        }
        answer = http_client.post(f"{url}/v1/chat/completions", body, timeout_s=600)
        choice: dict[str, Any] = http_client.json_object(answer)["choices"][0]
        return choice

    with ThreadPoolExecutor(32) as pool:
        yield from pool.map(ask, countdown.generate("held_out", num_problems, seed=0))


def steps(choice: dict[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """For every token that LED decided: its place, and what was likely there."""
    meta, tokens = choice["meta_info"], [entry["token"] for entry in choice["logprobs"]["content"]]
    for i, confidence in enumerate(meta["led_confidence"]):
        if confidence is None:
            continue
        exploit, explore = meta["led_exploit"][i], meta["led_explore"][i]
        is_rare = [p < RARE for p in exploit]
        plain = sum(p for p, rare in zip(exploit, is_rare, strict=True) if rare)
        explored = sum(p for p, rare in zip(explore, is_rare, strict=True) if rare)
        yield (
            'after "="' if i and tokens[i - 1].strip() == "=" else "elsewhere",
            {
                "explores": 1 - confidence,
                "rare, plain": plain,
                "rare, LED": confidence * plain + (1 - confidence) * explored,
                "favourite, plain": exploit[0],
                "favourite, LED": confidence * exploit[0] + (1 - confidence) * explore[0],
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", type=url, default="http://127.0.0.1:30000")
    parser.add_argument("--problems", type=integer(1), default=200)
    parser.add_argument("--temperature", type=number(0), default=0.6)
    args = parser.parse_args()
    places: dict[str, list[dict[str, float]]] = defaultdict(list)
    for choice in traces(args.url, args.problems, args.temperature):
        for place, numbers in steps(choice):
            places[place].append(numbers)
    names = list(next(iter(places.values()))[0])
    print(f"| place | tokens | {' | '.join(names)} |\n|---|{'---:|' * (len(names) + 1)}")
    for place, found in sorted(places.items()):
        means = [100 * sum(numbers[name] for numbers in found) / len(found) for name in names]
        print(f"| {place} | {len(found):,} | {' | '.join(f'{mean:.2f}' for mean in means)} |")


if __name__ == "__main__":
    sys.exit(guarded("where_it_explores", main))
