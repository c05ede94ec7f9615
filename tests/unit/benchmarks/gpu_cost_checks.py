"""Run by test_gpu_cost.py without the interpreter: what the cost model counts, on kernels as they are compiled."""

import json
import re
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
import triton

from benchmarks.gpu.build import Hopper
from benchmarks.gpu.cost import __main__ as command
from benchmarks.gpu.cost.models import MODELS, ROWS
from benchmarks.gpu.cost.plan import Plan, Scenario, plan_of
from benchmarks.gpu.cost.price import crossing, host_us, kernel_of, kernel_us, likely_counts, step_us
from benchmarks.gpu.cost.sass import Code
from benchmarks.gpu.cost.work import WORK, Rows, work_of
from led_sglang.ops.backends import one_pass
from led_sglang.ops.kernels import final_layer

MODEL = MODELS["Qwen3-4B"]
KERNELS = Path(final_layer.__file__).parent
KEYS = ["model", "rows", "form", "tp", "gpu_us", "host_us", "budget_us", "share", "largest"]
# Microseconds of a step of 256 rows, coin first, the gap before a kernel included.
CEILINGS = {
    "torch.add": 18,
    "torch.copy_to_host": 2.5,
    "row_inputs_kernel": 3,
    "scan_kernel": 40,
    "coin_kernel": 7,
    "head_kernel": 345,
    "merge_kernel": 4.5,
    "candidates_kernel": 6.5,
    "mix_and_sample_kernel": 3.5,
    "write_kernel": 2.5,
    "advance_kernel": 3.5,
    "pack_flags_kernel": 3.5,
}
HARDLY_US = 6  # at one row, where both forms cost the same but for this
# The same of what only other steps launch: seeded and in one pass at 32 rows, and a verification of 64 requests.
OTHER_CEILINGS = {
    "one_pass_mask_kernel": 2.5,
    "torch.zero_": 2.5,
    "parts_kernel": 6.5,
    "draw_kernel": 6.5,
    "grow_kernel": 8.5,
    "prune_kernel": 7.5,
}


@pytest.fixture(scope="module", autouse=True)
def _hopper() -> None:
    triton.runtime.driver.set_active(Hopper())


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(Scenario(MODEL, 256, "coin_first"))


def check_the_last_line_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--json", "--models", MODEL.name, "--rows", "1", "--tp", "1"]) == 0
    lines = json.loads(capsys.readouterr().out.splitlines()[-1])
    forms = ["coin_first", "coin_first+seeded", "one_pass", "one_pass+seeded", "coin_first+fp8", "coin_first+nodes4"]
    assert [line["form"] for line in lines] == forms
    for line in lines:
        assert list(line) == KEYS and (line["model"], line["rows"], line["tp"], line["budget_us"]) == (
            MODEL.name,
            1,
            1,
            34,
        )
        assert line["share"] == pytest.approx(0.02 * line["gpu_us"] / 34, abs=1e-4) and 0 < line["host_us"]
        times = [us for _, us in line["largest"]]
        assert times == sorted(times, reverse=True) and 0 < sum(times) <= line["gpu_us"] + 0.5
    assert lines[1]["gpu_us"] > lines[0]["gpu_us"]


def check_no_kernel_exceeds_its_ceiling(plan: Plan) -> None:
    found = step_us(Scenario(MODEL, 256, "coin_first"), plan)
    assert found.keys() == CEILINGS.keys()
    for scenario in (
        Scenario(MODEL, 32, "one_pass", is_seeded=True),
        Scenario(MODEL, 64, "coin_first", nodes=command.NODES),
    ):
        found |= {name: us for name, us in step_us(scenario, plan_of(scenario)).items() if name in OTHER_CEILINGS}
    ceilings = CEILINGS | OTHER_CEILINGS
    assert found.keys() == ceilings.keys()
    assert {name: us for name, us in found.items() if us > ceilings[name]} == {}
    assert {name: us for name, us in found.items() if us < ceilings[name] / 2} == {}, "a ceiling is too high to tell"


def check_the_kept_lines(plan: Plan) -> None:
    """Every model, batch size, form and number of ranks; numbers are those that the code of today gives."""
    lines = [json.loads(line) for line in command.RESULT.read_text().splitlines()]
    forms = [
        *[form + seeded for form, seeded in product(command.FORMS, ("", "+seeded"))],
        "coin_first+fp8",
        "coin_first+nodes4",
    ]
    wanted = set(product(MODELS, ROWS, forms, (1, 2)))
    newest = {(line["model"], line["rows"], line["form"], line["tp"]): line for line in lines}
    assert newest.keys() == wanted and len(wanted) == 216
    for (name, rows, _, tp), line in newest.items():
        assert list(line)[: len(KEYS)] == KEYS and {"date", "commit", "torch", "triton"} <= set(line)
        assert 0 < line["gpu_us"] and 0 < line["host_us"] and 1 <= len(line["largest"]) <= 6
        assert line["budget_us"] == pytest.approx(MODELS[name].budget_us(rows, tp), abs=0.06)
        assert line["share"] == pytest.approx(0.02 * line["gpu_us"] / line["budget_us"], rel=0.02, abs=1e-4)
    today = sum(step_us(Scenario(MODEL, 256, "coin_first"), plan).values())
    assert newest[MODEL.name, 256, "coin_first", 1]["gpu_us"] == pytest.approx(today, abs=0.06), "run the command again"


