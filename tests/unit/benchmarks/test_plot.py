"""The figure of tokens per verification, drawn of the newest line of each way to draft."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks import plot

LINES = [
    {"shape": "a chain", "tokens_per_verify": {"led": 9.0, "sampled": 9.0, "greedy": 9.0}},
    {"shape": "a chain", "tokens_per_verify": {"led": 1.9, "sampled": 2.0, "greedy": 2.2}},
    {"shape": "a tree", "tokens_per_verify": {"led": 2.5, "sampled": 2.4, "greedy": 3.0}},
    {"shape": "none", "tokens_per_verify": {"led": None, "sampled": None, "greedy": None}},
]


def test_bars_of_the_newest_lines(tmp_path: Path) -> None:
    (tmp_path / "speculation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert plot.main(["--results", str(tmp_path), "--out", str(tmp_path)]) == 0
    root = ET.parse(tmp_path / "speculation.svg").getroot()
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert [text for text in texts if text in ("1.90", "2.00", "2.20", "2.50", "2.40", "3.00")] == texts[2:5] + texts[
        6:9
    ]
    assert "9.00" not in texts and "none" not in texts
    bars = [e for e in root.iter() if e.tag.endswith("rect") and e.get("fill") in plot.COLOURS]
    heights = [float(str(bar.get("height"))) for bar in bars]
    assert len(heights) == 6 and max(heights) == heights[5]
    assert abs(heights[0] / heights[5] - 1.9 / 3.0) < 1e-3
