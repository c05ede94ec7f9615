"""What every layer of a checkpoint says: entropy, coverage of the final layer's candidates, expected exploration rate.

    python -m led_sglang.analysis MODEL --prompts FILE --out analysis.json

FILE holds one prompt a line: plain text, or JSON objects with `prompt`, `problem` or `question`. The model continues
each prompt by sampling (`--generate`, 0 = look at the prompts themselves); the statistics are taken at the positions
that predict the generated tokens. Layers are 1-based; h^l below the last goes through the LM head without the final
norm, as LED reads it (`--latent-norm` puts the norm in). Any causal model with a norm before its head will do.
The report takes the file with --analysis. The last line is a verdict: whether LED is for this model, and with which
depth; with `--out MODEL/led_verdict.json` a server of that model says it at its start.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from led_sglang.cli import files
from led_sglang.cli.arguments import integer, number
from led_sglang.cli.endings import CommandError, guarded
from led_sglang.verdict import judge

__all__ = ["Analyser", "AnalysisError", "layer_sums", "main", "read_prompts"]

KS = (1, 2, 4, 8, 16)
ROWS_AT_A_TIME = 256  # positions whose full-vocabulary logits exist at once
PROMPT_KEYS = ("prompt", "problem", "question")
NORM_NAMES = ("norm", "final_layernorm", "ln_f", "final_layer_norm", "norm_f")


class AnalysisError(CommandError):
    """A prompt file or a checkpoint that cannot be analysed."""


@dataclass(frozen=True)
class LayerSums:
    """Sums over positions for one layer."""

    entropy: float
    top_probability: float
    coverage: tuple[float, ...]  # by k: share of the final layer's top k among this layer's top k
    mass: tuple[float, ...]  # by k: this layer's probability of the final layer's top k


def layer_sums(logits: Tensor, final_ids: Tensor, ks: tuple[int, ...]) -> LayerSums:
    """`logits`: one layer's, divided by the temperature, (P, V); `final_ids`: the final layer's top ids, (P, max k)."""
    log_probs = torch.log_softmax(logits, dim=-1)
    probs = log_probs.exp()
    # 0 * -inf is 0 here: a token that cannot come adds no entropy.
    entropy = -(probs * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)  # (P,)
    layer_ids = probs.topk(max(ks), dim=-1).indices  # (P, max k)
    is_own = final_ids[:, :, None] == layer_ids[:, None, :]  # (P, max k, max k)
    candidate_probs = probs.gather(-1, final_ids)  # (P, max k)
    return LayerSums(
        entropy=float(entropy.sum()),
        top_probability=float(probs.max(-1).values.sum()),
        coverage=tuple(float(is_own[:, :k, :k].any(-1).float().mean(-1).sum()) for k in ks),
        mass=tuple(float(candidate_probs[:, :k].sum()) for k in ks),
    )


def final_norm(model: Any) -> torch.nn.Module:
    """The norm before the LM head. Raises AnalysisError where it goes by no known name."""
    base = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    for holder in (base, getattr(base, "decoder", None), model.base_model):
        for name in NORM_NAMES:
            found = getattr(holder, name, None)
            if isinstance(found, torch.nn.Module):
                return found
    raise AnalysisError(f"{type(model).__name__} has no final norm under a known name ({', '.join(NORM_NAMES)})")


@torch.no_grad()
def residual_streams(model: Any, ids: Tensor) -> list[Tensor]:
    """h^1 .. h^L of one sequence, all un-normed, each (T, H).

    The last entry of `hidden_states` is normed by some model families and not by others, so the final norm's own input
    is taken for it.
    """
    caught: list[Tensor] = []
    hook = final_norm(model).register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    try:
        hidden = model(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    finally:
        hook.remove()
    return [state[0] for state in (*hidden[1:-1], caught[-1])]


@dataclass
class Analyser:
    model: Any
    temperature: float = 0.6
    latent_norm: bool = False
    ks: tuple[int, ...] = KS

    def __post_init__(self) -> None:
        self.totals: dict[bool, list[list[LayerSums]]] = {False: [], True: []}  # by whether latents are normed
        self.num_positions = 0

    def _logits(self, state: Tensor, is_normed: bool) -> Tensor:
        if is_normed:
            state = final_norm(self.model)(state)
        return self.model.get_output_embeddings()(state).float() / self.temperature  # type: ignore[no-any-return]

    @torch.no_grad()
    def add(self, ids: Tensor, start: int) -> None:
        """`ids`: one whole sequence, (T,); the statistics cover the predictions of the tokens from `start` on."""
        streams = residual_streams(self.model, ids)
        for first in range(start - 1, len(ids) - 1, ROWS_AT_A_TIME):
            rows = slice(first, min(first + ROWS_AT_A_TIME, len(ids) - 1))
            final_logits = self._logits(streams[-1][rows], True)  # (P, V)
            final_ids = final_logits.topk(max(self.ks), dim=-1).indices  # (P, max k)
            final_sums = layer_sums(final_logits, final_ids, self.ks)
            for is_normed, totals in self.totals.items():
                latents = (self._logits(state[rows], is_normed) for state in streams[:-1])
                totals.append([*(layer_sums(logits, final_ids, self.ks) for logits in latents), final_sums])
            self.num_positions += len(final_logits)

    def _layers(self, is_normed: bool) -> list[dict[str, Any]]:
        """Means over the positions, a row for each layer from the first."""
        count, layers = self.num_positions, []
        for index, sums in enumerate(zip(*self.totals[is_normed], strict=True)):
            row: dict[str, Any] = {
                "layer": index + 1,
                "entropy": sum(s.entropy for s in sums) / count,
                "top_probability": sum(s.top_probability for s in sums) / count,
            }
            row["coverage"] = {str(k): sum(s.coverage[i] for s in sums) / count for i, k in enumerate(self.ks)}
            row["mass"] = {str(k): sum(s.mass[i] for s in sums) / count for i, k in enumerate(self.ks)}
            layers.append(row)
        return layers

    def document(self, name: str) -> dict[str, Any]:
        """What is written; raises AnalysisError where no position was seen."""
        if not self.num_positions:
            raise AnalysisError(
                "there is no position to look at: every prompt is a single token or nothing was generated"
            )
        unnormed, normed = self._layers(False), self._layers(True)
        layers = normed if self.latent_norm else unnormed
        exploration_rate = 1 - layers[-1]["top_probability"]
        return {
            "name": name,
            "temperature": self.temperature,
            "latent_norm": self.latent_norm,
            "positions": self.num_positions,
            "ks": list(self.ks),
            "exploration_rate": exploration_rate,
            "layers": layers,
            "verdict": judge(unnormed, normed, exploration_rate),
        }


def read_prompts(path: Path) -> list[str]:
    """Raises CommandError naming the line."""
    prompts = [_prompt(line, where) for where, line in files.text_lines(path) if line.strip()]
    if not prompts:
        raise AnalysisError(f"{path} holds no prompt: one a line, as text or as JSON with {', '.join(PROMPT_KEYS)}")
    return prompts


def _prompt(line: str, where: str) -> str:
    if not line.lstrip().startswith("{"):
        return line
    row = files.json_object(line, where)
    found = next((row[key] for key in PROMPT_KEYS if isinstance(row.get(key), str) and row[key].strip()), None)
    if found is None:
        raise AnalysisError(f"{where}: no prompt: a text under one of {', '.join(PROMPT_KEYS)}")
    return files.whole_text(found, where)


def encode(tokenizer: Any, prompt: str, is_raw: bool) -> Tensor:
    if is_raw or not tokenizer.chat_template:
        return tokenizer(prompt, return_tensors="pt").input_ids[0]  # type: ignore[no-any-return]
    chat = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]  # type: ignore[no-any-return]


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Raises AnalysisError for what transformers cannot load."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)
    except (OSError, ValueError, KeyError, SafetensorError) as error:  # the last: a file that broke off
        raise AnalysisError(f"the model {args.model} cannot be loaded: {' '.join(str(error).split())}") from error
    return model.to(args.device).eval(), tokenizer


def analyse(args: argparse.Namespace) -> dict[str, Any]:
    prompts = read_prompts(args.prompts)[: args.limit]
    model, tokenizer = load(args)
    ks = tuple(k for k in KS if k <= model.config.vocab_size)
    analyser = Analyser(model, args.temperature, args.latent_norm, ks)
    torch.manual_seed(args.seed)
    for index, prompt in enumerate(prompts):
        ids = encode(tokenizer, prompt, args.raw).to(args.device)
        start = 1
        if args.generate:
            start = len(ids)
            sampling = {"do_sample": True, "temperature": args.temperature, "top_k": 0, "top_p": 1.0}
            ids = model.generate(ids[None], max_new_tokens=args.generate, **sampling)[0]
        analyser.add(ids, start)
        print(f"analysis: prompt {index + 1} of {len(prompts)}, {analyser.num_positions} positions", file=sys.stderr)
    return analyser.document(args.name or Path(str(args.model).rstrip("/")).name)


def show(document: dict[str, Any]) -> str:
    """The numbers as text."""
    head = " ".join(f"{f'r_{k}':>6}" for k in document["ks"])
    lines = [f"{'layer':>5} {'entropy':>8} {'max p':>6} {head}"]
    for row in document["layers"]:
        covered = " ".join(f"{value:6.3f}" for value in row["coverage"].values())
        lines.append(f"{row['layer']:>5} {row['entropy']:8.3f} {row['top_probability']:6.3f} {covered}")
    lines.append(f"E[1 - max p] = {document['exploration_rate']:.4f} over {document['positions']} positions")
    return "\n".join([*lines, f"LED for this model: {document['verdict']['words']}"])


def _device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise argparse.ArgumentTypeError(f"{text!r} is not a device of this machine: {error}".splitlines()[0]) from None


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or hub name")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="JSON file; default: only print")
    parser.add_argument("--name", help="of the model in figures; default: the end of its path")
    parser.add_argument("--generate", type=integer(0), default=256, help="tokens sampled after each prompt; 0: none")
    parser.add_argument("--temperature", type=number(0, includes_low=False), default=0.6)
    parser.add_argument("--latent-norm", action="store_true", help="final norm on every layer, not only the last")
    parser.add_argument("--raw", action="store_true", help="do not put prompts into the chat template")
    parser.add_argument("--limit", type=integer(1), help="prompts at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def command(argv: list[str] | None) -> None:
    """Raises CommandError."""
    args = make_parser().parse_args(argv)
    if args.out:
        files.check_file(args.out)
    document = analyse(args)
    print(show(document))
    if args.out:
        files.write_text(args.out, json.dumps(document, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    return guarded("analysis", lambda: command(argv))


if __name__ == "__main__":
    sys.exit(main())
