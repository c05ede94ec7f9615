"""The private vocabulary of led_sglang's first year, which must not come back, and what the field says instead."""

import ast
import re
from collections.abc import Iterator
from itertools import chain

WORDS = {  # what the field says: private words for it, alone or as part of a name (`row_seat`, `RowSeat`)
    "RequestRow": "seat seats",
    "RowInputs": "standing",
    "one_pass": "ride rides rode rider riders riding ridden",
    "latent_rows": "board boarding boarded",
    "lse": "normalizer normalizers",
    "row_stats, report": "tally tell tells telling told untold",
    "wrap_sampler": "dress",
    "ResolvedRequest": "stamped",
    "rewrite_body, move_to_metadata": "lift lifted sink",
    "UNSUPPORTED_PATHS": "deaf",
}
NAMES = {  # what the field says: private names, whole but for leading underscores, as English uses the words too
    "one_pass_mask, explore_mask": "wanted needed",
    "lse_ready, lse_missing": "served missing",
    "coin_uniform, coin_threshold": "coin cut",
    "two_pass, mix_and_sample": "coin_first tail",
    "torch, numba": "fused eager compiled",
    "allows_dynamic_shapes": "can_look",
    "requested, StreamRequest": "asked Ask",
    "engine_*, torch_*": "plain",
    "trace, automaton": "full machine",
    "status, to_dict": "facts public",
    "bind_head, on_graph_warmup, rows_for_engine": "see_head see_dummy open_rows",
    "row_idx, RowInputs, ResolvedRequest": "places stand stamp",
}
SHAPES = {r"own_\w+": "row_*", r"\w+_place": "*_OFFSET, row_idx"}
FOREIGN = (
    "torch.full",
    "np.full",
    "tl.full",
    "platform.machine",
)  # names of other libraries: of arrays, of a processor


def instead_of(identifier: str) -> str | None:
    """The field's word for an identifier out of the private vocabulary; None for any other identifier."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().strip("_")
    whole = (say for say, names in NAMES.items() if identifier.strip("_") in names.split())
    parts = (say for say, words in WORDS.items() if set(snake.split("_")) & set(words.split()))
    shapes = (say for shape, say in SHAPES.items() if re.fullmatch(shape, snake))
    return next(chain(whole, parts, shapes), None)


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that is named, read or passed by name, but for what is another library's."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.Attribute(attr=name) if ast.unparse(node) not in FOREIGN:
                yield node.lineno, name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                for alias in names:
                    yield from ((node.lineno, part) for part in (alias.asname or alias.name).split("."))
