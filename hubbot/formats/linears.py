"""Which tensors of a checkpoint are weights of linear layers inside the decoder blocks, those of experts among them.

transformers builds the model without weights; its own rules say which checkpoint tensor fills which module.
So the answer needs config.json, the checkpoint's tensor names and shapes, no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hubbot.errors import Unsupported
from hubbot.formats.protocol import Encoded, expert_name
from hubbot.model import ModelFacts, part_layout
from hubbot.model.absent import absent_part_of, absent_parts, part_of_timm
from hubbot.model.borrowed import borrowed_tensors
from hubbot.model.empty import build_model, decoder_blocks
from hubbot.model.finite import Large
from hubbot.model.mapping import CheckpointMap, Group, Place, holds_experts, map_checkpoint, places_of_experts
from hubbot.model.parts import PartKind
from hubbot.model.prediction import prediction_paths

__all__ = ["Cut", "Linear", "Linears", "find_linears", "first_large"]


_TOKENS = 8  # of a pass without values


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where a layer's matrix, or its bias, lies in a tensor: which of how many equal lots of its outputs.

    expert: which one's, in a tensor of all experts' [experts, …]; None in one that several layers are cut out of.
    """

    tensor: str
    expert: int | None
    lot: int
    lots: int

    def of(self, stacked: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
        """A view of it, [out, in] or [out]. transposed: whether the tensor is [experts, in, out]."""
        own = stacked if self.expert is None else stacked[self.expert]
        return (own.t() if transposed else own).chunk(self.lots)[self.lot]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: checkpoint name of its weight [out, in], and the path of its module."""

    name: str
    module: str
    out_features: int
    in_features: int
    expert: bool = False  # one of several, of which the router picks some for a token
    transposed: bool = False  # the checkpoint stores the weight [in, out], as GPT-2's does
    own_class: bool = False  # of a class of the architecture's own, such as FalconLinear
    deep: bool = False  # given tensors of more than three dimensions
    cut: Cut | None = None  # out of a tensor that holds those of all experts, or of several layers

    @property
    def tensor(self) -> str:
        """The checkpoint tensor that holds it."""
        return self.cut.tensor if self.cut else self.name

    @property
    def statistics(self) -> str:
        """The name under which the statistics of its inputs go."""
        if self.cut and self.cut.expert is not None:
            return expert_name(self.cut.tensor, self.cut.expert)
        return self.tensor

    @property
    def weights(self) -> int:
        """How many it has."""
        return self.out_features * self.in_features

    def upright(self, weight: torch.Tensor) -> torch.Tensor:
        """The checkpoint's tensor, or what of it is this layer's, as [out, in]."""
        if self.cut:
            return self.cut.of(weight, transposed=self.transposed).contiguous()
        return weight.t().contiguous() if self.transposed else weight

    def as_stored(self, encoded: Encoded) -> Encoded:
        """An encoded [out, in], decoding to the checkpoint's shape; one that is cut out stays as it is."""
        return _Turned(encoded) if self.transposed and not self.cut else encoded


@dataclass(frozen=True, slots=True)
class _Turned:
    inner: Encoded

    def decode(self) -> torch.Tensor:
        return self.inner.decode().t().contiguous()


@dataclass(frozen=True, slots=True)
class Linears:
    """blocks: the linear layers of the decoder blocks, in checkpoint order. head: None if not a tensor of its own.

    head_module: path of the output head's module, tied or not. outside: module paths of linear layers that are
    neither; every family leaves them alone. routers: stems of the checkpoint's further matrices in blocks, which fill no such layer.
    stacked: tensors of the checkpoint that each hold the matrices of all experts of a block. pieces: the layers in them,
    of those tensors that fill a parameter as they stand, and those that a tensor is cut into (query, key and value). taken: those of blocks whose weight the model's own code takes
    without calling them, and which no family can hold as codes; they are outside too. lent: those that further blocks compute with,
    under paths of their own; they are outside too, since what a block sees would round them for all. split_biases: module path and `.bias` -> where that lies.
    targets: checkpoint tensor -> the parameter that it fills as it stands. joined: those that fill one otherwise, as experts do.
    timm: path of a part that is a model of timm's. predicting: paths of blocks that predict further tokens, which stay whole.
    """

    blocks: tuple[Linear, ...]
    head: Linear | None
    head_module: str | None
    outside: tuple[str, ...]
    routers: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    pieces: tuple[Linear, ...] = ()
    taken: tuple[Linear, ...] = ()
    split_biases: Mapping[str, Cut] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    joined: tuple[str, ...] = ()
    timm: str | None = None
    predicting: tuple[str, ...] = ()
    lent: tuple[Linear, ...] = ()

    @property
    def by_name(self) -> dict[str, Linear]:
        return {linear.name: linear for linear in self.blocks}

    @property
    def held(self) -> dict[str, list[Linear]]:
        """Checkpoint tensor -> those of blocks that lie in it."""
        found: dict[str, list[Linear]] = {}
        for linear in self.blocks:
            found.setdefault(linear.tensor, []).append(linear)
        return found


def find_linears(facts: ModelFacts) -> Linears:
    """The linear layers of a snapshot; a header-only one will do.

    Raises Unsupported for an architecture that transformers does not know, and where the blocks keep
    weights in other forms than nn.Linear, its transposed twin Conv1D, and experts.
    """
    model = build_model(facts.folder)
    checkpoint = map_checkpoint(model, facts.tensors)
    stack = decoder_blocks(model, part_layout(facts), checkpoint)
    in_blocks = {id(module) for module in stack.modules()}
    sources = {target: name for name, target in checkpoint.alone.items()}
    head_module = model.get_output_embeddings()
    blocks, outside, taken, lent, split = [], [], [], [], []
    uncalled, deep = _given(model, stack)
    borrowed = _borrowed(model, stack, facts, checkpoint)
    cuts = _cut_out(model, checkpoint, facts)
    head = head_path = None
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        name = sources.get(f"{path}.weight")
        if module is head_module:
            head = _linear(name, path, module) if name and not facts.tied else None
            head_path = path
        elif id(module) not in in_blocks:
            outside.append(path)
        elif id(module.weight) in borrowed:
            lent += [_linear(name, path, module)] if name else []
            outside.append(path)
        elif path in cuts:
            split.append(cuts[path])
        elif name is None:
            raise Unsupported(_unfilled(path, checkpoint))
        elif module in uncalled:
            taken.append(_linear(name, path, module))
            outside.append(path)
        else:
            blocks.append(replace(_linear(name, path, module), deep=module in deep))
    outside += _of_absent(model, facts)
    experts, stacked = _experts(model, stack, checkpoint, facts)
    if not (blocks or split or experts):
        msg = (
            f"The decoder blocks of {facts.architecture} hold no linear layers, so there is nothing that GPTQ or "
            "bitsandbytes could quantize; leave these variants out for this model."
        )
        raise Unsupported(msg)
    pieces, biases = _pieces(model, stack, checkpoint, facts)
    layers = (*blocks, *lent, *experts)
    return Linears(
        (*blocks, *experts),
        head,
        head_path,
        tuple(outside),
        _routers(facts, {layer.tensor for layer in (*layers, *split, *taken)}),
        tuple(stacked),
        (*split, *pieces),
        tuple(taken),
        biases,
        checkpoint.alone,
        tuple(
            name
            for group in checkpoint.groups
            if group.converter is not None and group.target.removesuffix(".weight") not in cuts
            for name in group.members
            if name not in facts.prediction  # transformers puts nothing together for blocks that it does not build
        ),
        part_of_timm(model),
        prediction_paths(facts.prediction),
        tuple(lent),
    )


def _cut_out(model: PreTrainedModel, checkpoint: CheckpointMap, facts: ModelFacts) -> dict[str, Linear]:
    """Module path -> layer, of matrices that transformers cuts into equal lots of their rows, seen by sending the rows' numbers."""
    found: dict[str, Linear] = {}
    for group in checkpoint.groups:
        name, shape = group.members[0], facts.tensors[group.members[0]].shape
        if len(group.members) > 1 or len(group.targets) < 2 or len(shape) != 2:
            continue
        rows = torch.arange(shape[0])[:, None]
        lots = rows.chunk(len(group.targets))
        values = group.convert({name: rows}, model)
        if all(any(torch.equal(own, lot) for lot in lots) for own in values.values()):
            for target, own in values.items():
                number = next(number for number, lot in enumerate(lots) if torch.equal(own, lot))
                cut = Cut(tensor=name, expert=None, lot=number, lots=len(lots))
                found[target.removesuffix(".weight")] = Linear(
                    target, target.removesuffix(".weight"), len(own), shape[1], cut=cut
                )
    return found


def _borrowed(model: PreTrainedModel, stack: nn.ModuleList, facts: ModelFacts, checkpoint: CheckpointMap) -> set[int]:
    """Identities of the parameters that a block computes with and another part of the model stores."""
    found = borrowed_tensors(model, stack, part_layout(facts), checkpoint)
    names = {name for names in found.values() for name in names if name in checkpoint.alone}
    return {id(model.get_parameter(checkpoint.alone[name])) for name in names}


def _of_absent(model: PreTrainedModel, facts: ModelFacts) -> list[str]:
    """The matrices of parts that the model was built without: layers to readers that have them."""
    absent = absent_parts(model)
    matrices = [name for name, info in facts.tensors.items() if name.endswith(".weight") and len(info.shape) == 2]
    return [name.removesuffix(".weight") for name in matrices if absent_part_of(name, absent)]


def _unfilled(path: str, checkpoint: CheckpointMap) -> str:
    several = [group.members for group in checkpoint.groups if f"{path}.weight" in group.targets]
    if several:
        return (
            f"transformers computes {path} from several tensors of the checkpoint put together, {several[0][0]} the first, and no reader of "
            "quantized layers does that. Leave GPTQ, compressed-tensors and bitsandbytes variants out for this model."
        )
    return f"No tensor of the checkpoint fills {path}. A complete checkpoint is needed: check its shards."


def _routers(facts: ModelFacts, layers: Set[str]) -> tuple[str, ...]:
    names = [name for part in part_layout(facts) if part.kind is PartKind.BLOCK for name in part.tensors]
    return tuple(
        name.removesuffix(".weight")
        for name in names
        if name.endswith(".weight") and name not in layers and len(facts.tensors[name].shape) == 2
    )


@torch.inference_mode()
def _given(model: PreTrainedModel, stack: nn.ModuleList) -> tuple[set[nn.Module], set[nn.Module]]:
    """Linear layers whose weight state spaces multiply themselves, as Mamba does, and those that are given tensors of more than
    three dimensions: seen by a pass without values.

    Where such a pass does not come to its end, and in blocks without a convolution, there are none of the first that are known.
    """
    layers: set[nn.Module] = {module for module in stack.modules() if isinstance(module, nn.Linear)}
    dimensions: dict[nn.Module, int] = {}

    def note(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        dimensions[module] = given[0].dim() if given else 0

    hooks = [module.register_forward_pre_hook(note) for module in layers]
    tokens = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    convolved = any(isinstance(module, nn.Conv1d) for module in stack.modules())
    # of four dimensions a mask is taken as it is; the values of others are looked at
    mask = torch.ones_like(tokens) if convolved else torch.zeros(1, 1, _TOKENS, _TOKENS, device="meta")
    try:
        model.to("meta")(input_ids=tokens, attention_mask=mask, use_cache=False)
        uncalled = layers - dimensions.keys() if convolved else set()
    except Exception:  # noqa: BLE001 - code of a foreign library that asked for a value
        uncalled = set()
    finally:
        for hook in hooks:
            hook.remove()
    return uncalled, {module for module, count in dimensions.items() if count > 3}


def _linear(name: str, path: str, module: nn.Linear | Conv1D) -> Linear:
    if isinstance(module, Conv1D):
        return Linear(name, path, module.nf, module.nx, transposed=True)
    return Linear(name, path, module.out_features, module.in_features, own_class=type(module) is not nn.Linear)


def _experts(
    model: PreTrainedModel, stack: nn.ModuleList, checkpoint: CheckpointMap, facts: ModelFacts
) -> tuple[list[Linear], list[str]]:
    """The matrices of experts that are tensors of their own, and the tensors that hold all experts of a block."""
    fused = _fused_parameters(model, stack)
    alone: list[Linear] = []
    stacked: list[str] = []
    for group in checkpoint.groups:
        if not fused.intersection(group.targets):
            continue
        if len(facts.tensors[group.members[0]].shape) == 2:
            alone += _matrices(group, model, facts)
        else:
            stacked += [name for name in group.members if len(facts.tensors[name].shape) == 3]
    return alone, stacked


def _fused_parameters(model: PreTrainedModel, stack: nn.ModuleList) -> frozenset[str]:
    """Names of the parameters in blocks that hold a matrix for every expert."""
    inside = {id(module) for module in stack.modules() if holds_experts(module)}
    return frozenset(
        f"{path}.{name}"
        for path, module in model.named_modules()
        if id(module) in inside
        for name, value in module.named_parameters(recurse=False)
        if value.ndim == 3
    )


def _matrices(group: Group, model: PreTrainedModel, facts: ModelFacts) -> list[Linear]:
    """The members that are one expert's matrix each. One column stands for all of them: none is moved."""
    columns = {name: facts.tensors[name].shape[-1] for name in group.members}
    shapes = {name: (*facts.tensors[name].shape[:-1], 1) for name in group.members}
    places = places_of_experts(group, shapes, model)
    return [
        Linear(name, _expert_module(place), facts.tensors[name].shape[0], columns[name], expert=True)
        for name, place in places.items()
        if place.expert is not None
    ]


def _expert_module(place: Place) -> str:
    """The path that an expert's matrix has as a layer of its own: `model.layers.3.mlp.experts.7.up_proj`."""
    experts, _, parameter = place.parameter.rpartition(".")
    lots = _lots(parameter)
    return f"{experts}.{place.expert}.{lots[0] if place.first else lots[-1]}"


def _lots(parameter: str) -> tuple[str, ...]:
    """The layers whose outputs a parameter of experts holds one after the other."""
    return ("gate_proj", "up_proj") if parameter == "gate_up_proj" else (parameter,)


def _pieces(
    model: PreTrainedModel, stack: nn.ModuleList, checkpoint: CheckpointMap, facts: ModelFacts
) -> tuple[tuple[Linear, ...], dict[str, Cut]]:
    """The experts' matrices and biases in tensors that hold those of all experts and fill a parameter, transposed at most."""
    fused = _fused_parameters(model, stack)
    pieces: list[Linear] = []
    biases: dict[str, Cut] = {}
    for group in checkpoint.groups:
        if group.converter is not None and len(group.members) == len(group.targets) == 1 and group.target in fused:
            pieces += _pieces_of(
                group.members[0], group.target, model, facts.tensors[group.members[0]].shape, turned=True
            )
    for name, target in checkpoint.alone.items():
        if target in fused:
            pieces += _pieces_of(name, target, model, facts.tensors[name].shape)
        elif target.removesuffix("_bias") in fused:
            biases |= {
                f"{module}.bias": cut
                for module, cut in _cuts(name, target.removesuffix("_bias"), facts.tensors[name].shape[0])
            }
    return tuple(pieces), biases


def _pieces_of(
    name: str, target: str, model: PreTrainedModel, shape: tuple[int, ...], *, turned: bool = False
) -> list[Linear]:
    """None where it cannot be told which dimension is of the outputs. turned: whether the two may change places on loading."""
    path, _, parameter = target.rpartition(".")
    transposed = _is_turned(model, target, shape) if turned else _is_transposed(model, path, parameter, shape)
    if transposed is None:
        return []
    inputs, outputs = shape[1:] if transposed else shape[:0:-1]
    lots = _lots(parameter)
    return [
        Linear(f"{module}.weight", module, outputs // len(lots), inputs, expert=True, transposed=transposed, cut=cut)
        for module, cut in _cuts(name, target, shape[0])
    ]


def _cuts(name: str, target: str, experts: int) -> list[tuple[str, Cut]]:
    """Module path of every layer in a tensor of all experts, and where it lies."""
    path, _, parameter = target.rpartition(".")
    lots = _lots(parameter)
    return [
        (f"{path}.{expert}.{lot}", Cut(tensor=name, expert=expert, lot=number, lots=len(lots)))
        for expert in range(experts)
        for number, lot in enumerate(lots)
    ]


def _is_transposed(model: PreTrainedModel, path: str, parameter: str, shape: tuple[int, ...]) -> bool | None:
    """Whether experts are stored [in, out]: as transformers' module says, or by which side is the model's width."""
    said = getattr(model.get_submodule(path), "is_transposed", None)
    if said is not None:
        return bool(said)
    width = model.config.get_text_config().hidden_size
    wide: list[bool] = [side == width for side in shape[1:]]
    if all(wide) or not any(wide):
        return None
    return wide[1] if parameter == "down_proj" else wide[0]


def _is_turned(model: PreTrainedModel, target: str, shape: tuple[int, ...]) -> bool | None:
    """Whether experts are stored [in, out] for a parameter of [out, in]."""
    experts, outputs, inputs = model.get_parameter(target).shape
    if shape not in ((experts, outputs, inputs), (experts, inputs, outputs)) or outputs == inputs:
        return None
    return shape == (experts, inputs, outputs)


def first_large(facts: ModelFacts, large: Mapping[str, Large]) -> tuple[str, Large] | None:
    """The first linear layer of the blocks that holds a value beyond float16."""
    linears = find_linears(facts).by_name
    return next(((name, found) for name, found in large.items() if name in linears), None)
