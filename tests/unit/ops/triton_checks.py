"""Run under TRITON_INTERPRET=1 by test_triton.py: the kernel on CPU, on sizes that are no multiple of any block."""

from dataclasses import fields

import torch
from op_cases import Case, make_case

from led_sglang.ops import LedStep
from led_sglang.ops.head import log_normalizers as plain_normalizers
from led_sglang.ops.triton_head import log_normalizers


def check_step(case: Case, tolerance: float = 1e-5) -> None:
    step, truth = case.run("triton"), case.run("fused")
    for field in fields(LedStep):
        expected = getattr(truth, field.name)
        torch.testing.assert_close(
            getattr(step, field.name), expected, rtol=10 * tolerance, atol=tolerance, equal_nan=True
        )


def check_row_list() -> None:
    """Rows beyond the count are not computed, and those within keep their places."""
    case = make_case(41, 1500, hidden=48, depth=2)
    needed = torch.arange(41) % 3 == 1
    tau = torch.linspace(0.3, 2, 41)
    poisoned = case.latents[0].masked_fill(~needed[:, None], torch.nan)
    truth = plain_normalizers(case.latents[0], case.head, tau[:, None])
    for rows in (needed, torch.zeros_like(needed), torch.ones_like(needed)):
        latents = poisoned if rows is needed else case.latents[0]
        torch.testing.assert_close(log_normalizers(latents, rows, case.head, tau), truth.where(rows, 0.0))


def main() -> None:
    check_row_list()
    check_step(make_case(3, 97, hidden=20, explore=True))
    check_step(make_case(5, 1300, hidden=70, depth=3, full=True))
    check_step(make_case(3, 97, explore=True).with_head(softcap=6.0, scale=1.5, bias=torch.linspace(-1, 1, 97)))
    check_step(make_case(3, 130, explore=True).with_head(num_rows=101))
    check_step(make_case(3, 97, explore=False))
    check_step(make_case(2, 97, dtype=torch.float16, explore=True, depth=2), tolerance=1e-3)  # "fused" rounds logits
    broken = make_case(3, 97, explore=True)
    broken.latents[0, 1, 2] = torch.inf
    assert broken.run("triton").ok.tolist() == [True, False, True]


if __name__ == "__main__":
    main()
    print("triton checks passed")
