"""The gate: every guard is seen to refuse once, with what was found and the limit; the others go on."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubbot.domain import Divergence, Family, LoadCheck, Record, Score, Status, Trial, VariantRecord, WindowMeans
from hubbot.model.digests import PROBE, template_digest, tokenizer_digest
from hubbot.release.gate import RECOMMENDED_KLD, gate, nominal_bits, recommend
from hubbot.release.paired import divergence_of, interval
from hubbot.settings import GateSettings
from tests.records import TEMPLATE, record, score, sha, variant

LIMITS = GateSettings()


def only(one: VariantRecord, **others: object) -> Record:
    return replace(record(), variants=(one,), **others)  # type: ignore[arg-type]


def judged(one: VariantRecord, limits: GateSettings = LIMITS, **options: object) -> VariantRecord:
    made = only(one, chat_template=None)
    return gate(made, limits, **options).variants[0]  # type: ignore[arg-type]


def scored(name: str, **numbers: Any) -> VariantRecord:
    plain = variant(name)
    assert plain.score is not None
    kld = replace(plain.score.kld, mean=numbers.pop("kld", plain.score.kld.mean))
    return replace(plain, score=replace(plain.score, kld=kld, **numbers))


def test_a_good_variant_passes_and_loses_an_old_complaint() -> None:
    verdict = judged(replace(variant("Q4_K_M"), status=Status.REFUSED, reason="old"))
    assert (verdict.status, verdict.reason) == (Status.PASSED, None)


NOMINAL = {
    "BF16": 16,
    "F16": 16,
    "Q8_0": 8,
    "Q6_K": 6,
    "Q5_1": 5,
    "IQ2_XXS": 2,
    "TQ2_0": 2,
    "MXFP4_MOE": 4,
    "IQ1_S": 1,
    "gptq-8bit-128g": 8,
    "gptq-3bit-128g-asym": 3,
    "bnb-nf4": 4,
    "bnb-int8": 8,
}


@pytest.mark.parametrize(("name", "bits"), NOMINAL.items())
def test_the_class_is_the_bits_in_the_name(name: str, bits: int) -> None:
    assert nominal_bits(VariantRecord(name=name, family=Family.GGUF, status=Status.PASSED, bits_per_weight=9.9)) == bits


def test_a_name_without_bits_is_classed_by_its_average() -> None:
    made_elsewhere = VariantRecord(name="theirs.gguf", family=Family.GGUF, status=Status.PASSED, bits_per_weight=5.5)
    assert nominal_bits(made_elsewhere) == 5.5


@pytest.mark.parametrize("bits", ["16", "8", "6", "5", "4", "3", "2", "1"])
def test_each_class_refuses_just_above_its_limits_and_not_at_them(bits: str) -> None:
    name = {"16": "BF16", "8": "Q8_0", "6": "Q6_K", "5": "Q5_K_M", "4": "Q4_K_M", "3": "Q3_K_M", "2": "Q2_K"}.get(bits)
    plain = replace(scored("Q4_K_M", ratio=1.0, kld=0.0), name=name or "IQ1_S")
    assert plain.score is not None

    def at(ratio: float, kld: float) -> VariantRecord:
        assert plain.score is not None
        return judged(replace(plain, score=replace(plain.score, ratio=ratio, kld=replace(plain.score.kld, mean=kld))))

    ratio, kld = LIMITS.max_ratio[bits], LIMITS.max_kld[bits]
    assert at(ratio, kld).status is Status.PASSED
    by_ratio, by_kld = at(ratio * 1.001, kld), at(ratio, kld * 1.001)
    assert by_ratio.status is by_kld.status is Status.REFUSED
    assert "perplexity ratio" in str(by_ratio.reason)
    assert f"{ratio:g}" in str(by_ratio.reason)
    assert "mean divergence" in str(by_kld.reason)
    assert f"{kld:g} nats, the limit for {bits}-bit variants" in str(by_kld.reason)


@pytest.mark.parametrize(
    ("parameters", "limits", "status"),
    [
        (134_515_008, LIMITS, Status.PASSED),
        (500_000_000, LIMITS, Status.REFUSED),
        (None, LIMITS, Status.REFUSED),
        (134_515_008, GateSettings(max_kld={"4": 0.2}), Status.REFUSED),
    ],
)
def test_a_small_model_may_lose_what_bitsandbytes_own_nf4_costs_one_unless_a_limit_was_set(
    parameters: int | None, limits: GateSettings, status: Status
) -> None:
    source = replace(record().source, parameters=parameters)
    made = only(scored("bnb-nf4", ratio=1.274, kld=0.263), chat_template=None, source=source)
    assert gate(made, limits).variants[0].status is status


@pytest.mark.parametrize("parameters", [134_515_008, 8_000_000_000])
def test_what_many_bits_may_lose_does_not_depend_on_the_models_size(parameters: int) -> None:
    source = replace(record().source, parameters=parameters)
    made = only(scored("Q8_0", ratio=1.0, kld=0.021), chat_template=None, source=source)
    assert gate(made, LIMITS).variants[0].status is Status.REFUSED


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["perplexity", "ratio", "kld"])
def test_a_number_that_is_not_finite_is_refused(what: str, number: float) -> None:
    verdict = judged(scored("Q2_K", **{"kld": 0.5, what: number}))
    assert verdict.status is Status.REFUSED
    assert "not finite" in str(verdict.reason)


def test_a_variant_without_numbers_is_refused_only_where_an_evaluation_ran() -> None:
    unmeasured = replace(variant("Q4_K_M"), score=None)
    assert judged(unmeasured).status is Status.REFUSED
    assert gate(only(unmeasured, evaluation=None, chat_template=None), LIMITS).variants[0].status is Status.PASSED


def test_a_file_that_does_not_load_is_refused_with_the_runtimes_words() -> None:
    check = LoadCheck(runtime="llama.cpp b1", loaded=False, error="tensor 'x' is missing")
    verdict = judged(replace(variant("Q4_K_M"), load_check=check))
    assert verdict.status is Status.REFUSED
    assert verdict.reason == "llama.cpp b1 does not load it: tensor 'x' is missing"


def test_a_file_that_computes_something_else_is_refused_with_both_numbers() -> None:
    check = LoadCheck(runtime="llama.cpp b1", loaded=True, kld=0.02, tolerance=0.001, passed=False)
    verdict = judged(replace(variant("Q4_K_M"), load_check=check))
    assert "divergence 0.02 nats, tolerance 0.001" in str(verdict.reason)


def test_llama_cpp_may_be_farther_from_the_sweep_than_the_variant_from_the_original() -> None:
    """Gemma 3 270M's Q4_K_M: weights on its very grid, and activations that 8 bits cost a hundred times as much."""
    check = LoadCheck(runtime="llama.cpp b1", loaded=True, kld=8.3e-3, tolerance=0.02, passed=True)
    assert judged(replace(scored("Q4_K_M", kld=7.1e-5), load_check=check)).status is Status.PASSED


