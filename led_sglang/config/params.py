"""Server and request parameters of LED: what may be asked, what is applied, what is refused.

The only reader of the environment: `led_sglang.launch` writes the server's configuration there as JSON, and every
process that SGLang spawns reads the same.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, cast, get_args

NAME = "custom_params.led."
ENV_CONFIG = "LED_SGLANG_CONFIG"
ENV_HOST = "LED_SGLANG_HOST"
STAMP_KEY = "__led_sglang"  # reserved key of `custom_params`
Phase = Literal["think", "all"]
PHASES: tuple[str, ...] = get_args(Phase)
FORMS = ("auto", "one_pass", "coin_first")
METHOD_KEYS: dict[str, tuple[str, ...]] = {
    "led": (
        "depth",
        "top_k",
        "phase",
        "exploit",
        "latent_norm",
        "normalize_layers",
        "latent_offset",
        "min_p",
        "trace",
    ),
    "none": (),
    "dola": ("layers", "relative_top"),
    "soft_thinking": ("max_topk", "early_stop_entropy", "early_stop_length"),
    "soft_thinking_gumbel": ("max_topk", "early_stop_entropy", "early_stop_length", "gumbel_temperature"),
    "confident": ("num_layers",),
}
METHODS = tuple(METHOD_KEYS)
ALL_METHODS = ",".join(method for method in METHODS if method != "none")  # as --led-methods takes them
ALWAYS_ENABLED = ("led", "none")
CONFIDENT_LAYERS = 10  # the paper's N; a request may scan fewer
MAX_SOFT_TOP_K = 32  # width of the per-slot table of embedding weights


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
    form: str = "auto"
    bench_explore_rate: float | None = None  # benchmarks with random weights only: this share explores, whatever p says
    methods: tuple[str, ...] = ("led",)  # enabled beside "none": what is captured depends on it
    num_layers: int | None = None  # of the served model, once known
    open_ids: tuple[int, ...] = ()  # token ids of the marker that opens the thinking phase, once known
    close_ids: tuple[int, ...] = ()
    vocab_size: int = 0

    @property
    def num_captured(self) -> int:
        """Latent layers kept, from h^{L-1} down: none for depth 1, else one more than is needed, if there is one."""
        if self.num_layers is None or self.max_depth == 1:
            return self.max_depth - 1
        return min(self.max_depth, self.num_layers - 1)

    def check(self) -> None:
        _require_int("--led-max-depth", self.max_depth, 1, self.num_layers or 4096, "the model's number of layers")
        _require_int("--led-depth", self.depth, 1, self.max_depth, "--led-max-depth")
        _require_int("--led-max-top-k", self.max_top_k, 1, 1 << 20)
        _require_int("--led-top-k", self.top_k, 1, self.max_top_k, "--led-max-top-k")
        _require_choice("--led-phase", self.phase, PHASES)
        _require_choice("--led-form", self.form, FORMS)
        if self.form == "one_pass" and self.backend in ("reference", "eager"):
            raise LedParamError(
                f"--led-form one_pass needs --led-backend auto, fused, compiled or triton, got {show(self.backend)}"
            )
        if self.bench_explore_rate is not None:
            _require_number("--led-bench-explore-rate", self.bench_explore_rate, 0.0, 1.0)
        for method in self.methods:
            _require_choice("--led-methods", method, METHODS)


def export_config(config: ServerConfig | None) -> None:
    """Make `config` the configuration of this process and of all that it spawns; None: LED is off in them."""
    if config is None:
        os.environ.pop(ENV_CONFIG, None)
    else:
        os.environ[ENV_CONFIG] = json.dumps(asdict(config))


def default_host() -> str | None:
    """Where a server listens that nobody told; None: SGLang's default. In a container loopback reaches nobody."""
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
    return ServerConfig(**values)


@dataclass(frozen=True)
class LedParams:
    """What is applied to one request; `public()` is echoed as `meta_info.led_params`. Defaults are the papers'."""

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
    layers: str = "low"  # dola: which half the early layers come from
    relative_top: float = 0.1  # dola: tokens below this share of the top probability are dropped
    max_topk: int = 10  # soft_thinking: embeddings mixed
    early_stop_entropy: float = 0.01  # soft_thinking: cold stop below this entropy (nats) ...
    early_stop_length: int = 256  # ... for so many steps
    gumbel_temperature: float = 0.5  # soft_thinking_gumbel
    num_layers: int = 10  # confident: layers scanned, the final one included

    def public(self) -> dict[str, Any]:
        return {"method": self.method, **{key: getattr(self, key) for key in METHOD_KEYS[self.method]}}


KEYS = tuple(f.name for f in fields(LedParams))


