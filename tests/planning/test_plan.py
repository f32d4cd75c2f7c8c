"""The plan: sweeps under the budgets, verdicts with found, needed and next step."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from hubbot.child.source import describe
from hubbot.confine.stage import decode, encode
from hubbot.domain import Source
from hubbot.errors import BudgetExceeded, LicenceForbids, UnsupportedShape
from hubbot.formats import costs_of
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Cost
from hubbot.machine import Machine
from hubbot.model import part_layout, read_facts
from hubbot.model.parts import PartKind
from hubbot.planning.needs import shapes_of
from hubbot.planning.plan import Plan, device_elsewhere, matrix, plan, require
from hubbot.planning.plan_view import as_json, as_table
from hubbot.release.licence import judge_licence
from hubbot.runtimes.table import runs_in
from hubbot.settings import load_settings
from tests.hostile import model

GB, MB = 10**9, 10**6
SIZE = 10 * MB  # of every file
MACHINE = Machine(cpu="a CPU", cores=2, ram=64 * GB, ram_free=60 * GB, disk_free=500 * GB)
NAMES = "Q4_K_M,gptq-4bit-128g,Q8_0,bnb-nf4"


@pytest.fixture
def facts(tmp_path):
    return read_facts(model.write_model(tmp_path / "model"))


@pytest.fixture
def planned(facts):
    """A plan of the small model with files of 10 MB."""

    def make(
        names=NAMES,
        facts=facts,
        machine=MACHINE,
        source=None,
        device="cpu",
        elsewhere=False,
        cannot=None,
        large=None,
        **flags,
    ):
        variants = parse_variants(names)
        sizes = {v.name: SIZE for v in variants} | (large or {})
        costs = {
            name: Cost(file_bytes=size, weight_bytes=9 * MB, bits_per_weight=4.5) for name, size in sizes.items()
        } | {name: UnsupportedShape(why) for name, why in (cannot or {}).items()}
        settings = load_settings(None, {path.replace("__", "."): value for path, value in flags.items()})
        source = source or Source(folder=str(facts.folder), repo="a/b", revision="0" * 40, files={}, license="mit")
        source = describe(facts).of(source)
        return plan(source, shapes_of(facts), variants, settings, machine, costs, device=device, elsewhere=elsewhere)

    return make


def test_one_sweep_makes_everything_where_it_fits(planned):
    found = planned()
    require(found)
    assert [sweep.variants for sweep in found.sweeps] == [("Q4_K_M", "Q8_0", "gptq-4bit-128g", "bnb-nf4")]
    assert [variant.name for variant in found.variants] == NAMES.split(",")


def test_variants_are_cut_into_sweeps_that_stay_under_the_memory_budget(planned, facts):
    whole = planned().need.ram
    stream = 4 * facts.hidden_size * 350_000
    found = planned(budget__ram=whole - 2 * stream)
    require(found)
    assert len(found.sweeps) == 2
    assert sorted(name for sweep in found.sweeps for name in sweep.variants) == sorted(NAMES.split(","))
    assert all(sweep.need.ram <= whole - 2 * stream for sweep in found.sweeps)


def test_a_folder_takes_no_more_of_the_disk_than_a_file_of_its_size_and_all_of_it_in_memory(planned):
    file, folder = (planned(name, evaluation__dataset="none", gguf__imatrix=False).need for name in ("Q8_0", "bnb-nf4"))
    assert file.disk == folder.disk
    assert file.ram <= folder.ram


def test_what_passes_between_blocks_and_goes_with_tokens_is_counted(planned, facts):
    plain = planned("Q8_0", gguf__imatrix=False).need
    streams = (plain.disk - planned("Q8_0", gguf__imatrix=False, evaluation__dataset="none").need.disk) // 2
    wide = replace(facts, stream_width=3 * facts.hidden_size, companions=(8, 40))
    found = planned("Q8_0", facts=wide, gguf__imatrix=False).need
    tables = 2 * 48 * facts.vocab_size  # the original's and one variant's
    assert found.disk - plain.disk == 2 * 2 * streams + tables
    assert found.ram - plain.ram > 2 * streams + 40 * facts.vocab_size


def test_what_a_block_computes_with_and_others_store_is_counted_in_memory_alone(planned, facts):
    layout = {part.index: part for part in part_layout(facts) if part.kind is PartKind.BLOCK}
    lent = [name for name in layout[0].tensors if name.endswith("_proj.weight")]
    weights = sum(facts.tensors[name].count for name in lent)
    plain, found = planned().need, planned(facts=replace(facts, borrowed={1: tuple(lent)})).need
    assert weights > 0
    assert (found.ram - plain.ram, found.disk) == (4 * weights, plain.disk)


def test_a_disk_without_room_for_checkpoints_makes_no_further_sweep(planned):
    whole = planned()
    assert [sweep.resumable for sweep in whole.sweeps] == [True]
    less = planned(budget__disk=str(whole.need.disk - 1))
    require(less)
    assert [(sweep.variants, sweep.resumable) for sweep in less.sweeps] == [(whole.sweeps[0].variants, False)]
    assert less.need.disk < whole.need.disk - 8 * 350_000  # two of the streams of every text
    assert [note for note in less.notes if "begins that sweep anew" in note]
    assert not [note for note in whole.notes if "begins that sweep anew" in note]


def test_a_later_sweep_counts_the_files_that_the_earlier_ones_left(planned, facts):
    whole = planned().need.ram
    found = planned(budget__ram=whole - 8 * facts.hidden_size * 350_000)
    first, second = found.sweeps
    assert second.need.disk >= SIZE * (len(first.variants) + len(second.variants))


def test_a_budget_that_one_variant_exceeds_is_refused_with_found_needed_and_next_step(planned):
    found = planned(budget__disk="15MB")
    with pytest.raises(BudgetExceeded, match=r"needs [\d.]+ MB of disk .* 15\.0 MB may be used\. Free some space"):
        require(found)
    assert not as_json(found)["fits"]


def test_the_budget_is_never_more_than_the_machine_has(planned):
    found = planned(machine=replace(MACHINE, ram_free=GB), budget__ram="100GB")
    with pytest.raises(BudgetExceeded, match=r"memory \(RAM\)"):
        require(found)


def test_a_plan_for_another_machine_takes_the_budgets_for_what_that_machine_has(planned):
    small = replace(MACHINE, ram_free=GB, disk_free=MB)
    told = planned(machine=small, elsewhere=True, budget__ram="100GB", budget__disk="1TB")
    require(told)
    assert (told.budget.ram, told.budget.disk) == (100 * GB, 1000 * GB)
    require(planned(machine=small, elsewhere=True))  # nothing is said, so nothing speaks against it
    with pytest.raises(BudgetExceeded, match=r"15\.0 MB may be used"):
        require(planned(machine=MACHINE, elsewhere=True, budget__disk="15MB"))


def test_a_machine_elsewhere_has_a_gpu_where_its_budget_has_gpu_memory(planned):
    device = {vram: device_elsewhere(load_settings(None, {"budget.vram": vram})) for vram in (None, "0GB", "24GB")}
    assert device == {None: "cpu", "0GB": "cpu", "24GB": "cuda"}
    assert device_elsewhere(load_settings(None, {"budget.vram": "24GB", "device": "cpu"})) == "cpu"
    found = planned(elsewhere=True, device="cuda", budget__vram="24GB")
    require(found)
    assert 0 < found.need.vram < found.budget.vram == 24 * GB


def test_a_limit_that_nobody_set_is_not_shown_as_a_number(planned):
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(as_table(planned(elsewhere=True)))
    assert console.export_text().count("not said") == 2  # disk and RAM


def test_a_gpu_takes_the_computing_out_of_the_memory(planned):
    gpu = replace(MACHINE, gpu="a GPU", vram=24 * GB, vram_free=23 * GB)
    with_gpu, without = planned(machine=gpu, device="cuda:0"), planned(machine=gpu)
    assert 0 < with_gpu.need.vram < 23 * GB
    assert with_gpu.need.ram < without.need.ram
    assert without.need.vram == 0
    with pytest.raises(BudgetExceeded, match="GPU memory"):
        require(planned(machine=replace(gpu, vram_free=GB // 2), device="cuda:0"))


def test_a_local_folder_is_not_counted_as_a_download(planned, facts):
    local = Source(folder=str(facts.folder), repo=None, revision=None, files={}, license="mit")
    assert planned().need.disk - planned(source=local).need.disk == facts.weight_bytes


@pytest.mark.parametrize("word", ["none", "None"])
def test_no_evaluation_needs_no_streams(planned, word):
    static = planned("Q4_K_M", evaluation__dataset=word, gguf__imatrix=False)
    assert static.need.ram < planned("Q4_K_M", gguf__imatrix=False).need.ram
    assert static.need == planned("Q4_K_M", evaluation__dataset="none", gguf__imatrix=False).need


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"license": "mit"}, False),
        ({"license": "other", "license_name": "llama3"}, False),
        ({"license": "cc-by-nc-4.0"}, False),
        ({"license": "other"}, True),
        ({"license": "unknown"}, True),
        ({"license": "cc-by-nc-nd-4.0"}, True),
        ({"license": "other", "license_name": "mit, cc-by-nd-4.0"}, True),
    ],
)
def test_a_licence_that_forbids_copies_is_refused_unless_the_user_takes_it_on(planned, facts, fields, refused):
    source = Source(folder=str(facts.folder), repo="a/b", revision=None, files={}, **fields)
    found = planned(source=source)
    if not refused:
        require(found)
        return
    with pytest.raises(LicenceForbids, match="allow_unlicensed"):
        require(found)
    require(planned(source=source, licence__allow_unlicensed=True))


def test_the_licence_of_the_folders_own_card_counts_where_the_hub_says_nothing(planned, facts):
    source = Source(folder=str(facts.folder), repo=None, revision=None, files={})
    require(planned(source=source))


def test_an_architecture_that_llama_cpp_does_not_know_fails_for_gguf_alone(facts, tmp_path):
    unknown = replace(facts, architecture="NobodyKnowsThisForCausalLM")
    asked = parse_variants("Q8_0,Q4_K_M")
    source = Source(folder=str(facts.folder), repo="a/b", revision=None, files={})
    found = costs_of(asked, source, unknown, tmp_path, load_settings(None, {}))
    assert all("no GGUF can be made" in str(error) for error in found.values())


# --- variants that cannot be made ---------------------------------------------------------------------


def test_a_variant_that_cannot_be_made_is_told_with_its_reason_and_the_others_are_planned(planned):
    found = planned(cannot={"gptq-4bit-128g": "576 columns"})
    require(found)
    assert [variant.name for variant in found.variants] == ["Q4_K_M", "Q8_0", "bnb-nf4"]
    assert [name for sweep in found.sweeps for name in sweep.variants] == ["Q4_K_M", "Q8_0", "bnb-nf4"]
    assert [(one.name, str(one.error)) for one in found.failed] == [("gptq-4bit-128g", "576 columns")]
    told = as_json(found)["failed"]
    assert told == [{"name": "gptq-4bit-128g", "family": "gptq", "error": "UnsupportedShape", "message": "576 columns"}]
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(as_table(found))
    assert "gptq-4bit-128g cannot be made: 576 columns" in console.export_text()


def test_what_fails_and_what_speaks_against_a_plan_crosses_the_wall_to_the_parent(planned):
    found = planned(cannot={"gptq-4bit-128g": "576 columns"}, strict=True)
    back = decode(Plan, encode(Plan, found))
    for told in (back.failed[0].error, back.refusals[0]):
        assert type(told) is UnsupportedShape
        assert str(told) == "576 columns"


def test_strict_makes_one_failure_speak_against_the_whole(planned):
    with pytest.raises(UnsupportedShape, match="576 columns"):
        require(planned(cannot={"gptq-4bit-128g": "576 columns"}, strict=True))


def test_where_nothing_can_be_made_the_reason_is_raised(planned):
    with pytest.raises(UnsupportedShape, match="576 columns"):
        require(planned("gptq-4bit-128g", cannot={"gptq-4bit-128g": "576 columns"}))


def test_a_variant_that_alone_exceeds_the_budget_fails_alone(planned):
    found = planned(large={"Q8_0": 100 * GB}, budget__disk="50GB")
    require(found)
    assert [one.name for one in found.failed] == ["Q8_0"]
    assert "50.00 GB may be used" in str(found.failed[0].error)
    assert "Q8_0" not in [variant.name for variant in found.variants]


def test_the_first_job_of_a_matrix_is_told_of_what_cannot_be_made(planned):
    found = planned(cannot={"bnb-nf4": "no linear layers"}, budget__ram=planned().need.ram - 1)
    jobs = [job["variants"].split(",") for job in matrix(found)["include"]]
    assert jobs[0][-1] == "bnb-nf4"
    assert sorted(name for job in jobs for name in job) == sorted(NAMES.split(","))


def test_the_matrix_has_a_job_for_every_sweep(planned):
    found = planned(budget__ram=planned().need.ram - 1)
    jobs = matrix(found)["include"]
    assert [job["variants"].split(",") for job in jobs] == [list(sweep.variants) for sweep in found.sweeps]
    assert {(job["model"], job["revision"]) for job in jobs} == {("a/b", "0" * 40)}


def test_the_plan_is_json_and_a_table_that_shows_markup_as_text(planned, facts):
    source = Source(
        folder=str(facts.folder), repo="a/[bold]b[/bold]", revision=None, files={}, license="mit", gated=True
    )
    found = planned(source=source)
    assert json.loads(json.dumps(as_json(found)))["need"]["disk"] == found.need.disk
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(as_table(found))
    shown = console.export_text()
    assert "a/[bold]b[/bold]" in shown
    assert "10.0 MB" in shown
    assert "gated" in shown


@pytest.mark.parametrize(
    ("fields", "duty"),
    [(("llama3.1",), "Built with Llama"), (("other", "Llama 4"), "Built with Llama"), (("mit",), None)],
)
def test_a_licence_with_duties_names_them(fields, duty):
    found = judge_licence(*fields)
    assert found.duty is None if duty is None else duty in found.duty


def test_a_plan_says_where_every_variant_runs_by_the_table_of_runtimes(planned):
    found = planned()
    assert [variant.runs_in for variant in found.variants] == [runs_in(variant.name) for variant in found.variants]
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(as_table(found))
    shown = console.export_text()
    assert {f": runs in {variant.runs_in}" in shown for variant in found.variants} == {True}
    [head] = {one.runs_in for one in planned(gptq__lm_head=True).variants if one.name == "gptq-4bit-128g"}
    assert "transformers" not in head


def test_a_number_without_a_shape_beside_the_matrices_of_a_block_takes_no_room(facts):
    """GPT-NeoX's `masked_bias`, of checkpoints of Pythia's time."""
    scalar = replace(next(iter(facts.tensors.values())), shape=(), size=2)
    more = replace(facts, tensors={**facts.tensors, "model.layers.0.attention.masked_bias": scalar})
    assert shapes_of(more).hessians == shapes_of(facts).hessians