def test_what_was_noted_of_a_variant_stands_beside_the_numbers_that_it_may_explain() -> None:
    noted = replace(scored("Q4_K_M", ratio=2.0), notes=("the model looks at the last 32 tokens",))
    assert str(judged(noted).reason).endswith("4-bit variants. Noted of it: the model looks at the last 32 tokens")
    check = LoadCheck(runtime="llama.cpp b1", loaded=True, kld=0.02, tolerance=0.001, passed=False)
    assert str(judged(replace(noted, load_check=check)).reason).endswith(
        "tolerance 0.001. Noted of it: the model looks at the last 32 tokens"
    )


def test_a_variant_that_nobody_loaded_is_refused_unless_that_is_not_asked_for() -> None:
    unloaded = replace(variant("Q4_K_M"), load_check=None)
    assert judged(unloaded).status is Status.REFUSED
    assert judged(unloaded, need_load_check=False).status is Status.PASSED


def test_another_tokenizer_or_template_than_the_sources_is_refused() -> None:
    plain = variant("Q4_K_M")
    assert plain.load_check is not None
    other = replace(plain, load_check=replace(plain.load_check, tokenizer=sha("else")))
    assert "tokenizer" in str(judged(other, tokenizer=sha("probe")).reason)
    made = replace(record(), variants=(replace(plain, load_check=replace(plain.load_check, chat_template=sha("x"))),))
    assert "chat template" in str(gate(made, LIMITS).variants[0].reason)
    fine = replace(plain, load_check=replace(plain.load_check, chat_template=template_digest(TEMPLATE + "\n")))
    assert gate(replace(record(), variants=(fine,)), LIMITS).variants[0].status is Status.PASSED


