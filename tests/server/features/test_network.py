"""Who may ask: the API key and CORS."""

import httpx
import pytest

from tests.server.api import CHAT, body
from tests.server.servers import Server

pytestmark = pytest.mark.server
ORIGIN = {"origin": "https://somewhere.example"}


@pytest.mark.parametrize("path", ["/led/info", "/led/setup", "/v1/models"])
def test_leds_routes_need_the_api_key_too(features_server: Server, http: httpx.Client, path: str) -> None:
    assert httpx.get(features_server.url + path).status_code == 401
    assert httpx.get(features_server.url + path, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert http.get(path).status_code == 200


def test_strangers_are_turned_away_before_their_body_is_read(features_server: Server) -> None:
    """401 for a body that would be 400: the parameters were not looked at."""
    answer = httpx.post(features_server.url + CHAT, json=body(CHAT, {"depth": 99}))
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/health", "/led/"])
def test_probes_and_the_inspectors_page_need_no_key(features_server: Server, path: str) -> None:
    """The page holds no data; it asks for the key before it asks the server for any."""
    assert httpx.get(features_server.url + path).status_code == 200


def test_a_browser_may_read_answers_and_refusals(http: httpx.Client) -> None:
    """SGLang allows every origin; LED's routes and refusals are no exception."""
    requested = {**ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    assert http.options(CHAT, headers=requested).status_code == 200
    refused = http.post(CHAT, json=body(CHAT, {"depth": 99}), headers=ORIGIN)
    assert refused.status_code == 400
    for answer in (refused, http.get("/led/info", headers=ORIGIN)):
        assert answer.headers["access-control-allow-origin"] in ("*", ORIGIN["origin"])
