"""A chat with the published files: on a real model, and with the situations in which publishers leave theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubbot.domain import Record, Status
from hubbot.formats import FAMILIES
from hubbot.model.own_tokenizer import load_tokenizer, read_chat
from tests.jobs import make
from tests.models import make_model

pytestmark = pytest.mark.slow

# one whose answer no rounding to 8 bits changes: no two first choices are nearer than 0.38
QUESTION = [{"role": "user", "content": "How many days are there in a week?"}]


@pytest.mark.heavy
def test_llama_cpp_and_transformers_answer_a_chat_prompt_with_the_same_tokens(real_model: Path, tmp_path: Path) -> None:
    variants = "Q8_0,gptq-8bit-32g"
    record = make(real_model, tmp_path, variants=variants, evaluation__windows=2, evaluation__samples=False)
    tokenizer = load_tokenizer(real_model)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    chat = read_chat(real_model, tokenizer)
    answers = {}
    for variant in record.variants:
        assert variant.status is Status.PASSED, variant.reason
        assert variant.load_check
        assert 2 in (variant.load_check.ends or ())
        paths = [tmp_path / "out" / file.path for file in variant.files]
        reading = FAMILIES[variant.family].read(paths, None, prompts=[prompt], new_tokens=20, chat=chat, device="cpu")
        answers[variant.name] = reading.continuations[0]
    assert answers["Q8_0"] == answers["gptq-8bit-32g"]
    assert tokenizer.decode(answers["Q8_0"]) == "A week is approximately 7 days.<|im_end|>"


def _run(folder: Path, tmp_path: Path) -> Record:
    record = make(folder, tmp_path, variants="F32,gptq-8bit-32g")
    for variant in record.variants:
        assert variant.status is Status.PASSED, variant.reason
    return record


def test_the_parts_of_a_sentence_embedding_go_into_every_folder_and_are_no_model_of_their_own(tmp_path: Path) -> None:
    folder = make_model("qwen3", tmp_path / "tiny", tied=True)
    modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    record = make(folder, tmp_path, variants="gptq-8bit-32g,bnb-int8", evaluation__samples=False)
    for variant in record.variants:
        assert variant.status is Status.PASSED, variant.reason
        names = [file.path.partition(f"{variant.name}/")[2] for file in variant.files]
        assert {"modules.json", "1_Pooling/config.json"} <= set(names)


def test_a_generation_configuration_for_callers_changes_neither_checks_nor_samples(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "tiny")
    values = {
        "do_sample": True, "temperature": 0.0, "num_return_sequences": 2, "max_length": 20, "cache_implementation": "hybrid",
        "repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "suppress_tokens": [5, 6], "eos_token_id": [2, 300],
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(values))
    record = _run(folder, tmp_path)
    plain = record.variants[0]
    assert [sample.differs_at for sample in plain.samples] == [None] * 12, "an F32 GGUF says what the original says"
    for variant in record.variants:
        assert variant.load_check
        assert set(variant.load_check.ends or ()) >= {2, 300}
    assert json.loads(next((tmp_path / "out").rglob("generation_config.json")).read_text()) == values
