"""What the programs of each kernel do: how many have work, how often their loops run, which bytes they move.

Only what the code of a kernel cannot tell by itself stands here. A kernel that is missing raises KeyError.
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.cost.plan import KernelLaunch

EXPLORE_RATE = 0.1  # of rows, as the kit's
ONE_PASS_RATE = 0.8  # of rows, by the coin's threshold
ANSWERING_RATE = 0.1  # of seeded rows: outside their phase, drawn by LED


@dataclass(frozen=True)
class Work:
    programs: int  # that have work; the others return early
    trips: tuple[int, ...] = ()  # of each loop of the code, outer ones first
    memory_bytes: float = 0  # moved once, from or to memory
    cache_bytes: float = 0  # all that the programs load, from wherever
    idle_trips: tuple[int, ...] | None = None  # of a program without work; None: it returns at the first branch


@dataclass(frozen=True)
class Rows:
    """Of one step, by what the coins say."""

    explored: int  # rows whose latents a kernel after the coin computes
    one_pass: int  # rows whose latents went through the head before it
    missing: int  # rows that explore and did not

    @property
    def num_known(self) -> int:
        return self.explored - self.missing


def ceil(count: int, size: int) -> int:
    return -(-count // size)


def _all(launch: KernelLaunch, rows: Rows) -> Work:
    return Work(launch.num_programs)


def _gathered(launch: KernelLaunch, rows: Rows) -> int:
    """Rows through the head kernel: final ones and latents."""
    num_layers = launch.num_layers
    return int(launch.arguments["num_final"]) + num_layers * (rows.one_pass if launch.is_in_graph else rows.missing)


def _head(launch: KernelLaunch, rows: Rows) -> Work:
    """As many programs as run at once share the pieces."""
    given, count = launch.arguments, _gathered(launch, rows)
    num_blocks, hidden, columns = ceil(count, given["BLOCK_N"]), given["hidden"], given["num_columns"]
    weight, states = given["weight"].element_size() * columns * hidden, 2 * count * hidden
    cached = num_blocks * weight + states * given["num_tiles"]
    written = 2 * given["num_final"] * columns + 4 * count * given["num_tiles"]
    pieces, looks = num_blocks * given["num_tiles"], ceil(given["num_batch"], given["BLOCK_COUNT"])
    trips = looks, ceil(pieces, launch.num_programs), ceil(hidden, given["BLOCK_H"])
    memory = (weight + written) * (count > 0)
    return Work(min(pieces, launch.num_programs), trips, memory, cached, (looks, 0, 0))


def _merge(launch: KernelLaunch, rows: Rows) -> Work:
    return Work(launch.num_layers * (rows.one_pass if launch.is_in_graph else rows.missing))


def _scan(launch: KernelLaunch, rows: Rows) -> Work:
    num_bytes = launch.grid[0] * launch.arguments["num_vocab"] * launch.arguments["logits"].element_size()
    return Work(launch.num_programs, (), num_bytes, num_bytes)


def _candidates(launch: KernelLaunch, rows: Rows) -> Work:
    given, (_, layers, blocks) = launch.arguments, launch.grid
    num_bytes = 2 * rows.explored * given["num_candidates"] * given["hidden"]
    trips = (ceil(given["hidden"], given["BLOCK_H"]),)
    return Work(rows.explored * layers * blocks, trips, num_bytes, num_bytes * layers)


def _parts(launch: KernelLaunch, rows: Rows) -> Work:
    given, (slots, programs, _) = launch.arguments, launch.grid
    drawn = ceil(int(10 * ANSWERING_RATE) * slots, 10)
    num_bytes = drawn * given["vocab"] * given["probs"].element_size()
    return Work(drawn * programs, (ceil(given["num_parts"], programs),), num_bytes, num_bytes)


def _draw(launch: KernelLaunch, rows: Rows) -> Work:
    """Without filters: no search."""
    return Work(ceil(int(10 * ANSWERING_RATE) * launch.grid[0], 10), (0, 0, 0))


def _grow(launch: KernelLaunch, rows: Rows) -> Work:
    return Work(launch.num_programs, (launch.arguments["num_nodes"],))


def _prune(launch: KernelLaunch, rows: Rows) -> Work:
    return Work(launch.num_programs, (launch.arguments["num_nodes"] - 1,))


WORK: dict[str, Callable[[KernelLaunch, Rows], Work]] = {
    "row_inputs_kernel": _all,
    "one_pass_mask_kernel": _all,
    "head_kernel": _head,
    "merge_kernel": _merge,
    "scan_kernel": _scan,
    "coin_kernel": _all,
    "candidates_kernel": _candidates,
    "mix_and_sample_kernel": _all,
    "write_kernel": _all,
    "advance_kernel": _all,
    "pack_flags_kernel": _all,
    "parts_kernel": _parts,
    "draw_kernel": _draw,
    "grow_kernel": _grow,
    "prune_kernel": _prune,
}


def work_of(launch: KernelLaunch, rows: Rows) -> Work:
    return WORK[launch.kernel](launch, rows)
