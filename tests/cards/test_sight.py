"""What a card, a record and the gate make of the files that see images."""

import re
from dataclasses import replace

import pytest

from hubbot.cards.card import render_card
from hubbot.cards.memory import weight_file_bytes
from hubbot.cards.python import python_lines
from hubbot.domain import Family, File, ImageCheck, Record
from hubbot.record.file import from_json, to_json
from hubbot.release.gate import gate
from hubbot.release.repos import plan_repos
from hubbot.settings import GateSettings, PublishSettings
from tests.records import record, sha

MMPROJ = tuple(f"mmproj-Testling-1B-{kind}.gguf" for kind in ("F16", "Q8_0"))


def seeing(distance: float = 0.0005) -> Record:
    """The run of `record` with files that see beside the GGUF files, each shown the test image."""
    files = tuple(File(path=f"gguf/{name}", size=851_000_000, sha256=sha(name)) for name in MMPROJ)
    shown = [ImageCheck(file=MMPROJ[0], passed=True, distance=distance, tolerance=0.05, kld=0.03, base="A", said="A")]
    shown += [ImageCheck(file=MMPROJ[1], passed=distance < 0.1, distance=distance, tolerance=0.1)]
    made = record()
    variants = (
        replace(one, files=(*one.files, *files), images=tuple(shown))
        if one.family is Family.GGUF and one.files
        else one
        for one in made.variants
    )
    return replace(made, variants=tuple(variants))


@pytest.fixture(scope="module")
def text() -> str:
    made = seeing()
    repo = next(repo for repo in plan_repos(made, PublishSettings(namespace="test-press")) if repo.kind.title == KIND)
    return render_card(made, repo)


KIND = "GGUF for llama.cpp"


def test_a_card_lists_the_files_that_see_apart_from_the_text(text: str) -> None:
    assert "| `mmproj-Testling-1B-F16.gguf` | 851.0 MB | 0.05 % |" in text
    assert "(3 files)" not in text  # two of them are no shards
    assert "begins with the same words as the original" in text


def test_a_card_shows_a_picture_to_the_server_and_starts_it_from_files_too(text: str) -> None:
    assert "--mmproj mmproj-Testling-1B-F16.gguf" in text
    assert '"type": "image_url"' in text
    assert "/v1/chat/completions" in text


def test_the_cards_of_folders_show_a_picture_to_vllm_and_to_the_models_own_processor() -> None:
    made = seeing()
    source = replace(made.source, architecture="Gemma3ForConditionalGeneration")
    made = replace(made, source=replace(source, files={**source.files, "preprocessor_config.json": sha("cut")}))
    cards = _cards_of_folders(made)
    assert len(cards) > 1
    for card in cards:
        [server] = re.findall(r"```sh\n([^`]*vllm serve.*?)```", card, re.DOTALL)
        assert '"type": "image_url"' in server
        assert "/v1/chat/completions" in server
        for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
            assert "pillow torchvision" in code
            assert "processor = AutoProcessor.from_pretrained(name" in code
            assert '{"type": "image", "url": picture}' in code
    assert "picture" not in python_lines("x", "bnb-nf4", sees=True)  # of a base model, which has no chat template


def test_no_picture_is_shown_where_the_source_does_not_say_how_one_is_cut() -> None:
    made = seeing()
    made = replace(made, source=replace(made.source, architecture="Gemma3ForConditionalGeneration"))
    for card in _cards_of_folders(made):
        assert "AutoModelForImageTextToText.from_pretrained(name" in card  # the class that holds the weights
        assert "tokenizer = AutoTokenizer.from_pretrained(name" in card
        assert "picture.jpg" not in card
        assert "image_url" not in card


def _cards_of_folders(made: Record) -> list[str]:
    repos = [repo for repo in plan_repos(made, PublishSettings(namespace="test-press")) if repo.about.folder]
    return [render_card(made, repo) for repo in repos]


def test_a_variants_size_is_that_of_its_text() -> None:
    plain, sees = (next(one for one in made.variants if one.name == "Q4_K_M") for made in (record(), seeing()))
    assert weight_file_bytes(sees) == weight_file_bytes(plain)


def test_the_record_keeps_what_came_of_the_image() -> None:
    made = seeing()
    assert from_json(to_json(made)).variants[0].images == made.variants[0].images


def test_the_gate_refuses_a_variant_beside_a_file_that_sees_something_else() -> None:
    judged = gate(seeing(distance=0.9), GateSettings())
    reasons = [one.reason or "" for one in judged.variants if one.family is Family.GGUF and one.images]
    assert reasons
    assert all("other embeddings of the test image" in reason and "0.9" in reason for reason in reasons)
