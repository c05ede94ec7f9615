"""The paper's architectures, each on a running server and recomputed.

Each is started as server_configs are, by `--config` alone, which names the model. Qwen3 is that of `test_exact.py`.
"""

from pathlib import Path

import pytest
import yaml

from led_sglang.testing import led_server
from tests.server import checkpoints
from tests.server.checkpoints import CLOSE_ID, OPEN_ID
from tests.server.clients import Oracle, Request, check, thinking_prompt, words
from tests.server.recompute import MUTATIONS, Query

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

SETTINGS: dict[str, dict[str, object]] = {"mimo": {"trust-remote-code": True}}
MODEL_KEYS = {"qwen3_moe": "model-path", "qwen2": "model_path", "llama": "model", "mimo": "model-path"}  # all are legal


def requests() -> list[Request]:
    queries = [
        Query(),
        Query(depth=12, top_k=4),
        Query(latent_norm=True),
        Query(latent_offset=1),
        Query(temperature=0.0),
    ]
    traced = [Request(thinking_prompt(700 + i), a, num_tokens=8, seed=i) for i, a in enumerate(queries)]
    return [*traced, Request([OPEN_ID, *words(710, 5), CLOSE_ID], num_tokens=4, seed=8)]


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen2", "llama", "mimo"])
def test_architecture(name: str, checkpoint_folder: Path, logs: Path) -> None:
    folder = checkpoints.build(name, checkpoint_folder / name)
    settings = {MODEL_KEYS[name]: str(folder), "dtype": "float32", "led-max-depth": 12, **SETTINGS.get(name, {})}
    limits = {"max-total-tokens": 2048, "context-length": 2048, "max-running-requests": 32}
    config = logs / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings | limits))
    with led_server("--config", str(config), log=logs / f"{name}.log") as client:
        replies = client.together(requests())
        info = client.get("/led/info")
        assert client.get("/get_model_info")["model_path"] == str(folder)
        assert [model["id"] for model in client.get("/v1/models")["data"]] == [str(folder)]
    oracle = Oracle(folder)
    comparison = check(oracle, *replies)
    assert comparison.num_active == 40
    assert comparison.num_explored > 5
    assert max(comparison.depths) > 1
    assert info["captured_layers"] == list(range(1, 12))
    assert info["counters"]["fallbacks"] == info["counters"]["step_failures"] == 0
    for mutation in MUTATIONS.values():
        assert oracle.compare_all(replies[:1], mutation).faults
