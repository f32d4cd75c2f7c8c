"""The card: what the Hub accepts, what a reader needs, no number that was not measured, nothing from outside that acts."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from hubbot.cards.card import CARDS, PICTURE, check_files, render_card, write_cards
from hubbot.cards.frontmatter import split
from hubbot.domain import ExpertUse, Record, Sample, Status, Trial, VariantRecord, WindowMeans
from hubbot.errors import BadRecord, PublishConflict
from hubbot.formats import FAMILIES
from hubbot.formats.family import Kind
from hubbot.record.file import from_json, to_json
from hubbot.release.repos import Repo, plan_repos
from hubbot.settings import PublishSettings
from tests.cards.test_escape import MARKDOWN, Seen
from tests.records import BASE, HOSTILE, hostile_record, lay_files, record

KINDS = GGUF, GPTQ, W4A16, W8A16, BNB_4BIT, BNB_8BIT = [
    kind for family in FAMILIES.values() for kind in family.ABOUT.kinds
]
PUBLISH = PublishSettings(namespace="test-press", quantized_by="Test Press")
ENDS = ("GGUF", "GPTQ", "quantized.w4a16", "quantized.w8a16", "bnb-4bit", "bnb-8bit")


def repo(kind: Kind, made: Record | None = None) -> Repo:
    return next(found for found in plan_repos(made or record(), PUBLISH) if found.kind is kind)


def card(kind: Kind = GGUF, made: Record | None = None) -> str:
    return render_card(made or record(), repo(kind, made), quantized_by="Test Press")


def seen(text: str) -> Seen:
    return Seen(MARKDOWN.render(split(text)[1]))


def change(made: Record, name: str, **values: Any) -> Record:
    variants = tuple(replace(v, **values) if v.name == name else v for v in made.variants)
    return replace(made, variants=variants)


# --- the head ---------------------------------------------------------------------------------------


def test_a_card_says_what_format_the_original_was_released_in() -> None:
    made = replace(record(), source=replace(record().source, released_as="FP8"))
    assert ", made from FP8 weights, decoded to bfloat16" in card(GGUF, from_json(to_json(made)))
    assert "made from FP8" not in card()


def test_a_card_says_how_the_calibration_fell_to_the_experts_and_what_became_of_those_that_saw_too_little() -> None:
    uses = (
        ExpertUse(block=1, experts=64, few=0, least=0.011, median=0.031),
        ExpertUse(block=2, experts=64, few=12, least=0.0, median=0.0292),
    )
    made = from_json(to_json(replace(record(), experts=uses)))
    assert made.experts == uses
    of_gptq, of_gguf = card(GPTQ, made), card(GGUF, made)
    assert "the expert with the fewest saw 0.00% at least (block 2, whose median expert saw 2.92%)" in of_gptq
    assert "; 12 of 128, in 1 of 2 blocks, saw 0.5% or less and were rounded plainly" in of_gptq
    assert "| 1 | 64 | 0 | 1.10% | 3.10% |" in of_gptq
    assert "0.5% or less and have an importance of so few tokens" in of_gguf
    assert "experts" not in card(BNB_4BIT, made)
    assert "rounded plainly" not in card(GPTQ, replace(made, experts=uses[:1]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_the_hubs_own_client_reads_the_head(kind: Kind) -> None:
    read: Any = ModelCard(card(kind)).data
    assert read.base_model == "example-org/Testling-1B"
    assert read.to_dict()["base_model_relation"] == "quantized"
    assert read.license == "apache-2.0"
    assert read.language == ["en", "is"]
    assert read.pipeline_tag == "text-generation"
    assert read.library_name == ("gguf" if kind is GGUF else "transformers")
    assert read.to_dict()["quantized_by"] == "Test Press"
    assert "conversational" in read.tags
    assert not {"region:us", "safetensors"} & set(read.tags)


def test_the_model_index_holds_the_measured_perplexities_of_this_repo_alone() -> None:
    read: Any = ModelCard(card(GPTQ)).data
    measured = {f"Perplexity ({v.name})": v.score.perplexity for v in repo(GPTQ).variants if v.score}
    assert {result.metric_name: result.metric_value for result in read.eval_results} == pytest.approx(measured)
    first = read.eval_results[0]
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == (
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        "test",
    )
    assert BASE not in {result.metric_value for result in read.eval_results}


def test_without_an_evaluation_there_is_no_model_index() -> None:
    made = replace(
        record(), evaluation=None, base=None, variants=tuple(replace(v, score=None) for v in record().variants)
    )
    head, _ = split(card(made=made))
    assert "model-index" not in head


def test_a_licence_of_its_own_keeps_its_name_and_a_link_to_its_text() -> None:
    source = replace(record().source, license="other", license_name="Odd Licence 1.0", license_link="LICENSE.md")
    head, _ = split(card(made=replace(record(), source=source)))
    assert head["license"] == "other"
    assert head["license_name"] == "odd-licence-1.0"
    assert head["license_link"] == "https://huggingface.co/example-org/Testling-1B/blob/main/LICENSE.md"


def test_a_local_folder_names_no_base_model() -> None:
    made = replace(record(), source=replace(record().source, repo=None, revision=None))
    head, body = split(card(made=made))
    assert "base_model" not in head
    assert "base_model_relation" not in head
    assert "huggingface.co/example-org" not in body
    assert "/srv/models" not in card(made=made)


# --- the body ---------------------------------------------------------------------------------------


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_the_table_has_every_variant_that_passed_and_no_other() -> None:
    names = {re.sub(r"[\\*★\[]|\]\(.*?\)", "", row[0]).strip() for row in rows(card())}
    passed = {v.name for v in record().variants if v.family == "gguf" and v.status is Status.PASSED}
    assert passed <= names
    assert "Q2_K" not in names
    assert "Not published" not in card()


def test_the_recommended_variant_is_marked_and_used_in_the_commands() -> None:
    text = card()
    best = repo(GGUF).recommended.name
    assert text.count("★ |") == 1
    assert f"llama-server -hf test-press/Testling-1B-GGUF:{best}" in text
    assert f"ollama run hf.co/test-press/Testling-1B-GGUF:{best}" in text
    assert f"lms get https://huggingface.co/test-press/Testling-1B-GGUF@{best}" in text


def test_an_embedding_models_server_is_asked_for_embeddings() -> None:
    made = record()
    made = replace(made, source=replace(made.source, files={**made.source.files, "modules.json": "0" * 64}))
    [server] = re.findall(r"```sh\n(llama-server -hf [^`]*?)```", card(GGUF, made), re.DOTALL)
    assert " --embeddings\ncurl http://localhost:8080/v1/embeddings " in server
    assert '"input": "Name the four seasons."}' in server
    assert "embeddings" not in card()


def test_a_file_whose_name_looks_like_an_option_is_a_file_to_every_command() -> None:
    made = record()
    for variant in made.variants:
        files = tuple(replace(file, path=file.path.replace("Testling", "-Testling")) for file in variant.files)
        made = change(made, variant.name, files=files)
    (line,) = re.findall(r"hf download .*", card(GGUF, made))
    assert re.fullmatch(r"hf download --local-dir \. -- test-press/Testling-1B-GGUF -Testling-1B-\S+\.gguf", line)


def test_other_gptq_variants_are_found_by_their_revision() -> None:
    text = card(GPTQ)
    assert "vllm serve test-press/Testling-1B-GPTQ" in text
    assert 'revision = "main"  # or "gptq-4bit-128g", "gptq-8bit-128g"' in text
    assert "gptq-2bit-64g" not in text.split("## How to run it")[1].split("##")[0]


def gptq_card(*names: str, head: bool = False) -> str:
    made = record()
    known = {v.name: v for v in made.variants}
    variants = tuple(replace(known["gptq-4bit-128g"], name=name) for name in names)
    return card(GPTQ, replace(made, variants=variants, config={"gptq": {"lm_head": head}}))


def test_a_card_prints_no_command_that_its_runtime_refuses() -> None:
    assert "vllm serve" in gptq_card("gptq-4bit-128g")
    assert "# on a GPU\nvllm serve" in gptq_card("gptq-8bit-128g")
    for name in ("gptq-4bit-32g-actorder", "gptq-4bit-128g-asym", "gptq-3bit-128g", "gptq-4bit-16g"):
        assert "vllm" not in gptq_card(name)
        assert "sglang.launch_server" in gptq_card(name)
    assert "# other variants" not in gptq_card("gptq-4bit-128g", "gptq-4bit-32g-actorder").split("SGLang")[0]


def test_a_quantized_head_is_loaded_by_gptqmodel_which_reads_it() -> None:
    text = gptq_card("gptq-4bit-128g", head=True)
    assert "GPTQModel.load(name)" in text
    assert "AutoModelForCausalLM" not in text
    assert "vllm serve" in text


def test_variants_that_run_in_different_places_have_a_column_for_it_and_others_a_sentence() -> None:
    differing = gptq_card("gptq-4bit-128g", "gptq-4bit-32g-actorder")
    assert re.search(r"gptq-4bit-128g`.*\| vLLM, SGLang \(GPU\), transformers, ExLlamaV2 \(GPU\) \|", differing)
    assert re.search(r"actorder`.*\| SGLang \(GPU\), transformers, ExLlamaV2 \(GPU\) \|", differing)
    assert "Runs in llama.cpp, Ollama, LM Studio" in card()
    assert "| Runs in |" not in card()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_the_python_in_a_card_compiles_and_the_shell_parses(kind: Kind) -> None:
    for made in (record(), hostile_record()):
        for language, block in re.findall(r"(?ms)^```(python|sh)\n(.*?)\n```$", card(kind, made)):
            if language == "python":
                compile(block, "card", "exec")
            elif "hubbot run" not in block and "secrets" not in block:
                assert shlex.split(block, comments=True)


def test_refused_variants_stand_there_with_their_reason() -> None:
    text = card()
    assert "- `Q2_K`: mean divergence 1.91 nats is above 1.5 nats, the limit for 2-bit variants" in text
    assert "gptq-2bit-64g" not in text


def numbers(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {n for item in value.values() for n in numbers(item)}
    if isinstance(value, list):
        return {n for item in value for n in numbers(item)}
    return {repr(value)} if isinstance(value, (int, float)) and not isinstance(value, bool) else set()


def test_a_null_number_takes_its_column_with_it() -> None:
    made = record()
    bare = tuple(replace(v, score=None, speed=None, bits_per_weight=None, samples=()) for v in made.variants)
    text = card(made=replace(made, variants=bare, evaluation=None, base=None, calibration=None, chat_template=None))
    for gone in (
        "Perplexity",
        "KL ",
        "Bits/weight",
        "Same top",
        "## Speed",
        "## Side by side",
        "## Prompt",
        "Calibration:",
        "Evaluation:",
        "original*",
        PICTURE,
    ):
        assert gone not in text.replace("Perplexity, divergence and agreement", ""), gone


def test_one_missing_number_leaves_a_dash_and_no_invented_one() -> None:
    text = card(made=change(record(), "Q8_0", score=None))
    row = next(row for row in rows(text) if "Q8" in row[0] and "GB" in row[1])
    assert row.count("–") == 6


def test_no_section_is_empty() -> None:
    for made in (record(), hostile_record(), replace(record(), tools={}, hardware={}, timings={}, calibration=None)):
        for kind in (found.kind for found in plan_repos(made, PUBLISH)):
            body = split(card(kind, made))[1]
            for name, content in re.findall(r"(?s)<!-- hubbot:begin ([a-z]+) -->\n(.*?)<!-- hubbot:end \1 -->", body):
                text = [line for line in content.splitlines() if line.strip() and not line.startswith("#")]
                assert text, name
            assert not re.search(r"(?m)^##? .*\n+(?=##? )", re.sub(r"<!--.*?-->", "", body))


def test_a_card_depends_on_the_record_alone() -> None:
    made = from_json(to_json(record()))
    assert card(made=made) == card(made=from_json(to_json(made)))
    assert card(made=made) == card(made=record())


def test_a_forced_overlap_is_said() -> None:
    made = record()
    assert made.calibration is not None
    assert "overlaps the evaluation text" not in card(made=made)
    assert "overlaps the evaluation text" in card(
        made=replace(made, calibration=replace(made.calibration, overlap_forced=True))
    )


def test_a_run_without_the_gate_is_said() -> None:
    text = card(made=change(record(), "Q4_K_M", notes=("not gated: mean divergence 9 nats is above 0.15 nats",)))
    assert "gate was off" in text
    assert "divergence 9 nats" in text


def test_the_prompt_format_is_rendered_and_a_hostile_template_is_left_out_with_the_reason() -> None:
    assert "<|assistant|>" in card()
    evil = replace(record(), chat_template="{{ ''.__class__.__mro__ }}")
    assert "SecurityError" in seen(card(made=evil)).text
    assert "<|assistant|>" not in card(made=evil)


def test_memory_is_the_stated_sum() -> None:
    row = next(row for row in rows(card()) if row[0].startswith("[Q8"))
    best = next(v for v in repo(GGUF).variants if v.name == "Q8_0")
    expected = best.files[0].size + 4_096 * 32_768 + 500_000_000
    assert row[-1].rstrip(" |") == f"{expected / 1e9:.2f} GB"
    assert "plus a 16-bit key/value cache of 4,096 tokens (134.2 MB), plus 500.0 MB" in card()


def test_shards_are_one_line_with_their_sum_and_their_number() -> None:
    whole = next(v for v in record().variants if v.name == "Q8_0").files[0]
    shards = tuple(replace(whole, path=f"gguf/Testling-1B-Q8_0-0000{i}-of-00002.gguf", size=10**9) for i in (1, 2))
    text = card(made=change(record(), "Q8_0", files=shards))
    assert "[Q8\\_0](./Testling-1B-Q8_0-00001-of-00002.gguf) (2 files) | 2.00 GB" in text


# --- hostile input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_a_hostile_record_gives_no_tag_link_or_picture_of_its_own(kind: Kind) -> None:
    page = seen(card(kind, hostile_record()))
    plain = seen(card(kind, record()))
    assert set(page.tags) <= set(plain.tags) | {"blockquote", "details", "summary", "br"}
    assert not {"script", "iframe", "style", "form"} & set(page.tags)
    rendered = MARKDOWN.render(split(card(kind, hostile_record()))[1])
    links = re.findall(r'(?:href|src)="([^"]*)"', rendered)
    assert links
    assert all(link.startswith(("#", "hubbot", "./", "https://huggingface.co/")) for link in links), links


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_a_hostile_record_cannot_touch_the_head_or_the_marks(kind: Kind) -> None:
    text = card(kind, hostile_record())
    head = yaml.safe_load(text.split("---\n")[1])
    assert set(head) <= {*split(card(kind))[0], "license_name"}
    assert head["license"] == "other"
    assert "base_model" not in head
    marks = re.findall(r"(?m)^<!-- hubbot:(?:begin|end) \S+ -->$", text)
    assert len(marks) == len(set(marks))
    assert marks[0].endswith("begin head -->")
    assert marks[-1].endswith("end licence -->")


def test_every_hostile_text_is_still_shown_somewhere() -> None:
    text = seen(card(GPTQ, hostile_record())).text
    for said in (HOSTILE[0], HOSTILE[2], "${{ secrets.HF_TOKEN }}"):
        assert said in text


# --- files ------------------------------------------------------------------------------------------


def test_cards_and_pictures_are_written_for_every_repo(tmp_path: Path) -> None:
    lay_files(record(), tmp_path)
    written = write_cards(record(), PUBLISH, tmp_path)
    assert list(written) == [f"test-press/Testling-1B-{end}" for end in ENDS]
    for folder in written.values():
        assert folder.parent == tmp_path / CARDS
        assert {entry.name for entry in folder.iterdir()} == {"README.md", PICTURE}
        assert f"]({PICTURE})" in (folder / "README.md").read_text()


def test_a_file_that_is_missing_or_has_another_size_stops_the_card(tmp_path: Path) -> None:
    made = record()
    lay_files(made, tmp_path)
    check_files(made, tmp_path)
    file = tmp_path / made.variants[1].files[0].path
    with file.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BadRecord, match=r"Q8_0\.gguf has 1,320,176,257 bytes; the record says 1,320,176,256 bytes"):
        write_cards(made, PUBLISH, tmp_path)
    file.unlink()
    with pytest.raises(BadRecord, match="is not there"):
        check_files(made, tmp_path)
    assert not (tmp_path / CARDS).exists()


def test_samples_that_part_in_blanks_alone_do_not_look_the_same() -> None:
    best = repo(GGUF).recommended.name
    sample = Sample(prompt="def f():", base="\n    return 1", variant="\n  return 1", differs_at=1)
    text = card(GGUF, change(record(), best, samples=(sample,)))
    assert "| <b>␣␣</b>return 1 | return 1 |" in text


def test_samples_that_part_beyond_what_is_shown_are_not_called_the_same() -> None:
    best = repo(GGUF).recommended.name
    sample = Sample(prompt="Say a.", base="a" * 500 + "b", variant="a" * 500 + "c", differs_at=77)
    text = card(GGUF, change(record(), best, samples=(sample,)))
    assert "*differs from token 78, beyond what is shown*" in text
    assert "*the same*" not in text


def test_every_file_has_advice_in_words() -> None:
    advice = {re.sub(r"[\\\\*★\[]|\]\(.*?\)", "", row[0]).strip(): row[2] for row in rows(card()) if "." in row[1]}
    assert advice["BF16"] == advice["Q8_0"] == "like the original"
    assert advice["Q4_K_M"] == advice["IQ4_XS"] == "close"
    assert advice["IQ3_XXS"] == "last resort"
    beaten = change(record(), "Q4_K_M", score=next(v for v in record().variants if v.name == "Q3_K_M").score)
    assert re.search(r"Q4\\_K\\_M.*\| rather Q4\\_K\\_S, closer and no larger \|", card(made=beaten))


def test_intervals_stand_beside_their_numbers_and_decide_which_file_is_closer() -> None:
    made = record()
    scores = {v.name: v.score for v in made.variants}

    def windows(name: str, kld: list[float]) -> Record:
        found = WindowMeans(tokens=(9,) * len(kld), kld=tuple(kld), change=(0.0,) * len(kld))
        mean = replace(scores[name].kld, mean=sum(kld) / len(kld), stderr=1e-9)
        score = replace(
            scores[name], kld=mean, windows=found, kld_interval=(0.03, 0.0411), ratio_interval=(0.9999, 1.03)
        )
        return change(made, name, score=score)

    made = windows("Q4_K_M", [0.05, 0.02] * 6)
    made = windows("Q4_K_S", [0.02, 0.045] * 6)  # by their standard errors alone it would be surely closer
    text = card(made=made)
    assert "0.0350 (0.0300 to 0.0411)" in text
    assert re.search(r"\(-0.01 to 3.00\)", text)
    assert "In brackets" in text
    assert "rather" not in text
    assert re.search(r"Q4\\_K\\_M.*\| rather Q4\\_K\\_S", card(made=windows("Q4_K_S", [0.049, 0.019] * 6)))
    assert "In brackets" not in card()


def test_the_head_says_who_measured_and_a_line_below_the_table_once_what_each_runtime_adds() -> None:
    text = card()
    assert "measured by hubbot, not by llama.cpp b9999: in one pass over the decoded bytes" in text
    assert text.count("The floor: ") == 1
    assert "the answers of llama.cpp b9999 lay 0.00000120 nats from those of the same bytes" in text
    made = record()
    checks = {v.name: v.load_check for v in made.variants}
    further = change(made, "Q4_K_M", load_check=replace(checks["Q8_0"], kld=0.0003))
    assert "the answers of llama.cpp b9999 lay 0.00000120 to 0.000300 nats" in card(made=further)
    assert "The floor" not in card(
        made=replace(made, variants=tuple(replace(v, load_check=None) for v in made.variants))
    )


def test_files_of_refused_variants_are_not_asked_for(tmp_path: Path) -> None:
    lay_files(record(), tmp_path)
    (tmp_path / "gguf/Testling-1B-Q2_K.gguf").unlink()
    check_files(record(), tmp_path)


def test_a_second_writing_keeps_what_was_written_outside_the_marks(tmp_path: Path) -> None:
    lay_files(record(), tmp_path)
    folder = write_cards(record(), PUBLISH, tmp_path)["test-press/Testling-1B-GGUF"]
    readme = folder / "README.md"
    readme.write_text(readme.read_text() + "\nMy own words.\n")
    write_cards(replace(record(), created="2027-01-01T00:00:00Z"), PUBLISH, tmp_path)
    assert readme.read_text().endswith("My own words.\n")
    assert "2027-01-01" in readme.read_text()


# --- repos ------------------------------------------------------------------------------------------


def test_the_recommended_variant_is_on_main_and_the_others_on_branches() -> None:
    found = repo(GPTQ)
    assert {v.name: found.revision(v) for v in found.variants} == {
        "gptq-4bit-32g-actorder": "main",
        "gptq-4bit-128g": "gptq-4bit-128g",
        "gptq-8bit-128g": "gptq-8bit-128g",
    }
    assert {repo(GGUF).revision(v) for v in repo(GGUF).variants} == {"main"}


def places(found: Repo, variant: VariantRecord) -> list[str]:
    return [found.place(variant, file) for file in variant.files]


def test_files_lie_at_the_root_of_their_branch() -> None:
    gptq, gguf = repo(GPTQ), repo(GGUF)
    assert places(gptq, gptq.variants[0]) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert places(gguf, gguf.recommended) == [f"Testling-1B-{gguf.recommended.name}.gguf"]


def test_a_kind_of_which_nothing_passed_has_no_repo() -> None:
    made = change(record(), "bnb-int8", status=Status.REFUSED)
    assert BNB_8BIT not in {found.kind for found in plan_repos(made, PUBLISH)}


def test_a_name_that_the_hub_would_refuse_is_made_one_that_it_takes() -> None:
    source = replace(record().source, repo=None, folder="/srv/my model; rm -rf $HOME")
    assert plan_repos(replace(record(), source=source), PUBLISH)[0].repo_id == "test-press/my-model-rm-rf-HOME-GGUF"


def test_the_record_behind_a_card_is_json_that_holds_its_numbers() -> None:
    held = numbers(json.loads(to_json(record())))
    index = split(card())[0]["model-index"][0]["results"][0]["metrics"]
    assert {metric["value"] for metric in index} <= {round(float(number), 6) for number in held}


def test_a_head_with_an_endless_number_is_told_and_not_computed() -> None:
    for number in ("1:" * 50_000 + "1", "9" * 5_000, "1:" * 5_000 + "1.5"):
        with pytest.raises(PublishConflict, match=r"a number of [0-9,]+ characters"):
            split(f"---\nversion: {number}\n---\n# Ours\n")
    assert split("---\nversion: 1.5\nyear: 2026\n---\n")[0] == {"version": 1.5, "year": 2026}


# --- what was seen to run -----------------------------------------------------------------------------


def _tried(verdict: Any, runtime: str = "transformers", release: str = "5.23.0 + gptqmodel 7.7.0") -> Trial:
    return Trial(
        runtime=runtime, release=release, verdict=verdict, error=None if verdict == "agrees" else "no compiler"
    )


def test_a_card_names_the_runtimes_in_which_its_variants_were_seen_to_run() -> None:
    both = [variant.name for variant in repo(GPTQ).variants]
    made = record()
    for name in both:
        made = change(made, name, trials=(_tried("agrees"),))
    assert "Loaded as users load it: transformers 5.23.0 + gptqmodel 7.7.0." in card(GPTQ, made).replace("\\", "")
    made = change(made, both[0], trials=(_tried("agrees"), _tried("agrees", "vLLM", "0.32.0")))
    assert f"`{both[0]}` in vLLM 0.32.0" in card(GPTQ, made).replace("\\", "")
    assert "Loaded as users load it" not in card(GPTQ)


def test_lines_that_were_seen_to_fail_are_not_printed_but_told() -> None:
    best = repo(BNB_4BIT).recommended.name
    assert "from_pretrained" in card(BNB_4BIT)
    text = card(BNB_4BIT, change(record(), best, trials=(_tried("fails"),)))
    assert "from_pretrained" not in text
    assert "failed on the machine that made this: no compiler" in text


def test_a_variant_that_needs_other_lines_has_them_with_its_own_revision() -> None:
    best, *_ = repo(GPTQ).variants
    row = replace(best, name="gptq-4bit--1g")
    both = replace(repo(GPTQ), variants=(best, row))
    text = render_card(record(), both)
    assert f"for {row.name}" in text.replace("\\", "")
    [own] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "gptq_torch" in block]
    assert f'revision = "{row.name}"\n' in own
    assert row.name not in next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL))