def check_every_kernel_of_a_step_is_known(plan: Plan) -> None:
    seeded = plan_of(Scenario(MODEL, 1, "one_pass", tp=2, is_seeded=True))
    verifying = plan_of(Scenario(MODEL, 1, "coin_first", nodes=command.NODES))
    assert {launch.kernel for some in (plan, seeded, verifying) for launch in some.launches} == WORK.keys()
    unknown = {"softmax_kernel", "product_kernel"}  # of seeded verifications, of a quantised head
    written = "".join(path.read_text() for path in KERNELS.glob("*.py"))
    assert set(re.findall(r"^def (\w+_kernel)\(", written, re.MULTILINE)) == WORK.keys() | unknown
    assert seeded.num_collectives == 1 and plan.num_collectives == 0
    assert host_us(seeded) > host_us(plan) > 0


def check_the_head_is_read_once_whatever_is_read_through_it(plan: Plan) -> None:
    head = next(launch for launch in plan.launches if launch.kernel == "head_kernel")
    weight = 2 * MODEL.vocab * MODEL.hidden
    nothing, one, many = (work_of(head, Rows(n, 0, n)) for n in (0, 1, 60))
    assert nothing.memory_bytes == 0 and nothing.programs == 0
    assert weight < one.memory_bytes < many.memory_bytes < 1.01 * weight
    assert weight / 4.8e12 * 1e6 < kernel_us(head, one) < kernel_us(head, many)
    assert kernel_us(head, nothing) < 2
    products = (
        kernel_of(head.binary).path(many.trips).matrix_cycles * many.programs * kernel_of(head.binary).num_warps / 4
    )
    assert products * 2048 >= 60 * 7 * MODEL.vocab * MODEL.hidden  # no multiplication is missing


def check_a_copy_in_8_bits_is_half_of_the_bytes() -> None:
    """And is decoded without conversions of single numbers, of which a GPU does few; more latents read the weight."""
    few, many = (plan_of(Scenario(MODEL, rows, "coin_first", head_lse="fp8")) for rows in (64, 256))
    head = next(launch for launch in few.launches if launch.kernel == "head_kernel")
    work = work_of(head, Rows(6, 0, 6))
    weight = MODEL.vocab * MODEL.hidden
    assert weight < work.memory_bytes < 1.01 * weight
    pipes = kernel_of(head.binary).path(work.trips).pipes
    assert pipes["xu"] < pipes["lsu"] / 4
    assert kernel_us(head, work) < 120
    other = next(launch for launch in many.launches if launch.kernel == "head_kernel")
    assert head.arguments["weight"].element_size() == 1 and other.arguments["weight"].element_size() == 2


def check_codes_loops_are_given_their_trips(plan: Plan) -> None:
    candidates = next(launch for launch in plan.launches if launch.kernel == "candidates_kernel")
    code = Code(candidates.binary.asm["cubin"])
    runs = [code.path(4, (trips,)) for trips in (1, 2, 3, 9)]
    steps = [after.instructions - before.instructions for before, after in pairwise(runs)]
    assert steps[0] == steps[1] > 0 and steps[2] == 6 * steps[0]
    assert runs[0].latency < runs[1].latency < runs[3].latency
    assert code.early_exit(4).instructions < code.path(4, (0,)).instructions
    with pytest.raises(ValueError, match="2 trip counts for a kernel of 1 loops"):
        code.path(4, (1, 2))


def check_forms_cross_where_auto_changes_them() -> None:
    """`one_pass.MAX_ROWS` is the model's, with four fifths of the rows in the pass."""
    assert crossing(MODEL) == one_pass.MAX_ROWS
    assert crossing(MODEL, 24, "fp8") == one_pass.MAX_ROWS_OF["fp8"]


def check_auto_takes_the_cheaper_form() -> None:
    """By the kept lines, of every model and on one rank and two, or one that is hardly dearer."""
    lines = [json.loads(line) for line in command.RESULT.read_text().splitlines()]
    newest = {(line["model"], line["rows"], line["tp"], line["form"]): line["gpu_us"] for line in lines}
    for name, num_rows, tp in product(MODELS, ROWS, (1, 2)):
        costs = {form: newest[name, num_rows, tp, form] for form in command.FORMS}
        chosen = one_pass.form_of(num_rows, "auto", allows_dynamic_shapes=False)
        assert costs[chosen] <= min(costs.values()) + HARDLY_US, (name, num_rows, tp)


def check_likely_counts() -> None:
    counts = likely_counts(8, 0.1)
    assert sum(counts.values()) == pytest.approx(1) and counts[0] == pytest.approx(0.9**8, rel=1e-3)
    assert sum(n * share for n, share in counts.items()) == pytest.approx(0.8, rel=1e-2)


def check_budgets() -> None:
    """Of the issue where it states one; elsewhere by the bytes of a step, which agree with it."""
    assert [MODEL.budget_us(n, 1) for n in (1, 8, 64, 256)] == [34, 40, 114, 360]
    by_bytes = replace(MODEL, name="another")
    for num_rows, rel in ((1, 0.03), (8, 0.1), (64, 0.01), (256, 0.02)):
        assert by_bytes.budget_us(num_rows, 1) == pytest.approx(MODEL.budget_us(num_rows, 1), rel=rel)
    assert MODEL.budget_us(64, 2) == 57
    experts = MODELS["Qwen3-30B-A3B"]
    assert 3e9 < experts.step_bytes(1) / 2 < 3.5e9 and 28e9 < experts.step_bytes(1000) / 2 - 1000 * 2048 * 48 * 1024