def check_custom_params(custom: object) -> None:
    """Raises LedParamError for what is no object, or holds the key under which we stamp requests."""
    if not isinstance(custom, dict):
        raise LedParamError(f"custom_params must be an object, got {show(custom)}")
    if STAMP_KEY in custom:
        raise LedParamError(f"custom_params: the key {STAMP_KEY!r} is reserved")


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
        raise LedParamError(f"custom_params.led must be true, false or an object, got {show(value)}")
    method = value.get("method", "led")
    _require_method(method, config)
    _require_known(value, method)
    params = LedParams(**{"depth": config.depth, "top_k": config.top_k, "phase": config.phase, **value})
    _CHECKS[method](params, config)
    return params


def refuse_beams(beam_width: object, params: LedParams | None) -> None:
    """Raises LedParamError for a beam search of a request that another method than the engine's own decodes."""
    if beam_width not in (None, 1) and params is not None and params.method != "none":
        raise LedParamError(
            f"LED samples, it cannot run a beam search: beam_width must be 1, got {show(beam_width)}; "
            "a search needs LED off for the request: custom_params.led false"
        )


def _require_method(method: object, config: ServerConfig) -> None:
    _require_choice(NAME + "method", method, METHODS)
    if method not in ALWAYS_ENABLED and method not in config.methods:
        enabled = ",".join((*config.methods, str(method)))
        raise LedParamError(
            f"{NAME}method {method!r} is not enabled on this server: start with --led-methods {enabled}"
        )


def _require_known(value: dict[str, Any], method: str) -> None:
    legal = ("method", *METHOD_KEYS[method])
    for key in value:
        if key in legal:
            continue
        owners = [other for other, keys in METHOD_KEYS.items() if key in keys]
        what = f"key {show(key)} belongs to method {' and '.join(owners)}" if owners else f"unknown key {show(key)}"
        raise LedParamError(f"custom_params.led: {what}; keys of method {method!r}: {', '.join(legal)}")


def _check_led(params: LedParams, config: ServerConfig) -> None:
    _require_int(NAME + "depth", params.depth, 1, config.max_depth, "captured layers; --led-max-depth raises it")
    _require_int(NAME + "top_k", params.top_k, 1, config.max_top_k, "--led-max-top-k raises it")
    _require_choice(NAME + "phase", params.phase, PHASES)
    if params.phase == "think" and config.num_layers is not None and not config.open_ids:
        raise LedParamError(f'{NAME}phase "think" needs thinking markers, this server has none: use "all"')
    for key in ("exploit", "latent_norm", "normalize_layers", "trace"):
        if not isinstance(getattr(params, key), bool):
            raise LedParamError(f"{NAME}{key} must be true or false, got {show(getattr(params, key))}")
    _require_int(NAME + "latent_offset", params.latent_offset, 0, 1)
    if params.latent_offset and params.depth > max(1, config.num_captured):
        raise LedParamError(
            f"{NAME}latent_offset 1 with depth {params.depth} needs {params.depth} latent layers, the server captures "
            f"{config.num_captured}: use a depth of at most {config.num_captured}"
        )
    _require_number(NAME + "min_p", params.min_p, 0.0, 1.0)


def _check_dola(params: LedParams, config: ServerConfig) -> None:
    _require_choice(NAME + "layers", params.layers, ("low", "high"))
    _require_number(NAME + "relative_top", params.relative_top, 0.0, 1.0)


def _check_soft(params: LedParams, config: ServerConfig) -> None:
    _require_int(NAME + "max_topk", params.max_topk, 1, MAX_SOFT_TOP_K)
    _require_number(NAME + "early_stop_entropy", params.early_stop_entropy, 0.0, 100.0)
    _require_int(NAME + "early_stop_length", params.early_stop_length, 1, 1 << 20)
    _require_number(NAME + "gumbel_temperature", params.gumbel_temperature, 0.01, 100.0)


def _check_confident(params: LedParams, config: ServerConfig) -> None:
    high = min(CONFIDENT_LAYERS, config.num_layers or CONFIDENT_LAYERS)
    _require_int(NAME + "num_layers", params.num_layers, 2, high, "captured layers")


def _check_none(params: LedParams, config: ServerConfig) -> None:
    """Plain sampling has no parameters."""


_CHECKS: dict[str, Callable[[LedParams, ServerConfig], None]] = {
    "led": _check_led,
    "none": _check_none,
    "dola": _check_dola,
    "soft_thinking": _check_soft,
    "soft_thinking_gumbel": _check_soft,
    "confident": _check_confident,
}


def _require_int(name: str, value: object, low: int, high: int, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        limit = f" ({why})" if why else ""
        raise LedParamError(f"{name} must be an integer in [{low}, {high}]{limit}, got {show(value)}")


def _require_number(name: str, value: object, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= cast(float, value) <= high:
        raise LedParamError(f"{name} must be a number in [{low:g}, {high:g}], got {show(value)}")


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise LedParamError(f"{name} must be one of {', '.join(choices)}, got {show(value)}")


def show(value: object) -> str:
    """A client's value in an error message: its `repr`, cut short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits, lists nested too deep
        text = f"a {type(value).__name__} too large to print"
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
