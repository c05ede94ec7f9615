"""What the processes and the device agree on, as plain integers and strings: flags, counters, keys, trace columns.

Imports nothing, so that the HTTP process needs neither torch nor numba to read what the scheduler sends.
"""

# A row's flags, one int64 for each token: bits 0 to 3, the detail in bits 4 to 7, the depth from bit 8 on.
THINKING, EXPLORED, ACTIVE, FALLBACK = 1, 2, 4, 8
DETAIL_SHIFT, DETAIL_MASK = 4, 15  # the confidence's bucket, or why the step fell back
DEPTH_SHIFT = 8
STEP_FAILED, NOT_FINITE, NUM_REASONS = 0, 1, 2  # why: our code raised, or the row's numbers were not finite
FALLBACK_REASONS = ("step_failed", "not_finite")
CONFIDENCE_BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
NUM_BUCKETS = len(CONFIDENCE_BOUNDS) + 1

# Offsets in the device's vector of counters.
LED_OFFSET, THINKING_OFFSET, REASON_OFFSET = 0, 1, 2
CONFIDENCE_OFFSET = REASON_OFFSET + NUM_REASONS
DEPTH_OFFSET = CONFIDENCE_OFFSET + NUM_BUCKETS  # of depth 0; the decoding methods come after the largest depth

# The first token's record between a prefill and a decode server: a row of numbers, behind its head the trace's values.
HANDOFF_WIDTH = 1024  # int32 numbers, 4 KB a request
HANDOFF_HEAD = 6
HANDOFF_SCALARS = 3
HANDOFF_SPACE = HANDOFF_WIDTH - HANDOFF_HEAD - HANDOFF_SCALARS  # of candidates, branches and depths

RECORD_KEY = "__led_step"  # of LogitsProcessorOutput.customized_info, in the scheduler only
WIRE_KEY = "__led"  # of a request's customized_info: one entry per generated token
RESOLVED_KEY = "__led_sglang"  # reserved key of `custom_params`: a request's resolved parameters

# A traced entry is the flags and these values; an answer has a list of each, after the three that the flags give.
FLAG_COLUMNS = ("led_think", "led_explored", "led_depth")
VALUE_COLUMNS = (
    "led_confidence",
    "led_entropy",
    "led_logprob",
    "led_candidates",
    "led_exploit",
    "led_explore",
    "led_depth_entropy",
)
TRACE_KEYS = (*FLAG_COLUMNS, *VALUE_COLUMNS)
