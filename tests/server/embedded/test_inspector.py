"""The inspector in a real browser against a real server."""

import contextlib
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from led_sglang import inspector, trace
from led_sglang.inspector.page import Page
from led_sglang.serving.ports import HeldPort
from tests.server.servers import Server

playwright = pytest.importorskip("playwright.sync_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
QUESTION = "What is 17 + 5 * 3?"
HOSTILE = '<script>window.hit = 1</script><img src="x" onerror="window.hit = 1">'
SETTINGS = "t=1&seed=3&d=8&k=8&n=1&max=200"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        if os.environ.get("LED_REQUIRE_BROWSER") == "1":
            pytest.fail("no chromium on this machine: scripts/make_browser installs it")
        pytest.skip("no chromium on this machine: scripts/make_browser installs it")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    yield from opened(browser)


def opened(browser: Any, **options: Any) -> Iterator[Any]:
    """A page in a context of its own; anything that the page's scripts complain of fails the test."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(120_000)  # ms; a busy machine
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if "Content Security Policy" in m.text else None)
    yield page
    context.close()
    assert not faults


def visit(page: Any, server: Any, settings: str = SETTINGS) -> None:
    page.goto(f"{server.url}/led/#{settings}")
    page.wait_for_selector("#examples button")


def run(page: Any, question: str | None = QUESTION) -> None:
    if question is not None:
        page.fill("#question", question)
    page.click("#run")
    finished(page)


def finished(page: Any) -> None:
    page.wait_for_selector("body:not(.running) .tokens .t")
    page.wait_for_timeout(250)  # the summary is drawn in the next frame


def expected(server: Server, side: str = "led", **more: Any) -> list[dict[str, Any]]:
    """The tokens that the page's own request gives."""
    request: dict[str, Any] = {
        "messages": [{"role": "user", "content": QUESTION}],
        "sampling": {"temperature": 1, "max_new_tokens": 200},
        "led": {"depth": 8, "top_k": 8, "phase": "think"},
        "seed": 3,
        "side": side,
    }
    return [event for event in trace.stream(server.url, {**request, **more}) if "id" in event]


def ids_shown(page: Any, side: str) -> list[str]:
    """The texts of the tokens as the page shows them."""
    return page.eval_on_selector_all(
        f'.side[data-side="{side}"] .t', "nodes => nodes.map(n => n.textContent.replaceAll('↵', ''))"
    )


def figure(page: Any, side: str, name: str) -> str:
    return page.text_content(f'.side[data-side="{side}"] [data-figure="{name}"] dd')


def test_a_run_shows_both_sides_as_the_server_streams_them(page: Any, embedded_server: Server) -> None:
    visit(page, embedded_server)
    run(page)
    for side in ("led", "plain"):
        tokens = expected(embedded_server, side)
        assert ids_shown(page, side) == [token["text"] for token in tokens]
        assert figure(page, side, "tokens") == str(len(tokens))
        assert float(figure(page, side, "tokens/s")) > 0
    led = expected(embedded_server)
    explored = [token for token in led if token["explored"]]
    assert page.locator('.side[data-side="led"] .t.x').count() == len(explored) > 0
    decided = [token for token in led if token["depth"] is not None]
    share = 100 * len(explored) / len(decided)
    assert abs(float(figure(page, "led", "explored").rstrip(" %")) - share) <= 0.5
    mean = sum(token["depth"] for token in explored) / len(explored)
    assert abs(float(figure(page, "led", "mean depth")) - mean) <= 0.051
    assert page.locator("#trees svg").count() == 1


def test_the_rate_is_the_servers_however_late_the_page_reads(page: Any, embedded_server: Server) -> None:
    visit(page, embedded_server)
    bodies: dict[str, str] = {}

    def at_once(route: Any) -> None:
        answer = route.fetch()
        bodies[route.request.post_data_json["side"]] = answer.text()
        route.fulfill(response=answer)

    page.route("**/led/stream", at_once)
    run(page)
    events = map(json.loads, re.findall(r"^data: (\{.*\})$", bodies["led"], re.M))
    tokens = [event for event in events if "id" in event]
    rate = 1000 * (len(tokens) - 1) / (tokens[-1]["at"] - tokens[0]["at"])
    assert float(figure(page, "led", "tokens/s")) == pytest.approx(rate, abs=0.51)


def test_hovering_a_token_shows_its_trace(page: Any, embedded_server: Server) -> None:
    visit(page, embedded_server)
    run(page)
    tokens = expected(embedded_server)
    at = next(i for i, token in enumerate(tokens) if token["explored"])
    token = tokens[at]
    page.locator('.side[data-side="led"] .t').nth(at).hover()
    card = page.locator("#detail")
    card.wait_for(state="visible")
    rows = card.locator("tr[data-id]")
    shown = [(int(row.get_attribute("data-id")), meters(row)) for row in rows.all()]
    columns = list(zip([c[0] for c in token["candidates"]], token["exploit"], token["explore"], strict=True))
    assert [c for c, _ in shown] == [c for c, p, q in columns if p or q]
    for (_, bars), p, q in zip(shown, token["exploit"], token["explore"], strict=False):
        assert bars == pytest.approx([p, q], abs=1e-5)  # last bits depend on what is cached
    assert int(card.locator("tr.chosen").get_attribute("data-id")) == token["id"]
    assert card.locator("[data-fact=entropy]").text_content() == f"{token['entropy']:.2f} nats"
    assert card.locator(".plot").get_attribute("data-depth") == str(token["depth"])
    assert card.locator(".plot circle").count() == 8
    assert f"explored, depth {token['depth']}" in card.text_content()
    is_favourite = token["candidates"][0][0] == token["id"]
    assert ("prefers it too" if is_favourite else "would have preferred") in card.text_content()
    page.mouse.move(5, 5)
    card.wait_for(state="hidden")


def meters(row: Any) -> list[float]:
    return [float(meter.get_attribute("data-p")) for meter in row.locator(".meter").all()]


def test_depth_is_changed_with_its_slider(page: Any, embedded_server: Server) -> None:
    visit(page, embedded_server)
    page.focus("#depth")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert page.text_content('output[for="depth"]') == "3"
    run(page)
    assert "depth 3" in page.text_content('.side[data-side="led"] .applied')
    assert ids_shown(page, "led") == [t["text"] for t in expected(embedded_server, led={"depth": 3, "top_k": 8})]
    page.locator('.side[data-side="led"] .t').first.hover()
    assert page.locator("#detail .plot circle").count() == 3


def test_a_share_link_restores_the_run(page: Any, browser: Any, embedded_server: Server) -> None:
    visit(page, embedded_server, "t=0.8&seed=11&d=5&k=6&n=2&max=90&phase=all")
    run(page, "Compute 3 * 4 & 5 # 6?")
    page.click("#share")
    link = page.url
    before = ids_shown(page, "led")
    for other in opened(browser):
        other.goto(link)
        other.wait_for_selector("#examples button")
        assert other.input_value("#question") == "Compute 3 * 4 & 5 # 6?"
        fields = {"temperature": "0.8", "depth": "5", "top_k": "6", "n": "2", "seed": "11", "tokens": "90"}
        assert {name: other.input_value(f"#{name}") for name in fields} == fields
        assert other.input_value("#phase") == "all"
        run(other, None)
        assert ids_shown(other, "led") == before


def test_stopping_ends_the_work_on_the_server_too(page: Any, embedded_server: Server) -> None:
    visit(page, embedded_server, "t=1&seed=3&n=4")
    page.route("**/led/stream", endless)
    page.click("#run")
    page.locator(".tokens .t").nth(20).wait_for()
    page.click("#stop")
    finished(page)
    assert page.text_content("#status") == "Stopped."
    assert page.is_hidden("#alert") and page.is_hidden("#stop") and page.is_enabled("#run")
    assert page.locator(".tokens .t").count() > 20
    time.sleep(1.5)
    first = num_rows(embedded_server)
    time.sleep(1)
    assert num_rows(embedded_server) == first


def endless(route: Any) -> None:
    request = json.loads(route.request.post_data)
    request["sampling"].update(max_new_tokens=1800, ignore_eos=True)
    route.continue_(post_data=json.dumps(request))


def num_rows(server: Server) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=60, follow_redirects=True).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("led_sglang_rows_total"))


