"""SGLang's HTTP app with LED's part, as each of several tokenizer workers imports it (--tokenizer-worker-num).

A worker is a fresh process that imports an app by name and nothing else of ours: what a start of one process does in
`launch`, this import does.
"""

from typing import TYPE_CHECKING

from led_sglang.serving.imports import collector_paused

if TYPE_CHECKING:
    from fastapi import FastAPI


def make() -> "FastAPI":
    """SGLang's app, hooked and checked. Raises HookError: the worker does not start."""
    with collector_paused():
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.entrypoints import http_server

        from led_sglang.integration.hooks import selfcheck
        from led_sglang.integration.http.app import attach
        from led_sglang.integration.http.responses import ANSWERS
    selfcheck.verify("http")
    attach(http_server.app)
    ANSWERS.share()
    return http_server.app


app = make()
