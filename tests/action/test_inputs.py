"""Every input of the action: read, translated, refused by its name; no value does anything but be a value."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hubbot.action.inputs import BadInput, read_inputs
from hubbot.action.table import INPUTS, Kind, as_yaml
from hubbot.errors import BadSettings

ACTION = yaml.safe_load((Path(__file__).parents[2] / "action.yml").read_text())

# one right value for each input, none of them the default
RIGHT = {
    "model": "org/name",
    "command": "publish",
    "revision": "refs/pr/3",
    "variants": "Q4_K_M,bnb-nf4",
    "config": "other.toml",
    "out": "made",
    "publish": "pr",
    "namespace": "my-org",
    "visibility": "private",
    "quantized-by": "Ein Name",
    "token": "hf_abcdefgh",
    "calibration": "me/texts",
    "calibration-samples": "64",
    "calibration-length": "512",
    "seed": "7",
    "evaluation": "none",
    "conversations": "me/chats",
    "evaluation-context": "512",
    "evaluation-windows": "16",
    "imatrix": "false",
    "gate": "no",
    "max-ratio": "4=1.05, 3=1.2",
    "max-kld": "4=0.1",
    "check-vllm": "vllm",
    "disk": "200GB",
    "ram": "64GB",
    "vram": "24GB",
    "elsewhere": "no",
    "parts": "1-of-2,2-of-2",
    "oidc-resource": "my-org/name-GGUF",
    "device": "cuda:1",
    "benchmark": "true",
    "allow-unlicensed": "true",
    "allow-pickle": "true",
    "force": "TRUE",
    "strict": "TRUE",
    "dry-run": "no",
    "fail-on-refused": "off",
}

# wrong value -> what the message must offer instead
WRONG = [
    ("model", "", "org/name"),
    ("model", "https://huggingface.co/org/name/tree/main", "org/name"),
    ("model", "../secret", "org/name"),
    ("model", "/etc", "org/name"),
    ("model", "--config=x", "org/name"),
    ("model", "org/name/extra", "org/name"),
    ("command", "publsh", "publish"),
    ("revision", "--upload-pack=x", "main"),
    ("variants", "Q4_KM", "Q4_K_M"),
    ("variants", "gptq-5bit-128g", "gptq-"),
    ("config", "../hubbot.toml", "outside"),
    ("config", "huboot.toml", "hubbot.toml"),
    ("out", "/etc", "outside of the workspace"),
    ("out", "/etc/cron.d", "outside of the workspace"),
    ("out", "/proc/self", "outside of the workspace"),
    ("out", "../../x", "leads out"),
    ("out", "made/../../x", "leads out"),
    ("publish", "pull-request", "pr"),
    ("publish", "mian", "main"),
    ("namespace", "a/b", "my-org"),
    ("visibility", "privat", "private"),
    ("calibration-samples", "many", "128"),
    ("calibration-samples", "0", "128"),
    ("calibration-length", "-1", "2048"),
    ("seed", "1.5", "0"),
    ("evaluation-context", "2k", "2048"),
    ("evaluation-windows", "all", "64"),
    ("imatrix", "flase", "false"),
    ("gate", "maybe", "true nor false"),
    ("max-ratio", "4:1.05", "4=1.05,3=1.2"),
    ("max-ratio", "7=1.05", "4=1.05,3=1.2"),
    ("max-kld", "4=low", "4=0.1"),
    ("disk", "200 gigs", "200GB"),
    ("ram", "-1GB", "64GB"),
    ("device", "gpu", "auto"),
    ("dry-run", "ture", "true"),
    ("parts", "../1-of-2", "1-of-2,2-of-2"),
    ("parts", "1-of-2", "command: publish"),
    ("elsewhere", "true", "command: plan"),
    ("oidc-resource", "name-GGUF", "my-org/name-GGUF"),
    ("token", "hf_abc\ndef", "one line"),
]

ATTACKS = ["$(touch {out})", "`touch {out}`", "; touch {out}", "a\ntouch {out}", "${{{{ github.token }}}}", "::set-output name=a::b",
           "a\r\n::error::b", "'; DROP", "{{{{ 7*7 }}}}", "../../{out}", "a\x00b", "\x1b[31mred", "%0A::error::x", "x" * 5000]  # fmt: skip


def environment(values: dict[str, str]) -> dict[str, str]:
    """What a runner sets for a docker action: capitals, hyphens kept, spaces turned into underscores."""
    return {f"INPUT_{name.upper().replace(' ', '_')}": value for name, value in values.items()}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "hubbot.toml").write_text('variants = "Q8_0"\n[calibration]\nsamples = 32\n')
    (tmp_path / "other.toml").write_text('variants = "Q6_K"\n')
    (tmp_path / "tiny").mkdir()
    return tmp_path


def test_action_yml_describes_every_input_as_it_is_read():
    text = (Path(__file__).parents[2] / "action.yml").read_text()
    assert as_yaml() in text, "run python -m hubbot.action.table"
    assert list(ACTION["inputs"]) == [one.name for one in INPUTS]
    assert all(one["description"].endswith(".") and "default" in one for one in list(ACTION["inputs"].values())[1:])


def test_action_yml_has_what_the_marketplace_asks_for():
    assert {"name", "description", "author", "branding"} <= ACTION.keys()
    assert len(ACTION["description"]) <= 125
    assert ACTION["branding"].keys() == {"icon", "color"}
    assert all(one["description"] for one in ACTION["outputs"].values())


def test_there_is_a_right_value_to_try_for_every_input():
    assert RIGHT.keys() == {one.name for one in INPUTS}


@pytest.mark.parametrize("style", ["hyphens", "underscores"])
def test_every_input_reaches_its_setting(workspace, style):
    given = environment(RIGHT)
    if style == "underscores":
        given = {name.replace("-", "_"): value for name, value in given.items()}
    inputs = read_inputs(given, workspace)
    settings = inputs.settings
    assert (inputs.model, inputs.token, inputs.fail_on_refused) == ("org/name", "hf_abcdefgh", False)
    assert inputs.command == "publish"
    assert (inputs.elsewhere, inputs.parts) == (False, ("1-of-2", "2-of-2"))
    assert inputs.oidc_resource == "my-org/name-GGUF"
    told = {one.setting: RIGHT[one.name] for one in INPUTS if one.setting}
    for path, text in told.items():
        value = settings
        for part in path.split("."):
            value = getattr(value, part)
        match value:
            case bool():
                assert value == (text.lower() in ("true", "yes", "on"))
            case dict():
                assert {bits: value[bits] for bits in ("4",)} == {"4": float(text.split(",")[0].split("=")[1])}
            case int() if text.endswith("GB"):
                assert value == int(text[:-2]) * 10**9
            case _:
                assert str(value) == text


def test_an_empty_environment_leaves_everything_to_hubbot_toml(workspace):
    values = {one.name: one.default for one in INPUTS} | {"model": "org/name"}
    settings = read_inputs(environment(values), workspace).settings
    assert settings.variants == "Q8_0"
    assert settings.calibration.samples == 32
    assert settings.publish.mode == "none"


def test_an_input_wins_over_hubbot_toml(workspace):
    inputs = read_inputs(environment({"model": "org/name", "variants": "Q2_K"}), workspace)
    assert inputs.settings.variants == "Q2_K"
    assert inputs.settings.calibration.samples == 32


def test_a_dataset_is_named_with_its_configuration_and_split(workspace):
    settings = read_inputs(environment({"model": "org/name", "calibration": "me/texts:de:test"}), workspace).settings
    assert (settings.calibration.dataset, settings.calibration.config, settings.calibration.split) == (
        "me/texts",
        "de",
        "test",
    )
    settings = read_inputs(environment({"model": "org/name", "evaluation": "me/texts"}), workspace).settings
    assert (settings.evaluation.dataset, settings.evaluation.config, settings.evaluation.split) == (
        "me/texts",
        None,
        "test",
    )


def test_a_wrong_hubbot_toml_is_refused_by_its_key(workspace):
    (workspace / "hubbot.toml").write_text("[calibration]\nsample = 3\n")
    with pytest.raises(BadSettings, match=r"calibration\.sample is no setting"):
        read_inputs(environment({"model": "org/name"}), workspace)


def test_a_dry_run_is_a_plan(workspace):
    assert read_inputs(environment({"model": "org/name", "dry-run": "true"}), workspace).command == "plan"
    assert read_inputs(environment({"model": "org/name", "dry-run": "false"}), workspace).command == "run"


def test_a_dry_run_of_a_publication_is_refused_and_never_publishes(workspace):
    with pytest.raises(BadInput, match="command: plan") as caught:
        read_inputs(environment({"model": "org/name", "command": "publish", "dry-run": "true"}), workspace)
    assert caught.value.name == "dry-run"


def test_a_plan_may_be_for_a_machine_elsewhere(workspace):
    values = {"model": "org/name", "command": "plan", "elsewhere": "true"}
    assert read_inputs(environment(values), workspace).elsewhere
    assert not read_inputs(environment(values | {"elsewhere": ""}), workspace).elsewhere


def test_the_repo_of_a_trusted_publisher_falls_back_to_the_environment(workspace):
    plain = environment({"model": "org/name"})
    assert read_inputs(plain | {"HF_OIDC_RESOURCE": "me/a"}, workspace).oidc_resource == "me/a"
    named = environment({"model": "org/name", "oidc-resource": "me/b"})
    assert read_inputs(named | {"HF_OIDC_RESOURCE": "me/a"}, workspace).oidc_resource == "me/b"
    assert read_inputs(plain, workspace).oidc_resource is None


def test_a_folder_of_the_workspace_is_a_model(workspace):
    assert read_inputs(environment({"model": "tiny"}), workspace).model == str(workspace / "tiny")


def test_the_token_falls_back_to_the_environment(workspace):
    assert read_inputs(environment({"model": "org/name"}) | {"HF_TOKEN": "hf_env"}, workspace).token == "hf_env"
    assert read_inputs(environment({"model": "org/name"}), workspace).token is None


@pytest.mark.parametrize(("name", "value", "right"), WRONG)
def test_a_wrong_value_is_refused_by_its_inputs_name_with_a_right_one(workspace, name, value, right):
    with pytest.raises(BadInput) as caught:
        read_inputs(environment({"model": "org/name"} | {name: value}), workspace)
    assert caught.value.name == name
    assert caught.value.exit_code == 2
    assert right in str(caught.value)


def test_a_missing_model_is_refused_though_github_let_it_pass(workspace):
    with pytest.raises(BadInput, match="missing") as caught:
        read_inputs({}, workspace)
    assert caught.value.name == "model"


def test_a_misspelt_input_is_refused_with_the_nearest_name(workspace):
    with pytest.raises(BadInput, match="Nearest: variants") as caught:
        read_inputs(environment({"model": "org/name", "varaints": "Q8_0"}), workspace)
    assert caught.value.name == "varaints"


def test_a_token_is_not_repeated_in_its_own_refusal(workspace):
    with pytest.raises(BadInput) as caught:
        read_inputs(environment({"model": "org/name", "token": "hf_secret\nmore"}), workspace)
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize("one", INPUTS, ids=lambda one: one.name)
def test_a_hostile_value_is_refused_or_stays_the_text_that_it_is(workspace, monkeypatch, one):
    monkeypatch.chdir(workspace)
    before = sorted(workspace.rglob("*"))
    for attack in ATTACKS:
        text = attack.format(out="owned")
        try:
            inputs = read_inputs(environment({"model": "org/name"} | {one.name: text}), workspace)
        except BadSettings:
            continue
        assert one.kind is Kind.TEXT
        assert not one.choices
        assert not one.pattern
        assert text in repr(inputs.settings) or inputs.token == text
    assert sorted(workspace.rglob("*")) == before
