"""A model runner in this process, with LED's hooks: what a scheduler process does up to its first request.

Nothing listens, nothing is scheduled: a forward is called, and the capture buffer is read.
"""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from led_sglang.config.server import ServerConfig, export_config

LIMITS = ("--context-length", "2048", "--max-running-requests", "16", "--max-total-tokens", "2048")


def prepare_process() -> None:
    """Import what every model needs, so that a fork of this process has it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # a compiler asks for the GPU that a fork may not have
    export_config(ServerConfig())
    from sglang.srt.plugins import load_plugins

    load_plugins()
    import sglang.benchmark.one_batch
    import sglang.srt.models.registry
    import transformers

    from tests.models import torch_kernels

    torch_kernels.install()
    assert sglang.benchmark.one_batch and sglang.srt.models.registry and transformers


def runner_of(folder: Path, port: int, *arguments: str, max_depth: int = 8, rank: int = 0, **config: Any) -> Any:
    """The model runner of a checkpoint, started as by `led_sglang.launch`; port: of the ranks' rendezvous.

    Raises what a start would.
    """
    from sglang.benchmark import one_batch
    from sglang.srt.server_args import prepare_server_args

    from led_sglang.launch import prepare

    argv = ("--model-path", str(folder), "--dtype", "float32", *LIMITS, *arguments)
    server_args = prepare_server_args(list(argv))
    prepare(ServerConfig(depth=max_depth, max_depth=max_depth, **config), server_args)
    ranks = one_batch.SpawnRanks(
        world_rank=one_batch.spawn_world_rank(server_args, tp_rank=rank, pp_rank=0), gpu_id=rank
    )
    one_batch._set_envs_and_config(server_args)
    one_batch.publish(server_args, role="scheduler", ranks=ranks)
    one_batch._init_process_global_configs()
    runner, _ = one_batch.load_model(server_args, Namespace(nccl_port=port), rank, rank)
    return runner.torch_runner
