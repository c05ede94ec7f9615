"""A kernel's machine code for sm_90: instructions by pipe along one path, and the cycles that one warp takes for it.

Stalls, scoreboards and what waits for them are in the code itself: the compiler schedules, the hardware does not. The
upper word of an instruction holds, from bit 41: stall cycles (4 bits), yield, the scoreboard that a result sets (3),
the one that its operands' reads set (3), the mask of those it waits for (6). Scoreboard 7 is none.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton

from benchmarks.gpu.cost import device

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);\s+/\* 0x([0-9a-f]{16}) \*/")
UPPER = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
LABEL = re.compile(r"^(\.L_x_\d+):")
MATRIX = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)")
NONE = 7
MOST_ROUNDS = 3  # of a loop that are walked

_ALU = "ISETP SEL LOP3 PLOP3 IADD3 SHF LEA PRMT FSEL FSETP FMNMX IMNMX VIMNMX FLO POPC BMSK SGXT LOP IABS VOTE FCHK"
_ALU += " P2R R2P MOV HMNMX2 VIADD"
PIPES = {
    "alu": set(_ALU.split()),
    "fma": {"FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2", "FSWZADD"},
    "imad": {"IMAD"},
    "fp64": {"DADD", "DMUL", "DFMA", "DSETP"},
    "xu": {"MUFU", "F2F", "I2F", "F2I", "FRND", "F2FP", "I2FP", "F2IP", "REDUX"},
    "lsu": {"SHFL", "LDS", "STS", "LDSM", "STSM", "LDG", "STG", "LDGSTS", "ATOM", "ATOMG", "ATOMS", "RED", "LD", "ST"},
}
PIPE_OF = {name: pipe for pipe, names in PIPES.items() for name in names}
PIPE_OF |= dict.fromkeys(("F2FP", "I2FP"), "alu")  # packed 32-bit conversions


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "" where it is always executed
    opcode: str
    operands: str
    target: int | None  # of a branch
    stall: int
    sets: int  # scoreboard of its result
    sets_read: int  # of its operands
    waits: int  # mask

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def shared_bytes(self) -> int:
        """Of a warp, moved to or from shared memory."""
        if self.name not in ("LDS", "STS", "LDSM", "STSM", "LDGSTS"):
            return 0
        width = re.search(r"\.(64|128)\b", self.opcode)
        return 32 * (int(width.group(1)) // 8 if width else 4)

    @property
    def matrix_cycles(self) -> float:
        """Of a warpgroup's product, at the datasheet's rate."""
        found = MATRIX.match(self.opcode)
        if found is None:
            return 0.0
        rows, columns, depth = map(int, found.groups())
        return rows * columns * depth / device.MATRIX_MULTIPLY_ADDS


@dataclass(frozen=True)
class Run:
    """What one warp executes."""

    instructions: int
    pipes: dict[str, int]  # instructions by pipe
    shared_bytes: int
    matrix_cycles: float
    latency: float  # cycles, alone on its SM

    def plus(self, fewer: "Run", times: int) -> "Run":
        """And so many times what it has more than the other."""
        return Run(
            self.instructions + times * (self.instructions - fewer.instructions),
            {pipe: n + times * (n - fewer.pipes.get(pipe, 0)) for pipe, n in self.pipes.items()},
            self.shared_bytes + times * (self.shared_bytes - fewer.shared_bytes),
            self.matrix_cycles + times * (self.matrix_cycles - fewer.matrix_cycles),
            self.latency + times * (self.latency - fewer.latency),
        )

    def busy_cycles(self, num_warps: int) -> dict[str, float]:
        """Cycles of an SM, by pipe, that a block of so many warps needs."""
        found = {pipe: count * num_warps * device.PIPE_CYCLES[pipe] for pipe, count in self.pipes.items()}
        found["issue"] = self.instructions * num_warps * device.PIPE_CYCLES["issue"]
        found["shared"] = self.shared_bytes * num_warps / device.SHARED_BYTES_PER_CYCLE
        found["matrix"] = self.matrix_cycles * num_warps / 4 / device.MATRIX_SHARE
        return found


class Code:
    """A cubin with one kernel."""

    def __init__(self, cubin: bytes) -> None:
        self.instructions = _read(cubin)
        self.num_registers = _registers(cubin)
        self._position = {found.address: i for i, found in enumerate(self.instructions)}

    @cached_property
    def _end(self) -> int:
        """Position of what runs only where the lanes of a warp have parted, which is behind all else."""
        apart = [self._position[i.target] for i in self.instructions if i.opcode == "BRA.DIV" and i.target is not None]
        return min(apart, default=len(self.instructions))

    @cached_property
    def loops(self) -> list[tuple[int, int]]:
        """(first, last) position of every loop, outer ones before what they contain."""
        last: dict[int, int] = {}  # by the first; a loop may be continued from several places
        for i, instruction in enumerate(self.instructions[: self._end]):
            target = instruction.target
            if target is not None and target < instruction.address and target in self._position:
                last[self._position[target]] = i
        return sorted(last.items(), key=lambda loop: (loop[0], -loop[1]))

    def path(self, num_warps: int, trips: Sequence[int] = ()) -> Run:
        """Of a program that has work: no early exit, no branch ahead is taken; trips: how often each loop runs.

        What a loop adds from its third round on it adds in every round. Raises ValueError where the code has another
        number of loops than trips are given for.
        """
        if len(trips) != len(self.loops):
            raise ValueError(f"{len(trips)} trip counts for a kernel of {len(self.loops)} loops")
        many = next((i for i, count in enumerate(trips) if count > MOST_ROUNDS), None)
        if many is not None:
            some, fewer = (
                self.path(num_warps, (*trips[:many], count, *trips[many + 1 :]))
                for count in (MOST_ROUNDS, MOST_ROUNDS - 1)
            )
            return some.plus(fewer, trips[many] - MOST_ROUNDS)
        return _walk(self._unrolled(0, self._end, dict(zip(self.loops, trips, strict=True))), num_warps)

    def early_exit(self, num_warps: int) -> Run:
        """Of a program that has nothing to do: up to the first branch ahead, which it takes."""
        return _walk(self._until_branch(), num_warps)

    def _until_branch(self) -> Iterator[Instruction]:
        for instruction in self.instructions:
            yield instruction
            is_ahead = instruction.target is not None and instruction.target > instruction.address
            if instruction.predicate and (instruction.name == "EXIT" or (instruction.name == "BRA" and is_ahead)):
                return

    def _unrolled(self, start: int, stop: int, trips: dict[tuple[int, int], int]) -> Iterator[Instruction]:
        position = start
        while position < stop:
            loop = next((loop for loop in trips if loop[0] == position), None)
            if loop is not None:
                inner = {other: count for other, count in trips.items() if other != loop}
                for _ in range(trips[loop]):
                    yield from self._unrolled(loop[0], loop[1] + 1, inner)
                position = loop[1] + 1
                continue
            instruction = self.instructions[position]
            yield instruction
            if instruction.name == "EXIT" and not instruction.predicate:
                return
            is_jump = instruction.name == "BRA" and not instruction.predicate and instruction.target is not None
            if is_jump and instruction.target > instruction.address:  # type: ignore[operator]
                position = self._position[instruction.target]  # type: ignore[index]
                continue
            position += 1


def _tool(cubin: bytes, name: str, *arguments: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / name, *arguments, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _registers(cubin: bytes) -> int:
    found = re.search(r"REG:(\d+)", _tool(cubin, "cuobjdump", "--dump-resource-usage"))
    if found is None:
        raise ValueError("no kernel in the cubin")
    return int(found.group(1))


def _read(cubin: bytes) -> list[Instruction]:
    lines, labels, found = _tool(cubin, "nvdisasm", "-c", "-hex").splitlines(), {}, []
    waiting: list[str] = []
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if label := LABEL.match(line):
            waiting.append(label.group(1))
        if not (match := LINE.search(line)):
            continue
        address, control = int(match.group(1), 16), UPPER.match(below)
        if control is None:
            raise ValueError(f"no control word below {line!r}")
        labels |= dict.fromkeys(waiting, address)
        waiting = []
        bits = int(control.group(1), 16) >> 41
        found.append((address, match, bits))
    return [_instruction(address, match, bits, labels) for address, match, bits in found]


def _instruction(address: int, match: re.Match[str], bits: int, labels: dict[str, int]) -> Instruction:
    name = re.search(r"`\((\.L_x_\d+)\)", match.group(4))
    target = labels.get(name.group(1)) if name and match.group(3).startswith("BRA") else None
    return Instruction(
        address=address,
        predicate=(match.group(2) or "").strip(),
        opcode=match.group(3),
        operands=match.group(4).strip(),
        target=target,
        stall=bits & 15,
        sets=bits >> 5 & 7,
        sets_read=bits >> 8 & 7,
        waits=bits >> 11 & 63,
    )


def _latency(instruction: Instruction) -> int:
    name = instruction.name
    if name in ("LDG", "LD", "LDGSTS"):
        return device.GLOBAL_LATENCY
    if name in ("ATOM", "ATOMG", "RED"):
        return device.ATOMIC_LATENCY
    if name in ("LDS", "LDSM", "STS", "ATOMS"):
        return device.SHARED_LATENCY
    return device.SHUFFLE_LATENCY if name == "SHFL" else device.OTHER_LATENCY


def _done(groups: list[float], operands: str) -> float:
    """When all but the last few groups are, as many as the second operand leaves."""
    left = int(operands.split(",")[1].strip(), 16)
    return groups[-1 - left] if len(groups) > left else 0.0


def _walk(instructions: Iterator[Instruction], num_warps: int) -> Run:
    """One warp's time, in order; products of its warpgroups share the matrix units."""
    now, count, shared, matrix = 0.0, 0, 0, 0.0
    ready, pipes = [0.0] * 6, Counter[str]()
    copies, products, matrix_free = list[float](), list[float](), 0.0  # when each group of them is done, in order
    for instruction in instructions:
        name = instruction.name
        count += 1
        pipes[PIPE_OF.get(name, "issue")] += 1
        shared += instruction.shared_bytes
        for scoreboard in range(6):
            if instruction.waits >> scoreboard & 1:
                now = max(now, ready[scoreboard])
        if name == "LDGDEPBAR":
            copies.append(now + device.GLOBAL_LATENCY)
        elif "DEPBAR" in instruction.opcode and "," in instruction.operands:
            now = max(now, _done(products if name == "WARPGROUP" else copies, instruction.operands))
        elif name == "BAR":
            now += device.BARRIER_CYCLES
        if cycles := instruction.matrix_cycles:
            matrix += cycles
            matrix_free = max(now, matrix_free) + cycles * (num_warps // 4) / device.MATRIX_SHARE
            if "gsb0" in instruction.operands:
                products.append(matrix_free)
        if instruction.sets != NONE:
            ready[instruction.sets] = max(ready[instruction.sets], now + _latency(instruction))
        if instruction.sets_read != NONE:
            ready[instruction.sets_read] = max(ready[instruction.sets_read], now + device.OTHER_LATENCY)
        now += max(1, instruction.stall)
    return Run(count, {pipe: n for pipe, n in pipes.items() if pipe != "issue"}, shared, matrix, now)
