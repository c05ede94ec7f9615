"""Accuracy of the embedded models on held-out problems, sampled from a running server or without one.

    python -m led_sglang.embedded.evaluate --base-url http://127.0.0.1:30000/v1 --problems 500 --method none
    python -m led_sglang.embedded.evaluate --offline --problems 500
    python -m led_sglang.embedded.evaluate --offline --task countdown --problems 100 --samples 16

The last line printed is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from led_sglang.arguments import integer, number
from led_sglang.embedded import model_path
from led_sglang.embedded.scoring import final_answer, sample_scores, score
from led_sglang.embedded.tasks import TASK_NAMES, Problem, generate, grade

MAX_NEW_TOKENS = 256  # the longest thinking of the training data has about 190


def led_params(method: str) -> dict[str, Any]:
    """`custom_params` of a request: off has to be said too, since a server may be set to decode with LED by default."""
    return {"led": False if method == "none" else {"method": method}}


def answer_in(message: Any) -> str:
    """The answer of a chat message, whether or not the server's reasoning parser took the thinking out of it."""
    content = message.content or ""
    is_parsed = bool(getattr(message, "reasoning_content", None)) and "</think>" not in content
    return content if is_parsed else final_answer(content)


def ask_server(args: argparse.Namespace, batch: list[Problem]) -> list[str]:
    """Raises OSError where the server does not answer, or refuses."""
    from openai import APIError

    try:
        return asyncio.run(_ask_server(args, batch))
    except APIError as error:
        raise OSError(f"{args.base_url}: {error}") from error


async def _ask_server(args: argparse.Namespace, batch: list[Problem]) -> list[str]:
    from openai import AsyncOpenAI

    free_slots = asyncio.Semaphore(args.concurrency)
    async with AsyncOpenAI(base_url=args.base_url, api_key=args.api_key, timeout=args.timeout_s) as client:
        model = args.model or (await client.models.list()).data[0].id

        async def ask(problem: Problem) -> str:
            async with free_slots:
                reply = await client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": problem.question}],
                    temperature=args.temperature,
                    top_p=1.0,
                    max_tokens=MAX_NEW_TOKENS,
                    extra_body={"top_k": -1, "custom_params": led_params(args.method)},
                )
            return answer_in(reply.choices[0].message)

        return list(await asyncio.gather(*map(ask, batch)))


def evaluate(args: argparse.Namespace) -> list[list[bool]]:
    """By problem, whether each of its samples is right."""
    chosen = generate(args.task, "held_out", args.problems, args.seed)
    batch = [problem for problem in chosen for _ in range(args.samples)]
    answers = _sample_offline(args, batch) if args.offline else ask_server(args, batch)
    is_right = [grade(answer, problem) for answer, problem in zip(answers, batch, strict=True)]
    return [is_right[start : start + args.samples] for start in range(0, len(is_right), args.samples)]


def _sample_offline(args: argparse.Namespace, batch: list[Problem]) -> list[str]:
    from led_sglang.embedded.offline import sample

    questions = [problem.question for problem in batch]
    texts = sample(args.model or model_path(), questions, args.temperature, args.seed, MAX_NEW_TOKENS)
    return [final_answer(text) for text in texts]


def report(is_right: list[list[bool]], **settings: object) -> dict[str, object]:
    """Wilson's interval holds for independent answers only, so several samples a problem get a standard error."""
    if len(is_right[0]) == 1:
        return score([row[0] for row in is_right]).as_document(**settings)
    return {**sample_scores(is_right), **settings}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="sample in this process; needs no server")
    parser.add_argument("--base-url", default="http://127.0.0.1:30000/v1")
    parser.add_argument("--api-key", default="EMPTY")
    parser.add_argument("--model", help="served model's name, or with --offline a directory")
    parser.add_argument("--method", default="none", help="LED method asked of the server, none for plain sampling")
    parser.add_argument("--task", choices=TASK_NAMES, default="arithmetic")
    parser.add_argument("--problems", type=integer(1), default=500)
    parser.add_argument(
        "--samples", type=integer(1), default=1, help="of each problem; more than one gives pass@1 and pass@n"
    )
    parser.add_argument("--temperature", type=number(0), default=0.6)
    parser.add_argument("--concurrency", type=integer(1), default=32)
    parser.add_argument("--timeout-s", type=number(0, includes_low=False), default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the problems; with --offline of the sampling too")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.offline and args.method != "none":
        parser.error("--offline samples plainly; LED needs a server")
    settings = {"mode": "offline" if args.offline else "server", "method": args.method, "seed": args.seed}
    try:
        is_right = evaluate(args)
    except OSError as error:  # of --model, too
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report(is_right, task=args.task, temperature=args.temperature, **settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
