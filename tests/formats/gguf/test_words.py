"""What llama.cpp says of a file that it cannot take reaches the record."""

from __future__ import annotations

from hubbot.formats.gguf.check import ask_llama_cpp, last_words
from hubbot.model.foreign import said

CRASH = """\
/build/src/llama-model.cpp:1234: GGML_ASSERT(hparams.n_head() > 0) failed
[New LWP 4242]
Using host libthread_db library "/lib/libthread_db.so.1".
#0  0x00007f1d2c8f2c17 in wait4 () from /lib/libc.so.6
#1  0x00007f1d2d0a27de in ggml_abort () from /build/bin/libggml-base.so.0
#2  0x00007f1d2d4e58c1 in llm_graph_context::build_moe_ffn(ggml_tensor*, int) const () from /build/bin/libllama.so.0
#3  0x00007f1d2d4e5ac9 in llama_fatal_frame () from /build/bin/libllama.so.0
/build/bin/libggml-base.so.0(+0x1a2b3) [0x7f1d2d0a2b3c]
"""


def test_a_file_that_llama_cpp_refuses_is_told_with_its_own_words(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUX" + bytes(60))
    request = {
        "model": str(path),
        "reference": None,
        "probe": "a",
        "prompt": "",
        "generate": 1,
        "threads": 1,
        "card": None,
    }
    said = ask_llama_cpp({**request, "prompts": [], "new_tokens": 0, "ends": []})["error"]
    assert said.startswith("llama.cpp cannot load the file: ")
    assert "magic" in said
    assert str(tmp_path) not in said


def test_of_a_crash_the_assertion_and_its_function_are_kept_and_neither_the_stack_nor_the_folder_of_the_build():
    said = "llama-model.cpp:1234: GGML_ASSERT(hparams.n_head() > 0) failed"
    assert last_words(CRASH) == f"{said} (in llm_graph_context::build_moe_ffn)"
    assert last_words(CRASH.splitlines()[0].replace("/build", "/home/someone/.cache/b-0.3")) == said
    assert (
        last_words("a/b: 1/2 failed, see https://example.org/help/me")
        == "a/b: 1/2 failed, see https://example.org/help/me"
    )


def test_a_crash_without_a_named_failure_keeps_what_was_said():
    assert last_words("loading\nout of memory\n#0  0x00007f1d2c8f2c17 in wait4 ()\n") == "loading; out of memory"
    assert last_words("") == "it said nothing"


def test_what_another_library_says_of_a_folder_is_told_by_its_name_alone():
    assert (
        said(ValueError("no class for /srv/work-1/tiny. See https://example.org/a/b"))
        == "ValueError: no class for tiny. See https://example.org/a/b"
    )
