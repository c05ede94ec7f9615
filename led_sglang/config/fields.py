"""The table of request parameters: key, type, default, methods, legal values, meaning.

The parser, the JSON Schema, the reference tables of the documentation and the evaluation's method names read it. A new
parameter is a field of LedParams; a new method is an entry of `config.methods` and the fields that name it. The
server's own arguments are the table beside it, `config.arguments`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

from led_sglang.config.legal import Choice, Flag, Integer, Legal, Real
from led_sglang.config.methods import METHOD_TABLE, METHODS

__all__ = [
    "ALL_METHODS",
    "ALWAYS_ENABLED",
    "FIELDS",
    "KEYS",
    "MAX_SOFT_TOP_K",
    "METHOD_KEYS",
    "PHASES",
    "SELECT_METHODS",
    "Field",
    "LedParams",
    "Phase",
]

Phase = Literal["think", "all"]
PHASES: tuple[str, ...] = get_args(Phase)
ALL_METHODS = ",".join(method for method in METHODS if method != "none")  # as --led-methods takes them
ALWAYS_ENABLED = tuple(name for name, method in METHOD_TABLE.items() if method.is_always_enabled)
SELECT_METHODS = (  # the authors' names
    "trough", "trough-m1", "trough-m2", "trough-p1", "trough-p2", "last-m1", "last-m2", "last-m4", "last-m8",
)  # fmt: skip
MAX_SOFT_TOP_K = 32  # width of the per-slot table of embedding weights

LED = ("led",)
DOLA = ("dola",)
GUMBEL = ("soft_thinking_gumbel",)
SOFT = ("soft_thinking", *GUMBEL)
CONFIDENT = ("confident",)
SLED = ("sled",)
T = TypeVar("T")


@dataclass(frozen=True)
class Field:
    """One row of the table. `key` is the parameter's name in requests and answers, `name` that of the attribute."""

    name: str
    key: str
    default: Any
    methods: tuple[str, ...]
    legal: Legal
    meaning: str
    server_default: bool  # the default is the server's: the field of ServerConfig of the same name


def _parameter(
    default: T,
    methods: tuple[str, ...],
    legal: Legal,
    meaning: str,
    *,
    key: str | None = None,  # None: the attribute's name
    server_default: bool = False,
) -> T:
    row = {"key": key, "methods": methods, "legal": legal, "meaning": meaning, "server_default": server_default}
    made: T = field(default=default, metadata=row)
    return made


