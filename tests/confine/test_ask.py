"""A program that is asked something sees the listed environment, and failure has words."""

import sys

import pytest

from hubbot.confine.ask import NoAnswer, ask, ask_each
from hubbot.confine.environment import NETWORK, allowed


def test_the_answer_is_what_the_program_writes():
    code = "import sys; sys.stdout.write(sys.stdin.read().upper())"
    assert ask([sys.executable, "-c", code], b"request", seconds=60) == b"REQUEST"


def test_no_variable_passes_that_is_not_listed(monkeypatch):
    for name in ("HF_TOKEN", "UNHEARD_OF", "AWS_PROFILE", "TORCH_HUB_KEY"):
        monkeypatch.setenv(name, "hf_leaked")
    seen = ask([sys.executable, "-c", "import os; print(dict(os.environ))"], seconds=60).decode()
    assert "PATH" in seen
    assert "hf_leaked" not in seen


def test_proxies_are_for_what_speaks_to_the_hub_and_tokens_for_nobody():
    around = {"https_proxy": "http://proxy", "SSL_CERT_FILE": "/ca", "HF_HUB_ETAG_TIMEOUT": "3", "HF_HUB_TOKEN": "t"}
    assert not around.keys() & allowed(around).keys()
    assert around.keys() & allowed(around, more=NETWORK).keys() == {
        "https_proxy",
        "SSL_CERT_FILE",
        "HF_HUB_ETAG_TIMEOUT",
    }


def test_a_failure_tells_the_last_words_and_a_silence_the_time():
    with pytest.raises(NoAnswer, match=r"^ended with code 3: a b$") as caught:
        ask([sys.executable, "-c", "import sys; sys.stderr.write('a\\nb\\n'); sys.exit(3)"], seconds=60)
    assert (caught.value.said, caught.value.late) == ("a\nb", False)
    with pytest.raises(NoAnswer, match="did not answer within 1 s") as caught:
        ask([sys.executable, "-c", "input()\nimport time; time.sleep(60)"], b"\n", seconds=1)
    assert caught.value.late


def test_who_comes_after_a_request_that_ends_the_process_is_asked_in_a_new_one():
    code = (
        "import sys\nfor line in sys.stdin:\n if line == 'b\\n': sys.exit(3)\n print(line.upper().strip(), flush=True)"
    )
    first, second, third = ask_each([sys.executable, "-c", code], [b"a", b"b", b"c"], seconds=60)
    assert (first, third) == (b"A\n", b"C\n")
    assert isinstance(second, NoAnswer)
    assert "code 3" in str(second)


def test_a_program_that_ends_well_without_an_answer_has_none():
    [found] = ask_each([sys.executable, "-c", "pass"], [b"a"], seconds=60)
    assert isinstance(found, NoAnswer)
