"""The server's configuration: what it offers and applies by default, and how its processes are told.

The only reader of the environment: `led_sglang.launch` writes the configuration there as JSON, and every process that
SGLang spawns reads the same.
"""

import json
import os
from dataclasses import asdict, dataclass
from functools import lru_cache

from led_sglang.config.checks import LedParamError, require_choice, require_int, require_number, show
from led_sglang.config.fields import METHODS, PHASES

ENV_CONFIG = "LED_SGLANG_CONFIG"
ENV_HOST = "LED_SGLANG_HOST"
FORMS = ("auto", "one_pass", "coin_first")


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

    @property
    def has_markers(self) -> bool:
        """A thinking phase can be told from the rest, as far as is known of the model."""
        return bool(self.open_ids) or self.num_layers is None

    def check(self) -> None:
        require_int("--led-max-depth", self.max_depth, 1, self.num_layers or 4096, "the model's number of layers")
        require_int("--led-depth", self.depth, 1, self.max_depth, "--led-max-depth")
        require_int("--led-max-top-k", self.max_top_k, 1, 1 << 20)
        require_int("--led-top-k", self.top_k, 1, self.max_top_k, "--led-max-top-k")
        require_choice("--led-phase", self.phase, PHASES)
        require_choice("--led-form", self.form, FORMS)
        if self.form == "one_pass" and self.backend in ("reference", "eager"):
            raise LedParamError(
                f"--led-form one_pass needs --led-backend auto, numba, torch or triton, got {show(self.backend)}"
            )
        if self.bench_explore_rate is not None:
            require_number("--led-bench-explore-rate", self.bench_explore_rate, 0.0, 1.0)
        for method in self.methods:
            require_choice("--led-methods", method, METHODS)


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