@dataclass(frozen=True)
class LedParams:
    """What is applied to one request; `to_dict()` is echoed as `meta_info.led_params`. Defaults are the papers'.

    Attributes that two methods or the model could claim have a longer name than their key: `soft_top_k` is the key
    `max_topk`, `num_scanned_layers` is the key `num_layers`, `selection_probability` the key `p`.
    """

    method: str = "led"
    depth: int = _parameter(
        8,
        LED,
        Integer(1, lambda config: config.max_depth, "captured layers; --led-max-depth raises it", "`--led-max-depth`"),
        "exploration depth d: the final layer and d - 1 before it; 1 is plain top-k sampling",
        server_default=True,
    )
    top_k: int = _parameter(
        8,
        LED,
        Integer(1, lambda config: config.max_top_k, "--led-max-top-k raises it", "`--led-max-top-k` (256)"),
        "candidates k",
        server_default=True,
    )
    phase: str = _parameter(
        "think",
        LED,
        Choice(PHASES, lambda config: PHASES if config.has_markers else ("all",)),
        "where LED decodes: inside `<think>` ... `</think>`, or everywhere",
        server_default=True,
    )
    exploit: bool = _parameter(True, LED, Flag(), "`false`: explore at every step, no coin")
    latent_norm: bool = _parameter(False, LED, Flag(), "the final norm on the latent layers")
    normalize_layers: bool = _parameter(False, LED, Flag(), "normalise each layer's candidates before the sum")
    latent_offset: int = _parameter(0, LED, Integer(0, 1), "1: one layer earlier, as the authors' released code")
    min_p: float = _parameter(
        0.0, LED, Real(0.0, 1.0), "drop candidates below `min_p * max p` before the sum (ours, not the paper's)"
    )
    trace: bool = _parameter(False, LED, Flag(), "tell every token's values")
    layers: str = _parameter("low", DOLA, Choice(("low", "high")), "which half the early layers come from")
    relative_top: float = _parameter(
        0.1, DOLA, Real(0.0, 1.0), "tokens below this share of the top probability are dropped"
    )
    soft_top_k: int = _parameter(10, SOFT, Integer(1, MAX_SOFT_TOP_K), "embeddings mixed", key="max_topk")
    early_stop_entropy: float = _parameter(
        0.01,
        SOFT,
        Real(0.0, 100.0),
        "cold stop: thinking ends after `early_stop_length` steps in a row below this entropy (nats)",
    )
    early_stop_length: int = _parameter(
        256, SOFT, Integer(1, 1 << 20), "steps in a row below `early_stop_entropy` that end thinking"
    )
    filters_first: bool = _parameter(
        False,
        SOFT,
        Flag(),
        "the request's top-k, top-p and min-p act before the mixture, as in the authors' released code",
    )
    gumbel_temperature: float = _parameter(0.5, GUMBEL, Real(0.01, 100.0), "temperature of the noisy weights")
    num_scanned_layers: int = _parameter(
        10,
        CONFIDENT,
        Integer(
            2,
            lambda config: min(config.confident_layers, config.num_layers or config.confident_layers),
            "captured layers; --led-confident-layers raises it",
            "`--led-confident-layers` (10)",
        ),
        "layers scanned, the final one included",
        key="num_layers",
    )
    select_method: str = _parameter(
        "trough",
        CONFIDENT,
        Choice(SELECT_METHODS),
        "`trough`: the first entropy valley; `-m1`, `-m2`: one or two layers shallower, `-p1`, `-p2`: deeper; "
        "`last-m1` .. `last-m8`: so many layers before the final one",
    )
    selection_probability: float = _parameter(
        1.0,
        CONFIDENT,
        Real(0.0, 1.0),
        "probability of decoding from the selected layer, else from the final one",
        key="p",
    )
    evolution_rate: float = _parameter(2.0, SLED, Real(0.0, 10.0), "size of the step from the final logits")
    evolution_scale: int = _parameter(10, SLED, Integer(1, 256), "candidates: the others are dropped")

    @classmethod
    def from_keys(cls, values: Mapping[str, Any]) -> "LedParams":
        """Of values by key, `method` among them; what is missing has its default. Raises KeyError for another key."""
        return cls(**{ATTRIBUTES[key]: value for key, value in values.items()})

    def get(self, key: str) -> Any:
        """The value of a key. Raises KeyError for another one."""
        return getattr(self, ATTRIBUTES[key])

    def to_wire(self) -> dict[str, Any]:
        """Every parameter by key, for another process."""
        return {key: self.get(key) for key in KEYS}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> "LedParams":
        """Of what holds at least the keys of `to_wire`."""
        return cls.from_keys({key: wire[key] for key in KEYS})

    def to_dict(self) -> dict[str, Any]:
        """`method` and the method's keys."""
        return {"method": self.method, **{key: self.get(key) for key in METHOD_KEYS[self.method]}}


def _row(name: str, default: Any, metadata: Mapping[str, Any]) -> Field:
    return Field(name=name, default=default, **{**metadata, "key": metadata["key"] or name})


_ROWS = tuple(_row(f.name, f.default, f.metadata) for f in fields(LedParams) if f.name != "method")
FIELDS: dict[str, Field] = {row.key: row for row in _ROWS}
KEYS = ("method", *FIELDS)
ATTRIBUTES = {"method": "method", **{key: row.name for key, row in FIELDS.items()}}
METHOD_KEYS: dict[str, tuple[str, ...]] = {
    method: tuple(key for key, row in FIELDS.items() if method in row.methods) for method in METHODS
}