class Wire:
    """Passes bytes between a port of its own and the server's, until it is cut."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = HeldPort()
        self.url = f"http://127.0.0.1:{self.port.number}"
        self.sockets: list[socket.socket] = []
        self.listen()

    def listen(self) -> None:
        self.door = socket.create_server(("127.0.0.1", self.port.number))
        threading.Thread(target=self.accept, args=(self.door,), daemon=True).start()

    def accept(self, door: socket.socket) -> None:
        while True:
            try:
                near = door.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            self.sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self.pump, args=(source, sink), daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            shut(end)

    def cut(self) -> None:
        for end in (self.door, *self.sockets):
            shut(end)
            end.close()
        self.sockets.clear()


def shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def test_a_server_that_goes_away_is_said_and_retried(page: Any, embedded_server: Server) -> None:
    wire = Wire(embedded_server.port)
    visit(page, wire)
    page.route("**/led/stream", endless)
    page.fill("#question", QUESTION)
    page.click("#run")
    page.locator(".tokens .t").nth(10).wait_for()
    wire.cut()
    page.wait_for_selector("#alert:not([hidden])")
    assert "connection" in page.text_content("#alert-text").lower()
    assert page.locator(".tokens .t").count() > 10  # kept
    page.unroute("**/led/stream")
    page.click("#retry")
    page.wait_for_selector("#alert:not([hidden])")
    assert page.text_content("#alert-text") == "The server does not answer. Is it running?"
    wire.listen()
    page.click("#retry")
    finished(page)
    assert page.is_hidden("#alert")
    assert ids_shown(page, "led") == [token["text"] for token in expected(embedded_server)]
    wire.cut()
    wire.port.release()


def test_a_page_opened_while_the_server_is_gone_recovers(page: Any, embedded_server: Server) -> None:
    page.route("**/led/setup", lambda route: route.abort())
    page.goto(f"{embedded_server.url}/led/")
    page.wait_for_selector("#alert:not([hidden])")
    page.unroute("**/led/setup")
    page.click("#retry")
    page.wait_for_selector("#examples button")
    assert page.is_hidden("#alert")


def test_a_refusal_is_shown_in_the_servers_words(page: Any, embedded_server: Server) -> None:
    visit(page, embedded_server)
    page.route(
        "**/led/stream",
        lambda route: route.continue_(post_data=route.request.post_data.replace('"depth":8', '"depth":99')),
    )
    page.click("#run")
    page.wait_for_selector("#alert:not([hidden])")
    assert "custom_params.led.depth must be an integer in [1, 12]" in page.text_content("#alert-text")


def hostile_events() -> str:
    shared = {"i": 0, "think": True, "explored": True, "depth": 2, "confidence": 0.5, "entropy": 1.0, "logprob": -1.0}
    numbers = {"exploit": [0.6, 0.4], "explore": [0.5, 0.5], "depth_entropy": [0.9, 1.0]}
    token = {**shared, **numbers, "id": 1, "text": HOSTILE, "candidates": [[0, HOSTILE], [1, HOSTILE]]}
    answer = {**dict.fromkeys(token), "i": 0, "id": 2, "think": False, "explored": False, "text": HOSTILE}
    events = [json.dumps(event) for event in (token, answer, {"i": 0, "end": "stop", "params": None, "stats": None})]
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])


def is_inert(page: Any) -> None:
    assert page.evaluate("window.hit") is None
    assert page.locator("main script, main img, #detail script, #detail img").count() == 0


def test_markup_in_the_prompt_and_in_the_output_is_text(page: Any, embedded_server: Server) -> None:
    visit(page, embedded_server)
    run(page, HOSTILE)
    is_inert(page)
    page.route(
        "**/led/stream",
        lambda route: route.fulfill(status=200, content_type="text/event-stream", body=hostile_events()),
    )
    run(page, HOSTILE)
    assert ids_shown(page, "led") == [HOSTILE, HOSTILE]
    page.locator('.side[data-side="led"] .t').first.hover()
    assert HOSTILE.replace(" ", "␣") in page.text_content("#detail")
    assert "onerror" in page.text_content("#trees")
    is_inert(page)


def test_a_file_to_send_is_inert_too_and_asks_nobody(page: Any, tmp_path: Path) -> None:
    events = [json.loads(line[6:]) for line in hostile_events().split("\n\n") if line.startswith("data: {")]
    record = {"question": HOSTILE, "model": HOSTILE, "note": HOSTILE, "sides": {"led": events, "plain": events}}
    file = tmp_path / "out.html"
    file.write_text(inspector.single_file(record), encoding="utf-8")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector(".tokens .t")
    page.locator('.side[data-side="led"] .t').first.hover()
    page.wait_for_selector("#detail:not([hidden]) .plot")
    assert page.is_hidden("#ask") and page.text_content("#recorded p") == HOSTILE
    assert requests == [file.as_uri()]
    is_inert(page)


def test_everything_is_reached_with_the_keyboard(page: Any, embedded_server: Server) -> None:
    visit(page, embedded_server)

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab never reached {selector}")

    tab_to("#question")
    page.keyboard.press("Control+a")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Control+Enter")
    finished(page)
    for selector in ("#depth", "#seed", "#run"):
        tab_to(selector)
    tab_to('.side[data-side="led"] .t')
    assert page.is_visible("#detail")
    tokens = expected(embedded_server)
    page.keyboard.press("ArrowRight")
    assert focused(page) == 1
    page.keyboard.press("Home")
    page.keyboard.press("x")
    assert focused(page) == next(i for i, token in enumerate(tokens) if i and token["explored"])
    assert "explored, depth" in page.text_content("#detail")
    page.keyboard.press("End")
    assert focused(page) == len(tokens) - 1
    page.keyboard.press("ArrowUp")
    assert focused(page) < len(tokens) - 1
    page.keyboard.press("Escape")
    assert page.is_hidden("#detail")


def focused(page: Any) -> int:
    return int(page.evaluate("document.activeElement.dataset.at"))


def test_several_samples_and_where_they_part(page: Any, embedded_server: Server) -> None:
    visit(page, embedded_server, "t=1.2&seed=3&n=4&max=120")
    run(page)
    assert page.locator("#trees svg").count() == 2
    assert page.locator('.side[data-side="led"] .tabs button').count() == 4
    page.locator('.side[data-side="led"] .tabs button').nth(2).click()
    third = expected(embedded_server, seed=5, sampling={"temperature": 1.2, "max_new_tokens": 120})
    assert ids_shown(page, "led") == [token["text"] for token in third]
    fork = page.locator("#trees .tree").first.locator(".fork").first
    at = int(fork.get_attribute("data-at"))
    fork.focus()
    page.keyboard.press("Enter")
    assert focused(page) == at


def luminance(page: Any, selector: str, name: str) -> float:
    parts = page.eval_on_selector(selector, f"n => getComputedStyle(n)['{name}'].match(/[\\d.]+/g).map(Number)")
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (p / 255 for p in parts[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_legible(browser: Any, embedded_server: Server, scheme: str) -> None:
    for page in opened(browser, color_scheme=scheme):
        visit(page, embedded_server)
        run(page)
        background = luminance(page, "body", "backgroundColor")
        assert (background < 0.1) == (scheme == "dark")
        card = luminance(page, ".side", "backgroundColor")
        for selector in (".tokens", ".side .note", "#question", ".summary dt", "#led-title"):
            ink = luminance(page, selector, "color")
            contrast = (max(ink, card) + 0.05) / (min(ink, card) + 0.05)
            assert contrast >= 4.5, (selector, contrast)
        page.click("#theme")
        assert (luminance(page, "body", "backgroundColor") < 0.1) != (scheme == "dark")


def test_it_fits_a_phone(browser: Any, embedded_server: Server) -> None:
    for page in opened(browser, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True):
        visit(page, embedded_server)
        page.fill("#question", QUESTION)
        page.tap("#run")
        finished(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator('.side[data-side="led"] .t.x').first.tap()
        box = page.locator("#detail").bounding_box()
        assert box["x"] >= 0 and box["width"] <= 360 and box["y"] + box["height"] <= 741
        page.locator("#detail .close").tap()
        assert page.is_hidden("#detail")


def test_the_page_is_public_and_only_the_page() -> None:
    behind = Page(JSONResponse({"error": "Unauthorized"}, 401))  # SGLang's key check, as the page sees it
    client = TestClient(behind)
    for name in ("", *inspector.TYPES):
        answer = client.get(f"/led/{name}")
        assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.get("/led", follow_redirects=False).headers["location"] == "led/"
    for path in ("/led/setup", "/led/info", "/led/%2e%2e/pyproject.toml", "/led/__init__.py", "/v1/models"):
        assert client.get(path).status_code == 401, path
    assert client.post("/led/stream", json={}).status_code == 401


def test_the_page_asks_for_a_key_and_sends_it(page: Any, embedded_server: Server) -> None:
    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": "Unauthorized"})

    page.route("**/led/setup", guard)
    page.route("**/led/stream", guard)
    page.goto(f"{embedded_server.url}/led/")
    page.wait_for_selector("#key-field:not([hidden])")
    assert "API key" in page.text_content("#alert-text")
    page.fill("#key", "sesame")
    run(page)
    assert page.is_hidden("#alert") and "sesame" not in page.url
