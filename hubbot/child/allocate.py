"""Which tensor should get which GGUF type: every group of matrices is probed in one sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hubbot.child.device import settle_device
from hubbot.child.messages import AllocateAnswer, AllocateQuestion
from hubbot.child.source import facts_of
from hubbot.child.walk import walk
from hubbot.child.windows import cut_calibration
from hubbot.domain import Gguf
from hubbot.errors import BadSettings, BadText, Unsupported
from hubbot.formats.gguf.allocation import Matrix, allocated, grouped
from hubbot.formats.gguf.format import plan_unread
from hubbot.formats.gguf.plan import VariantPlan
from hubbot.formats.gguf.probes import Probes, matrices_of
from hubbot.formats.names import parse_variants
from hubbot.model import check_finite
from hubbot.model.agreement import agreed
from hubbot.model.own_tokenizer import load_tokenizer

__all__ = ["allocate"]

_TOKENS = 8_192  # of the calibration text that probes are measured on


def allocate(question: AllocateQuestion) -> AllocateAnswer:
    """The types of every mix that is asked for, in at most the bytes of llama.cpp's own. Raises Unsupported, BadText."""
    settings = question.settings
    facts = agreed(facts_of(question.source, settings, question.work))
    check_finite(facts.folder, facts)
    if question.text is None or not settings.gguf.imatrix:
        msg = "An allocation is measured on the calibration text, with the importance matrix. Leave out --no-imatrix."
        raise BadText(msg)
    wanted = [variant for variant in parse_variants(settings.variants) if isinstance(variant, Gguf)]
    plan = plan_unread(wanted, question.source, facts, question.work, settings.gguf, text="", quantized_by=None)
    tensors = plan.model.tensors
    mixes = {name: matrices_of(tensors, one.recipe.kinds, facts.tensors) for name, one in plan.variants.items()}
    if not any(mixes.values()):
        msg = f"None of {settings.variants} is a mix of K-quants for this model. Name some that are: --variants Q4_K_M,Q3_K_M."
        raise BadSettings(msg)
    matrices = {matrix.tensor: matrix for mix in mixes.values() for matrix in mix}
    probes = Probes(grouped(matrices.values()))
    calibration = cut_calibration(question.text, load_tokenizer(facts.folder), facts, settings)
    probing = calibration.only(slice(max(1, _TOKENS // calibration.length)))
    result = walk(
        facts,
        [probes],
        device=settle_device(settings.device),
        work=question.work,
        calibration=calibration,
        evaluation=probing,
        what=f"{len(probes.groups)} probes",
    )
    if result.failed:
        raise Unsupported(next(iter(result.failed.values())))
    costs = probes.costs({name: score.kld.mean for name, score in result.scores.items()})
    return AllocateAnswer(
        types={name: _of_mix(plan.variants[name], found, probes, costs) for name, found in mixes.items() if found}
    )


def _of_mix(
    mix: VariantPlan, matrices: Sequence[Matrix], probes: Probes, costs: Mapping[str, Mapping[str, float]]
) -> dict[str, str]:
    """Tensor -> type, of the matrices that the mix may choose for."""
    chosen = {matrix.tensor for matrix in matrices}
    groups = {first: [m for m in group if m.tensor in chosen] for first, group in probes.groups.items()}
    sizes = {
        first: {kind: sum(m.bytes[kind] for m in group) for kind in group[0].bytes}
        for first, group in groups.items()
        if group
    }
    placed = {one.tensor.name: one.bytes for shard in mix.shards for one in shard.tensors}
    found = allocated(costs, sizes, sum(placed[tensor] for tensor in chosen))
    return {matrix.tensor: kind for first, kind in found.items() for matrix in groups[first]}
