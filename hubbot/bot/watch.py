"""What to do about a model that was seen: rules with names, in order; the first that speaks decides.

Pure: a candidate, what is known about it, and the policy give a verdict. Whatever takes a request to
find out is asked for with Action.LOOK and answered in `Known` the next time.

    ignored unwanted disabled               left out by hubbot.toml or by the Hub
    own-release derivative quantized        quantized already, by us or by others
    adapter no-safetensors no-architecture unsupported
    licence-filter no-licence licence-forbids
    gated size-unknown parameters           the filters and budgets
    unpopular too-large
    yanked
    running queued backoff parked           the queue has it
    published readme-only                   nothing to do
    update-ignored untagged
    changed outdated incomplete new         run
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from hubbot.bot.ledger.rows import JobState
from hubbot.bot.verdicts import Action, Known, Verdict
from hubbot.hub.seen import Candidate, Contents, Release
from hubbot.release.licence import judge_licence
from hubbot.settings.sections import format_size
from hubbot.settings.watch import WatchSettings

__all__ = ["PUBLISHED", "RULES", "YANKED", "Policy", "cost", "judge"]

# Tags that the Hub derives from a repo's files and configuration, or that publishers of quantized models set.
_QUANTIZED_TAGS = frozenset(
    "gguf gptq awq exl2 exl3 bitsandbytes compressed-tensors hqq aqlm quanto eetq torchao fp8 nvfp4 mxfp4 modelopt "
    "mlx 2-bit 3-bit 4-bit 5-bit 6-bit 8-bit".split()
)
_RELEASED = {"fp8": {"fp8", "8-bit"}, "mxfp4": {"mxfp4", "8-bit"}}  # what authors release models in -> its tags
_QUANTIZED_BASE = "base_model:quantized:"
OUR_TAG = "hubbot"
YANKED, PUBLISHED = "yanked", "published"  # the rules

# Bytes a weight of the model that its largest block takes at the least: hardly a model has more than 128 blocks, and a
# block lies there twice, as it is and decoded, in float32. `hubbot plan` knows better, once the headers are there.
_BLOCK = 2 * 4 / 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    watch: WatchSettings
    settings: str  # fingerprint of the settings that shape a release
    version: str  # of hubbot
    bits: Mapping[str, float]  # wanted variant -> bits per weight, about
    targets: Callable[[str], Mapping[str, frozenset[str]]]  # model -> repo to publish -> variants in it
    stand_ins: Mapping[str, frozenset[str]] = field(
        default_factory=dict
    )  # wanted variant -> what may be held in its place
    apart: Callable[[str], Mapping[str, frozenset[str]]] = lambda _: {}  # the same, with the owner in the repos' names
    ours: frozenset[str] = frozenset()  # repos that we published
    transformers: Callable[[str], bool] = lambda _: True  # whether it knows an architecture
    converter: Callable[[str], bool] = lambda _: True  # whether any wanted family does
    disk: int | None = None  # bytes; the budgets, None: none is set
    ram: int | None = None
    vram: int | None = None
    folders: float = 0.0  # bits per weight of the largest variant that its load check takes into memory whole
    allow_unlicensed: bool = False
    asked: str | None = None  # variants of a request; None: those of hubbot.toml
    releases: str = ""  # of transformers and llama.cpp that say what is supported


@dataclass(frozen=True, slots=True)
class Says:
    """A rule's answer."""

    action: Action
    reason: str
    rule: str | None = None  # where a rule answers under several names


Rule = Callable[[Candidate, Known, Policy], "Says | None"]


def judge(seen: Candidate, known: Known, policy: Policy) -> Verdict:
    """The verdict of the first rule that has something to say."""
    for name, rule in RULES:
        said = rule(seen, known, policy)
        if said:
            runs = said.action in (Action.RUN, Action.LOOK)
            return Verdict(
                model=seen.id,
                revision=seen.sha,
                action=said.action,
                rule=said.rule or name,
                reason=said.reason,
                update="revision"
                if (said.rule or name) == "changed" and policy.watch.on_update == "revision"
                else "replace",
                cost=cost(seen, policy) if runs else None,
            )
    return Verdict(
        model=seen.id,
        revision=seen.sha,
        action=Action.RUN,
        rule="new",
        reason="not published yet",
        cost=cost(seen, policy),
    )


def cost(seen: Candidate, policy: Policy) -> int | None:
    """Bytes to download and to make, about; None where the Hub does not tell the model's size."""
    if seen.parameters is None:
        return None
    download = seen.weight_bytes or 2 * seen.parameters
    return download + int(sum(policy.bits.values()) * seen.parameters / 8)


# --- rules ------------------------------------------------------------------------------------------


def _skip(reason: str, rule: str | None = None) -> Says:
    return Says(Action.SKIP, reason, rule)


