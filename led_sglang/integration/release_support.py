"""Features that need more of SGLang than the oldest supported release has."""

from importlib.metadata import version

from led_sglang.integration.faults import CaptureError
from led_sglang.integration.hooks.table import numbers_of

SINCE = "0.5.23"  # speculation, tokenizer workers, data-parallel attention, pipelines, copies that follow the weights


def refuse_release(flag: str) -> None:
    """Raises CaptureError where the installed release has not what LED needs for the flag."""
    release = version("sglang")
    if numbers_of(release) < numbers_of(SINCE):
        raise CaptureError(
            f"LED does not work with {flag} on SGLang {release}: it needs {SINCE} or newer. Install that, drop it or "
            f"start with --led disabled"
        )
