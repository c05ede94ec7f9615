"""Is LED on? Of a running server, by one request that has to be decoded with LED; or of a start, before it.

    led-sglang check --url http://127.0.0.1:30000    asks the server
    led-sglang check --model-path MODEL              as `python -m led_sglang.launch --check` with these arguments

Exit status: 0: LED decodes; 1: it does not, or no answer; 2: bad arguments or a start that would be refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from led_sglang.cli import arguments, http_client
from led_sglang.cli.endings import CommandError, guarded

__all__ = ["ask", "main", "report"]

QUESTION = "What is 17 + 5 * 3?"
NUM_TOKENS = 64


def ask(url: str, api_key: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """/led/info, then `meta_info` of one request that turns LED on. Raises CommandError."""
    try:
        info = http_client.get_object(f"{url}/led/info", api_key)
    except http_client.ServerError as error:
        if error.status != 404:
            raise
        raise CommandError(
            f"LED is off: {url} has no /led/info: stock SGLang, or started with --led disabled"
        ) from None
    model = http_client.get_object(f"{url}/v1/models", api_key)["data"][0]["id"]
    request = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": NUM_TOKENS,
        "custom_params": {"led": True},
        "return_meta_info": True,
    }
    answer = http_client.json_object(http_client.post(f"{url}/v1/chat/completions", request, api_key))
    return info, answer["choices"][0].get("meta_info") or {}


def report(info: dict[str, Any], meta: dict[str, Any]) -> tuple[list[str], str | None]:
    """Lines for a person, and why LED does not decode; None where it does."""
    hooks, defaults = info["hooks"], info["defaults"]
    num_verified = sum(bool(hook["verified"]) for hook in hooks.values())
    stats = meta.get("led_stats") or {}
    parameters = meta.get("led_params") or {}
    thinking, decided = stats.get("thinking_tokens", 0), stats.get("led_tokens", 0)
    lines = [
        f"versions  {', '.join(f'{name} {version}' for name, version in info['versions'].items())}",
        f"hooks     {num_verified} of {len(hooks)} verified",
        f"markers   {info['markers']['open']['text']!r} to {info['markers']['close']['text']!r}",
        f"default   {'on' if defaults['led'] else 'off: only requests that ask'}; depth {defaults['depth']}, "
        f"k {defaults['top_k']}, phase {defaults['phase']}",
        f"applied   {', '.join(f'{key} {value}' for key, value in parameters.items()) or 'nothing'}",
        f"request   {thinking} thinking tokens, {decided} decided by LED, {stats.get('explored_tokens', 0)} explored, "
        f"{stats.get('fallbacks', 0)} fallbacks",
    ]
    if num_verified < len(hooks):
        return (
            lines,
            f"hooks that are not verified: {', '.join(h for h, hook in hooks.items() if not hook['verified'])}",
        )
    if not parameters:
        return lines, "the answer does not echo led_params: something between here and the server drops custom_params"
    if not thinking:
        return lines, "no token was inside a thinking phase: the markers are not the model's, or it does not think"
    if not decided:
        return lines, "every thinking token fell back to the engine's own: see the server's log"
    return lines, None


def _running(url: str, api_key: str | None) -> int:
    lines, fault = report(*ask(url, api_key))
    print("\n".join(lines))
    if fault is not None:
        raise CommandError(f"LED is off: {fault}")
    print("LED is on.")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    if not any(word.split("=")[0] == "--url" for word in given) and given[:1] not in (["--help"], ["-h"]):
        from led_sglang.launch import main as launch

        return launch([*given, "--check"])
    parser = argparse.ArgumentParser(
        prog="led-sglang check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", type=arguments.url, help="of a running server; without it a start is checked")
    parser.add_argument("--api-key", type=arguments.api_key, help="where the server was started with one")
    options = parser.parse_args(given)
    return guarded("led-sglang check", lambda: _running(options.url, options.api_key))


if __name__ == "__main__":
    sys.exit(main())
