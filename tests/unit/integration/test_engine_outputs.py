"""Everything that SGLang tells, with our word on it: no new output may slip in and tell of a draw that LED threw away.

A field without a verdict fails the test: read where the engine computes it, then say here, and in docs/api.md if a
request can ask for it, which it is.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from sglang.srt.layers.logits_processor import LogitsProcessorOutput, SamplingMaskOutput
from sglang.srt.managers import io_struct, tokenizer_manager

DOCS = Path(__file__).resolve().parents[3] / "docs/api.md"

LED = "of LED's draw where it decided the token: integration/scheduler/methods/masks.py"
FINAL = "of the final layer's distribution, as the engine would sample it; no draw in it"
TOKEN = "follows from the token that is returned: written before it is computed"
PROMPT = "of the prompt, or of the forward pass: before any draw"
OURS = "carries our own records"
NO_DRAW = "tells nothing of a draw"
UNUSED = "filled by no path that LED runs in: speculative decoding, beam search, pipelines and diffusion are refused"

# What the sampler writes, and what it is given.
SAMPLER: dict[str, str] = {
    "next_token_logits": FINAL,
    "next_token_logprobs": TOKEN,  # sampler.LogprobsAfterLed
    **dict.fromkeys(("next_token_top_logprobs_val", "next_token_top_logprobs_idx"), FINAL),
    **dict.fromkeys(("next_token_token_ids_logprobs_val", "next_token_token_ids_logprobs_idx"), FINAL),
    **dict.fromkeys(("hidden_states", "hidden_states_token_indices", "last_hidden_states", "mm_input_embeds"), PROMPT),
    "sampling_mask_output": LED,
    # Made of the one before on the host.
    "next_token_sampling_mask_idx": LED,
    "next_token_sampling_logprobs": LED,
    "next_token_sampling_mask_status": LED,
    **dict.fromkeys(
        (
            "input_token_logprobs",
            "input_top_logprobs_val",
            "input_top_logprobs_idx",
            "input_token_ids_logprobs_val",
            "input_token_ids_logprobs_idx",
            "input_logprobs_copy_done",
        ),
        PROMPT,
    ),
    **dict.fromkeys(("full_logits", "beam"), UNUSED),
    "customized_info": OURS,
    "auxiliary_device_output": TOKEN,  # of sampling observers, which are shown the tokens that are returned
}

MASK: dict[str, str] = {
    **dict.fromkeys(("token_ids", "lengths", "selected_logprobs", "support_logprobs", "statuses"), LED),
    "num_accept_tokens": UNUSED,
}

# What the scheduler sends of each request.
DISTRIBUTIONS = ("top_logprobs_val", "top_logprobs_idx", "token_ids_logprobs_val", "token_ids_logprobs_idx")
SENT: dict[str, str] = {
    **dict.fromkeys(("rids", "http_worker_ipcs"), NO_DRAW),
    **dict.fromkeys(("finished_reasons", "decoded_texts", "decode_ids", "read_offsets", "output_ids"), TOKEN),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"), NO_DRAW),
    **dict.fromkeys(("prompt_tokens", "cached_tokens", "cached_tokens_details"), PROMPT),
    **dict.fromkeys(("reasoning_tokens", "completion_tokens"), TOKEN),
    **dict.fromkeys((f"input_{name}" for name in ("token_logprobs_val", "token_logprobs_idx", *DISTRIBUTIONS)), PROMPT),
    **dict.fromkeys(("output_token_logprobs_val", "output_token_logprobs_idx"), TOKEN),
    **dict.fromkeys((f"output_{name}" for name in DISTRIBUTIONS), FINAL),
    **dict.fromkeys((f"input_top_logprobs_{part}" for part in ("val_flat", "idx_flat", "flat_null_prefix")), PROMPT),
    "output_token_entropy_val": UNUSED,
    "output_token_sampling_mask": LED,
    **dict.fromkeys(("output_hidden_states", "routed_experts", "indexer_topk"), PROMPT),
    **dict.fromkeys(("placeholder_tokens_idx", "placeholder_tokens_val"), PROMPT),
    **dict.fromkeys(("image_tokens", "audio_tokens", "video_tokens"), PROMPT),
    **dict.fromkeys(("retraction_counts", "weight_versions", "token_steps", "dp_ranks", "time_stats"), NO_DRAW),
    "beam_search_output": UNUSED,
    "customized_info": OURS,
    **dict.fromkeys(
        (
            "spec_verify_ct",
            "spec_num_correct_drafts",
            "spec_num_block_accept_tokens",
            "spec_num_cap_tokens",
            "spec_correct_drafts_histogram",
            "spec_cap_lens_histogram",
        ),
        UNUSED,
    ),
}  # fmt: skip

# What a request may ask for. Those of LED and of the final layer are rows of the table in docs/api.md.
ASKED: dict[str, str] = {
    **dict.fromkeys(("return_sampling_mask", "sampling_logprobs_mode"), LED),
    "return_logprob": TOKEN,
    "return_text_in_logprobs": TOKEN,
    **dict.fromkeys(("top_logprobs_num", "token_ids_logprob", "return_flat_raw_output_top_logprobs"), FINAL),
    **dict.fromkeys(("logprob_start_len", "return_flat_raw_top_logprobs", "return_flat_raw_top_logprobs_b64"), PROMPT),
    **dict.fromkeys(
        ("return_hidden_states", "return_routed_experts", "routed_experts_start_len", "return_indexer_topk"), PROMPT
    ),
    **dict.fromkeys(("return_bytes", "return_prompt_token_ids", "mm_processor_kwargs"), NO_DRAW),
    "return_entropy": UNUSED,  # SGLang 0.5.23 answers nothing
    "custom_logit_processor": FINAL,  # applied before LED looks
    "watermark": NO_DRAW,  # likewise
}
ASKS = re.compile("return|logprob|mask|expert|hidden|topk|entropy|watermark|processor")


def names(of: type) -> set[str]:
    fields: Iterable[object] = (
        dataclasses.fields(of) if dataclasses.is_dataclass(of) else msgspec.structs.fields(of)  # type: ignore[arg-type]
    )
    return {field.name for field in fields}  # type: ignore[attr-defined]


TABLES: dict[str, tuple[set[str], dict[str, str]]] = {
    "the sampler's output": (names(LogitsProcessorOutput), SAMPLER),
    "a sampling mask": (names(SamplingMaskOutput), MASK),
    "what the scheduler sends": (names(io_struct.BatchTokenIDOutput), SENT),
    "what a request asks": (set(filter(ASKS.search, names(io_struct.GenerateReqInput))), ASKED),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_output_has_a_verdict(name: str) -> None:
    fields, verdicts = TABLES[name]
    assert fields - set(verdicts) == set(), "SGLang tells more than before: of whose draw?"
    assert set(verdicts) - fields == set(), "gone from SGLang"


def test_per_token_lists_of_an_answer_are_known() -> None:
    reported = {f"output_{key}" for key in ("token_logprobs", "top_logprobs", "token_ids_logprobs")}
    reported |= {"output_token_sampling_mask", "output_token_sampling_logprobs"}
    assert set(tokenizer_manager._INCREMENTAL_STREAMING_META_INFO_KEYS) == reported
    text = DOCS.read_text()
    assert [key for key in sorted(reported) if f"`{key}`" not in text] == []


def test_what_can_be_asked_is_documented() -> None:
    text = DOCS.read_text()
    table = text[text.index("### The engine's other outputs") : text.index("## Refused")]
    requested = [name for name, verdict in ASKED.items() if verdict in (LED, TOKEN, FINAL)]
    requested += ["return_hidden_states", "return_routed_experts", "logprob_start_len"]
    assert [name for name in requested if f"`{name}`" not in table] == []
