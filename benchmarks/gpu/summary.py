"""A page out of the kit's lines: what failed, which form is cheaper where, and LED's share of a decode step.

python -m benchmarks.gpu.summary DIR/lines.jsonl
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SHAPE = Path(__file__).parent / "qwen3_4b_shape" / "config.json"
CONTEXT = 2048  # tokens of each request, in the floor of a stock step
BUDGET = 0.02  # of a decode step
Line = Mapping[str, Any]


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; what a killed process left of one is a fault."""
    found = []
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            found.append(json.loads(text))
        except ValueError:
            found.append({"part": None, "kind": "fault", "error": f"line {number} is cut off: {text[:80]!r}"})
    return found


def failures(lines: Sequence[Line]) -> list[Line]:
    """Faults, and checks that are not ok."""
    return [line for line in lines if line.get("kind") == "fault" or line.get("ok") is False]


def render(lines: Sequence[Line]) -> str:
    """Markdown."""
    return "\n".join(["# GPU kit", "", *_head(lines), *_parts(lines), *_failed(lines), *_costs(lines), *_tiles(lines),
                      *_kernels(lines), *_servers(lines)]) + "\n"  # fmt: skip


def _head(lines: Sequence[Line]) -> Iterator[str]:
    line = next((line for line in lines if "device" in line), None)
    if line is not None:
        names = ("device", "driver", "torch", "triton", "python", "commit", "date")
        yield ", ".join(f"{name} {line.get(name)}" for name in names) + (" (dry run)" if line.get("dry_run") else "")
        yield ""


def _parts(lines: Sequence[Line]) -> Iterator[str]:
    yield from ("| part | lines | checks ok | failed | seconds |", "|---|---|---|---|---|")
    for part in dict.fromkeys(line["part"] for line in lines if line.get("part")):
        mine = [line for line in lines if line.get("part") == part]
        seconds = next((line["seconds"] for line in mine if line.get("kind") == "part"), None)
        checks = [line for line in mine if "ok" in line]
        num_ok, num_results = sum(bool(line["ok"]) for line in checks), len([x for x in mine if x["kind"] != "part"])
        yield f"| {part} | {num_results} | {num_ok} of {len(checks)} | {len(failures(mine))} | {seconds} |"
    yield ""


def _failed(lines: Sequence[Line]) -> Iterator[str]:
    for line in failures(lines):
        where = "/".join(str(line[key]) for key in ("part", "unit", "backend", "form", "run") if line.get(key))
        what = line.get("error") if line.get("kind") == "fault" else f"error {line.get('error')}, {line.get('wrong')}"
        yield f"FAILED {where}: {str(what)[:300]}"
    if not failures(lines):
        yield "Nothing failed."
    yield ""


def expected_ms(lines: Sequence[Line]) -> dict[tuple[int, str], float]:
    """(rows, run) -> mean device time of a step: of those in which no row explores and those in which some do."""
    found: dict[tuple[int, str], dict[int, Line]] = {}
    for line in lines:
        if line.get("part") == "ops" and line.get("kind") == "time":
            found.setdefault((line["rows"], line["run"]), {})[line["explored_rows"]] = line
    result = {}
    for (rows, run), by_count in found.items():
        some = by_count[max(by_count)]
        none_share = (1 - some["explore_rate"]) ** rows if 0 in by_count and len(by_count) > 1 else 0.0
        result[rows, run] = none_share * by_count.get(0, some)["ms"] + (1 - none_share) * some["ms"]
    return result


def added_ms(lines: Sequence[Line]) -> dict[tuple[int, str], float]:
    """(rows, form) -> device time that a whole LED step adds to the engine's: the one pass less the head's product."""
    times = expected_ms(lines)
    found = {}
    for (rows, run), value in times.items():
        if run == "step_two_pass":
            found[rows, "two_pass"] = value
        elif run == "step_one_pass" and (rows, "product") in times:
            found[rows, "one_pass"] = value - times[rows, "product"]
    return found


def crossover(lines: Sequence[Line]) -> tuple[int, int | None] | None:
    """(largest size up to which one pass is not dearer at every measured size, the next size); None: no times."""
    added = added_ms(lines)
    both = sorted(rows for rows, form in added if form == "one_pass" and (rows, "two_pass") in added)
    if not both:
        return None
    last = 0
    for rows in both:
        if added[rows, "one_pass"] > added[rows, "two_pass"]:
            return last, rows
        last = rows
    return last, None


