"""Every route of the installed SGLang that takes a body is one whose parameters we read or refuse, or makes no text."""

import pytest
from starlette.routing import BaseRoute

from led_sglang.integration.http.app import ROUTES_OF_VARIABLES
from led_sglang.integration.http.endpoints import ENDPOINTS

# A new route of SGLang belongs here, or in `endpoints.ENDPOINTS` if it generates text.
MAKE_NO_TEXT = {
    "embeddings, scores and labels": """
        /encode /classify /v1/embeddings /v1/classify /v1/score /v1/rerank /v1/decisions /v1/systemone
    """,
    "tokens and parsers": """
        /tokenize /v1/tokenize /detokenize /v1/detokenize /v1/messages/count_tokens /parse_function_call
        /separate_reasoning /api/show
    """,
    "weights and memory": """
        /update_weights_from_disk /update_weights_from_tensor /update_weights_from_distributed /update_weights_from_ipc
        /init_weights_send_group_for_remote_instance /send_weights_to_remote_instance /init_weights_update_group
        /destroy_weights_update_group /begin_weight_update /end_weight_update /update_weight_version
        /get_weights_by_name /weights_checker /release_memory_occupation /resume_memory_occupation /load_lora_adapter
        /load_lora_adapter_from_tensors /unload_lora_adapter
    """,
    "sessions and requests under way": """
        /open_session /close_session /abort_request /v1/responses/{response_id}/cancel /pause_generation
        /continue_generation
    """,
    "the server itself": """
        /set_internal_state /flush_cache /add_external_corpus /remove_external_corpus /hicache/storage-backend
        /hicache/storage-backend/clear /start_profile /stop_profile /set_trace_level /freeze_gc /slow_down
        /start_expert_distribution_record /stop_expert_distribution_record /dump_expert_distribution_record
        /pd_role_switch /configure_logging /dumper/{method} /scale_elastic_ep
    """,
}


def routes(of: list[BaseRoute]) -> list[BaseRoute]:
    """Those of included routers too."""
    found: list[BaseRoute] = []
    for route in of:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        found.extend(routes(inner) if inner else [route])
    return found


@pytest.fixture(scope="module")
def served() -> list[BaseRoute]:
    from sglang.srt.entrypoints.http_server import app

    return routes(app.routes)


def test_every_route_with_a_body_is_known(served: list[BaseRoute]) -> None:
    with_body = {route.path for route in served if getattr(route, "methods", None) and route.methods - {"GET", "HEAD"}}
    quiet = {path for paths in MAKE_NO_TEXT.values() for path in paths.split()}
    assert set(ENDPOINTS) <= with_body
    assert with_body - quiet - set(ENDPOINTS) == set(), (
        "does it generate text? Then parameters are read or refused there"
    )
    assert not quiet & set(ENDPOINTS)


def test_every_websocket_is_known(served: list[BaseRoute]) -> None:
    """Realtime transcription: its events are checked against a schema that has no sampling parameters."""
    assert {route.path for route in served if "WebSocket" in type(route).__name__} <= {"/v1/realtime"}


def test_paths_that_sglang_takes_from_variables_are_found_by_their_functions(served: list[BaseRoute]) -> None:
    functions = {getattr(getattr(route, "endpoint", None), "__name__", ""): route.path for route in served}
    assert {name: functions.get(name) for name in ROUTES_OF_VARIABLES} == ROUTES_OF_VARIABLES
