"""What LED keeps in every scheduler process, of whichever pipeline stage: requests' markers, counters, failures."""

import logging
from typing import TYPE_CHECKING, Any

import torch

from led_sglang.config.server import ServerConfig
from led_sglang.integration.faults import is_new
from led_sglang.integration.scheduler.ranks import FailureCheck, row_group
from led_sglang.integration.scheduler.reports.counters import Counts
from led_sglang.integration.support import in_effect, tokenizer_of
from led_sglang.integration.thinking.token_texts import token_texts
from led_sglang.ops.rows.automaton import TextAutomaton, ThinkingAutomaton

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)


class Stage:
    """Base of `runtime.Runtime`, which samples, and of `pipeline.earlier.EarlierStage`, which does not."""

    def __init__(self, config: ServerConfig, runner: "ModelRunner", counters: torch.device) -> None:
        """counters: the device that counts."""
        self.config = config
        self.runner = runner
        self.vocab_size = int(runner.model_config.vocab_size)
        self.automaton = automaton_of(config, runner, self.vocab_size)
        self.counts = Counts(config.max_depth, counters)
        self.num_step_failures = 0
        self.failed_ranks = FailureCheck.of(row_group())

    def status(self) -> dict[str, Any]:
        """For /led/info."""
        raise NotImplementedError


def automaton_of(config: ServerConfig, runner: "ModelRunner", vocab_size: int) -> ThinkingAutomaton | None:
    """None for a model without markers."""
    if config.matched_texts is not None:
        tokenizer = tokenizer_of(in_effect(runner.server_args))
        return TextAutomaton(*config.matched_texts, token_texts(tokenizer, vocab_size))
    if config.open_ids and config.close_ids:
        return ThinkingAutomaton(config.open_ids, config.close_ids, vocab_size, config.more_open, config.more_close)
    return None


def count_failure(current: Stage, where: str = "its step") -> None:
    """Called in the `except` block of an exception of ours. What is new is logged, counted are all."""
    current.num_step_failures += 1
    if is_new(where):
        logger.exception("LED step failed in %s; the engine's own result stands", where)


def fail_step(current: Stage, where: str = "its step") -> None:
    """The same where tokens or thinking states depend on it. Raises RankDivergence if it failed on some ranks only."""
    count_failure(current, where)
    if current.failed_ranks is not None:
        current.failed_ranks.meet()
