"""The start of a scheduler process: what LED cannot do is refused, then its runtime is made."""

import logging
from typing import TYPE_CHECKING

from sglang.srt.runtime_context import get_parallel

from led_sglang.config.server import ServerConfig, server_config
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.scheduler import runtime
from led_sglang.integration.scheduler.latents.lm_head import head_group, refuse_lora
from led_sglang.integration.scheduler.pipeline.earlier import EarlierStage
from led_sglang.integration.speculative_support import refuse_speculation
from led_sglang.integration.support import in_effect, refuse_features
from led_sglang.integration.topology_support import refuse_topology
from led_sglang.verdict import line_beside

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)


def start(runner: "ModelRunner") -> None:
    """Begin capturing, on the last stage. Raises CaptureError, which stops the server, where LED cannot work."""
    config = server_config()
    assert config is not None
    _refuse_unsupported(config, runner)
    _refuse_another_model(config, runner.model_config)
    if not get_parallel().pp_group.is_last_rank:
        runtime.install(EarlierStage(config, runner))
        return
    current = runtime.Runtime(config, runner)
    runtime.install(current)
    status = current.status()
    logger.info("LED: methods %s; captured layers %s", ", ".join(status["methods"]), status["captured_layers"])
    if verdict := line_beside(runner.model_config.model_path):
        logger.info("LED: %s", verdict)


def share_status(runner: "ModelRunner") -> None:
    """At the end of a start, every stage of a pipeline: the first one reports the last one's status later."""
    current, group = runtime.stage(), get_parallel().pp_group
    if current is None or runner is not current.runner or group.world_size == 1:
        return
    shared = [current.status() if isinstance(current, runtime.Runtime) else None]
    [status] = group.broadcast_object_list(shared, src=group.world_size - 1)
    if isinstance(current, EarlierStage):
        current.last_stage = status


def _refuse_unsupported(config: ServerConfig, runner: "ModelRunner") -> None:
    refuse_features(runner.server_args)
    refuse_speculation(config, in_effect(runner.server_args))
    refuse_topology(config, in_effect(runner.server_args))
    head = getattr(runner.model, "lm_head", None)
    if get_parallel().pp_group.is_last_rank:
        refuse_lora(head)
        head_group(head)


def _refuse_another_model(config: ServerConfig, model_config: "ModelConfig") -> None:
    """The Engine takes its arguments again, after `launch.enable` had some."""
    for what, configured, found in (
        ("layers", config.num_layers, int(model_config.num_hidden_layers)),
        ("tokens in its vocabulary", config.vocab_size, int(model_config.vocab_size)),
    ):
        if configured != found:
            raise CaptureError(
                f"LED was switched on for a model with {configured} {what}, and this one has {found}: give "
                f"launch.enable the arguments of the Engine"
            )
