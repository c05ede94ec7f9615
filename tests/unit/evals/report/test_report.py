"""The report of a small run with known numbers, held against a committed snapshot.

    UPDATE_SNAPSHOT=1 python -m pytest tests/unit/evals/report/test_report.py

writes it anew.
"""

import json
import os
import random
import re
import shlex
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from led_sglang.evals.__main__ import main
from led_sglang.evals.records import results
from led_sglang.evals.records.store import CellKey, Sample, Store, read_lines
from led_sglang.evals.report import compose as report_module
from led_sglang.evals.report import figures as figures_module
from led_sglang.evals.report import provenance, tables
from led_sglang.evals.report.figures import to_svg

SNAPSHOT = Path(__file__).with_name("report_snapshot.md")
CHANCE = {"cot": 0.3, "led": 0.45, "led:depth=4": 0.5, "led:depth=12": 0.4, "led:latent_norm=true": 0.2}
BLANK = Sample("embedded", "cot", 0.6, "q0", 0, 1, "right", "1", "", 10, 5, "stop", 0.5, led={"method": "none"})
SETTINGS = {
    "fixed": {"model": "fake", "seed": 0},
    "prompts": "ours",
    "questions": {},
    "num_questions": {"embedded": 12, "livecodebench": 4},
    "temperatures": [0.1, 0.6],
    "samples": 16,
    "server": {"sglang": "0.0.1"},
    "applied": {"cot": {"method": "none"}, "led": {"method": "led", "depth": 8}},
    "sandbox": {"network": "network namespace"},
    "sessions": [],
}


