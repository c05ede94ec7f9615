"""The server's configuration: what it offers and applies by default, and how it reaches the server's processes.

`export_config` writes it as JSON to an environment variable, which every process that SGLang spawns inherits;
`server_config` reads it there.
"""

import json
import os
from dataclasses import asdict, dataclass
from functools import lru_cache

from led_sglang.config.arguments import ARGUMENTS
from led_sglang.config.checks import LedParamError, show
from led_sglang.config.fields import LedParams

__all__ = ["ENV_ANSWERS", "ENV_CONFIG", "ENV_HOST", "ServerConfig", "default_host", "export_config", "server_config"]

ENV_CONFIG = "LED_SGLANG_CONFIG"
ENV_HOST = "LED_SGLANG_HOST"
ENV_ANSWERS = "LED_SGLANG_ANSWERS"  # set by the launcher: the file in which tokenizer workers count
DEFAULTS = {argument.field: argument.default for argument in ARGUMENTS}


@dataclass(frozen=True)
class ServerConfig:
    """What the server offers and applies by default; `config.arguments` has the meaning of each field.

    Raises LedParamError from `check` for values out of range.
    """

    default_on: bool = True
    depth: int = LedParams.depth
    max_depth: int = LedParams.depth
    top_k: int = LedParams.top_k
    max_top_k: int = DEFAULTS["max_top_k"]
    phase: str = LedParams.phase
    think_open: str | None = None
    think_close: str | None = None
    backend: str = DEFAULTS["backend"]
    form: str = DEFAULTS["form"]
    head_lse: str = DEFAULTS["head_lse"]
    methods: tuple[str, ...] = DEFAULTS["methods"]  # enabled beside "none"
    confident_layers: int = DEFAULTS["confident_layers"]
    num_layers: int | None = None  # of the served model, once known
    open_ids: tuple[int, ...] = ()  # token ids of the marker that opens the thinking phase, once known
    close_ids: tuple[int, ...] = ()
    more_open: tuple[tuple[int, ...], ...] = ()  # other markers of the same two meanings
    more_close: tuple[tuple[int, ...], ...] = ()
    matched_texts: tuple[tuple[str, ...], tuple[str, ...]] | None = None  # that open, that close; None: by their ids
    vocab_size: int = 0

    @property
    def num_captured(self) -> int:
        """Latent layers kept, from h^{L-1} down: none for depth 1, else one more than is needed, if there is one."""
        if self.num_layers is None or self.max_depth == 1:
            return self.max_depth - 1
        return min(self.max_depth, self.num_layers - 1)

    @property
    def has_markers(self) -> bool:
        """The model has thinking markers, or its markers are not known yet."""
        return bool(self.open_ids) or self.num_layers is None

    def check(self) -> None:
        """Raises LedParamError for the first argument that is not legal."""
        for argument in reversed(ARGUMENTS):  # a bound comes after what it bounds
            value = getattr(self, argument.field)
            if value is not None:
                argument.legal.check(argument.flag, value, self)
        for flag, is_set in (
            ("--led-form one_pass", self.form == "one_pass"),
            ("--led-head-lse fp8", self.head_lse == "fp8"),
        ):
            if is_set and self.backend in ("reference", "eager"):
                raise LedParamError(
                    f"{flag} needs --led-backend auto, torch, numba or triton, got {show(self.backend)}"
                )


def export_config(config: ServerConfig | None) -> None:
    """Make `config` the configuration of this process and of all that it spawns; None: LED is off in them."""
    if config is None:
        os.environ.pop(ENV_CONFIG, None)
    else:
        os.environ[ENV_CONFIG] = json.dumps(asdict(config))


def default_host() -> str | None:
    """The host of a start that names none; None: SGLang's default. The image sets it: loopback is private there."""
    return os.environ.get(ENV_HOST) or None


def server_config() -> ServerConfig | None:
    """The exported configuration; None where `led_sglang.launch` did not switch LED on (the plugin stays inert)."""
    text = os.environ.get(ENV_CONFIG)
    return _parse_config(text) if text else None


@lru_cache(maxsize=4)
def _parse_config(text: str) -> ServerConfig:
    values = json.loads(text)
    for key in ("open_ids", "close_ids", "methods"):
        values[key] = tuple(values[key])
    for key in ("more_open", "more_close"):
        values[key] = tuple(map(tuple, values[key]))
    if values["matched_texts"] is not None:
        opening, closing = values["matched_texts"]
        values["matched_texts"] = tuple(opening), tuple(closing)
    return ServerConfig(**values)
