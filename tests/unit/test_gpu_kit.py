"""The GPU kit without a GPU: its dry run, under Triton's interpreter, and the pictures of its lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import plot
from benchmarks.gpu import kit

ROOT = Path(__file__).parents[2]


def test_dry_run() -> None:
    pytest.importorskip("triton")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "benchmarks.gpu.kit", "--dry-run", "--parts", "correct", "ops", "tiles"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    checks = [line for line in lines if line["part"] == "correct"]
    assert len(checks) == 3 * 3 * 5 + 2  # dtypes, heads, backends with their forms; the counters, the standing
    timed = [line for line in lines if line["part"] == "ops"]
    tiles = [line for line in lines if line["part"] == "tiles"]
    assert [line["rows_through_head"] for line in tiles] == [3, 9] and len(tiles[0]) == 4 + 7
    assert [line.get("rows") for line in timed] == [1, 3, None] and "one_pass_is_faster_up_to_rows" in timed[-1]


def test_without_a_gpu_it_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (([], "no GPU here"), (["--dry-run", "--append"], "measures nothing")):
        with pytest.raises(SystemExit):
            kit.parse_args(arguments)
        assert message in capsys.readouterr().err


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ops = [{"rows": n, "naive_ms": 2.0 * n, "one_pass_ms": 0.1 * n} for n in (1, 8, 64)]
    server = [{"mode": m, "rows": n, "mean_ms": 2.0 + (m != "off")} for m in ("off", "auto") for n in (1, 64)]
    for name, lines in (("ops", ops), ("server", server)):
        (tmp_path / f"gpu_{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plot.main(["--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "ops.svg").read_text().count("<polyline") == 2
    assert "1.5" in (tmp_path / "out" / "server.svg").read_text()
    assert plot.main(["--results", str(tmp_path / "nothing"), "--out", str(tmp_path)]) == 1
    assert "run benchmarks/gpu first" in capsys.readouterr().err
