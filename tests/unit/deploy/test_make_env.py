"""scripts/make_env says how far a long installation is, and why one failed. pip is played by a few lines of shell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PIP = """#!/usr/bin/env bash
if [[ $1 != -m || $2 != pip ]]; then exec {python} "$@"; fi
echo "Collecting sglang==0.5.23"
echo "  Downloading https://host/sglang-0.5.23-py3-none-any.whl.metadata (8 kB)"
echo "Collecting torch==2.14.1"
echo "  Downloading https://host/simple/torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl (780.9 MB)"
sleep 3
{end}
"""
INSTALL = 'echo "Installing collected packages: torch, sglang"; sleep 3; echo Successfully installed torch'
FAIL = 'echo "ERROR: No matching distribution found for torch==2.14.1"; exit 1'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/make_env", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "constraints.txt").write_text("# pins\nsglang==0.5.23\ntorch==2.14.1\n")
    return tmp_path


def make_env(repository: Path, end: str) -> subprocess.CompletedProcess[str]:
    python = repository / ".venv/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(PIP.format(python=sys.executable, end=end))
    python.chmod(0o755)
    env = {**os.environ, "LED_MAKE_ENV_EVERY_S": "1"}
    return subprocess.run([repository / "scripts/make_env"], capture_output=True, text=True, timeout=120, env=env)


def test_progress_names_the_package_and_its_size(repository: Path) -> None:
    done = make_env(repository, INSTALL)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    now = "2 of about 2 packages, now torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl (780.9 MB)"
    assert [line for line in lines if now in line], done.stdout
    assert [line for line in lines if "unpacking and compiling" in line]
    assert "ready after" in lines[-1]
    assert "Collecting torch" in (repository / "out/make_env.log").read_text() and "Collecting" not in done.stdout
    assert make_env(repository, FAIL).stdout == "", "a finished environment says nothing and installs nothing"


def test_a_failure_is_shown_with_pips_words(repository: Path) -> None:
    done = make_env(repository, FAIL)
    assert done.returncode != 0
    assert "No matching distribution found for torch" in done.stderr
    assert "trying once more" in done.stderr
