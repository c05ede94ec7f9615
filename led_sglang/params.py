"""Server and request parameters of LED: what may be asked, what is applied, what is refused.

The only reader of the environment: `led_sglang.launch` writes the server's configuration there as JSON, and every
process that SGLang spawns reads the same.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

ENV_CONFIG = "LED_SGLANG_CONFIG"
STAMP_KEY = "__led_sglang"  # reserved key of `custom_params`
Phase = Literal["think", "all"]
PHASES: tuple[str, ...] = get_args(Phase)
METHODS = ("led", "none")


class LedParamError(ValueError):
    """A LED parameter that cannot be honoured; the message names key, value and legal range (HTTP 400)."""


@dataclass(frozen=True)
class ServerConfig:
    """What the server offers and applies by default.

    Raises LedParamError from `check` for values out of range.
    """

    default_on: bool = True
    depth: int = 8
    max_depth: int = 8
    top_k: int = 8
    max_top_k: int = 256
    phase: str = "think"
    think_open: str | None = None
    think_close: str | None = None
    backend: str = "auto"
    num_layers: int | None = None  # of the served model, once known
    open_ids: tuple[int, ...] = ()  # token ids of the marker that opens the thinking phase, once known
    close_ids: tuple[int, ...] = ()
    vocab_size: int = 0

    @property
    def num_captured(self) -> int:
        """Latent layers kept, from h^{L-1} down: one more than `max_depth` needs, if there is one."""
        if self.num_layers is None:
            return self.max_depth - 1
        return min(self.max_depth, self.num_layers - 1)

    def check(self) -> None:
        _require_int("--led-max-depth", self.max_depth, 1, self.num_layers or 4096, "the model's number of layers")
        _require_int("--led-depth", self.depth, 1, self.max_depth, "--led-max-depth")
        _require_int("--led-max-top-k", self.max_top_k, 1, 1 << 20)
        _require_int("--led-top-k", self.top_k, 1, self.max_top_k, "--led-max-top-k")
        _require_choice("--led-phase", self.phase, PHASES)


def export_config(config: ServerConfig) -> None:
    """Make `config` the configuration of this process and of all that it spawns."""
    os.environ[ENV_CONFIG] = json.dumps(asdict(config))


def server_config() -> ServerConfig | None:
    """The exported configuration; None where `led_sglang.launch` did not switch LED on (the plugin stays inert)."""
    text = os.environ.get(ENV_CONFIG)
    if not text:
        return None
    values = json.loads(text)
    for key in ("open_ids", "close_ids"):
        values[key] = tuple(values[key])
    return ServerConfig(**values)


@dataclass(frozen=True)
class LedParams:
    """What is applied to one request; `public()` is echoed as `meta_info.led_params`."""

    method: str = "led"
    depth: int = 8
    top_k: int = 8
    phase: str = "think"
    exploit: bool = True
    latent_norm: bool = False
    normalize_layers: bool = False
    latent_offset: int = 0
    min_p: float = 0.0
    trace: bool = False

    def public(self) -> dict[str, Any]:
        return asdict(self) if self.method != "none" else {"method": "none"}


KEYS = tuple(f.name for f in fields(LedParams))


def parse_request(value: object, config: ServerConfig) -> LedParams | None:
    """Resolve the wire value of `custom_params.led` against the server's defaults.

    `value`: None (absent: the server's default), a bool, or an object with keys of LedParams.
    Returns None where LED was neither asked for nor on by default. Raises LedParamError.
    """
    if value is None:
        return parse_request(True, config) if config.default_on else None
    if value is False:
        return LedParams(method="none")
    if value is True:
        value = {}
    if not isinstance(value, dict):
        raise LedParamError(f"custom_params.led must be true, false or an object, got {_show(value)}")
    unknown = [key for key in value if key not in KEYS]
    if unknown:
        raise LedParamError(f"custom_params.led: unknown key {_show(unknown[0])}; known keys: {', '.join(KEYS)}")
    params = LedParams(**{"depth": config.depth, "top_k": config.top_k, "phase": config.phase, **value})
    _check_request(params, config)
    return params


def _check_request(params: LedParams, config: ServerConfig) -> None:
    name = "custom_params.led."
    _require_choice(name + "method", params.method, METHODS)
    _require_int(name + "depth", params.depth, 1, config.max_depth, "captured layers; --led-max-depth raises it")
    _require_int(name + "top_k", params.top_k, 1, config.max_top_k, "--led-max-top-k raises it")
    _require_choice(name + "phase", params.phase, PHASES)
    if params.phase == "think" and config.num_layers is not None and not config.open_ids:
        raise LedParamError(f'{name}phase "think" needs thinking markers, this server has none: use "all"')
    for key in ("exploit", "latent_norm", "normalize_layers", "trace"):
        if not isinstance(getattr(params, key), bool):
            raise LedParamError(f"{name}{key} must be true or false, got {_show(getattr(params, key))}")
    _require_int(name + "latent_offset", params.latent_offset, 0, 1)
    if params.depth - 1 + params.latent_offset > config.num_captured and params.latent_offset:
        raise LedParamError(
            f"{name}latent_offset 1 with depth {params.depth} needs {params.depth} latent layers, the server captures "
            f"{config.num_captured}: use a depth of at most {config.num_captured}"
        )
    is_number = isinstance(params.min_p, int | float) and not isinstance(params.min_p, bool)
    if not is_number or not 0.0 <= params.min_p <= 1.0:
        raise LedParamError(f"{name}min_p must be a number in [0, 1], got {_show(params.min_p)}")


def _require_int(name: str, value: object, low: int, high: int, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        limit = f" ({why})" if why else ""
        raise LedParamError(f"{name} must be an integer in [{low}, {high}]{limit}, got {_show(value)}")


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise LedParamError(f"{name} must be one of {', '.join(choices)}, got {_show(value)}")


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True)
class StampedParams:
    """A request's resolved parameters on their way from the HTTP process to the scheduler."""

    params: LedParams
    seed: int  # of our noise: the request's own or drawn once for it
    is_seeded: bool  # the request named its seed
    sample: int  # index among the n samples of one request

    def to_wire(self) -> dict[str, Any]:
        return {**asdict(self.params), "seed": self.seed, "is_seeded": self.is_seeded, "sample": self.sample}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> "StampedParams":
        params = LedParams(**{key: wire[key] for key in KEYS})
        return cls(params, wire["seed"], wire["is_seeded"], wire["sample"])
