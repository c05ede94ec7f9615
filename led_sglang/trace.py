"""Exploration in the terminal: ask a running LED server and see every token's confidence, depth and candidates.

    python -m led_sglang.trace "What is 17 + 5 * 3?"
    python -m led_sglang.trace "What is 17 + 5 * 3?" --candidates --html out.html

A client: it talks HTTP to `--url` and needs neither torch nor SGLang. Exit status: `led_sglang.cli.endings`.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from led_sglang import inspector
from led_sglang.cli import arguments, files, http_client
from led_sglang.cli.endings import CommandError, guarded
from led_sglang.config.fields import PHASES
from led_sglang.inspector.request import MAX_SAMPLES, MAX_SEED

__all__ = ["DEFAULT_URL", "TraceError", "body", "figures", "is_turn", "main", "parse_arguments", "stream", "style"]

DEFAULT_URL = "http://127.0.0.1:30000"
TIMEOUT_S = 300.0
TOKEN_KEYS = {"id", "text", "explored", "depth", "confidence", "candidates", "exploit", "explore"}


class TraceError(CommandError):
    """The server could not be reached or refused; the message says what to do."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m led_sglang.trace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", type=arguments.text)
    parser.add_argument(
        "--url", type=arguments.url, default=DEFAULT_URL, help=f"of the server (default: {DEFAULT_URL})"
    )
    parser.add_argument("--api-key", type=arguments.api_key, help="where the server was started with one")
    parser.add_argument("--temperature", type=arguments.number(0), default=0.6)
    parser.add_argument("--depth", type=arguments.integer(1), help="exploration depth (default: the server's)")
    parser.add_argument("--top-k", type=arguments.integer(1), help="candidates (default: the server's)")
    parser.add_argument("--phase", choices=PHASES, default=None)
    parser.add_argument("--seed", type=arguments.integer(0, MAX_SEED), default=1)
    parser.add_argument("--max-tokens", type=arguments.integer(1), default=1024)
    parser.add_argument(
        "--samples",
        type=arguments.integer(1, MAX_SAMPLES),
        default=1,
        help="in the file of --html; the terminal shows the first",
    )
    parser.add_argument("--candidates", action="store_true", help="one line of candidates for every explored token")
    parser.add_argument("--no-color", action="store_true")
    parser.add_argument("--html", type=Path, default=None, help="also write a self-contained page to this file")
    return parser.parse_args(argv)


def body(options: argparse.Namespace, side: str) -> dict[str, Any]:
    """The request to POST /led/stream that the options describe."""
    requested = {"depth": options.depth, "top_k": options.top_k, "phase": options.phase}
    return {
        "messages": [{"role": "user", "content": options.question}],
        "sampling": {"temperature": options.temperature, "max_new_tokens": options.max_tokens},
        "led": {key: value for key, value in requested.items() if value is not None},
        "seed": options.seed,
        "n": options.samples,
        "side": side,
    }


def stream(url: str, request: dict[str, Any], api_key: str | None = None) -> Iterator[dict[str, Any]]:
    """The events of one side as they arrive. Raises TraceError."""
    headers = http_client.headers(api_key)
    try:
        with httpx.stream("POST", f"{url}/led/stream", json=request, headers=headers, timeout=TIMEOUT_S) as response:
            if not response.is_success:
                response.read()
                raise TraceError(str(http_client.refusal(response)))
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    event = _event(line.removeprefix("data: "))
                    if "error" in event:
                        raise TraceError(_printable(str(event["error"])))
                    yield event
    except httpx.HTTPError as error:
        raise TraceError(f"{http_client.no_answer(url, error)}: start it with make serve") from error
    raise TraceError(f"the answer of {url} ended too early: is it an LED server?")


def _event(text: str) -> dict[str, Any]:
    """Raises TraceError for what an LED server does not send."""
    with contextlib.suppress(ValueError, RecursionError):
        event = json.loads(text)
        if isinstance(event, dict) and ("error" in event or _is_traced(event)):
            return event
    raise TraceError(f"not an event of a trace: {text[:80]!r}: is it an LED server?")


def _is_traced(event: dict[str, Any]) -> bool:
    """A token with its trace, or the end of a sample."""
    return isinstance(event.get("i"), int) and ("id" not in event or event.keys() >= TOKEN_KEYS)


def is_turn(token: dict[str, Any]) -> bool:
    """Exploration took another token than the final layer's favourite."""
    return bool(token["explored"] and token["candidates"] and token["candidates"][0][0] != token["id"])


def figures(tokens: list[dict[str, Any]]) -> dict[str, str]:
    """The summary of one sample."""
    decided = [token for token in tokens if token["depth"] is not None]
    depths = [token["depth"] for token in decided if token["explored"]]
    return {
        "tokens": str(len(tokens)),
        "explored": f"{100 * len(depths) / len(decided):.0f} %" if decided else "-",
        "mean depth": f"{sum(depths) / len(depths):.1f}" if depths else "-",
        "turns": str(sum(map(is_turn, tokens))),
    }


