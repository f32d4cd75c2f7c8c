"""Chat templates: the real ones are shown, hostile ones are refused and never run free."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hubbot.cards import prompt
from hubbot.cards.prompt import MAX_TEMPLATE, conversations_written, prompt_format
from tests.records import TEMPLATE

CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}"
)


def test_a_template_shows_the_place_of_both_prompts() -> None:
    shown = prompt_format(TEMPLATE, {"eos_token": "</s>"})
    assert shown.text == "<|system|>\n{system prompt}</s>\n<|user|>\n{prompt}</s>\n<|assistant|>\n"
    assert shown.reason is None


def test_chatml_is_rendered_as_transformers_does() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "system", "content": "{system prompt}"}, {"role": "user", "content": "{prompt}"}]
    expected, _ = render_jinja_template([messages], chat_template=CHATML, add_generation_prompt=True)
    assert prompt_format(CHATML, {}).text == expected[0]


def test_a_template_that_refuses_a_system_prompt_is_shown_without() -> None:
    assert prompt_format(NO_SYSTEM, {"bos_token": "<s>"}).text == "<s><user>{prompt}"


def test_the_date_is_the_records_so_cards_do_not_change_by_themselves() -> None:
    template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert str(prompt_format(template, {}, date="2026-01-02T03:04:05Z").text).startswith("2026-01-02{system")


def test_the_generation_mark_and_loop_controls_are_known() -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    assert prompt_format(template, {}).text == "{system prompt}{prompt}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "no place for the prompt|SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ " + "(" * 3_000, "RecursionError|Syntax"),
        ("{%", "TemplateSyntaxError"),
        ("no place", "no place for the prompt"),
        ("{{ 'a' * 10**9 }}", "512 MiB"),
        ("{{ '%999999999d' % 1 }}", "512 MiB"),
        ("{% for i in range(9999) %}{{ messages }}{% endfor %}", "6,000 characters"),
        ("x" * (MAX_TEMPLATE + 1), "262,145 characters"),
    ],
)
def test_a_hostile_or_broken_template_is_left_out_with_the_reason(template: str, why: str) -> None:
    shown = prompt_format(template, {})
    assert shown.text is None
    assert shown.reason is not None
    assert any(part in shown.reason for part in why.split("|")), shown.reason
    assert len(shown.reason) < 500


@pytest.mark.slow
def test_a_looping_template_is_stopped() -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    shown = prompt_format(loop, {})
    assert shown.text is None
    assert "2 seconds" in str(shown.reason)


def test_the_child_sees_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    real = subprocess.run

    def watch(*args: object, **options: object) -> object:
        seen.update(options["env"])  # type: ignore[call-overload]
        return real(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(subprocess, "run", watch)
    assert prompt_format(TEMPLATE, {"eos_token": "not rendered before"}).text
    assert set(seen) == {"PYTHONIOENCODING"}


@pytest.mark.parametrize(
    "attempt", ["open('/etc/hostname')", "import socket; socket.create_connection(('127.0.0.1', 9))"]
)
def test_whatever_breaks_out_of_the_sandbox_reaches_no_file_and_no_network(attempt: str) -> None:
    code = f"from hubbot.cards.template import shut_in; print(shut_in().complete, flush=True); {attempt}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.stdout == "False\n":
        pytest.skip("this kernel has no Landlock or no seccomp")
    assert "PermissionError" in done.stderr


def test_conversations_are_written_whole_and_those_that_a_template_refuses_are_left_out() -> None:
    long = [{"role": "user", "content": "x" * 9_000}, {"role": "assistant", "content": "y"}]
    refused = [{"role": "system", "content": "s"}]
    found = conversations_written(NO_SYSTEM, {"bos_token": "<s>"}, [refused, long], date="")
    assert found.texts == (f"<s><user>{'x' * 9_000}<assistant>y",)
    assert "no system role" in str(found.reason)


def test_a_template_that_does_not_end_costs_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(prompt, "SECONDS_OF_MANY", -4)  # so that the child is ended after two
    found = conversations_written(template, {}, [[{"role": "user", "content": "x"}]], date="")
    assert not found.texts
    assert "seconds" in str(found.reason)


IN_PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def test_a_template_that_reads_contents_in_parts_alone_is_given_them_so() -> None:
    assert prompt_format(IN_PARTS, {}).text == "<system>{system prompt}<user>{prompt}"
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert conversations_written(IN_PARTS, {}, [said], date="").texts == ("<user>one<assistant>two",)
