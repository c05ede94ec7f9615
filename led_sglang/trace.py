"""Exploration in the terminal: ask a running LED server and see every token's confidence, depth and candidates.

    python -m led_sglang.trace "What is 17 + 5 * 3?"
    python -m led_sglang.trace "What is 17 + 5 * 3?" --candidates --html out.html

A client: it talks HTTP to `--url` and needs neither torch nor SGLang.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from led_sglang import inspector

DEFAULT_URL = "http://127.0.0.1:30000"


class TraceError(RuntimeError):
    """The server could not be reached or refused; the message says what to do."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m led_sglang.trace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the server (default: {DEFAULT_URL})")
    parser.add_argument("--api-key", default=None, help="where the server was started with one")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--depth", type=int, default=None, help="exploration depth (default: the server's)")
    parser.add_argument("--top-k", type=int, default=None, help="candidates (default: the server's)")
    parser.add_argument("--phase", choices=("think", "all"), default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=1, help="in the file of --html; the terminal shows the first")
    parser.add_argument("--candidates", action="store_true", help="one line of candidates for every explored token")
    parser.add_argument("--no-color", action="store_true")
    parser.add_argument("--html", type=Path, default=None, help="also write a self-contained page to this file")
    return parser.parse_args(argv)


def body(options: argparse.Namespace, side: str) -> dict[str, Any]:
    """The request to POST /led/stream that the options describe."""
    asked = {"depth": options.depth, "top_k": options.top_k, "phase": options.phase}
    return {
        "messages": [{"role": "user", "content": options.question}],
        "sampling": {"temperature": options.temperature, "max_new_tokens": options.max_tokens},
        "led": {key: value for key, value in asked.items() if value is not None},
        "seed": options.seed,
        "n": options.samples,
        "side": side,
    }


def stream(url: str, request: dict[str, Any], api_key: str | None = None) -> Iterator[dict[str, Any]]:
    """The events of one side as they arrive. Raises TraceError."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.stream("POST", f"{url}/led/stream", json=request, headers=headers, timeout=300) as response:
            if response.status_code != 200:
                raise TraceError(_refusal(response))
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise TraceError(event["error"])
                    yield event
    except httpx.HTTPError as error:
        raise TraceError(f"no answer from {url} ({error or type(error).__name__}): start it with make serve") from error
    raise TraceError("the connection ended before the answer did")


def _refusal(response: httpx.Response) -> str:
    response.read()
    if response.status_code == 401:
        return "the server wants an API key: --api-key"
    if response.status_code == 404:
        return f"{response.url} is not there: is it an LED server?"
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text:.200}"


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

        self.console = Console(no_color=no_color, highlight=False, soft_wrap=True)

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
    """Ask, print as it arrives, and return the events of both sides (plain: only for --html)."""
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
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    try:
        return str(httpx.get(f"{options.url}/led/setup", headers=headers, timeout=30).json()["model"])
    except (httpx.HTTPError, ValueError, KeyError):
        return "a model"


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    options.url = options.url.rstrip("/")
    try:
        sides = run(options)
        if options.html is not None:
            options.html.write_text(inspector.single_file(recording(options, sides)), encoding="utf-8")
            print(f"written: {options.html}")
    except TraceError as error:
        print(f"led_sglang.trace: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"led_sglang.trace: {error}: pip install rich", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