def outcome(rng: random.Random, chance: float) -> str:
    return "right" if rng.random() < chance else rng.choice(["wrong", "wrong", "no_answer"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    with Store(Path("run"), {**SETTINGS, "sessions": [{"wall_s": 61.2}]}, resume=False) as store:
        for task, count in (("embedded", 12), ("livecodebench", 4)):
            for method, chance in CHANCE.items():
                for temperature in (0.1, 0.6):
                    for question in range(count):
                        for index in range(16):
                            result = outcome(rng, chance * (question + 1) / count + temperature / 10)
                            detail = "timeout in test 1 of 3" if task == "livecodebench" and result == "wrong" else ""
                            tokens, name = rng.randint(20, 40), f"q{question}"
                            store.append(
                                replace(
                                    BLANK, task=task, method=method, temperature=temperature, question=name,
                                    sample=index, outcome=result, detail=detail, tokens=tokens,
                                )
                            )  # fmt: skip
    return tmp_path


def report(*arguments: str) -> None:
    assert main(["report", "run", "--out", "docs", "--resamples", "500", *arguments]) == 0


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures cost seconds; the test of the page draws them."""
    monkeypatch.setattr(report_module, "all_figures", lambda experiment, analyses: {"a-figure": "<svg/>"})


@pytest.mark.usefixtures("no_drawing")
def test_snapshot(folder: Path) -> None:
    report()
    text = (folder / "docs" / "report.md").read_text()
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text()


ANALYSIS = {
    "name": "small model",
    "temperature": 0.6,
    "positions": 100,
    "ks": [1, 2],
    "exploration_rate": 0.12,
    "layers": [{"layer": i, "entropy": 1 / i, "coverage": {"1": 0.1 * i, "2": 0.05 * i}} for i in (1, 2, 3)],
}


def test_settings_are_reported_once_and_then_by_their_differences() -> None:
    base = {"method": "led", "depth": 8, "min_p": 0.0}
    runs: list[dict[str, object]] = [
        {"applied": {"cot": {"method": "none"}, "led": base, "led:depth=3": {**base, "depth": 3}}},
        {"applied": {"cot": {"method": "none"}, "led": dict(base), "led:depth=8": dict(base)}},
    ]
    assert provenance.applied_lines(runs) == [
        '`cot`: method "none".',
        '`led`: method "led", depth 8, min_p 0.0.',
        "`led:depth=3`: as for `led`, but depth 3.",
        "`led:depth=8`: as for `led`.",
    ]


def test_what_runs_share_is_reported_once() -> None:
    other = {**SETTINGS, "temperatures": [1.0], "sessions": [{"wall_s": 1000.2}, {"wall_s": 500.4}]}
    assert provenance.overview([SETTINGS, other]) == provenance.overview([SETTINGS])
    assert len(provenance.overview([SETTINGS, {**other, "samples": 4}])) == 4
    table = provenance.runs_table([Path("out/main"), Path("out/few")], [SETTINGS, other])
    assert table.rows == [["main", "cot, led", "0.1, 0.6", "16", "0"], ["few", "cot, led", "1", "16", "1,501"]]


def test_one_task_has_no_average(folder: Path) -> None:
    cells = {key: cell for key, cell in results.read_cells([Path("run")]).items() if key.task == "embedded"}
    table = tables.main_table(tables.Experiment(cells))
    assert table.header == ["method", "temperature", "embedded pass@1", "embedded pass@16"]
    assert {len(row) for row in table.rows} == {4}


def test_page_and_figures(folder: Path) -> None:
    (folder / "analysis.json").write_text(json.dumps(ANALYSIS))
    report("--analysis", "analysis.json", "--title", "A <title>")
    page = (folder / "docs" / "report.html").read_text()
    assert "<script" not in page and not re.findall(r"(?:src|href)=\"(?!data:)", page), "the page needs other files"
    assert "A &lt;title&gt;" in page and "Table 5" in page and "E[1 - max p] = 0.1200" in page
    figures = {path.name: path.read_text() for path in (folder / "docs" / "figures").iterdir()}
    wanted = {"temperature-embedded", "pass-at-n-embedded-t0.6", "depth-embedded-t0.6", "layer-entropy"}
    assert {f"{name}.svg" for name in wanted} | {"layer-coverage-small-model.svg"} <= set(figures)
    assert page.count("<img ") == len(figures)
    for svg in figures.values():
        assert ET.fromstring(svg).tag.endswith("svg")
    again = to_svg(figures_module.layer_entropy({"small model": ANALYSIS}))
    assert again == figures["layer-entropy.svg"], "the same data makes another file"


def test_the_numbers_are_those_of_the_samples(folder: Path) -> None:
    cells = results.read_cells([Path("run")])
    cell = cells[CellKey("embedded", "cot", 0.6)]
    samples = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    mine = [s for s in samples if (s["task"], s["method"], s["temperature"]) == ("embedded", "cot", 0.6)]
    assert cell.accuracy(1) == pytest.approx(sum(s["outcome"] == "right" for s in mine) / len(mine))
    solved = {s["question"] for s in mine if s["outcome"] == "right"}
    assert cell.accuracy(16) == pytest.approx(len(solved) / 12)
    assert cell.no_answer == sum(s["outcome"] == "no_answer" for s in mine) / len(mine)
    assert cell.mean_tokens == sum(s["tokens"] for s in mine) / len(mine)
    experiment = tables.Experiment(cells, num_resamples=500)
    alpha = tables.alpha_of(experiment, [cells[CellKey("embedded", "led", t)] for t in (0.1, 0.6)])
    low, high = ([cells[CellKey("embedded", "led", t)].accuracy(n) for n in (1, 2, 4, 8, 16)] for t in (0.1, 0.6))
    assert alpha is not None and alpha.mean == pytest.approx((sum(high) - sum(low)) / 5)


def test_samples_that_come_twice_count_once(folder: Path) -> None:
    one, two = results.read_cells([Path("run")]), results.read_cells([Path("run"), Path("run")])
    assert {k: c.outcomes for k, c in one.items()} == {k: c.outcomes for k, c in two.items()}


def split(folder: Path, name: str, keep: Callable[[Sample], bool]) -> Path:
    """A run of some of the samples, compacted."""
    with Store(folder / name, dict(SETTINGS), resume=False) as store:
        for sample in read_lines(folder / "run" / "samples.jsonl"):
            if keep(sample):
                store.append(sample)
    assert main(["compact", str(folder / name)]) == 0
    assert sorted(path.name for path in (folder / name).iterdir()) == ["counts.jsonl", "run.json"]
    return folder / name


@pytest.mark.usefixtures("no_drawing")
def test_a_compacted_run_makes_the_same_report(folder: Path) -> None:
    size = (folder / "run" / "samples.jsonl").stat().st_size
    for _ in range(2):
        assert main(["compact", "run"]) == 0
        assert not (folder / "run" / "samples.jsonl").exists()
        report()
        assert (folder / "docs" / "report.md").read_text() == SNAPSHOT.read_text()
    assert (folder / "run" / "counts.jsonl").stat().st_size < size / 100


def test_compacted_runs_are_put_together(folder: Path) -> None:
    whole = results.read_cells([Path("run")])
    early, late = (split(folder, name, lambda s, is_late=is_late: (s.sample > 7) == is_late)
                   for name, is_late in (("early", False), ("late", True)))  # fmt: skip
    for folders in ([early, late], [late, Path("run")], [early, late, early], [Path("run"), early, late]):
        found = results.read_cells(folders)
        assert {k: (c.questions, c.outcomes, c.tokens) for k, c in found.items()} == {
            k: (c.questions, c.outcomes, c.tokens) for k, c in whole.items()
        }


def test_compacted_runs_that_share_some_samples_cannot_be_put_together(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early, middle = (split(folder, name, lambda s, start=start: start <= s.sample < start + 8)
                     for name, start in (("early", 0), ("middle", 4)))  # fmt: skip
    assert main(["report", str(early), str(middle), "--out", "docs"]) == 1
    assert "question q0: in two compacted runs that share samples" in capsys.readouterr().err


def test_compact_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compact", "nowhere"]) == 1
    assert "nowhere holds no run" in capsys.readouterr().err
    with Store(Path("run"), dict(SETTINGS), resume=True):
        assert main(["compact", "run"]) == 1
    assert "another run is writing" in capsys.readouterr().err
    Path("run/counts.jsonl").write_text('[{"task": "embedded"}]')
    assert main(["report", "run", "--out", "docs"]) == 1
    assert "run/counts.jsonl:1: not a JSON object but a list" in capsys.readouterr().err


@pytest.mark.usefixtures("no_drawing")
def test_the_command_in_a_report_makes_it_again(folder: Path) -> None:
    (folder / "an analysis.json").write_text(json.dumps(ANALYSIS))
    report("--analysis", "an analysis.json", "--title", "A model's", "--baseline", "led:depth=4", "--seed", "3")
    text = (folder / "docs" / "report.md").read_text()
    words = shlex.split(text.splitlines()[-1])
    assert words[:3] == ["python", "-m", "led_sglang.evals"]
    shutil.rmtree(folder / "docs")
    assert main(words[3:]) == 0
    assert (folder / "docs" / "report.md").read_text() == text


@pytest.mark.usefixtures("no_drawing")
def test_an_unfinished_run_says_so(folder: Path) -> None:
    path = folder / "run" / "samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: 12 * 16 * 2 + 40]))
    report()
    text = (folder / "docs" / "report.md").read_text()
    assert "Note: embedded, led, temperature 0.1: not every question has all samples" in text
    assert "Note: embedded: methods answered 3 to 12 questions" in text


@pytest.mark.parametrize(
    ("content", "message"), [(None, "holds no run"), ("", "no finished"), ("{}\n", ":1: not a sample")]
)
def test_nothing_to_report(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "samples.jsonl").write_text(content)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("option", ["--baseline", "--reference"])
def test_an_unknown_method_is_reported_with_those_there_are(
    option: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "run", "--out", "docs", option, "nope"]) == 1
    message = capsys.readouterr().err
    assert f"{option}: the runs have no method 'nope'; they have " in message
    assert all(name in message for name in CHANCE) and not list((folder / "docs").glob("*.md"))


@pytest.mark.usefixtures("no_drawing")
def test_runs_without_what_is_compared_by_default(folder: Path) -> None:
    """Nobody named plain sampling: a report without it is no error, nor is the command in it."""
    split(folder, "late", lambda s: s.method not in ("cot", "led"))
    assert main(["report", "late", "--out", "docs", "--resamples", "10"]) == 0
    words = shlex.split((folder / "docs" / "report.md").read_text().splitlines()[-1])
    assert "--baseline" not in words and "--reference" not in words
    assert main(words[3:]) == 0
    assert main(["report", "run", "--out", "docs", "--baseline", "led", "--reference", "led", "--resamples", "10"]) == 0


WRONG_SAMPLES: list[dict[str, object]] = [
    {"sample": -1}, {"sample": 1 << 40}, {"sample": "0"}, {"sample": True}, {"outcome": "perfect"}, {"tokens": "7"},
    {"temperature": None}, {"led": []}, {"answer": 5}, {"colour": 1}, {"wall_s": "1"},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_SAMPLES, ids=str)
def test_a_sample_of_wrong_kinds(wrong: dict[str, object], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "run" / "samples.jsonl"
    first, second, *others = path.read_text().splitlines(keepends=True)
    path.write_text(first + json.dumps({**json.loads(second), **wrong}) + "\n" + "".join(others))
    assert main(["report", "run", "--out", "docs"]) == 1
    message = capsys.readouterr().err
    assert "run/samples.jsonl:2: not a sample: " in message and next(iter(wrong)) in message


WRONG_SETTINGS: list[dict[str, object]] = [
    {"fixed": []}, {"questions": 1}, {"sessions": [5]}, {"sessions": {}}, {"applied": {"cot": "none"}},
    {"temperatures": ["0.6"]}, {"sessions": [{"wall_s": "1"}]}, {"server": "0.5"}, {"num_questions": None},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_SETTINGS, ids=str)
@pytest.mark.parametrize("command", [["report", "run", "--out", "docs"], ["compact", "run"]])
def test_settings_of_wrong_kinds(
    command: list[str], wrong: dict[str, object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "run/run.json is damaged: " in message and next(iter(wrong)) in message


WRONG_COUNTS: list[dict[str, object]] = [
    {"done": "x"}, {"done": -1}, {"right": [99] * 12}, {"right": ["1"] * 12}, {"right": [1]},
    {"outcomes": {"right": "x"}}, {"task": "other"}, {"temperature": "hot"}, {"colour": 1}, {"tokens": None},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_COUNTS, ids=lambda wrong: str(wrong)[:30])
def test_counts_of_wrong_kinds(wrong: dict[str, object], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = split(folder, "some", lambda s: s.task == "embedded") / "counts.jsonl"
    head, first, *others = path.read_text().splitlines(keepends=True)
    path.write_text(head + json.dumps({**json.loads(first), **wrong}) + "\n" + "".join(others))
    assert main(["report", "some", "--out", "docs"]) == 1
    assert "some/counts.jsonl:2: not what compact writes: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [{"layers": []}, {"layers": [{}]}, {"ks": [3]}, {"name": 5}, {"exploration_rate": "low"}, {"positions": None}],
    ids=str,
)
def test_an_analysis_of_wrong_kinds(wrong: dict[str, object], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "analysis.json").write_text(json.dumps({**ANALYSIS, **wrong}))
    assert main(["report", "run", "--out", "docs", "--analysis", "analysis.json"]) == 1
    assert "--analysis analysis.json: not a file of led_sglang.analysis" in capsys.readouterr().err


def test_methods_sort_by_number() -> None:
    names = ["led:depth=12", "led", "led:depth=4", "cot", "led:depth=4,top_k=3"]
    assert sorted(names, key=tables.method_order) == [
        "cot",
        "led",
        "led:depth=4",
        "led:depth=4,top_k=3",
        "led:depth=12",
    ]
