"""Accuracy of the embedded models on held-out problems, sampled from a running server or without one.

    python -m training.evaluate --base-url http://127.0.0.1:30000/v1 --problems 500 --method none
    python -m training.evaluate --offline --problems 500
    python -m training.evaluate --offline --task countdown --problems 100 --samples 16

The last line printed is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from led_sglang.cli.arguments import api_key, integer, number, text, url
from led_sglang.cli.endings import CommandError, guarded
from led_sglang.config.methods import METHODS
from led_sglang.embedded import model_path
from led_sglang.embedded.tasks import TASK_NAMES, Problem, generate, grade
from training.scoring import final_answer, sample_scores, score

__all__ = ["MAX_NEW_TOKENS", "answer_in", "evaluate", "led_params", "main", "make_parser", "report"]

MAX_NEW_TOKENS = 256  # the longest thinking of the training data has about 190


def led_params(method: str) -> dict[str, Any]:
    """`custom_params` of a request: plain sampling is explicit, because a server may decode with LED by default."""
    return {"led": False if method == "none" else {"method": method}}


def answer_in(message: dict[str, Any]) -> str:
    """The answer of a chat message, whether or not the server's reasoning parser took the thinking out of it."""
    content = message.get("content") or ""
    is_parsed = bool(message.get("reasoning_content")) and "</think>" not in content
    return content if is_parsed else final_answer(content)


async def ask_server(args: argparse.Namespace, batch: list[Problem]) -> list[str]:
    """Raises CommandError where the server does not answer, or refuses."""
    from led_sglang.evals.run.client import Client

    free_slots = asyncio.Semaphore(args.concurrency)
    async with Client(args.base_url, args.api_key, args.model, args.timeout_s, args.concurrency) as client:
        model = await client.find_model()

        async def ask(problem: Problem) -> str:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": problem.question}],
                "temperature": args.temperature,
                "top_p": 1.0,
                "top_k": -1,
                "max_tokens": MAX_NEW_TOKENS,
                "custom_params": led_params(args.method),
            }
            async with free_slots:
                reply, _ = await client.chat(body)
            try:
                return answer_in(reply["choices"][0]["message"])
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise CommandError(f"{args.base_url} answered with no chat completion: {error!r}") from error

        return list(await asyncio.gather(*map(ask, batch)))


def evaluate(args: argparse.Namespace) -> list[list[bool]]:
    """By problem, whether each of its samples is right."""
    chosen = generate(args.task, "held_out", args.problems, args.seed)
    batch = [problem for problem in chosen for _ in range(args.samples)]
    answers = _sample_offline(args, batch) if args.offline else asyncio.run(ask_server(args, batch))
    is_right = [grade(answer, problem) for answer, problem in zip(answers, batch, strict=True)]
    return [is_right[start : start + args.samples] for start in range(0, len(is_right), args.samples)]


def _sample_offline(args: argparse.Namespace, batch: list[Problem]) -> list[str]:
    from training.offline import sample

    questions = [problem.question for problem in batch]
    try:
        texts = sample(args.model or model_path(), questions, args.temperature, args.seed, MAX_NEW_TOKENS)
    except (OSError, ValueError) as error:  # what transformers cannot load
        raise CommandError(f"--model {args.model}: {' '.join(str(error).split())}") from error
    return [final_answer(text) for text in texts]


def report(is_right: list[list[bool]], **settings: object) -> dict[str, object]:
    """Wilson's interval holds for independent answers only, so several samples a problem get a standard error."""
    if len(is_right[0]) == 1:
        return score([row[0] for row in is_right]).as_document(**settings)
    return {**sample_scores(is_right), **settings}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="sample in this process; needs no server")
    parser.add_argument("--base-url", type=url, default="http://127.0.0.1:30000/v1")
    parser.add_argument("--api-key", type=api_key, help="where the server was started with one")
    parser.add_argument("--model", type=text, help="served model's name, or with --offline a directory")
    parser.add_argument(
        "--method", choices=METHODS, default="none", help="asked of the server, none for plain sampling (default: none)"
    )
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


def command(argv: list[str] | None) -> None:
    """Raises CommandError."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.offline and args.method != "none":
        parser.error("--offline samples plainly; LED needs a server")
    if args.offline and args.temperature == 0:
        parser.error("--offline samples: --temperature must be in (0, inf)")
    settings = {"mode": "offline" if args.offline else "server", "method": args.method, "seed": args.seed}
    is_right = evaluate(args)
    print(json.dumps(report(is_right, task=args.task, temperature=args.temperature, **settings)))


def main(argv: list[str] | None = None) -> int:
    return guarded("evaluate", lambda: command(argv))


if __name__ == "__main__":
    sys.exit(main())
