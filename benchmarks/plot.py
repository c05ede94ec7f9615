"""Draw what benchmarks/results has: `python benchmarks/plot.py [--out FOLDER]`.

Of gpu.jsonl ops.svg (time over batch size, each path) and server.svg (LED over stock, time of a decode step); of
speculation.jsonl speculation.svg (tokens per verification by way to draft). SVG by hand: no plotting library is among
our dependencies.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu.summary import expected_ms, server_steps_ms
from led_sglang.cli import files
from led_sglang.cli.endings import CommandError, guarded

RESULTS = Path(__file__).parent / "results"
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 420, 70, 20, 190, 50
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
Points = Sequence[tuple[float, float]]


def read(file: Path) -> list[dict[str, Any]]:
    """Raises CommandError."""
    lines = (line for _, line in files.json_lines(file)) if file.exists() else ()
    return [line for line in lines if not line.get("dry_run")]


def ops_series(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Newest measurement of each batch size: milliseconds of every path."""
    series: dict[str, list[tuple[float, float]]] = {}
    for (rows, run), value in sorted(expected_ms(lines).items()):
        series.setdefault(run, []).append((rows, value))
    return series


def server_series(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """A decode step of each mode over that of stock SGLang at the same batch size."""
    steps = server_steps_ms(lines)
    series: dict[str, list[tuple[float, float]]] = {}
    for (mode, rows), value in sorted(steps.items()):
        if mode != "off" and ("off", rows) in steps:
            series.setdefault(mode, []).append((rows, value / steps["off", rows]))
    return series


def speculation_bars(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Newest measurement of each way to draft: tokens per verification of each kind of request."""
    bars = {line["shape"]: line["tokens_per_verify"] for line in lines}
    return {shape: values for shape, values in bars.items() if all(values.values())}


def draw_bars(bars: Mapping[str, Mapping[str, float]], label: str) -> str:
    """An SVG with a group of bars for each key, from zero."""
    top = max(value for values in bars.values() for value in values.values())
    kinds = list(next(iter(bars.values())))
    group, height = (WIDTH - LEFT - RIGHT) / len(bars), HEIGHT - TOP - BOTTOM
    width = 0.8 * group / len(kinds)
    body = [f'<text x="4" y="14">{label}</text>']
    for g, (name, values) in enumerate(bars.items()):
        middle = LEFT + (g + 0.5) * group
        body.append(f'<text x="{middle:.0f}" y="{HEIGHT - 30}" text-anchor="middle" font-size="10">{name}</text>')
        for k, kind in enumerate(kinds):
            x, size = LEFT + g * group + 0.1 * group + k * width, height * values[kind] / top
            y = TOP + height - size
            body.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{size:.1f}" fill="{COLOURS[k]}"/>')
            at = f'x="{x + width / 2:.1f}" y="{y - 4:.1f}"'
            body.append(f'<text {at} text-anchor="middle" font-size="10">{values[kind]:.2f}</text>')
    for k, kind in enumerate(kinds):
        body.append(f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 20 * k + 12}" fill="{COLOURS[k]}">{kind}</text>')
    return svg(body)


def draw(series: Mapping[str, Points], label: str, is_log: bool) -> str:
    """An SVG with batch size on a logarithmic axis; the values' axis is logarithmic where `is_log`."""
    points = [point for line in series.values() for point in line if not is_log or point[1] > 0]
    xs, ys = [math.log2(x) for x, _ in points], [math.log10(y) if is_log else y for _, y in points]
    low, high = (min(ys), max(ys)) if is_log else (min(0.98, *ys), max(1.04, *ys))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = math.log2(point[0]), math.log10(point[1]) if is_log else point[1]
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        across = (x - min(xs)) / max(max(xs) - min(xs), 1e-9)
        return LEFT + across * width, TOP + height * (1 - (y - low) / max(high - low, 1e-9))

    body = [f'<text x="{LEFT}" y="{HEIGHT - 12}">rows in the batch (log)</text><text x="4" y="14">{label}</text>']
    for x in sorted({x for x, _ in points}):
        at = place((x, 10**low if is_log else low))
        body.append(f'<text x="{at[0]:.0f}" y="{HEIGHT - 32}" text-anchor="middle">{x:g}</text>')
    for y in (low, (low + high) / 2, high):
        value = 10**y if is_log else y
        body.append(f'<text x="{LEFT - 8}" y="{place((1, value))[1]:.0f}" text-anchor="end">{value:.3g}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(p) for p in line if not is_log or p[1] > 0))
        body.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        body.append(f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 20 * number + 12}" fill="{colour}">{name}</text>')
    return svg(body)


def svg(body: Sequence[str]) -> str:
    style = 'font-family="sans-serif" font-size="12"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" {style}>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n'
    )


def command(argv: list[str] | None) -> None:
    """Raises CommandError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args(argv)
    files.check_folder(args.out)
    lines = read(args.results / "gpu.jsonl")
    ops, server = ops_series(lines), server_series(lines)
    bars = speculation_bars(read(args.results / "speculation.jsonl"))
    if not ops and not server and not bars:
        raise CommandError(f"nothing to draw in {args.results}: run benchmarks/gpu or benchmarks.speculation first")
    if bars:
        files.write_text(args.out / "speculation.svg", draw_bars(bars, "tokens per verification"))
        print(args.out / "speculation.svg")
    pictures = {"ops": (ops, "ms", True), "server": (server, "LED / stock, time of a decode step", False)}
    for name, (series, label, is_log) in pictures.items():
        if series:
            files.write_text(args.out / f"{name}.svg", draw(series, label, is_log))
            print(args.out / f"{name}.svg")


def main(argv: list[str] | None = None) -> int:
    return guarded("plot", lambda: command(argv))


if __name__ == "__main__":
    sys.exit(main())
