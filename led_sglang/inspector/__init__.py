"""The inspector's page: static files, no build step, served at /led/ and inlined into `led_sglang.trace --html`."""

import json
from pathlib import Path
from typing import Any

__all__ = ["SCRIPTS", "TYPES", "read", "single_file"]

FOLDER = Path(__file__).parent
SCRIPTS = ("view.js", "paths.js", "app.js")
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    **dict.fromkeys(SCRIPTS, "text/javascript; charset=utf-8"),
}


def read(name: str) -> bytes:
    """One file of the page. Raises KeyError for a name that is not one of them."""
    TYPES[name]
    return (FOLDER / name).read_bytes()


def single_file(recording: dict[str, Any]) -> str:
    """The page with everything inlined and a recorded run in place of a server: a file to send to someone."""
    page = read("index.html").decode()
    style = read("style.css").decode()
    data = json.dumps(recording, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    page = page.replace('<link rel="stylesheet" href="style.css">', f"<style>\n{style}</style>")
    for name in SCRIPTS:
        page = page.replace(f'<script src="{name}" defer></script>\n', "")
    scripts = "".join(f"<script>\n{read(name).decode()}</script>\n" for name in SCRIPTS)
    embedded = f'<script type="application/json" id="recording">{data}</script>\n{scripts}'
    return page.replace("</body>", f"{embedded}</body>")
