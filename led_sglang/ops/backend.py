"""The protocol of a backend: one object, chosen once when a model is loaded (`led_sglang.ops.backend_for`)."""

from typing import Protocol

from torch import Tensor

from led_sglang.ops.edits import LogitEdits
from led_sglang.ops.rows.automaton import ThinkingTables
from led_sglang.ops.rows.draft_tree import Drafts, DraftTree
from led_sglang.ops.types import (
    Counters,
    Filters,
    Head,
    KnownLse,
    Latents,
    LedRows,
    LedStep,
    RowInputs,
    RowMeta,
    StepInputs,
    Support,
)


class Backend(Protocol):
    """A step, in the order of the methods: inputs before the token, the decision, the token and what follows it.

    All tensors lie on the device that the backend was chosen for. Shape letters as in `led_sglang.ops.types`. Nothing
    is modified but what a method says it writes. Every method but `prepare` and `warm_up` is graph-safe where
    `allows_dynamic_shapes` is False.
    """

    @property
    def name(self) -> str:
        """One of torch, numba, triton."""

    @property
    def public_name(self) -> str:
        """What `/led/info` reports and `--led-backend` has always been called with: fused, compiled, triton, ..."""

    @property
    def allows_dynamic_shapes(self) -> bool:
        """True: rows are compacted by index, and work that no row needs is skipped; shapes depend on the data.

        False: looking would wait for the device (about 1 ms) and cannot be captured in a CUDA graph. Shapes are fixed,
        no value is read, rows that need nothing are skipped on the device or computed for nothing.
        """

    @property
    def supports_one_pass(self) -> bool:
        """`head_pass` works, and `step` uses what is known from it."""

    @property
    def draws_inactive(self) -> bool:
        """`step` and `write_tokens` may be given `draws_inactive`: rows that are not active are decoded too."""

    @property
    def coin_threshold(self) -> float:
        """Rows whose coin's uniform is not below it stay out of the one-pass form; 1.0: none does."""

    def prepare(self) -> None:
        """Compile, or load, what a step needs and no head has to be known for; at model load."""

    def warm_up(
        self,
        head: Head,
        latents: Tensor,
        vocab_size: int,
        max_rows: int,
        max_top_k: int,
        tables: ThinkingTables | None = None,
    ) -> None:
        """Run every variant that batches of up to max_rows rows and top_k up to max_top_k reach with this head.

        latents: (D, any, H), of which shape and dtype are taken and nothing else: those that every step will be given,
        so D + 1 is the largest depth. vocab_size: of the whole vocabulary, which the final logits have. Makes no
        collective; raises what a kernel raises.
        """

    def row_inputs(
        self, meta: RowMeta, slots: Tensor, positions: Tensor, lengths: Tensor | None, states: Tensor
    ) -> RowInputs:
        """Thinking phase and noise of our rows before a token.

        Request slots and positions of the batch, (B,) int64; lengths, (B,), of an extend step, None of a decode step.
        Padding behind them is allowed. states: thinking states by slot, int64; a row whose length is its `start_length`
        starts from its `start_state`.
        """

    def draft_tree(self, drafts: Drafts, root_states: Tensor, tables: ThinkingTables | None) -> DraftTree:
        """Parents and thinking states of the nodes under verification.

        root_states: (B,) int64, the root's own token included. tables: None leaves all states at those.
        """

    def one_pass_mask(self, rows: LedRows, inputs: StepInputs, index: Tensor | None, mask: Tensor, tau: Tensor) -> None:
        """Write which rows' latents the head's own weight pass should cover, and their temperatures.

        mask: (B,) bool and tau: (B,) float32 of the batch, written; index: (R,) int64, the rows of the batch that
        ours are, None: its first R. Its other rows keep what they hold.
        """

    def head_pass(self, hidden: Tensor, latents: Tensor, head: Head, tau: Tensor, mask: Tensor, lse: Tensor) -> Tensor:
        """The head's product of the final rows and the latents' log-sum-exps from one read of the weight.

        hidden: (B, H), the normed final states; latents: (J, B, H), un-normed, in the order of `step`; tau: (B,)
        float32; mask: (B,) bool. Writes lse, (J, B) float32, where the mask is set: log sum exp(logit / tau) over this
        rank's rows of the vocabulary, with the head's bias, scale and soft cap; elsewhere any value. Returns
        (B, V_shard) in the weight's dtype: the bare product, padding included, as the engine computes it.

        The final rows' last bits are those of a product with more rows: matrix libraries choose their summation order
        by the number of rows. Where they must equal the engine's own, let the engine multiply and use
        `one_pass.separate_pass`. Raises ValueError for a head without a weight, or without `supports_one_pass`.
        """

    def step(
        self,
        final_logits: Tensor,
        latents: Latents,
        head: Head,
        rows: LedRows,
        inputs: StepInputs,
        *,
        known_lse: KnownLse | None = None,
        edits: LogitEdits | None = None,
        draws_inactive: bool = False,
        tree: DraftTree | None = None,
    ) -> LedStep:
        """The decision, of inputs that `led_sglang.ops.led_step` has checked; see there."""

    def write_tokens(
        self, meta: RowMeta, token_ids: Tensor, inputs: StepInputs, step: LedStep, draws_inactive: bool = False
    ) -> None:
        """Our rows' entries of token_ids, (B,), become the step's where they are active and `ok`; in place.

        draws_inactive: also of rows that are not active.
        """

    def advance(
        self, meta: RowMeta, tables: ThinkingTables, states: Tensor, inputs: RowInputs, token_ids: Tensor
    ) -> None:
        """Thinking states by slot, in place: our rows' become those that follow `inputs.states` by token_ids, (B,).

        An id outside the vocabulary is an ordinary token.
        """

    def count(
        self, inputs: RowInputs, step: LedStep | None, has_failed: bool, method: Tensor, counters: Counters
    ) -> Tensor:
        """Flags of our rows (`led_sglang.wire`), (R,) int64, counted in place; method: (R,) int64.

        step: None where LED decided no row, since none was in its phase or, `has_failed`, our code raised. Rows whose
        method is NOT_COUNTED have their flags and leave the counters alone.
        """

    def softmax_rows(self, logits: Tensor, rows: Tensor, skip: Tensor, tau: Tensor) -> Tensor:
        """softmax(logits / tau) of some rows of logits, (B, V) of any float type: (S, V) float32.

        rows: (S,) int64; skip: (S,) bool, rows that hold any values; tau: (S,) float32 > 0.
        """

    def sample_filtered(
        self, probs: Tensor, rows: Tensor, skip: Tensor, uniform: Tensor, filters: Filters
    ) -> tuple[Tensor, Support]:
        """Sample some rows of `probs` after top-k, top-p and min-p, applied jointly as by the engine's PyTorch backend.

        probs: (B, V) of any float type; rows: (S,) int64; skip: (S,) bool, rows that are another's after all, whose
        tokens are any valid ones; uniform: (S,) float64 in [0, 1). Returns the tokens, (S,) int64, and their supports.

        A token is kept where fewer than top_k tokens precede it, they sum to no more than top_p, and it has at least
        min_p of the largest probability; `top_p` 1 keeps all. Of equal probabilities the smaller id precedes. The token
        is the first kept id at which the cumulated probability exceeds uniform times the sum of the kept. What is not a
        probability (NaN, infinite, negative) counts as 0.
        """