def test_a_variant_without_the_sources_template_is_refused() -> None:
    plain = variant("Q4_K_M")
    assert plain.load_check is not None
    bare = replace(plain, load_check=replace(plain.load_check, chat_template=None))
    assert "carries no chat template" in str(gate(replace(record(), variants=(bare,)), LIMITS).variants[0].reason)
    untold = gate(replace(record(), variants=(bare,), chat_template=None), LIMITS).variants[0]
    assert untold.status is Status.PASSED


def test_a_variant_whose_chat_runs_on_other_tokens_is_refused_with_the_difference() -> None:
    plain = variant("Q4_K_M")
    assert plain.load_check is not None
    other = replace(plain, load_check=replace(plain.load_check, differences=("its runtime stops nowhere",)))
    assert judged(other).reason == "its runtime stops nowhere"


def test_without_the_sources_tokenizer_the_odd_one_out_is_refused() -> None:
    names = ["Q8_0", "Q6_K", "Q5_K_M"]
    made = [variant(name) for name in names]
    check = made[1].load_check
    assert check is not None
    made[1] = replace(made[1], load_check=replace(check, tokenizer=sha("else")))
    verdicts = gate(replace(record(), variants=tuple(made), chat_template=None), LIMITS).variants
    assert [v.status for v in verdicts] == [Status.PASSED, Status.REFUSED, Status.PASSED]


def test_tokenizers_are_told_apart_by_what_they_do() -> None:
    assert tokenizer_digest([1, 23]) != tokenizer_digest([12, 3])
    assert tokenizer_digest([1, 23]) == tokenizer_digest((1, 23))


def test_one_bad_variant_does_not_touch_the_others_and_failures_stay() -> None:
    verdicts = {v.name: v.status for v in gate(replace(record(), chat_template=None), LIMITS).variants}
    assert verdicts["Q2_K"] is Status.REFUSED
    assert verdicts["gptq-2bit-64g"] is Status.REFUSED
    assert verdicts["bnb-fp4"] is Status.REFUSED
    assert verdicts["IQ1_S"] is Status.FAILED
    assert sum(status is Status.PASSED for status in verdicts.values()) == 16


def test_without_the_gate_everything_made_passes_and_the_complaint_is_kept() -> None:
    verdict = judged(scored("Q4_K_M", kld=9.0), LIMITS.model_copy(update={"enabled": False}))
    assert verdict.status is Status.PASSED
    assert verdict.notes[-1].startswith("not gated: mean divergence 9 nats")


def test_limits_of_the_users_settings_are_used() -> None:
    strict = GateSettings(max_kld={"4": 0.01})
    assert judged(variant("Q4_K_M"), strict).status is Status.REFUSED
    assert judged(variant("Q5_K_M"), strict).status is Status.PASSED


# --- the recommendation -----------------------------------------------------------------------------


def passed(name: str, kld: float | None, bits: float) -> VariantRecord:
    plain = replace(variant("Q8_0"), name=name, bits_per_weight=bits)
    return replace(plain, score=score(kld) if kld is not None else None)


def test_the_smallest_within_the_threshold_is_recommended() -> None:
    made = [passed("Q8_0", 0.001, 8.5), passed("Q4_K_M", RECOMMENDED_KLD, 4.9), passed("Q3_K_M", 0.0501, 3.9)]
    assert recommend(made) is made[1]
    assert recommend(made[::-1]) is made[1]


def test_where_none_is_close_the_closest_is_recommended() -> None:
    made = [passed("Q4_0", 0.09, 4.5), passed("Q4_1", 0.08, 5.0), passed("Q2_K", 0.9, 2.9)]
    assert recommend(made) is made[1]


