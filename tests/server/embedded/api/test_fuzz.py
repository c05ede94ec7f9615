"""300 bad requests drawn from the server's own OpenAPI document (5,000: `python -m benchmarks.fuzz`)."""

import httpx
import pytest

from benchmarks.fuzz import fuzz
from tests.server.servers import Server

pytestmark = pytest.mark.server


def test_openapi_describes_our_parameters(http: httpx.Client) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    for name in ("ChatCompletionRequest", "CompletionRequest"):
        assert "#/components/schemas/LedParams" in str(schemas[name]["properties"]["custom_params"])


async def test_every_bad_request_is_refused(embedded_server: Server) -> None:
    found = await fuzz(embedded_server.url, num_requests=300, seed=7)
    assert found["num_faults"] == 0, found["faults"]
    assert sum(found["statuses"].values()) == 300
