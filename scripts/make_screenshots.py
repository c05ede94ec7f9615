#!/usr/bin/env python3
"""Write docs/images/ from a running server (`make serve`): the pictures of the README and of docs/inspector.md.

    .venv/bin/python scripts/make_screenshots.py --url http://127.0.0.1:30000
    .venv/bin/python scripts/make_screenshots.py --terminal typescript --site out/site

The second takes the terminal after a start, recorded by `script -c "make serve" typescript`, and the site of `make
docs`.

The run that is shown is the first seed whose two texts part in the middle and both end right; the open card belongs to
the token where they part.
"""

import argparse
import html
import shutil
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from led_sglang import trace
from training.scoring import final_answer

SLOW_MS = 180_000  # on a busy machine
IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
QUESTION, ANSWER = "What is 17 + 5 * 3?", "32"
SETTINGS = {"q": QUESTION, "t": 1.0, "d": 8, "k": 8, "max": 256}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def tokens(url: str, side: str, seed: int) -> list[dict[str, Any]]:
    request = {
        "messages": [{"role": "user", "content": QUESTION}],
        "sampling": {"temperature": SETTINGS["t"], "max_new_tokens": SETTINGS["max"]},
        "seed": seed,
        "side": side,
    }
    return [event for event in trace.stream(url, request) if "id" in event]


def is_right(side: list[dict[str, Any]]) -> bool:
    return ANSWER in final_answer("".join(token["text"] for token in side))


def pick(url: str) -> tuple[int, int]:
    """A seed whose sides part in the middle and are both right, and the token to open."""
    for seed in range(1, 60):
        led, plain = tokens(url, "led", seed), tokens(url, "plain", seed)
        pairs = zip(led, plain, strict=False)
        parted = next((i for i, (a, b) in enumerate(pairs) if a["id"] != b["id"]), 0)
        is_middle = 0.25 * len(led) < parted < 0.8 * len(led) and trace.is_turn(led[parted])
        if is_middle and is_right(led) and is_right(plain):
            return seed, parted
    raise SystemExit("no seed below 60 parts in the middle")


def run(page: Page, url: str, **settings: Any) -> None:
    page.goto(f"{url}/led/#{urlencode({**SETTINGS, **settings})}")
    page.wait_for_selector("#examples button")
    page.click("#run")
    page.wait_for_selector("body:not(.running) .tokens .t")
    page.wait_for_timeout(500)


def screen_of(typescript: Path) -> list[str]:
    """What a terminal shows at the end of a recording: of a line that was written over, the last."""
    text = typescript.read_bytes().decode(errors="replace").split("\n", 1)[1]  # the first line is script's own
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1].removeprefix("\x1b[K") for line in text.split("\n")]
    return [line for line in lines if not line.startswith("Script done")]


def terminal(browser: Browser, typescript: Path) -> None:
    rows = html.escape("\n".join(["$ make serve", *screen_of(typescript)]).strip())
    page = browser.new_page(viewport={"width": 1000, "height": 200})
    style = "margin:0;padding:20px;background:#16181d;color:#d8dee9;font:14px/1.5 monospace;white-space:pre-wrap"
    page.set_content(f'<body style="margin:0"><pre style="{style}">{rows}</pre>')
    page.screenshot(path=IMAGES / "terminal.png", full_page=True, timeout=SLOW_MS)


def site(browser: Browser, folder: Path) -> None:
    """Over HTTP: a browser searches no page of a file:// address."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
    page.set_default_timeout(SLOW_MS)
    page.goto(f"http://127.0.0.1:{server.server_port}/how-to/is-led-on.html")
    page.fill(".md-search__input", "latent_offset")
    page.wait_for_selector(".md-search-result__item")
    page.wait_for_timeout(1000)
    page.screenshot(path=IMAGES / "site.png", timeout=SLOW_MS)


def inspector(browser: Browser, url: str) -> None:
    seed, at = pick(url)
    page = browser.new_page(viewport={"width": 1280, "height": 1120}, color_scheme="light")
    run(page, url, seed=seed)
    page.locator('.side[data-side="led"] .w').nth(at).hover()
    page.screenshot(path=IMAGES / "exploration.png")
    page.mouse.move(2, 2)
    run(page, url, seed=seed, n=6)
    page.locator("#paths").screenshot(path=IMAGES / "paths.png")
    phone = browser.new_context(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, has_touch=True, is_mobile=True,
        color_scheme="dark",
    ).new_page()  # fmt: skip
    run(phone, url, seed=seed)
    phone.locator('.side[data-side="led"] .w').nth(at).tap()
    phone.wait_for_timeout(300)
    phone.screenshot(path=IMAGES / "phone-dark.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=trace.DEFAULT_URL, help="of the server whose inspector is shown")
    parser.add_argument("--terminal", type=Path, help="a recording of a start; then the inspector is left alone")
    parser.add_argument("--site", type=Path, help="the folder of the built site; then the inspector is left alone")
    args = parser.parse_args()
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=ARGUMENTS)
        if args.terminal:
            terminal(browser, args.terminal)
        if args.site:
            site(browser, args.site)
        if not (args.terminal or args.site):
            inspector(browser, args.url)
        browser.close()
    for image in sorted(IMAGES.glob("*.png")):
        print(f"{image.name}: {image.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
