"""docs/reference/: pages made from the tables that the code itself reads.

python scripts/reference_pages.py            writes them
python scripts/reference_pages.py --check    exits 1 where one of them is not current
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from led_sglang.config.arguments import ARGUMENTS, SWITCH
from led_sglang.config.methods import METHODS
from led_sglang.integration.hooks.relied_on import RELIED_ON, RELIED_ON_SINCE
from led_sglang.integration.hooks.table import HANDLER_ROOT, HOOK_TARGETS
from led_sglang.integration.http.metrics import LedCollector
from led_sglang.serving.command_line import EXAMPLES, build_parser
from led_sglang.serving.front import make_parser as front_parser
from scripts.generated import main
from scripts.reference_tables import HEADER, argument_rows, rows_of

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
SGLANG = "sglang.srt."


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells)


def parameters() -> str:
    parts = [
        "# Request parameters\n",
        "The keys of `custom_params.led`, by method. Where they go and what comes back: [API](../api.md). A key of "
        "another method, an unknown key and a value out of range are HTTP 400 with the legal range.",
    ]
    for method in METHODS:
        if rows := rows_of(method):
            parts += [f"\n## {method}\n", HEADER, *rows]
    return "\n".join(parts)


def arguments() -> str:
    known = {argument.flag for argument in (SWITCH, *ARGUMENTS)}
    others = [
        (f"`{action.option_strings[-1]}`", action.help or "")
        for parser in (build_parser(), front_parser())
        for action in parser._actions
        if action.option_strings[-1] not in known
    ]
    return "\n".join(
        [
            "# Server arguments\n",
            "`python -m led_sglang.launch` and `led-sglang serve` take these and every argument of SGLang's own "
            "server. `--led-log` belongs to `led-sglang serve`. In a YAML file for `--config` the dashes in front are "
            "left out.\n",
            f"```sh\n{EXAMPLES}```\n",
            "## LED\n",
            "| argument | legal | meaning |\n|---|---|---|",
            *argument_rows(),
            "\n## Others\n",
            table(("argument", "meaning"), others),
        ]
    )


class _Zeros(defaultdict[str, int]):
    """A histogram or a counter by label of which nothing was counted yet."""

    def __init__(self, *keys: str) -> None:
        super().__init__(int, dict.fromkeys(keys, 0))


def metrics() -> str:
    counters = defaultdict(int) | {
        "fallback_reasons": _Zeros("step_failed", "not_finite"),
        "tokens": _Zeros(),
        "requests": _Zeros(),
        "depth_histogram": _Zeros("1"),
        "confidence_histogram": _Zeros("1.0", "+Inf"),
    }
    rows = []
    for family in LedCollector(defaultdict(int, counters), ("led", "none")).collect():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"`{family.name}{'_total' if family.type == 'counter' else ''}`"
        rows.append(
            (name, family.type, ", ".join(f"`{label}`" for label in sorted(labels)) or "–", family.documentation)
        )
    return "\n".join(
        [
            "# Metrics\n",
            "LED's part of SGLang's `/metrics`, which `--enable-metrics` switches on. How they are counted: "
            "[inspector](../inspector.md#metrics). A dashboard: [grafana/led.json](../../grafana/led.json).\n",
            table(("metric", "type", "labels", "meaning"), rows),
        ]
    )


def hooks() -> str:
    rows = [
        (f"`{target.removeprefix(SGLANG)}`", hook.kind, hook.process, hook.why, hook.since, f"`{hook.handler}`")
        for target, hook in HOOK_TARGETS.items()
    ]
    relied = [(f"`{path.removeprefix(SGLANG)}`", why, "0.5.17") for path, why in RELIED_ON]
    relied += [
        (f"`{path.removeprefix(SGLANG)}`", why, since)
        for since, pairs in RELIED_ON_SINCE.items()
        for path, why in pairs
    ]
    return "\n".join(
        [
            "# Hooks\n",
            f"Every function of SGLang that is hooked (below `{SGLANG.rstrip('.')}`), and those that are called or "
            f"replaced without a hook. Handlers are below `{HANDLER_ROOT}`. A server whose SGLang lacks one of them, "
            "or has it with other parameters, does not start. What a release changed: "
            "[compatibility](../compat.md).\n",
            table(("function", "kind", "process", "why", "since", "handler"), rows),
            "\n## Relied on\n",
            table(("function", "why", "since"), relied),
        ]
    )


PAGES: dict[str, Callable[[], str]] = {
    "parameters.md": parameters,
    "arguments.md": arguments,
    "metrics.md": metrics,
    "hooks.md": hooks,
}
NOTE = "<!-- Written by scripts/reference_pages.py. -->\n"


def pages() -> dict[Path, str]:
    """As they should be."""
    return {FOLDER / name: f"{NOTE}{text()}\n" for name, text in PAGES.items()}


if __name__ == "__main__":
    sys.exit(main(__doc__, pages()))
