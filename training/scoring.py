"""What an evaluation reports: right answers, their share, and how sure one may be of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

__all__ = ["final_answer", "sample_scores", "score", "wilson_interval"]


@dataclass(frozen=True)
class Score:
    problems: int
    correct: int
    accuracy: float
    wilson_95: tuple[float, float]

    def as_document(self, **settings: object) -> dict[str, object]:
        return {**asdict(self), **settings}


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval, which unlike the normal one stays inside 0..1 and holds near its ends."""
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def score(is_right: list[bool]) -> Score:
    if not is_right:
        raise ValueError("nothing to score")
    correct = sum(is_right)
    low, high = wilson_interval(correct, len(is_right))
    return Score(len(is_right), correct, round(correct / len(is_right), 4), (round(low, 4), round(high, 4)))


def sample_scores(is_right: list[list[bool]]) -> dict[str, float | int]:
    """Of several samples a problem: the mean share right, its standard error over problems, the share ever right."""
    if not is_right or not is_right[0]:
        raise ValueError("nothing to score")
    shares = [sum(row) / len(row) for row in is_right]
    mean = sum(shares) / len(shares)
    variance = sum((share - mean) ** 2 for share in shares) / max(1, len(shares) - 1)
    return {
        "problems": len(is_right),
        "samples": len(is_right[0]),
        "pass_at_1": round(mean, 4),
        "standard_error": round(math.sqrt(variance / len(shares)), 4),
        "pass_at_n": round(sum(map(any, is_right)) / len(is_right), 4),
    }


def final_answer(text: str) -> str:
    """What follows the thinking; nothing where the thinking never ended, so that no number in it counts."""
    return text.partition("</think>")[2]
