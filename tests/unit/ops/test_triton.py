"""The Triton kernels without a GPU: Triton's interpreter has to be asked for before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["triton_checks.py", "triton_draw_checks.py", "triton_project_checks.py"])
def test_kernel_under_the_interpreter(name):
    pytest.importorskip("triton")
    script = Path(__file__).with_name(name)
    paths = os.pathsep.join([str(script.parents[3]), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "triton checks passed" in done.stdout
