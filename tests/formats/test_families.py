"""What every row of the table of families keeps to, whatever it makes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hubbot.domain import Family, TextRecord
from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats import FAMILIES, calibration_needs, costs_of, open_formats, put_in_place
from hubbot.formats.foreign import read_artefact
from hubbot.formats.names import parse_variant, parse_variants
from hubbot.formats.protocol import Cost, Needs
from hubbot.model import part_layout, read_facts
from hubbot.record.fingerprint import shaping
from hubbot.runtimes.layouts import layouts_of
from hubbot.settings import PublishSettings, Settings
from hubbot.settings.sections import Section
from tests.models import make_model
from tests.quantized import checkpoint, source_of, statistics

EXAMPLES = [(family, name) for family, module in FAMILIES.items() for name in module.ABOUT.examples]
MADE = {
    Family.GGUF: ("Q4_K_M", "Q8_0"),
    Family.GPTQ: ("gptq-4bit-32g", "gptq-4bit-128g-e2e"),
    Family.PACKED: ("w4a16-64g-asym", "w8a16--1g"),
    Family.BNB: ("bnb-nf4", "bnb-int8"),
}
TEXT = TextRecord(dataset="text", revision=None, sha256="0" * 64, windows=8, length=64)
LARGE = ("torch", "transformers", "safetensors", "gguf", "bitsandbytes", "gptqmodel")

families = pytest.mark.parametrize("family", FAMILIES)


def test_every_family_has_a_row() -> None:
    assert list(FAMILIES) == list(Family)


@pytest.mark.parametrize(("family", "name"), EXAMPLES)
def test_an_example_is_a_name_of_its_family_alone(family, name) -> None:
    variant = parse_variant(name)
    assert (variant.name, variant.family) == (name, family)
    assert [other for other, module in FAMILIES.items() if module.parse(name)] == [family]
    assert parse_variant(name.upper()) == parse_variant(f" {name.lower()} ") == variant
    assert 1 <= variant.bits <= 32
    assert layouts_of(name)  # the table of runtimes says something of it


@families
def test_a_name_that_is_nobodys_is_nobodys(family) -> None:
    assert FAMILIES[family].parse("no such variant") is None


@families
def test_a_familys_settings_shape_its_releases(family) -> None:
    section = FAMILIES[family].ABOUT.section
    if section is not None:
        assert section in Settings.model_fields
        assert section in shaping(Settings())
    variants = [parse_variant(name) for name in FAMILIES[family].ABOUT.examples]
    assert isinstance(calibration_needs(variants, shaping(Settings())), Needs)
    assert isinstance(calibration_needs(variants, {"gguf": "no table"}), Needs)  # a stranger's record


def test_a_section_of_the_settings_shapes_releases_unless_it_is_known_not_to() -> None:
    sections = {name for name, value in Settings() if isinstance(value, Section)}
    assert sections - shaping(Settings()).keys() == {"publish", "licence", "budget", "watch", "serve", "job"}


def test_every_kind_of_repo_has_a_name_and_tags_of_its_own() -> None:
    kinds = [kind for module in FAMILIES.values() for kind in module.ABOUT.kinds]
    assert all("{name}" in kind.name(PublishSettings()) for kind in kinds)
    assert len({kind.name(PublishSettings()) for kind in kinds}) == len({kind.title for kind in kinds}) == len(kinds)
    assert all(kind.tags for kind in kinds)


def test_the_table_and_all_that_tells_judges_and_takes_times_by_it_import_nothing_large() -> None:
    readers = "formats formats.names cards.card cards.report release.repos record.fingerprint runtimes.table bot.watch"
    readers += " formats.gguf.speed"  # a process of its own stands between hubbot and llama-bench
    code = f"import {', '.join(f'hubbot.{name}' for name in readers.split())}, sys\n"
    code += f"print([name for name in {LARGE} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- a family's life ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.slow
@families
def test_what_a_family_makes_is_what_it_said_and_is_read_back(family, llama, tmp_path) -> None:
    source, facts, weights = source_of(llama), read_facts(llama), checkpoint(llama)
    settings = Settings.model_validate({"calibration": {"dataset": "text.txt"}})
    text = replace(TEXT, dataset=settings.calibration.name)
    variants = parse_variants(",".join(MADE[family]))
    planned = costs_of(variants, source, facts, tmp_path / "plan", settings)
    forms = open_formats(
        variants=variants,
        source=source,
        facts=facts,
        work=tmp_path / ".work",
        out=tmp_path,
        settings=settings,
        calibration=text,
        decoded=True,
        device="cpu",
    )
    needs = calibration_needs(variants, shaping(settings))
    assert max((form.needs for form in forms), key=lambda each: each.value) is needs
    assert len(forms) == (2 if needs is Needs.GRADIENTS else 1)  # with a plain variant beside it
    seen = statistics(llama) if needs is not Needs.NOTHING else {}
    decoded: dict[str, dict[str, torch.Tensor]] = {name: {} for name in MADE[family]}
    for part in part_layout(facts):
        for form in forms:
            encoded = form.encode(part, {name: weights[name] for name in part.tensors}, seen)
            for variant, tensors in encoded.items():
                decoded[variant] |= {name: tensor.decode() for name, tensor in tensors.items()}
            assert form.holds(part)
    assert put_in_place(tmp_path / ".work", tmp_path) == []
    finished = {name: files for form in forms for name, files in form.finish().items()}

    about = FAMILIES[family].ABOUT
    assert set(finished) == set(decoded) == set(planned) == set(MADE[family])
    everything = {path for files in finished.values() for path in files.paths}
    assert {path for path in (tmp_path / str(family)).rglob("*") if path.is_file()} == everything
    assert set(put_in_place(tmp_path / ".work", tmp_path)) >= {p for p in everything if p.suffix == about.weights}
    for name, files in finished.items():
        large = [path for path in files.paths if path.suffix == about.weights]
        cost = planned[name]
        assert isinstance(cost, Cost)
        assert cost.weight_bytes == files.weight_bytes
        assert sum(path.stat().st_size for path in large) >= files.weight_bytes
        assert {path.parent.name for path in large} == {name if about.folder else str(family)}
        artefact = read_artefact(large[0].parent if about.folder else large[0], facts)
        for part in part_layout(facts):
            (again,) = artefact.encode(part, {}, {}).values()
            for tensor in part.tensors:
                if tensor in decoded[name]:
                    assert torch.equal(again[tensor].decode(), decoded[name][tensor]), tensor
        reading = FAMILIES[family].read(files.paths, None, prompts=[[5, 6, 7]], new_tokens=2, device="cpu")
        assert reading.check.loaded, reading.check.error
        assert reading.check.passed
        assert [len(tokens) for tokens in reading.continuations] == [2]
    first = finished[MADE[family][0]].paths

    def said(*prompts: list[int]) -> list[tuple[int, ...]]:
        return list(FAMILIES[family].read(first, None, prompts=prompts, new_tokens=4, device="cpu").continuations)

    prompts = [[5, 6, 7], [9], [4, 8, 5, 6, 11]]  # at once, and each alone
    assert said(*prompts) == [one for prompt in prompts for one in said(prompt)]


def test_a_variant_that_cannot_be_made_is_refused_by_itself(tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = make_model("llama", tmp_path / "tiny")
    config = LlamaConfig.from_pretrained(folder)
    config.intermediate_size = 160
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    asked = parse_variants("Q4_0,IQ2_XS,gptq-4bit-128g,gptq-4bit-32g,bnb-nf4")
    static = Settings.model_validate({"gguf": {"imatrix": False}})
    found = costs_of(asked, source_of(folder), read_facts(folder), tmp_path / "plan", static)
    assert {name: type(cost) for name, cost in found.items()} == {
        "Q4_0": Cost,
        "IQ2_XS": Unsupported,
        "gptq-4bit-128g": UnsupportedShape,
        "gptq-4bit-32g": Cost,
        "bnb-nf4": Cost,
    }
    assert "IQ2_XS needs an importance matrix" in str(found["IQ2_XS"])


def test_what_no_variant_of_a_family_can_be_made_of_leaves_the_other_families_alone(llama, tmp_path) -> None:
    strange = Settings.model_validate({"gptq": {"lm_head": True}})
    folder = make_model("llama", tmp_path / "tied", tied=True)
    asked = parse_variants("gptq-4bit-32g,gptq-8bit-32g,bnb-nf4")
    found = costs_of(asked, source_of(folder), read_facts(folder), tmp_path / "plan", strange)
    assert [type(found[name]) for name in found] == [Unsupported, Unsupported, Cost]
