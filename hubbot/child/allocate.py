"""Which tensor should get which GGUF type: every group of matrices is probed, in as few walks as memory has room for."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence

from hubbot.child.device import settle_device
from hubbot.child.messages import AllocateAnswer, AllocateQuestion
from hubbot.child.source import facts_of
from hubbot.child.walk import walk
from hubbot.child.windows import cut_calibration
from hubbot.domain import Gguf
from hubbot.errors import BadText, Unsupported
from hubbot.formats.gguf.allocation import TOKENS, Matrix, allocated, grouped
from hubbot.formats.gguf.format import plan_unread
from hubbot.formats.gguf.plan import VariantPlan
from hubbot.formats.gguf.probes import Probes, matrices_of
from hubbot.formats.notes import write_json
from hubbot.model import ModelFacts, check_finite
from hubbot.model.agreement import agreed
from hubbot.model.own_tokenizer import load_tokenizer, loading_once
from hubbot.settings import GgufType
from hubbot.sweep.windows import Windows

__all__ = ["allocate"]

Groups = Mapping[str, tuple[Matrix, ...]]
Costs = Mapping[str, Mapping[str, float]]  # group -> type -> nats


@loading_once()
def allocate(question: AllocateQuestion) -> AllocateAnswer:
    """The types of every mix that is asked for, in at most the bytes of llama.cpp's own. Raises Unsupported, BadText."""
    settings = question.settings
    facts = agreed(facts_of(question.source, settings, question.work))
    check_finite(facts.folder, facts)
    wanted = [Gguf(type=mix) for mix in question.mixes]
    plan = plan_unread(wanted, question.source, facts, question.work, settings.gguf, text="", quantized_by=None)
    tensors = plan.model.tensors
    mixes = {name: matrices_of(tensors, one.recipe.kinds, facts.tensors) for name, one in plan.variants.items()}
    groups = grouped({matrix.tensor: matrix for mix in mixes.values() for matrix in mix}.values())
    costs = _measured(question, facts, groups)
    return AllocateAnswer(
        types={name: _of_mix(plan.variants[name], found, groups, costs) for name, found in mixes.items()}
    )


def _measured(question: AllocateQuestion, facts: ModelFacts, groups: Groups) -> Costs:
    """What every group costs in every type. What an earlier question has found is kept in its folder."""
    kept = question.work / "costs.json"
    costs: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    left = {name: group for name, group in groups.items() if _key(group) not in costs}
    if left:
        calibration = _calibration(question, facts)
        for some in _rounds(left, question.at_once):
            found = _probed(question, facts, some, calibration)
            costs |= {_key(some[name]): dict(cost) for name, cost in found.items()}
            write_json(kept, costs)
    return {name: costs[_key(group)] for name, group in groups.items()}


def _key(group: Sequence[Matrix]) -> str:
    """By which a group's costs are kept: another mix may have some of its matrices only."""
    return " ".join(matrix.tensor for matrix in group)


def _rounds(groups: Groups, at_once: int) -> Iterator[Groups]:
    names = list(groups)
    for first in range(0, len(names), at_once):
        yield {name: groups[name] for name in names[first : first + at_once]}


def _calibration(question: AllocateQuestion, facts: ModelFacts) -> Windows:
    if question.text is None:
        msg = "Types are measured on the calibration text, with the importance matrix. Leave out --no-imatrix."
        raise BadText(msg)
    return cut_calibration(question.text, load_tokenizer(facts.folder), facts, question.settings)


def _probed(question: AllocateQuestion, facts: ModelFacts, groups: Groups, calibration: Windows) -> Costs:
    """One walk with a probe of each group. A killed one goes on from its checkpoint."""
    folder = question.work / f"walk-{_digest(groups)}"
    folder.mkdir(parents=True, exist_ok=True)
    probes = Probes(groups, folder)
    result = walk(
        facts,
        [probes],
        device=settle_device(question.settings.device),
        work=folder,
        calibration=calibration,
        evaluation=calibration.only(slice(max(1, TOKENS // calibration.length))),
        what=f"{len(groups)} probes",
        resumable=question.resumable,
    )
    if result.failed:
        raise Unsupported(next(iter(result.failed.values())))
    shutil.rmtree(folder)
    return probes.costs({name: score.kld.mean for name, score in result.scores.items()})


def _digest(groups: Groups) -> str:
    return hashlib.sha256("\n".join(map(_key, groups.values())).encode()).hexdigest()[:16]


def _of_mix(mix: VariantPlan, matrices: Sequence[Matrix], probed: Groups, costs: Costs) -> dict[str, GgufType]:
    """Tensor -> type, of the matrices that the mix may choose for."""
    chosen = {matrix.tensor for matrix in matrices}
    groups = {first: [m for m in group if m.tensor in chosen] for first, group in probed.items()}
    sizes = {
        first: {kind: sum(m.bytes[kind] for m in group) for kind in group[0].bytes}
        for first, group in groups.items()
        if group
    }
    placed = {one.tensor.name: one.bytes for shard in mix.shards for one in shard.tensors}
    found = allocated(costs, sizes, sum(placed[tensor] for tensor in chosen))
    return {matrix.tensor: kind for first, kind in found.items() for matrix in groups[first]}
