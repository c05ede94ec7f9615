"""Which tokens lie inside the thinking phase, worked out from token ids alone."""

from collections.abc import Sequence


def thinking_flags(
    prompt_ids: Sequence[int], output_ids: Sequence[int], open_ids: Sequence[int], close_ids: Sequence[int]
) -> list[bool]:
    """For each output token: was the phase open when it was decoded? The marker that ends last before it decides."""
    ids, flags = [*prompt_ids, *output_ids], []
    for end in range(len(prompt_ids), len(ids)):
        opened, closed = (last_end(ids[:end], marker) for marker in (open_ids, close_ids))
        flags.append(opened > closed)
    return flags


def last_end(ids: Sequence[int], marker: Sequence[int]) -> int:
    """Where the last occurrence of `marker` ends; -1 if there is none."""
    width = len(marker)
    return next((end for end in range(len(ids), width - 1, -1) if list(ids[end - width : end]) == list(marker)), -1)
