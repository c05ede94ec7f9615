"""Speculative decoding: which algorithms LED works inside of, and what a start must not combine with them."""

from typing import Any

from sglang.srt.environ import envs

from led_sglang.config.checks import LedParamError, show
from led_sglang.config.methods import METHOD_TABLE
from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import CaptureError
from led_sglang.integration.release_support import refuse_release

# Those of SGLang whose drafts are accepted by `eagle_sample` alone.
SUPPORTED = ("NGRAM", "EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "FROZEN_KV_MTP")
REFUSED = {
    "DFLASH": "it accepts drafts by a function of its own",
    "DSPARK": "it accepts drafts by a function of its own, inside CUDA graphs too",
    "UNO": "it samples the first token of a step before the drafts are verified",
}


def refuse_speculation(config: ServerConfig, args: Any) -> None:
    """Raises CaptureError or LedParamError; args: as `support.in_effect` gives them."""
    name = getattr(args, "speculative_algorithm", None)
    algorithm = str(name or "NONE").upper()
    if algorithm == "NONE":  # as SGLang spells it too
        return
    if algorithm not in SUPPORTED:
        why = REFUSED.get(algorithm, "nobody has looked at how it accepts drafts")
        raise CaptureError(
            f"LED does not work with --speculative-algorithm {name}: {why}. Use one of {', '.join(SUPPORTED)}, or "
            f"start with --led disabled"
        )
    refuse_release(f"--speculative-algorithm {name}")
    enabled = [METHOD_TABLE[method] for method in config.methods]
    others = [method.name for method in enabled if method.rewrite or method.feeds_mixtures]
    if others:
        raise LedParamError(
            f"--led-methods {show(others[0])} does not work with --speculative-algorithm {name}: drafts are verified "
            f"with LED's tokens or the engine's. Leave out {', '.join(others)}, or drop --speculative-algorithm"
        )
    if config.form == "one_pass":
        raise LedParamError(
            f"--led-form one_pass does not work with --speculative-algorithm {name}: only nodes that explore need "
            f"their latents. Use auto"
        )
    if envs.SGLANG_SIMULATE_ACC_LEN.get() > 0:
        raise CaptureError(
            f"LED does not work with SGLANG_SIMULATE_ACC_LEN={envs.SGLANG_SIMULATE_ACC_LEN.get()}: tokens would be "
            f"accepted that nobody has drawn. Unset it or start with --led disabled"
        )
