"""The demo model: a tokenizer that all readers agree on, disjoint texts, the same bytes from the same recipe."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubbot import llamacpp
from hubbot.demo import train as demo
from hubbot.demo.train import Recipe, demo_model, demo_settings, library_texts, train_demo
from hubbot.formats.names import parse_variants
from hubbot.settings import load_settings
from tests.models import CONTEXT, FAMILIES, make_model

SMALL = Recipe(characters=60_000, vocabulary=400, layers=1, steps=4, tokens=512)

PROBES = [
    "def main(argv: list[str]) -> int:\n    return 0\n",
    "  two spaces before\n\n\n\tand a tab   after  ",
    "Grüße, 日本語, 🚀 and 3.14159",
    "",
    "<s>not a control token of mine</s>",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "small"
    train_demo(folder, recipe=SMALL)
    return folder


def test_no_text_serves_two_purposes():
    texts = library_texts(Recipe())
    training = set(texts.training)
    assert not training & set(texts.calibration)
    assert not training & set(texts.evaluation)
    assert not set(texts.calibration) & set(texts.evaluation)
    assert sum(map(len, texts.evaluation)) > 80_000
    assert sum(map(len, texts.training)) > 8 * sum(map(len, texts.evaluation))


def test_the_widths_suit_every_k_quant_and_group_size():
    recipe = Recipe()
    assert recipe.hidden % 256 == recipe.intermediate % 256 == 0
    assert recipe.hidden * recipe.kv_heads // recipe.heads % 128 == 0


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(small: Path, tmp_path: Path):
    train_demo(tmp_path / "again", recipe=SMALL)
    train_demo(tmp_path / "other", recipe=replace(SMALL, seed=1))
    for path in small.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    name = "model.safetensors"
    assert (tmp_path / "other" / name).read_bytes() != (small / name).read_bytes()


@pytest.mark.slow
def test_transformers_and_sentencepiece_cut_text_alike(small: Path):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(small / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(small)
    for text in [*PROBES[:-1], *library_texts(SMALL).evaluation[:20]]:
        ids = tokenizer(text).input_ids
        assert ids == [1, *pieces.encode(text)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.slow
def test_llama_cpp_cuts_text_as_transformers_does(small: Path, tmp_path: Path):
    vocabulary = tmp_path / "vocabulary.gguf"
    script = llamacpp.find().source / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), str(small), "--vocab-only", "--outfile", str(vocabulary)]
    subprocess.run(command, check=True, capture_output=True)
    texts = [*PROBES[:-1], *library_texts(SMALL).evaluation[:20]]
    code = (
        "import json, sys\n"
        "from hubbot.llamacpp import bindings\n"
        f"model = bindings().Llama(model_path={str(vocabulary)!r}, vocab_only=True, verbose=False)\n"
        "print(json.dumps([model.tokenize(text.encode(), add_bos=True) for text in json.load(sys.stdin)]))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    theirs = dict(zip(texts, json.loads(answer.stdout.splitlines()[-1]), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(small)
    assert {text: tokenizer(text).input_ids for text in texts if text} == {t: i for t, i in theirs.items() if t}


@pytest.mark.slow
def test_the_chat_template_is_found_and_renders(small: Path):
    tokenizer = AutoTokenizer.from_pretrained(small)
    messages = [{"role": "user", "content": "hello"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s>### user\nhello\n### assistant\n"


@pytest.mark.slow
def test_a_second_call_takes_the_model_from_the_cache(tmp_path: Path):
    lines: list[str] = []
    places = {"HUBBOT_DEMO_CACHE": str(tmp_path)}
    first = demo_model(recipe=SMALL, environ=places, log=lines.append)
    stamp = hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest()
    trained = len(lines)
    assert trained
    assert demo_model(recipe=SMALL, environ=places, log=lines.append) == first
    assert len(lines) == trained
    assert hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest() == stamp
    assert demo_model(recipe=replace(SMALL, seed=1), environ=places) != first


@pytest.mark.slow
def test_nothing_is_kept_of_a_training_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_anything: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write", broken)
    with pytest.raises(KeyboardInterrupt):
        demo_model(recipe=SMALL, environ={"HUBBOT_DEMO_CACHE": str(tmp_path)})
    assert list(tmp_path.rglob("demo-llama")) == []


def test_the_demos_flags_are_settings_and_its_variants_are_of_every_family(tmp_path: Path):
    settings = load_settings(None, demo_settings(tmp_path))
    assert {type(variant).__name__ for variant in parse_variants(settings.variants)} == {
        "Gguf",
        "Gptq",
        "Packed",
        "Bnb",
    }
    assert settings.calibration.dataset != settings.evaluation.dataset


@pytest.mark.slow
@pytest.mark.heavy
def test_the_trained_model_has_learnt_the_language(demo_model: Path):
    """A model that guessed from the frequency of tokens alone would have a perplexity in the hundreds."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    lines = (demo_model / demo.EVALUATION).read_text(encoding="utf-8").splitlines()
    ids = torch.tensor([token for line in lines for token in tokenizer(json.loads(line)["text"]).input_ids])
    windows = ids[: 32 * 256].view(32, 256)
    with torch.inference_mode():
        loss = model(input_ids=windows, labels=windows).loss
    assert loss.exp() < 40


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tied"), [(name, tied) for name, each in FAMILIES.items() for tied in each.tied])
def test_every_tiny_family_loads_in_transformers_as_the_architecture_it_claims(family: str, tied: bool, tmp_path: Path):
    folder = make_model(family, tmp_path, tied=tied)
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    assert model.config.model_type.removesuffix("_text") == family
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) is tied
    tokens = AutoTokenizer.from_pretrained(folder)("def main():\n    pass", return_tensors="pt").input_ids
    assert tokens.shape[1] < CONTEXT
    with torch.inference_mode():
        assert model(tokens).logits.isfinite().all()


def test_linear_layers_of_the_tiny_families_suit_k_quants():
    sizes = product(FAMILIES.values(), ("hidden_size", "intermediate_size"))
    assert [family.values[key] % 256 for family, key in sizes] == [0] * 2 * len(FAMILIES)
