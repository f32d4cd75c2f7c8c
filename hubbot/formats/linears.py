"""Which tensors of a checkpoint are weights of linear layers inside the decoder blocks.

transformers builds the model without weights; its own renaming rules say which checkpoint tensor
fills which module. So the answer needs config.json and the checkpoint's tensor names, no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from hubbot.errors import Unsupported
from hubbot.model import ModelFacts, part_layout
from hubbot.model.empty import build_model, decoder_blocks, parameter_names
from hubbot.model.parts import PartKind

__all__ = ["Linear", "Linears", "find_linears"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: checkpoint name of its weight [out, in], and the path of its module."""

    name: str
    module: str
    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True)
class Linears:
    """blocks: the linear layers of the decoder blocks, in checkpoint order. head: None if not a tensor of its own.

    head_module: path of the output head's module, tied or not. outside: module paths of linear layers that are
    neither; every family leaves them alone.
    """

    blocks: tuple[Linear, ...]
    head: Linear | None
    head_module: str | None
    outside: tuple[str, ...]

    @property
    def by_name(self) -> dict[str, Linear]:
        return {linear.name: linear for linear in self.blocks}


def find_linears(facts: ModelFacts) -> Linears:
    """The linear layers of a snapshot; a header-only one will do.

    Raises Unsupported for an architecture that transformers does not know, and where the blocks keep
    weights in other forms than nn.Linear (fused experts, transposed Conv1D).
    """
    model = build_model(facts.folder)
    places = parameter_names(model, facts.tensors)
    sources = {target: name for name, target in places.items()}
    stack = decoder_blocks(model, _in_blocks(facts, places), facts.layers)
    _refuse_other_forms(stack, facts)
    in_blocks = {id(module) for module in stack.modules()}
    head_module = model.get_output_embeddings()
    blocks, outside = [], []
    head = head_path = None
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        name = sources.get(f"{path}.weight")
        if module is head_module:
            head = Linear(name, path, *module.weight.shape) if name and not facts.tied else None
            head_path = path
        elif id(module) not in in_blocks:
            outside.append(path)
        elif name is None:
            msg = f"No tensor of the checkpoint fills {path}. A complete checkpoint is needed: check its shards."
            raise Unsupported(msg)
        else:
            blocks.append(Linear(name, path, *module.weight.shape))
    return Linears(tuple(blocks), head, head_path, tuple(outside))


def _in_blocks(facts: ModelFacts, places: Mapping[str, str]) -> list[str]:
    """Parameters that the tensors of the decoder blocks fill."""
    blocks = [part for part in part_layout(facts) if part.kind is PartKind.BLOCK]
    return [places[name] for part in blocks for name in part.tensors if name in places]


def _refuse_other_forms(stack: nn.ModuleList, facts: ModelFacts) -> None:
    for path, module in stack.named_modules():
        fused = [name for name, value in module.named_parameters(recurse=False) if value.ndim == 3]
        if fused and not isinstance(module, nn.Conv1d):
            msg = (
                f"{facts.architecture} keeps its experts as one tensor ({path}.{fused[0]}), not as linear layers. GPTQ and "
                "bitsandbytes variants cannot hold mixture-of-experts models yet; leave them out for this model."
            )
            raise Unsupported(msg)
    if not any(isinstance(module, nn.Linear) for module in stack.modules()):
        msg = (
            f"The decoder blocks of {facts.architecture} hold no linear layers, so there is nothing that GPTQ or "
            "bitsandbytes could quantize; leave these variants out for this model."
        )
        raise Unsupported(msg)
