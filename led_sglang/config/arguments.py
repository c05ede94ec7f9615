"""The table of the server's arguments: flag, type, default, legal values, meaning.

The launcher's command line and its YAML file, `ServerConfig.check` and the reference table of the documentation read
it. A new argument is a row here and a field of ServerConfig: `--led-max-depth` is `max_depth`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from led_sglang.config.fields import FIELDS, PHASES
from led_sglang.config.legal import Choice, Choices, Integer, Legal, Text
from led_sglang.config.methods import METHODS

__all__ = ["ARGUMENTS", "BACKENDS", "FORMS", "HEAD_LSE", "MODES", "SWITCH", "Argument"]

MODES = ("on", "off", "disabled")
# "fused" and "compiled" are older spellings of "torch" and "numba"; the last two are baselines, to compare with.
BACKENDS = ("auto", "torch", "numba", "triton", "fused", "compiled", "eager", "reference")
FORMS = ("auto", "one_pass", "coin_first")
HEAD_LSE = ("full", "fp8")


@dataclass(frozen=True)
class Argument:
    """One row of the table. `default` None: computed by `command_line.server_config_of`, or nothing."""

    flag: str
    legal: Legal
    default: Any
    help: str

    @property
    def key(self) -> str:
        """In a YAML file, and argparse's name of it: `led_max_depth`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def field(self) -> str:
        """The field of ServerConfig: `max_depth`."""
        return self.key.removeprefix("led_")


def _default_of(key: str, flag: str, legal: Legal, default: Any) -> Argument:
    """The argument that is the default of a request's parameter."""
    row = FIELDS[key]
    words = f"what requests that say nothing have: {row.meaning.replace('`', '')} (default: {row.default})"
    return Argument(flag, legal, default, words)


def _with_default(flag: str, legal: Legal, default: Any, words: str) -> Argument:
    shown = ",".join(default) if isinstance(default, tuple) else default
    return Argument(flag, legal, default, words.replace("DEFAULT", f"(default: {shown})"))


# Whether LED decodes: no field of ServerConfig but `default_on`, and with "disabled" no ServerConfig at all.
SWITCH = _with_default(
    "--led",
    Choice(MODES),
    "on",
    "on: requests are decoded with LED unless they say otherwise; off: only requests that ask; disabled: stock SGLang, "
    "no hook is installed DEFAULT",
)
ARGUMENTS: tuple[Argument, ...] = (
    _default_of(
        "depth",
        "--led-depth",
        Integer(1, lambda config: config.max_depth, "--led-max-depth", "`--led-max-depth`"),
        None,
    ),
    Argument(
        "--led-max-depth",
        Integer(1, lambda config: config.num_layers or 4096, "the model's number of layers", "the model's layers"),
        None,
        "largest depth a request may ask; layers captured for it",
    ),
    _default_of(
        "top_k",
        "--led-top-k",
        Integer(1, lambda config: config.max_top_k, "--led-max-top-k", "`--led-max-top-k`"),
        FIELDS["top_k"].default,
    ),
    _with_default("--led-max-top-k", Integer(1, 1 << 20), 256, "largest k a request may ask DEFAULT"),
    _default_of("phase", "--led-phase", Choice(PHASES), FIELDS["phase"].default),
    Argument(
        "--led-think-open",
        Text(),
        None,
        "marker that opens the thinking phase (default: the reasoning parser's)",
    ),
    Argument("--led-think-close", Text(), None, "marker that closes it"),
    _with_default(
        "--led-methods",
        Choices(METHODS),
        ("led",),
        f"methods a request may choose, comma-separated, of {', '.join(METHODS)} DEFAULT; each captures the layers it "
        "needs",
    ),
    _with_default(
        "--led-confident-layers",
        Integer(2, 4096),
        10,
        "layers that confident may scan, the final one included; as many as the model has, or more: all DEFAULT",
    ),
    _with_default("--led-backend", Choice(BACKENDS), "auto", "implementation of the LED step DEFAULT"),
    _with_default(
        "--led-form",
        Choice(FORMS),
        "auto",
        "when latent rows go through the LM head: one_pass: in its own weight pass; coin_first: exploring rows alone, "
        "in a second pass; auto: by batch size DEFAULT",
    ),
    _with_default(
        "--led-head-lse",
        Choice(HEAD_LSE),
        "full",
        "what a second pass takes log-sum-exps of latent rows from: full: the LM head; fp8: a copy of it in 8 bits, "
        "faster on a GPU up to some 90 rows, all but exact DEFAULT",
    ),
)