def step_floor_ms(rows: int, bytes_per_s: float) -> float:
    """Least time of a stock decode step: weights, and keys and values of CONTEXT tokens a row, are read once."""
    shape = json.loads(SHAPE.read_text())
    hidden, heads, width = shape["hidden_size"], shape["num_attention_heads"], shape["head_dim"]
    kv = 2 * shape["num_key_value_heads"] * width
    layer = hidden * (heads * width + kv) + heads * width * hidden + 3 * hidden * shape["intermediate_size"]
    layers = shape["num_hidden_layers"]
    num_bytes = 2 * (layers * layer + shape["vocab_size"] * hidden + rows * CONTEXT * layers * kv)
    return 1e3 * num_bytes / bytes_per_s


def _costs(lines: Sequence[Line]) -> Iterator[str]:
    added = added_ms(lines)
    if not added:
        return
    ceilings = next((line for line in lines if line.get("kind") == "ceilings"), None)
    servers = {rows: value for (mode, rows), value in server_steps_ms(lines).items() if mode == "off"}
    yield from (
        "What a whole LED step adds to the engine's, microseconds of the device; host: Python and launches.",
        "",
        "| rows | two pass | one pass | host, two pass | host, one pass | stock step | share | of the 2 % |",
        "|---|---|---|---|---|---|---|---|",
    )
    for rows in sorted({rows for rows, _ in added}):
        both = [added.get((rows, form)) for form in ("two_pass", "one_pass")]
        best = min(value for value in both if value is not None)
        stock = servers.get(rows) or (step_floor_ms(rows, ceilings["bytes_per_s"]) if ceilings else None)
        shares = (f"{best / stock:.1%}", f"{best / stock / BUDGET:.0%}") if stock else ("", "")
        cells = [_us(value) for value in both] + [_host(lines, rows, run) for run in ("step_two_pass", "step_one_pass")]
        cells += ["" if stock is None else f"{_us(stock)} {'measured' if rows in servers else 'floor'}", *shares]
        yield f"| {rows} | {' | '.join(cells)} |"
    yield ""
    yield (
        f"floor: weights and {CONTEXT} tokens of context a row, read once at this device's bandwidth; the share "
        "of it is an upper bound."
    )
    found = crossover(lines)
    if found is not None:
        last, after = found
        until = f"dearer at {after}" if after is not None else "and at no measured size dearer"
        yield f"Crossover: one pass is not dearer up to {last} rows, {until}."
    yield ""


def _us(value: float | None) -> str:
    return "" if value is None else f"{1e3 * value:.0f}"


def _host(lines: Sequence[Line], rows: int, run: str) -> str:
    found = [
        line["host_us"] for line in lines if line.get("run") == run and line.get("rows") == rows and "host_us" in line
    ]
    return f"{found[0]:.0f}" if found else ""


def _tiles(lines: Sequence[Line]) -> Iterator[str]:
    times = [line for line in lines if line.get("part") == "tiles" and line.get("kind") == "time"]
    for rows in sorted({line["rows"] for line in times}):
        mine = sorted((line["ms"], line["run"]) for line in times if line["rows"] == rows)
        yield f"Tiles, {rows} rows: " + ", ".join(f"{run} {1e3 * ms:.0f} us" for ms, run in mine)
    if times:
        yield ""


def _kernels(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        if line.get("kind") == "kernels":
            longest = ", ".join(f"{one['kernel'][:40]} {one['us']:.0f}" for one in line["kernels"][:8])
            yield f"Kernels, {line['run']}, {line['rows']} rows, us: {longest}"


def server_steps_ms(lines: Sequence[Line]) -> dict[tuple[str, int], float]:
    """(mode, rows) -> time of a decode step of a whole server."""
    return {(x["mode"], x["rows"]): x["step_ms"] for x in lines if x.get("part") == "server" and "step_ms" in x}


def _servers(lines: Sequence[Line]) -> Iterator[str]:
    found = server_steps_ms(lines)
    for (mode, rows), value in sorted(found.items()):
        stock = found.get(("off", rows))
        ratio = f", {value / stock:.3f} of stock" if stock else ""
        yield f"Server, {mode}, {rows} rows: {value:.3f} ms a step{ratio}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path)
    lines = read(parser.parse_args(argv).lines)
    print(render(lines), end="")
    return 1 if failures(lines) else 0


if __name__ == "__main__":
    sys.exit(main())
