"""The corpus of crafted GGUF files: name -> (build(path), error class, words of the sentence)."""

import struct

from hubbot.errors import SourceRefused, UnsafeSource
from tests.hostile.model import gguf, text

BAD = {}
U32, STRING, ARRAY, U64, BOOL, F32 = 4, 8, 9, 10, 7, 6


def bad(error, says):
    def add(build):
        BAD[build.__name__.replace("_", "-")] = (build, error, says)
        return build

    return add


def tensor(name="a.weight", dims=(32,), kind=0, offset=0):
    return name, dims, kind, offset


@bad(UnsafeSource, "no GGUF file")
def another_magic(path):
    gguf(path, magic=b"GGML")


@bad(SourceRefused, "truncated")
def an_empty_file(path):
    path.write_bytes(b"")


@bad(SourceRefused, "truncated")
def a_file_that_ends_after_its_magic(path):
    path.write_bytes(b"GGUF\3\0")


@bad(UnsafeSource, "version 1;")
def an_old_version(path):
    gguf(path, version=1)


@bad(UnsafeSource, "version 50331648;")
def another_byte_order(path):
    gguf(path, version=3 << 24)


@bad(UnsafeSource, "announces")
def a_million_million_keys(path):
    gguf(path, counts=(0, 10**12))


@bad(UnsafeSource, "announces")
def as_many_tensors_as_there_can_be(path):
    gguf(path, counts=(2**64 - 1, 0))


@bad(SourceRefused, "truncated")
def more_keys_than_the_file_holds(path):
    path.write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, 9_999) + text("general.name") + struct.pack("<I", STRING) + text("x")
    )


@bad(UnsafeSource, "a key of 18,446,744,073,709,551,615 bytes")
def a_key_as_long_as_memory(path):
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1) + bytes(64))


@bad(UnsafeSource, "general.name of 1,073,741,824 bytes")
def a_string_of_a_gigabyte(path):
    gguf(path, keys=[("general.name", STRING, struct.pack("<Q", 2**30))])


@bad(UnsafeSource, "not UTF-8")
def a_string_in_another_encoding(path):
    gguf(path, keys=[("general.name", STRING, text(b"\xff\xfe"))])


@bad(UnsafeSource, "no plain name")
def a_key_with_a_newline(path):
    gguf(path, keys=[("general.name\n::error::", STRING, text("x"))])


@bad(UnsafeSource, "twice")
def a_key_named_twice(path):
    gguf(path, keys=[("general.name", STRING, text("a")), ("general.name", STRING, text("b"))])


@bad(UnsafeSource, "unknown type 77")
def a_value_of_an_unknown_type(path):
    gguf(path, keys=[("general.name", 77, text("a"))])


@bad(UnsafeSource, "items of tokenizer.ggml.tokens")
def an_array_of_a_million_million_items(path):
    gguf(path, keys=[("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 10**12))])


@bad(SourceRefused, "truncated")
def an_array_longer_than_the_file(path):
    gguf(path, keys=[("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ", F32, 2**20))])


@bad(UnsafeSource, "an array of type 9")
def an_array_of_arrays(path):
    gguf(path, keys=[("a.b", ARRAY, struct.pack("<IQ", ARRAY, 1))])


@bad(UnsafeSource, "neither 0 nor 1")
def a_boolean_of_two(path):
    gguf(path, keys=[("tokenizer.ggml.add_bos_token", BOOL, b"\2")])


@bad(UnsafeSource, "general.alignment")
def an_alignment_of_zero(path):
    gguf(path, keys=[("general.alignment", U32, struct.pack("<I", 0))])


@bad(UnsafeSource, "general.alignment")
def an_alignment_that_is_no_power_of_two(path):
    gguf(path, keys=[("general.alignment", U32, struct.pack("<I", 48))])


@bad(UnsafeSource, "general.alignment")
def an_alignment_that_is_text(path):
    gguf(path, keys=[("general.alignment", STRING, text("32"))])


@bad(UnsafeSource, "is believed")
def a_thousand_million_blocks(path):
    gguf(path, keys=[("llama.block_count", U32, struct.pack("<I", 10**9))])


@bad(UnsafeSource, "is believed")
def an_absurd_embedding(path):
    gguf(path, keys=[("llama.embedding_length", U64, struct.pack("<Q", 2**60))])


@bad(UnsafeSource, "at most 262,144 are read")
def a_chat_template_of_a_megabyte(path):
    gguf(path, keys=[("tokenizer.chat_template", STRING, text("x" * 10**6))])


@bad(UnsafeSource, "0 dimensions")
def a_tensor_without_dimensions(path):
    gguf(path, tensors=[tensor(dims=())])


@bad(UnsafeSource, "4,000 dimensions")
def a_tensor_of_too_many_dimensions(path):
    gguf(path, tensors=[tensor(dims=(1,) * 4_000)])


@bad(UnsafeSource, "overflows")
def a_shape_that_overflows(path):
    gguf(path, tensors=[tensor(dims=(2**33, 2**33))])


@bad(UnsafeSource, "is empty")
def a_shape_of_nothing(path):
    gguf(path, tensors=[tensor(dims=(0,))])


@bad(UnsafeSource, "does not fill blocks")
def a_width_that_fills_no_block(path):
    gguf(path, tensors=[tensor(dims=(100,), kind=12)])


@bad(UnsafeSource, "unknown ggml type")
def a_tensor_of_a_removed_type(path):
    gguf(path, tensors=[tensor(kind=4)])


@bad(UnsafeSource, "unknown ggml type")
def a_tensor_of_an_unknown_type(path):
    gguf(path, tensors=[tensor(kind=2**31)])


@bad(SourceRefused, "truncated")
def data_that_is_missing(path):
    gguf(path, tensors=[tensor(dims=(2**20,))])


@bad(UnsafeSource, "is needed")
def an_offset_behind_the_end(path):
    gguf(path, tensors=[tensor(offset=2**50)])


@bad(UnsafeSource, "is needed")
def tensors_that_overlap(path):
    gguf(path, tensors=[tensor(), tensor(name="b.weight", offset=0)])


@bad(UnsafeSource, "twice")
def a_tensor_named_twice(path):
    gguf(path, tensors=[tensor(), tensor(offset=128)], data=bytes(256))


@bad(UnsafeSource, "a tensor's name of 64 bytes")
def a_tensor_name_that_is_too_long(path):
    gguf(path, tensors=[tensor(name="a" * 64)])


@bad(UnsafeSource, "no plain name")
def a_tensor_named_like_a_path(path):
    gguf(path, tensors=[tensor(name="../../etc/passwd")])


@bad(UnsafeSource, "behind its last tensor")
def data_behind_the_last_tensor(path):
    gguf(path, tensors=[tensor()], data=bytes(4096))