def on_windows(made: VariantRecord, kld: list[float]) -> VariantRecord:
    assert made.score is not None
    windows = WindowMeans(tokens=(100,) * len(kld), kld=tuple(kld), change=(0.0,) * len(kld))
    mean = replace(made.score.kld, mean=sum(kld) / len(kld))
    return replace(
        made, score=replace(made.score, kld=mean, windows=windows, kld_interval=interval(divergence_of(windows)))
    )


def test_a_mean_that_only_chance_holds_below_the_threshold_is_not_recommended() -> None:
    unsure = on_windows(passed("Q3_K_M", 0.04, 3.9), [0.01, 0.08] * 4)
    sure = on_windows(passed("Q4_K_M", 0.04, 4.9), [0.04, 0.045] * 4)
    assert recommend([unsure, sure]) is sure


def test_of_two_equal_sizes_the_surely_closer_one_is_recommended() -> None:
    plain = on_windows(passed("A", 0.04, 4.9), [0.02, 0.04] * 6)
    better = on_windows(passed("B", 0.04, 4.91), [0.019, 0.039] * 6)
    chance = on_windows(passed("C", 0.04, 4.9), [0.03, 0.029] * 6)
    assert recommend([plain, better]) is better
    assert recommend([plain, chance]) is plain


def test_where_none_is_close_a_smaller_one_that_is_not_surely_further_is_recommended() -> None:
    closest = on_windows(passed("Q4_1", 0.08, 5.0), [0.06, 0.1] * 6)
    alike = on_windows(passed("Q4_0", 0.08, 4.5), [0.101, 0.06] * 6)
    further = on_windows(passed("Q3_K_M", 0.09, 3.9), [0.07, 0.11] * 6)
    assert recommend([closest, alike, further]) is alike


def test_without_measurements_the_common_choice_is_recommended() -> None:
    made = [passed("Q8_0", None, 8.5), passed("Q4_K_M", None, 4.9), passed("Q2_K", None, 2.9)]
    assert recommend(made) is made[1]


def test_refused_variants_and_other_families_are_never_recommended() -> None:
    refused = replace(passed("Q4_K_M", 0.01, 4.9), status=Status.REFUSED)
    assert recommend([refused]) is None
    assert recommend([passed("Q4_K_M", 0.01, 4.9)], Family.GPTQ) is None


def test_a_divergence_that_is_not_finite_is_no_measurement() -> None:
    nan = Divergence(mean=math.nan, stderr=0, median=0, p99=0, max=0)
    broken = replace(
        passed("Q2_K", 0.01, 2.9),
        score=Score(perplexity=1, stderr=0, ratio=1, ratio_stderr=0, kld=nan, top1=1, rms_dp=0),
    )
    good = passed("Q8_0", 0.2, 8.5)
    assert recommend([broken, good]) is good


def test_the_documented_limits_are_the_defaults() -> None:
    rows = {}
    for row in (Path(__file__).parents[2] / "docs/numbers.md").read_text().splitlines():
        if row.startswith(("| class", "| `gate.max")):
            name, *cells = [cell.strip() for cell in row.strip("| ").split("|")]
            rows[name.split("`")[1] if "`" in name else "class"] = cells
    for name in ("max_ratio", "max_kld"):
        documented = dict(zip(rows["class"], map(float, rows[f"gate.{name}"]), strict=True))
        assert documented == getattr(LIMITS, name)


def test_the_probe_text_survives_every_normalization() -> None:
    assert all(unicodedata.normalize(form, PROBE) == PROBE for form in ("NFC", "NFKC"))


@pytest.mark.parametrize(
    ("verdict", "passes"), [("agrees", True), ("fails", True), ("differs", False), ("refuses", False)]
)
def test_a_variant_passes_where_a_runtime_fails_by_itself_and_not_where_it_refuses_the_files_or_computes_otherwise(
    verdict: Any, passes: bool
) -> None:
    trial = Trial(
        runtime="vLLM", release="0.32.0", verdict=verdict, difference=2.5, tolerance=0.1, error="no such layer"
    )
    found = judged(replace(variant("Q4_K_M"), trials=(trial,)))
    assert (found.status is Status.PASSED) == passes
    if not passes:
        assert ("2.5 nats" if verdict == "differs" else "no such layer") in str(found.reason)
        assert "vLLM 0.32.0" in str(found.reason)