class Terminal:
    """Prints tokens as they come, with rich."""

    def __init__(self, no_color: bool) -> None:
        from rich.console import Console

        class Piped(Console):
            def on_broken_pipe(self) -> None:
                raise BrokenPipeError

        self.console = Piped(no_color=no_color, highlight=False, soft_wrap=True)

    def legend(self) -> None:
        from rich.text import Text

        line = Text.assemble(
            ("sure", ""), " · ", ("unsure", _tint(0.2)), " · ", ("explored", "underline"), " · ",
            ("explored, another token", "bold underline cyan"), ("³", "cyan"), " at depth 3",
        )  # fmt: skip
        self.console.print(line, style="dim")

    def token(self, token: dict[str, Any], side: str = "led") -> None:
        from rich.text import Text

        text = Text(_printable(token["text"]), style=style(token, side))
        if side == "led" and is_turn(token):
            text.append("".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(token["depth"])), style="cyan")
        self.console.print(text, end="")

    def candidates(self, at: int, token: dict[str, Any]) -> None:
        from rich.text import Text

        line = Text(f"{at:5d}  depth {token['depth']:<2d} conf {token['confidence']:.2f}  ", style="dim")
        rows = zip(token["candidates"], token["exploit"], token["explore"], strict=True)
        for rank, ((token_id, text), exploit, explore) in enumerate(rows):
            picked = token_id == token["id"]
            if rank >= 4 and not picked:
                continue
            name = text.replace("\n", "↵").replace(" ", "␣")
            line.append(f"{_printable(name)} ", style="bold cyan" if picked else "bold")
            line.append(f"{100 * exploit:.0f}→{100 * explore:.0f} %   ", style="cyan" if picked else "dim")
        self.console.print(line, no_wrap=True, overflow="ellipsis")

    def summary(self, values: dict[str, str], seconds: float) -> None:
        shown = {**values, "tokens/s": f"{int(values['tokens']) / max(seconds, 1e-9):.0f}"}
        self.console.print("\n" + "   ".join(f"[bold]{value}[/] [dim]{name}[/]" for name, value in shown.items()))


def style(token: dict[str, Any], side: str = "led") -> str:
    """A rich style: tinted by confidence, explored tokens underlined."""
    if token.get("special"):
        return "dim"
    if token["confidence"] is None:
        return ""
    if side == "led" and is_turn(token):
        return "bold underline cyan"
    tint = _tint(token["confidence"])
    return f"underline {tint}".strip() if side == "led" and token["explored"] else tint


def _tint(confidence: float) -> str:
    steps = ((0.35, "black on #f5a623"), (0.6, "black on #f9c76f"), (0.85, "black on #fbe0b0"), (0.97, "yellow"))
    return next((name for limit, name in steps if confidence < limit), "")


def _printable(text: str) -> str:
    """Without the control characters that would let a model's output drive the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def run(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Send the requests, print tokens as they arrive, return the events of both sides (plain: only for --html)."""
    terminal = Terminal(options.no_color)
    terminal.legend()
    sides: dict[str, list[dict[str, Any]]] = {"led": [], "plain": []}
    start = time.monotonic()
    for event in stream(options.url, body(options, "led"), options.api_key):
        sides["led"].append(event)
        if event["i"] == 0 and "id" in event:
            terminal.token(event)
    seconds = time.monotonic() - start
    terminal.console.print()
    tokens = [event for event in sides["led"] if event["i"] == 0 and "id" in event]
    if options.candidates:
        for at, token in enumerate(tokens, start=1):
            if token["explored"]:
                terminal.candidates(at, token)
    terminal.summary(figures(tokens), seconds)
    if options.html is not None:
        sides["plain"].extend(stream(options.url, body(options, "plain"), options.api_key))
    return sides


def recording(options: argparse.Namespace, sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What `inspector.single_file` shows."""
    params: dict[str, Any] = next((event["params"] for event in sides["led"] if event.get("params")), {})
    note = f"temperature {options.temperature:g} · depth {params.get('depth')} · k {params.get('top_k')}"
    return {
        "question": options.question,
        "model": _model(options),
        "note": f"{note} · seed {options.seed}",
        "sides": sides,
    }


def _model(options: argparse.Namespace) -> str:
    try:
        return str(http_client.get_object(f"{options.url}/led/setup", options.api_key)["model"])
    except (http_client.ServerError, KeyError):
        return "a model"


def command(argv: list[str] | None) -> None:
    """Raises CommandError."""
    options = parse_arguments(argv)
    if options.html is not None:
        files.check_file(options.html)
    sides = run(options)
    if options.html is not None:
        files.write_text(options.html, inspector.single_file(recording(options, sides)))
        print(f"written: {options.html}")


def main(argv: list[str] | None = None) -> int:
    return guarded("led_sglang.trace", lambda: command(argv), install="pip install rich")


if __name__ == "__main__":
    sys.exit(main())
