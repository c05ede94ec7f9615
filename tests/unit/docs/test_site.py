"""The documentation as a site: it builds without a warning, and what is broken is noticed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
KINDS = ["Tutorials", "How-to", "Reference", "Explanation", "Decisions", "Results", "Status"]


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(root / "mkdocs.yml"),
        "--site-dir",
        str(site),
    ]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, cwd=root)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_strictly_and_can_be_searched(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())
    found = {entry["location"].split("#")[0] for entry in index["docs"] if "latent_offset" in entry["text"]}
    assert {"api.html", "reference/parameters.html"} <= found
    assert "index.html" in {entry["location"] for entry in index["docs"]}


def test_what_pages_link_to_outside_of_docs_is_in_the_site(site: Path) -> None:
    assert (site / "source/led_sglang/ops/reference.py").read_bytes() == (
        ROOT / "led_sglang/ops/reference.py"
    ).read_bytes()
    assert (site / "CHANGELOG.html").is_file() and (site / "benchmarks/gpu/index.html").is_file()
    hrefs = re.findall(r'href="([^"#:]+)', (site / "design.html").read_text())
    assert "source/led_sglang/ops/reference.py" in hrefs


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in ("index.html", "api.html", "how-to/clients.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)', (site / page).read_text())
        assert loaded == []


def test_every_kind_of_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!python\S+ ", "", (ROOT / "mkdocs.yml").read_text())
    [kinds] = [[next(iter(entry)) for entry in yaml.safe_load(text)["nav"]]]
    assert kinds == ["Home", *KINDS]


FAULTS = {  # what is appended to which page: what the warning names
    "[a](gone.md)": ("api.md", "gone.md"),
    "[a](methods.md#gone)": ("cli.md", "#gone"),
    "[a](../led_sglang/gone.py)": ("design.md", "gone.py"),
    "# A page that nobody finds": ("new.md", "new.md"),
}


@pytest.mark.slow
def test_dead_links_and_a_lost_page_fail(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    left_out = shutil.ignore_patterns(
        "__pycache__", "results", "*.safetensors", "out", ".*", "node_modules", "training"
    )
    shutil.copytree(ROOT, root, ignore=left_out)
    for text, (page, _) in FAULTS.items():
        with (root / "docs" / page).open("a") as file:
            file.write(f"\n{text}\n")
    done = build(root, tmp_path / "site")
    assert done.returncode != 0
    said = [line for line in (done.stdout + done.stderr).splitlines() if "results/" not in line]
    for text, (page, words) in FAULTS.items():
        assert [line for line in said if page in line and words in line], text
