"""Numbers that the torch, the compiled and the Triton form of one function share. Imports nothing."""

# The mixer of `led_sglang.ops.rows.noise`.
SALT = 0x4C61746E745F4C44
STEP = -0x61C8864680B583EB  # 2^64 / golden ratio, as int64
FIRST_FACTOR = -0x40A7B892E31B1A47
SECOND_FACTOR = -0x6B2FB644ECCEEE15
SEED_FACTOR = 0x2545F4914F6CDD1D
COUNTER_FACTOR = -0x2E8A5C19D37B6F4B
SAMPLE_SHIFT = 40  # positions below 2^40 and samples below 2^24 never meet

# Probabilities that `led_sglang.ops.rows.filtered_draw` sums as integers.
ONE = 1 << 60  # a probability of 1; what is below 2^-60 weighs nothing
NO_LIMIT = 1 << 62  # `top_p` 1
NOT_COUNTED = -1  # the method of a row that the counters leave out: a draft that was not accepted
