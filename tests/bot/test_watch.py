"""Every rule of the policy decides what it is named for, and only that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hubbot.bot.ledger.rows import JobRow, JobState
from hubbot.bot.verdicts import Action, Known
from hubbot.bot.watch import RULES, Policy, cost, judge
from hubbot.hub.seen import Contents, Release
from hubbot.settings.watch import FilterSettings, WatchSettings
from tests.bot.parts import seen

WEIGHTS = {"model.safetensors": "sha256:" + "a" * 64, "tokenizer.json": "blob:" + "b" * 40}
TARGETS = {"ours/model-GGUF": frozenset({"Q4_K_M", "Q8_0"}), "ours/model-GPTQ": frozenset({"gptq-4bit-128g"})}


def policy(watch: WatchSettings | None = None, **changes) -> Policy:
    values = {
        "watch": watch or WatchSettings(),
        "settings": "settings",
        "version": "1.0",
        "bits": {"Q4_K_M": 4.5, "Q8_0": 8.5, "gptq-4bit-128g": 4.5},
        "targets": lambda _: TARGETS,
        "transformers": lambda name: name.endswith("ForCausalLM"),
        "converter": lambda name: name == "LlamaForCausalLM",
    }
    return Policy(**{**values, **changes})


def releases(revision: str = "1" * 40, **changes) -> tuple[Release, ...]:
    """Both repos that the policy wants, made from the given revision."""
    return tuple(
        Release(
            **{
                "repo": repo,
                "sha": "9" * 40,
                "model": "maker/model",
                "revision": revision,
                "files": {"model.safetensors": "a" * 64},
                "settings": "settings",
                "version": "1.0",
                "variants": dict.fromkeys(names, "published"),
                **changes,
            }
        )
        for repo, names in TARGETS.items()
    )


def contents(revision: str, files: dict[str, str] = WEIGHTS, **changes) -> Contents:
    return Contents(model="maker/model", sha=revision, files=files, **changes)


def job(state: JobState, **changes) -> JobRow:
    values = {
        "id": 1,
        "model": "maker/model",
        "revision": "1" * 40,
        "update": "replace",
        "cause": "new",
        "settings": "settings",
        "version": "1.0",
        "state": state,
        "failures": 0,
        "due": 0.0,
        "worker": None,
        "created": 0.0,
        "changed": 0.0,
        "error": None,
    }
    return JobRow(**{**values, **changes})


def filters(**values) -> WatchSettings:
    return WatchSettings(filters=FilterSettings(**values))


def test_a_plain_new_model_runs():
    verdict = judge(seen(), Known(), policy())
    assert (verdict.action, verdict.rule, verdict.revision) == (Action.RUN, "new", "1" * 40)


@pytest.mark.parametrize(
    ("rule", "changes", "watch"),
    [
        ("ignored", {}, WatchSettings(ignore=("maker/model",))),
        ("ignored", {}, WatchSettings(ignore=("maker/*",))),
        ("unwanted", {}, filters(exclude=("*model",))),
        ("unwanted", {}, filters(include=("*-Instruct",))),
        ("disabled", {"disabled": True}, None),
        ("own-release", {"id": "ours/model-GGUF"}, None),
        ("own-release", {"tags": ("hubbot",), "relation": "quantized"}, None),
        ("derivative", {"base_models": ("ours/model-GGUF",)}, None),
        ("quantized", {"tags": ("safetensors", "gguf")}, None),
        ("quantized", {"tags": ("safetensors", "base_model:quantized:maker/base")}, None),
        ("quantized", {"relation": "quantized"}, None),
        ("quantized", {"quantization": "gptq"}, None),
        ("quantized", {"quantization": "fp8", "relation": "quantized"}, None),
        ("quantized", {"quantization": "fp8", "tags": ("safetensors", "fp8", "nvfp4")}, None),
        ("adapter", {"library": "peft"}, None),
        ("adapter", {"relation": "adapter"}, None),
        ("no-safetensors", {"tags": ("pytorch",), "parameters": None}, None),
        ("no-architecture", {"architecture": None}, None),
        ("unsupported", {"architecture": "StableDiffusion"}, None),
        ("unsupported", {"architecture": "MambaForCausalLM"}, None),
        ("licence-filter", {}, filters(licences=("apache-2.0",))),
        ("no-licence", {"licence": None}, None),
        ("licence-forbids", {"licence": "cc-by-nd-4.0"}, None),
        ("gated", {"gated": True}, filters(gated="skip")),
        ("gated", {"gated": False}, filters(gated="only")),
        ("parameters", {}, filters(min_parameters="2M")),
        ("parameters", {}, filters(max_parameters="500K")),
        ("unpopular", {"downloads": 9}, filters(min_downloads=10)),
        ("unpopular", {"likes": 9}, filters(min_likes=10)),
    ],
)
def test_a_rule_leaves_the_model_alone_and_says_its_name(rule, changes, watch):
    where = policy(watch, ours=frozenset({"ours/model-GGUF"}))
    verdict = judge(seen(**changes), Known(), where)
    assert (verdict.action, verdict.rule) == (Action.SKIP, rule)
    assert verdict.reason
    assert verdict.cost is None


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_a_model_that_its_author_released_quantized_is_an_original(method):
    verdict = judge(seen(quantization=method, tags=("safetensors", method, "8-bit")), Known(), policy())
    assert verdict.action is Action.RUN


def test_a_quantizers_name_alone_decides_nothing():
    assert judge(seen("ours/model-GGUF"), Known(), policy()).rule == "new"
    assert judge(seen("maker/model-AWQ-4bit"), Known(), policy()).rule == "new"


def test_a_filter_that_is_met_lets_the_model_pass():
    watch = filters(
        licences=("mit",),
        min_parameters="1M",
        max_parameters="1M",
        gated="skip",
        include=("maker/*",),
        exclude=("b/*",),
    )
    assert judge(seen(), Known(), policy(watch)).rule == "new"


def test_without_gguf_the_converter_is_not_asked():
    where = policy(converter=lambda _: True)
    assert judge(seen(architecture="MambaForCausalLM"), Known(), where).rule == "new"


def test_an_unlicensed_model_runs_where_the_user_takes_it_on_himself():
    assert judge(seen(licence=None), Known(), policy(allow_unlicensed=True)).rule == "new"


def test_the_cost_is_the_download_and_what_is_made():
    made = int(17.5 * 1_000_000 / 8)
    assert cost(seen(), policy()) == 2_000_000 + made
    assert judge(seen(), Known(), policy()).cost == 2_000_000 + made
    assert judge(seen(), Known(), policy(disk=2_000_000 + made)).rule == "new"
    assert judge(seen(), Known(), policy(disk=2_000_000 + made - 1)).rule == "too-large"


def test_a_model_whose_block_or_largest_folder_exceeds_the_memory_is_too_large():
    large = seen(parameters=70_000_000_000, weight_bytes=140_000_000_000)
    assert judge(large, Known(), policy(ram=5 * 10**9, vram=5 * 10**9)).rule == "new"
    assert judge(large, Known(), policy(ram=4 * 10**9)).rule == "too-large"
    assert judge(large, Known(), policy(ram=39 * 10**9, folders=4.5)).rule == "too-large"
    assert judge(large, Known(), policy(ram=40 * 10**9, folders=4.5)).rule == "new"
    said = judge(large, Known(), policy(vram=4 * 10**9))
    assert (said.rule, "budget.vram" in said.reason) == ("too-large", True)


@pytest.mark.parametrize("limit", [{"disk": 1}, {"ram": 1}, {"vram": 1}, {"watch": filters(max_parameters="1B")}])
def test_a_size_that_the_hub_does_not_tell_passes_no_budget_and_no_filter(limit):
    unknown = seen(parameters=None, weight_bytes=None)
    assert judge(unknown, Known(), policy(**limit)).rule == "size-unknown"
    assert judge(unknown, Known(), policy()).rule == "new", "the plan tells, where nothing asks for it before"


def test_a_model_that_is_wholly_published_is_done():
    verdict = judge(seen(), Known(releases=releases()), policy())
    assert (verdict.action, verdict.rule) == (Action.SKIP, "published")


def test_a_missing_repo_of_a_half_published_model_runs():
    verdict = judge(seen(), Known(releases=releases()[:1]), policy())
    assert (verdict.action, verdict.rule) == (Action.RUN, "incomplete")
    assert "gptq-4bit-128g" in verdict.reason


def test_a_refused_variant_is_settled_and_not_missing():
    held = replace(releases()[0], variants={"Q4_K_M": "published", "Q8_0": "published", "gptq-4bit-128g": "refused"})
    assert judge(seen(), Known(releases=(held,)), policy()).rule == "published"


def test_what_stands_in_for_a_presets_variant_settles_it():
    held = replace(releases()[1], variants={"gptq-4bit-64g": "published"})
    known = Known(releases=(releases()[0], held))
    assert judge(seen(), known, policy()).rule == "incomplete"
    standing = {"gptq-4bit-128g": frozenset({"gptq-4bit-64g", "gptq-4bit-32g"})}
    assert judge(seen(), known, policy(stand_ins=standing)).rule == "published"


@pytest.mark.parametrize("changes", [{"version": "0.9"}, {"settings": "others"}])
def test_another_version_or_other_settings_run_again_unless_told_not_to(changes):
    known = Known(releases=releases(**changes))
    assert judge(seen(), known, policy()).rule == "outdated"
    assert judge(seen(), known, policy(WatchSettings(on_upgrade="ignore"))).rule == "published"


def test_a_new_commit_asks_for_a_look_at_the_files_first():
    verdict = judge(seen(sha="2" * 40), Known(releases=releases()), policy())
    assert verdict.action is Action.LOOK


def _after_commit(files: dict[str, str], watch: WatchSettings | None = None, **changes):
    known = Known(releases=releases(), contents=contents("2" * 40, files, **changes), before=contents("1" * 40))
    return judge(seen(sha="2" * 40), known, policy(watch))


def test_a_readme_only_commit_is_not_new():
    assert (_after_commit(WEIGHTS).action, _after_commit(WEIGHTS).rule) == (Action.SKIP, "readme-only")


@pytest.mark.parametrize(
    "files",
    [
        {**WEIGHTS, "model.safetensors": "sha256:" + "c" * 64},
        {**WEIGHTS, "tokenizer.json": "blob:" + "c" * 40},
        {**WEIGHTS, "config.json": "blob:" + "c" * 40},
        {"tokenizer.json": WEIGHTS["tokenizer.json"], "model-00001-of-00001.safetensors": "sha256:" + "a" * 64},
    ],
)
def test_changed_weights_or_tokenizer_run_again(files):
    verdict = _after_commit(files)
    assert (verdict.action, verdict.rule, verdict.update) == (Action.RUN, "changed", "replace")


def test_on_update_decides_what_becomes_of_changed_weights():
    files = {**WEIGHTS, "model.safetensors": "sha256:" + "c" * 64}
    assert _after_commit(files, WatchSettings(on_update="revision")).update == "revision"
    assert _after_commit(files, WatchSettings(on_update="ignore")).rule == "update-ignored"


def test_where_only_tags_count_an_untagged_change_waits():
    files = {**WEIGHTS, "model.safetensors": "sha256:" + "c" * 64}
    watch = WatchSettings(updates="tags")
    assert _after_commit(files, watch, tagged=False).rule == "untagged"
    assert _after_commit(files, watch, tagged=True).rule == "changed"


def test_where_the_old_revision_is_gone_the_sha256_of_the_weights_decides():
    gone = contents("1" * 40, {})
    same = Known(releases=releases(), contents=contents("2" * 40), before=gone)
    assert judge(seen(sha="2" * 40), same, policy()).rule == "readme-only"
    other = contents("2" * 40, {**WEIGHTS, "model.safetensors": "sha256:" + "c" * 64})
    assert (
        judge(seen(sha="2" * 40), Known(releases=releases(), contents=other, before=gone), policy()).rule == "changed"
    )


def test_a_yanked_model_is_left_alone_by_state_file_or_by_the_repos_mark():
    assert judge(seen(), Known(yanked="wrong"), policy()).rule == "yanked"
    assert judge(seen(), Known(releases=releases(yanked="see the card")), policy()).rule == "yanked"


@pytest.mark.parametrize(
    ("state", "failures", "rule"),
    [
        (JobState.RUNNING, 0, "running"),
        (JobState.QUEUED, 0, "queued"),
        (JobState.QUEUED, 2, "backoff"),
        (JobState.PARKED, 4, "parked"),
    ],
)
def test_a_job_in_the_queue_is_waited_for(state, failures, rule):
    verdict = judge(seen(), Known(job=job(state, failures=failures, error="disk full")), policy())
    assert (verdict.action, verdict.rule) == (Action.WAIT, rule)
    if failures:
        assert "disk full" in verdict.reason


@pytest.mark.parametrize("changes", [{"revision": "0" * 40}, {"settings": "others"}, {"version": "0.9"}])
def test_a_parked_job_is_forgotten_when_source_settings_or_hubbot_change(changes):
    parked = job(JobState.PARKED, failures=4, **changes)
    assert judge(seen(), Known(job=parked), policy()).rule == "new"


def test_what_these_releases_do_not_know_is_named_and_asked_again_of_others():
    unknown = judge(
        seen(architecture="NewForCausalLM"), Known(), policy(releases="transformers 5.1", transformers=lambda _: False)
    )
    assert (
        unknown.reason
        == "transformers has no language model NewForCausalLM (transformers 5.1); other releases are asked again"
    )
    parked = Known(job=job(JobState.PARKED, failures=1, refused_by="transformers 5.1"))
    assert judge(seen(), parked, policy(releases="transformers 5.1")).rule == "parked"
    assert judge(seen(), parked, policy(releases="transformers 5.2")).rule == "new"
    gate = Known(job=job(JobState.PARKED, failures=1))
    assert judge(seen(), gate, policy(releases="transformers 5.2")).rule == "parked"


def test_a_finished_job_is_done_also_while_its_pull_request_waits():
    verdict = judge(seen(), Known(job=job(JobState.DONE)), policy())
    assert (verdict.action, verdict.rule) == (Action.SKIP, "published")


def test_every_rule_has_its_own_name():
    names = [name for name, _ in RULES]
    assert len(names) == len(set(names))
