"""What must be true of a soak: every request ended as planned, and the server counted what its clients saw."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.soak.clients import Outcome
from benchmarks.soak.oracle import thinking_flags
from benchmarks.soak.plan import CLOSE_ID, OPEN_ID

STATS = ("led_tokens", "thinking_tokens", "explored_tokens", "fallbacks")


def audit_endings(outcomes: Iterable[Outcome]) -> list[str]:
    """Faults of single requests: lost, a status that was not planned, a wrong trace or wrong thinking flags."""
    faults = []
    for outcome in outcomes:
        plan = outcome.plan
        planned = 400 if plan.ending == "refused" else 200
        if outcome.lost or outcome.status != planned:
            why = outcome.lost or f"status {outcome.status}"
            faults.append(f"request {plan.number} ({plan.path}, to {plan.ending}): {why}")
        elif plan.is_traced and plan.prompt_ids is not None:
            faults += audit_trace(outcome)
    return faults


def audit_trace(outcome: Outcome) -> list[str]:
    """The thinking state of the request's slot followed the markers in prompt and output, whoever sat there before."""
    faults, prompt_ids = [], outcome.plan.prompt_ids or ()
    for meta, ids in zip(outcome.metas, outcome.output_ids, strict=True):
        reported = meta["led_think"]
        expected = thinking_flags(prompt_ids, ids, [OPEN_ID], [CLOSE_ID])
        if reported != expected:
            faults.append(f"request {outcome.plan.number}: led_think {reported}, expected {expected}, ids {ids}")
        if sum(reported) != meta["led_stats"]["thinking_tokens"]:
            faults.append(f"request {outcome.plan.number}: led_stats {meta['led_stats']} for the trace {reported}")
    return faults


def audit_counters(
    outcomes: Sequence[Outcome], grown: dict[str, Any], rows: dict[str, float], requests: dict[str, float]
) -> list[str]:
    """Counters against what clients saw. Where a client cannot know, the interval it leaves; elsewhere no tolerance.

    grown: growth of /led/info's counters; rows, requests: of /metrics' tokens and requests by method.
    """
    faults = []
    answered = [o for o in outcomes if o.plan.ending != "refused"]
    left = [o for o in answered if o.plan.ending in ("leave", "abort")]
    read = [o for o in answered if o.plan.ending == "read"]
    for method in sorted({o.plan.method for o in answered} | set(rows)):
        tokens = sum(o.num_tokens or 0 for o in read if o.plan.method == method)
        possible = sum(o.plan.max_tokens for o in left if o.plan.method == method)
        faults += outside(f"tokens of method {method}", rows.get(method, 0), tokens, tokens + possible)
        num_read = sum(num_answers(o) for o in read if o.plan.method == method)
        num_left = sum(o.plan.method == method for o in left)
        faults += outside(f"requests of method {method}", requests.get(method, 0), num_read, num_read + num_left)
        faults += outside(
            f"/led/info's requests of {method}", grown["requests"].get(method, 0), requests.get(method, 0)
        )
    for name in STATS:
        known = [o for o in read if len(o.metas) == o.plan.num_samples]
        reported = sum(meta.get("led_stats", {}).get(name, 0) for o in known for meta in o.metas)
        unknown = sum(o.num_tokens or 0 for o in read if len(o.metas) != o.plan.num_samples)
        unknown += sum(o.plan.max_tokens for o in left)
        faults += outside(name, grown[name], reported, reported if name == "fallbacks" else reported + unknown)
    everywhere = sum(o.num_tokens or 0 for o in read if o.plan.is_everywhere)
    if grown["led_tokens"] < everywhere:
        faults.append(f"led_tokens {grown['led_tokens']} below the {everywhere} of requests with phase all")
    for name in ("step_failures", "report_failures"):
        faults += outside(name, grown[name], 0)
    return faults


def num_answers(outcome: Outcome) -> int:
    """SGLang prefills the prompt of n > 1 samples as a request of its own, which is answered and counted too."""
    return outcome.plan.num_samples + (outcome.plan.num_samples > 1)


def outside(name: str, counted: float, low: float, high: float | None = None) -> list[str]:
    high = low if high is None else high
    return [] if low <= counted <= high else [f"{name}: counted {counted:g}, clients saw {low:g} to {high:g}"]


def growth(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """How much every counter grew; histograms bin by bin."""
    return {
        key: dict(Counter(value) - Counter(before[key])) if isinstance(value, dict) else value - before[key]
        for key, value in after.items()
    }


def by_method(metrics: dict[str, float], name: str) -> dict[str, float]:
    """`led_sglang_<name>_total{method="..."}` by method."""
    prefix = f'led_sglang_{name}_total{{method="'
    return {key[len(prefix) : -2]: value for key, value in metrics.items() if key.startswith(prefix)}
