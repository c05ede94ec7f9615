"""Clients of the shared server."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.server.servers import Server

LIMIT_S = 120.0


@pytest.fixture(scope="package")
def http(embedded_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=embedded_server.url, timeout=LIMIT_S) as client:
        yield client


@pytest.fixture(scope="package")
def openai(embedded_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{embedded_server.url}/v1", api_key="none", timeout=LIMIT_S, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_openai(embedded_server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{embedded_server.url}/v1", api_key="none", timeout=LIMIT_S, max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def async_http(embedded_server: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=embedded_server.url, timeout=LIMIT_S, limits=limits) as client:
        yield client
