"""What Triton's compiler makes of every kernel for Hopper: needs no GPU, proves what its interpreter cannot.

    python -m benchmarks.gpu.build              # a line per kernel and variant
    python -m benchmarks.gpu.build --append     # to benchmarks/results/gpu_build.jsonl

A kernel that spills registers, leaves the tensor cores unused or is compiled anew for another number of rows is slow
for a reason that no result shows. Sizes are those of Qwen3-4B's head; nothing is run.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks.provenance import provenance
from led_sglang.ops import Head, KnownLse, LedRows, RowMeta, ThinkingAutomaton
from led_sglang.ops.backends.triton import TritonBackend
from led_sglang.ops.kernels import lm_head
from led_sglang.ops.kernels.candidates import candidate_logits, projected_sums
from led_sglang.ops.kernels.final_layer import final_rows
from led_sglang.ops.kernels.mix_and_sample import mix_and_sample
from led_sglang.ops.types import ALIGNMENT, Counters, Filters

RESULT = Path(__file__).parents[1] / "results" / "gpu_build.jsonl"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
VOCAB, HIDDEN, LAYERS = 151936, 2560, 7
BATCHES = (1, 2, 3, 7, 16, 17, 64, 250, 256)


class Hopper:
    """Stands in for Triton's driver, which there is none of without a GPU."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@dataclass(frozen=True)
class Built:
    kernel: str
    binary: Any


def compiled_by(action: Callable[[], Any]) -> list[Built]:
    """The kernels that an action launches are compiled, with the arguments that it gives them, and not run."""
    seen: list[Built] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        binary = run(self, *args, grid=grid, warmup=True, **kwargs)
        seen.append(Built(self.__name__, binary))
        return binary

    with patch.object(JITFunction, "run", compile_only):
        action()
    return seen


@dataclass(frozen=True)
class Launch:
    kernel: str
    variant: str  # what Triton finds the kernel's code by: types, alignments, constants, options


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """What is launched, in order; nothing is compiled or run. The first launch of a variant compiles and loads it."""
    seen: list[Launch] = []

    def note_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        _, _, _, _, bind = self.device_caches[triton.runtime.driver.active.get_current_device()]
        _, specialization, options = bind(*args, **kwargs, debug=False, instrumentation_mode="")
        seen.append(Launch(self.__name__, str((specialization, options))))

    with patch.object(JITFunction, "run", note_only):
        yield seen


def step(num_rows: int, dtype: torch.dtype) -> None:
    """Everything that a step of the "triton" backend launches, in both forms."""
    # Never touched, so never in memory.
    weight, buffer = torch.empty(VOCAB, HIDDEN, dtype=dtype), torch.empty(LAYERS, 300, HIDDEN, dtype=dtype)
    head, rows, latents = Head(weight, VOCAB), LedRows.uniform(num_rows, LAYERS + 1), buffer[:, :num_rows]
    number = torch.zeros(ALIGNMENT * (num_rows + 1), dtype=torch.int64)[:num_rows]
    meta = RowMeta(None, number, number, number, number, number.bool(), None, False)
    automaton = ThinkingAutomaton([0], [1], VOCAB).tables("cpu")
    backend = TritonBackend()
    inputs = backend.row_inputs(meta, number, number, None, number)
    lse, mask, tau = torch.empty(LAYERS, 300), torch.empty(300, dtype=torch.bool), torch.empty(300)
    backend.one_pass_mask(rows, inputs, None, mask, tau)
    hidden = torch.empty(num_rows, HIDDEN, dtype=dtype)
    backend.head_pass(hidden, latents, head, tau[:num_rows], mask[:num_rows], lse[:, :num_rows])
    final = final_rows(torch.empty(num_rows, VOCAB), rows.temperature, rows, inputs)
    known_lse = KnownLse(lse[:, :num_rows], mask[:num_rows])
    for has_lse in (None, known_lse):
        lm_head.latent_lse(latents, head, rows.temperature[:, None], final.explore_mask, has_lse)
    candidates = candidate_logits(latents, final.candidate_ids, head, rows.temperature[:, None], final.explore_mask)
    made = mix_and_sample(final, torch.empty(LAYERS, num_rows), candidates, rows, inputs)
    projected = replace(head, project=lambda rows: torch.empty(len(rows), VOCAB, dtype=dtype))
    projected_sums(latents, final.candidate_ids, projected, rows.temperature, final.explore_mask)
    backend.write_tokens(meta, number, inputs, made)
    backend.count(inputs, made, False, number, Counters.zeros(LAYERS + 1, 1, number.device))
    backend.advance(meta, automaton, number, inputs, number)
    filters = Filters(number.int(), rows.temperature, rows.min_p)
    backend.sample_filtered(torch.empty(num_rows, VOCAB), number, inputs.active, inputs.token_uniform, filters)


def facts(built: Built) -> dict[str, Any]:
    """Of a compiled kernel: registers of a thread, spilled bytes, shared memory, matrix instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.binary.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", file.name)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    return {
        "kernel": built.kernel,
        "registers": registers,
        "spilled_bytes": stack,
        "shared_bytes": built.binary.metadata.shared,
        "warps": built.binary.metadata.num_warps,
        "matrix": sorted(set(re.findall(r"(?:HGMMA|HMMA)\.[\dx]+", code))),
        "wide_loads": len(re.findall(r"LDG(?:STS)?\.E\.(?:BYPASS\.)?128", code)),
    }


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def variants(dtype: torch.dtype, batches: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """A line per kernel and variant, with the numbers of rows that use it: the first is compiled when they come."""
    found: dict[tuple[str, str], tuple[Built, list[int]]] = {}
    for num_rows in batches:
        for built in compiled_by(partial(step, num_rows, dtype)):
            _, used = found.setdefault((built.kernel, built.binary.hash), (built, []))
            used += [num_rows] if num_rows not in used else []
    for built, used in found.values():
        yield {**facts(built), "dtype": str(dtype).removeprefix("torch."), "rows": used}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", action="store_true", help=f"append the lines to benchmarks/results/{RESULT.name}")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--rows", type=int, nargs="+", default=list(BATCHES))
    args = parser.parse_args(argv)
    triton.runtime.driver.set_active(Hopper())
    source = {**provenance(), "device": "sm_90, compiled only", "triton": triton.__version__}
    for dtype in args.dtypes:
        for line in variants(getattr(torch, dtype), tuple(args.rows)):
            print(json.dumps(line), flush=True)
            if args.append:
                with RESULT.open("a") as results:
                    results.write(json.dumps(line | source) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
