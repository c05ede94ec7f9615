"""A model's decoder: where its layers are, and the residual stream after one of them from what the layer returns.

SGLang's layers end in three ways, and the type of the value does not tell which:

"stream"  the residual stream is in `forward_batch.residual_stream`, with the layer's contribution added or pending;
"first"   what the layer returns, or the first of it, is the residual stream;
"sum"     the layer returns (contribution, residual stream before it).

Cohere, StableLM and PhiMoE return a second tensor that must not be added, so `start_check` tries each ending on the
model itself.
"""

from typing import TYPE_CHECKING, Any

from sglang.srt.layers.utils import PPMissingLayer
from torch import Tensor, nn

from led_sglang.integration.faults import CaptureError

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

OTHER_STACKS = ("vision", "visual", "audio", "vit", "mtp", "nextn", "encoder")  # in the name of a list of layers
WAY_OUT = (
    "Start with --led-max-depth 1 --led-depth 1 and no method that captures layers, or with --led disabled; "
    "docs/compat.md lists the models that work"
)
Parts = dict[str, tuple[Tensor, ...]]  # by ending: tensors (T, H) whose sum is the residual stream


def find_decoder(model: nn.Module, num_layers: int) -> tuple[str, nn.ModuleList]:
    """The name and the layers of the decoder: the outermost list of so many modules.

    Raises CaptureError where there is none, or where two could be it.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == num_layers
        and not any(word in name.lower() for word in OTHER_STACKS)
    ]
    found.sort(key=lambda pair: pair[0].count("."))
    outermost = [pair for pair in found if pair[0].count(".") == found[0][0].count(".")]
    if len(outermost) == 1:
        return outermost[0]
    names = ", ".join(name for name, _ in outermost) or "none"
    raise CaptureError(
        f"LED cannot find the decoder of {type(model).__name__}: lists of {num_layers} layers: {names}. {WAY_OUT}"
    )


def indices_here(decoder: nn.ModuleList) -> list[int]:
    """0-based, of the layers that this process runs: the others are another pipeline stage's."""
    return [index for index, layer in enumerate(decoder) if not isinstance(layer, PPMissingLayer)]


def forward_batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> "ForwardBatch | None":
    """The batch among the arguments of a layer, which are in another order in each model."""
    for value in (*args, *kwargs.values()):
        if hasattr(value, "forward_mode") and hasattr(value, "req_pool_indices"):
            found: ForwardBatch = value
            return found
    return None


def read_output(output: Any, batch: "ForwardBatch | None") -> tuple[Parts, Any]:
    """What a layer's return value may mean, and the value for the engine to go on with.

    A sum over the ranks that the layer owes is done here, as the engine itself does where it keeps a layer's output.
    Raises CaptureError for a layer whose contribution is not simply added.
    """
    first = output[0] if isinstance(output, tuple | list) else output
    stream = getattr(batch, "residual_stream", None)  # SGLang 0.5.17 has none
    if stream is None:
        second = output[1] if isinstance(output, tuple | list) and len(output) > 1 else None
        parts: Parts = {"first": (flat(first),)}
        if isinstance(second, Tensor) and second.shape == first.shape:
            parts["sum"] = flat(first), flat(second)
        return parts, output
    pending = stream.pending
    if pending is not None and stream.residual is not None and not pending.update.is_plain_add:
        raise CaptureError(f"a layer changes the residual stream by {type(pending.update).__name__}, not by adding")
    complete = stream.complete(first)
    whole = (complete,) if pending is None or stream.residual is None else (complete, stream.residual)
    output = (complete, *output[1:]) if isinstance(output, tuple) else complete
    return {"stream": tuple(flat(part) for part in whole)}, output


def flat(tensor: Tensor) -> Tensor:
    """(..., H) -> (T, H); what comes from transformers has a batch dimension of 1."""
    return tensor.reshape(-1, tensor.shape[-1])