def _ignored(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    for pattern in policy.watch.ignore:
        if fnmatchcase(seen.id, pattern):
            return _skip(f"watch.ignore has {pattern}")
    return None


def _unwanted(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    filters = policy.watch.filters
    for pattern in filters.exclude:
        if fnmatchcase(seen.id, pattern):
            return _skip(f"watch.filters.exclude has {pattern}")
    if filters.include and not any(fnmatchcase(seen.id, pattern) for pattern in filters.include):
        return _skip("no pattern of watch.filters.include fits")
    return None


def _disabled(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    return _skip("the Hub has disabled it") if seen.disabled else None


def _own_release(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    if seen.id in policy.ours:
        return _skip("we published it")
    if OUR_TAG in seen.tags and seen.relation == "quantized":
        return _skip(f"its card says that hubbot made it (tag {OUR_TAG}, relation quantized)")
    return None


def _derivative(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    ours = [base for base in seen.base_models if base in policy.ours]
    return _skip(f"made from our release {ours[0]}") if ours else None


def _quantized(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    """By others; a model that its author has released in FP8 or MXFP4 is an original."""
    if seen.quantization and seen.quantization not in _RELEASED:
        return _skip(f"its weights are {seen.quantization} (quantization_config)")
    if seen.relation == "quantized" or any(tag.startswith(_QUANTIZED_BASE) for tag in seen.tags):
        return _skip("its card says it is a quantized model (base_model_relation)")
    tags = sorted(_QUANTIZED_TAGS.intersection(seen.tags) - _RELEASED.get(seen.quantization or "", set()))
    return _skip(f"tagged {', '.join(tags)}") if tags else None


def _adapter(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    if seen.library == "peft" or seen.relation == "adapter":
        return _skip("an adapter, not a whole model")
    return None


def _no_safetensors(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    if seen.parameters is None and "safetensors" not in seen.tags:
        return _skip("no safetensors in it")
    return None


def _architecture(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    if seen.architecture is None:
        return _skip("its config.json names no architecture", "no-architecture")
    if not policy.transformers(seen.architecture):
        return _skip(f"transformers has no language model {seen.architecture}{_others(policy)}", "unsupported")
    if not policy.converter(seen.architecture):
        return _skip(f"llama.cpp's converter does not know {seen.architecture}{_others(policy)}", "unsupported")
    return None


def _others(policy: Policy) -> str:
    return f" ({policy.releases}); other releases are asked again" if policy.releases else ""


def _licence(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    wanted = policy.watch.filters.licences
    if wanted and seen.licence not in wanted:
        return _skip(f"licence {seen.licence or 'unknown'} is not in watch.filters.licences", "licence-filter")
    verdict = judge_licence(seen.licence, seen.licence_name, seen.licence_link)
    if verdict.allowed or policy.allow_unlicensed:
        return None
    return _skip(verdict.reason, "licence-forbids" if seen.licence else "no-licence")


def _gated(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    wanted = policy.watch.filters.gated
    if wanted == "skip" and seen.gated:
        return _skip("gated, and watch.filters.gated is skip")
    if wanted == "only" and not seen.gated:
        return _skip("not gated, and watch.filters.gated is only")
    return None


def _parameters(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    low, high = policy.watch.filters.min_parameters, policy.watch.filters.max_parameters
    if (low is None and high is None) or (seen.parameters is None):
        return None
    if low is not None and seen.parameters < low:
        return _skip(f"{seen.parameters:,} weights, fewer than {low:,}")
    if high is not None and seen.parameters > high:
        return _skip(f"{seen.parameters:,} weights, more than {high:,}")
    return None


def _unpopular(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    filters = policy.watch.filters
    if seen.downloads < filters.min_downloads:
        return _skip(f"{seen.downloads:,} downloads, fewer than {filters.min_downloads:,}")
    if seen.likes < filters.min_likes:
        return _skip(f"{seen.likes:,} likes, fewer than {filters.min_likes:,}")
    return None


def _size_unknown(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    filters = policy.watch.filters
    limits = (policy.disk, policy.ram, policy.vram, filters.min_parameters, filters.max_parameters)
    if seen.parameters is None and any(limit is not None for limit in limits):
        return _skip("the Hub does not tell its size, and a budget or filter asks for it")
    return None


def _too_large(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    if seen.parameters is None:
        return None
    block = seen.parameters * _BLOCK
    needs = {
        "disk": (cost(seen, policy), policy.disk),
        "ram": (int(max(block, seen.parameters * policy.folders / 8)), policy.ram),
        "vram": (int(block), policy.vram),
    }
    for name, (needed, budget) in needs.items():
        if needed is not None and budget is not None and needed > budget:
            return _skip(f"needs at least {format_size(needed)} of {name}, budget.{name} is {format_size(budget)}")
    return None


def _yanked(seen: Candidate, known: Known, policy: Policy) -> Says | None:  # noqa: ARG001
    reason = known.yanked or next((release.yanked for release in known.releases if release.yanked), None)
    return _skip(reason) if reason else None


def _in_queue(seen: Candidate, known: Known, policy: Policy) -> Says | None:
    job = known.job
    if job is None or (job.revision, job.settings, job.version) != (seen.sha, policy.settings, policy.version):
        return None
    match job.state:
        case JobState.RUNNING:
            return Says(Action.WAIT, "runs now", "running")
        case JobState.QUEUED if job.failures:
            return Says(Action.WAIT, f"failed {_times(job.failures)}, next try {_at(job.due)}: {job.error}", "backoff")
        case JobState.QUEUED:
            return Says(Action.WAIT, "waits for a worker", "queued")
        case _ if job.variants != policy.asked:  # it came to nothing that is asked for now
            return None
        case JobState.PARKED if job.refused_by and job.refused_by != policy.releases:
            return None  # other releases of transformers and llama.cpp may know the model
        case JobState.PARKED:
            again = f"hubbot retry {seen.id} tries again"
            return Says(Action.WAIT, f"failed {_times(job.failures)}; {again}: {job.error}", "parked")
        case JobState.DONE:
            return _skip(f"done; hubbot retry {seen.id} makes it again", PUBLISHED)
        case _:
            return None


def _released(seen: Candidate, known: Known, policy: Policy) -> Says | None:
    """Everything about models that have releases; at this point nothing forbids to run."""
    if not known.releases:
        return None
    source = next((r for r in known.releases if r.revision != seen.sha), None)
    if source is not None:
        if known.contents is None or known.before is None or known.before.sha != source.revision:
            return Says(Action.LOOK, "a new commit; its files will tell")
        if files := changed_files(known.contents, known.before, source):
            return _changed(files, known.contents, policy)
    if outdated := _outdated(known.releases, policy):
        return outdated
    if missing := _missing(seen, known.releases, policy):
        return Says(Action.RUN, f"not published yet: {', '.join(missing)}", "incomplete")
    if source is not None:
        return _skip("only the README or the like changed", "readme-only")
    return _skip("published")


def _changed(files: list[str], contents: Contents, policy: Policy) -> Says:
    what = f"changed since the release: {', '.join(files[:3])}{' …' if len(files) > 3 else ''}"
    if policy.watch.on_update == "ignore":
        return _skip(what, "update-ignored")
    if policy.watch.updates == "tags" and not contents.tagged:
        return _skip(f"{what}; no tag points at it", "untagged")
    return Says(Action.RUN, what, "changed")


def _outdated(releases: tuple[Release, ...], policy: Policy) -> Says | None:
    if policy.watch.on_upgrade == "ignore":
        return None
    for release in releases:
        if release.version != policy.version:
            return Says(Action.RUN, f"{release.repo} was made by hubbot {release.version}", "outdated")
        if release.settings != policy.settings:
            return Says(Action.RUN, f"{release.repo} was made with other settings", "outdated")
    return None


def _missing(seen: Candidate, releases: tuple[Release, ...], policy: Policy) -> list[str]:
    """Wanted variants that no repo holds and no record calls refused or failed."""
    held = {release.repo: release.variants for release in releases}
    settled = {
        name for variants in held.values() for name, status in variants.items() if status in ("refused", "failed")
    }
    missing: list[str] = []
    apart = iter(policy.apart(seen.id))
    for repo, wanted in policy.targets(seen.id).items():
        there = settled | held.get(repo, {}).keys() | held.get(next(apart, repo), {}).keys()
        missing += [name for name in sorted(wanted) if not there & {name, *policy.stand_ins.get(name, ())}]
    return missing


RULES: tuple[tuple[str, Rule], ...] = (
    ("ignored", _ignored),
    ("unwanted", _unwanted),
    ("disabled", _disabled),
    ("own-release", _own_release),
    ("derivative", _derivative),
    ("quantized", _quantized),
    ("adapter", _adapter),
    ("no-safetensors", _no_safetensors),
    ("architecture", _architecture),
    ("licence", _licence),
    ("gated", _gated),
    ("size-unknown", _size_unknown),
    ("parameters", _parameters),
    ("unpopular", _unpopular),
    ("too-large", _too_large),
    (YANKED, _yanked),
    ("queue", _in_queue),
    (PUBLISHED, _released),
)


def changed_files(now: Contents, before: Contents, release: Release) -> list[str]:
    """Files that matter and differ from those that a release was made from.

    Compared by the Hub's ids at both revisions; where the old revision is gone, by the sha256 of the
    large files in the release's record.
    """
    if before.files:
        paths = sorted(now.files.keys() | before.files.keys())
        return [path for path in paths if now.files.get(path) != before.files.get(path)]
    large = {path: text.removeprefix("sha256:") for path, text in now.files.items() if text.startswith("sha256:")}
    return [path for path, digest in sorted(large.items()) if release.files.get(path, digest) != digest]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
