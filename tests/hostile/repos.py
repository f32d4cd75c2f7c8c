"""The corpus of bad repos: each case spoils an honest model in one way, and says what the refusal must name.

BAD: name -> (spoil(folder), error class, words of the sentence).
"""

import json
import os
import pickle
import struct

import yaml

from hubbot.errors import SourceRefused, UnsafeSource, Unsupported
from tests.hostile import model

BAD = {}


def bad(error, says):
    def add(spoil):
        BAD[spoil.__name__.replace("_", "-")] = (spoil, error, says)
        return spoil

    return add


def weights(folder, header, data=b"", **options):
    model.write_safetensors(folder / "model.safetensors", header, data, **options)


def changed(name, **entry):
    """The honest header with one entry changed."""
    header, size = model.entries()
    return header | {name: header[name] | entry}, bytes(size)


# --- safetensors ---------------------------------------------------------------------------------------


@bad(UnsafeSource, "header of 107,374,182,400 bytes")
def a_header_of_100_gigabytes(folder):
    weights(folder, {}, length=100 * 2**30)


@bad(UnsafeSource, "header of 18,446,744,073,709,551,615 bytes")
def a_header_length_of_all_ones(folder):
    weights(folder, {}, length=2**64 - 1)


@bad(SourceRefused, "truncated")
def a_header_longer_than_the_file(folder):
    weights(folder, {}, length=5_000)


@bad(SourceRefused, "model.safetensors is a pointer of Git LFS, of 126 bytes")
def weights_that_git_lfs_has_left_a_pointer_of(folder):
    _pointer(folder / "model.safetensors")


@bad(SourceRefused, "tokenizer.json is a pointer of Git LFS")
def a_tokenizer_that_git_lfs_has_left_a_pointer_of(folder):
    _pointer(folder / "tokenizer.json")


def _pointer(path):
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4\n")


@bad(SourceRefused, "truncated")
def an_empty_weights_file(folder):
    (folder / "model.safetensors").write_bytes(b"")


@bad(SourceRefused, "truncated")
def data_cut_off_in_the_middle(folder):
    header, size = model.entries()
    weights(folder, header, bytes(size - 100))


@bad(UnsafeSource, "behind its last tensor")
def data_after_the_last_tensor(folder):
    header, size = model.entries()
    weights(folder, header, bytes(size + 1))


@bad(UnsafeSource, "not valid JSON")
def a_header_that_is_no_json(folder):
    weights(folder, b'{"a": ')


@bad(UnsafeSource, "begin with '{'")
def a_header_that_begins_with_spaces(folder):
    weights(folder, b'   {"a": 1}')


@bad(UnsafeSource, "begin with '{'")
def a_header_that_is_a_list(folder):
    weights(folder, b"[]")


@bad(UnsafeSource, "not valid JSON")
def a_header_in_another_encoding(folder):
    weights(folder, b'{"\xff\xfe": 1}')


@bad(UnsafeSource, "names the key 'lm_head.weight' twice")
def a_tensor_named_twice_in_one_header(folder):
    header, size = model.entries()
    raw = json.dumps(header)[:-1] + ', "lm_head.weight": ' + json.dumps(header["lm_head.weight"]) + "}"
    weights(folder, raw.encode(), bytes(size))


@bad(UnsafeSource, "names the key 'dtype' twice")
def a_dtype_given_twice(folder):
    weights(folder, b'{"a.weight": {"dtype": "F32", "dtype": "F16", "shape": [1], "data_offsets": [0, 4]}}', bytes(4))


@bad(UnsafeSource, "nests JSON deeper")
def a_header_of_nested_objects(folder):
    weights(folder, b'{"a":' * 2_000 + b"1" + b"}" * 2_000)


@bad(UnsafeSource, "nests JSON deeper")
def a_header_of_a_million_brackets(folder):
    weights(folder, b'{"a":' + b"[" * 1_000_000)


@bad(UnsafeSource, "JSON values")
def a_header_of_millions_of_values(folder):
    weights(folder, b'{"a":[' + b"0," * 3_000_000 + b"0]}")


@bad(UnsafeSource, "overlaps the tensor before it")
def tensors_that_overlap(folder):
    header, data = changed("model.norm.weight", data_offsets=[0, 32])
    weights(folder, header, data)


@bad(UnsafeSource, "leaves a hole before it")
def a_hole_between_tensors(folder):
    header, size = model.entries()
    first = next(iter(header))
    header = {name: entry for name, entry in header.items() if name != first}
    weights(folder, header, bytes(size))


@bad(SourceRefused, "truncated")
def offsets_out_of_range(folder):
    weights(folder, {"a.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(64))


@bad(UnsafeSource, "begin and a later end")
def offsets_that_go_backwards(folder):
    weights(folder, *changed("model.norm.weight", data_offsets=[64, 32]))


@bad(UnsafeSource, "begin and a later end")
def negative_offsets(folder):
    weights(folder, *changed("model.norm.weight", data_offsets=[-32, 0]))


@bad(UnsafeSource, "begin and a later end")
def offsets_that_are_fractions(folder):
    weights(folder, *changed("model.norm.weight", data_offsets=[0.0, 32.0]))


@bad(UnsafeSource, "begin and a later end")
def offsets_that_are_booleans(folder):
    weights(folder, *changed("model.norm.weight", data_offsets=[False, True]))


@bad(UnsafeSource, "overflows")
def a_shape_that_overflows(folder):
    weights(folder, *changed("model.norm.weight", shape=[2**40, 2**40]))


@bad(UnsafeSource, "overflows")
def a_shape_that_wraps_around_to_the_right_size(folder):
    weights(folder, *changed("model.norm.weight", shape=[2**31, 2**31, 8]))


@bad(UnsafeSource, "whole numbers")
def a_shape_with_a_negative_dimension(folder):
    weights(folder, *changed("model.norm.weight", shape=[-8]))


@bad(UnsafeSource, "whole numbers")
def a_shape_of_a_hundred_dimensions(folder):
    weights(folder, *changed("model.norm.weight", shape=[1] * 99 + [8]))


@bad(UnsafeSource, "not valid JSON")
def a_shape_of_ten_thousand_digits(folder):
    weights(
        folder, b'{"a.weight": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 4]}}', bytes(4)
    )


@bad(UnsafeSource, "bytes of data where its shape and dtype need")
def a_shape_that_needs_other_data(folder):
    weights(folder, *changed("model.norm.weight", shape=[9]))


@bad(UnsafeSource, "unknown dtype")
def an_unknown_dtype(folder):
    weights(folder, *changed("model.norm.weight", dtype="F33"))


@bad(UnsafeSource, "exactly dtype, shape and data_offsets")
def an_entry_with_extra_keys(folder):
    weights(folder, *changed("model.norm.weight", strides=[1]))


@bad(UnsafeSource, "exactly dtype, shape and data_offsets")
def an_entry_that_is_a_number(folder):
    header, size = model.entries()
    weights(folder, header | {"x.weight": 1}, bytes(size))


@bad(UnsafeSource, "has a name with other characters")
def a_tensor_named_like_a_path(folder):
    weights(folder, {"../../etc/passwd": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))


@bad(UnsafeSource, "has a name with other characters")
def a_tensor_name_with_a_newline_and_workflow_command(folder):
    weights(folder, {"a\n::add-mask::b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))


@bad(UnsafeSource, "__metadata__ must map strings")
def metadata_of_numbers(folder):
    header, size = model.entries()
    weights(folder, {"__metadata__": {"format": 1}} | header, bytes(size))


@bad(SourceRefused, "no tensor at all")
def safetensors_without_tensors(folder):
    weights(folder, b"{}")


@bad(SourceRefused, "F32, F16 or BF16 is needed")
def weights_of_integers(folder):
    header, size = model.entries()
    header["lm_head.weight"] |= {"dtype": "I8", "shape": [128, 8]}
    weights(folder, header, bytes(size))


# --- the index and the files ---------------------------------------------------------------------------


def index(folder, entry):
    model.write_sharded(folder, index={"lm_head.weight": entry})


@bad(UnsafeSource, "plain name")
def an_index_that_names_etc_passwd(folder):
    index(folder, "../../etc/passwd")


@bad(UnsafeSource, "plain name")
def an_index_with_an_absolute_path(folder):
    index(folder, "/etc/passwd")


@bad(UnsafeSource, "plain name")
def an_index_with_backslashes(folder):
    index(folder, "..\\..\\secret.safetensors")


@bad(UnsafeSource, "plain name")
def an_index_with_a_nul(folder):
    index(folder, "model.safetensors\0.txt")


@bad(UnsafeSource, "plain name")
def an_index_with_a_control_character(folder):
    index(folder, "a\x1b[2Jb.safetensors")


@bad(UnsafeSource, "plain name")
def an_index_with_a_drive_letter(folder):
    index(folder, "C:model.safetensors")


@bad(UnsafeSource, "plain name")
def an_index_that_names_numbers(folder):
    index(folder, 7)


@bad(UnsafeSource, "plain name")
def an_index_that_names_the_folder_itself(folder):
    index(folder, ".")


@bad(SourceRefused, "are missing")
def an_index_that_names_a_missing_shard(folder):
    index(folder, "model-00003-of-00003.safetensors")


@bad(UnsafeSource, "Index and files must agree")
def an_index_that_moves_a_tensor_to_another_shard(folder):
    index(folder, "model-00002-of-00002.safetensors")


@bad(UnsafeSource, "Index and files must agree")
def an_index_that_names_a_tensor_of_no_file(folder):
    model.write_sharded(folder, index={"ghost.weight": "model-00001-of-00002.safetensors"})


@bad(UnsafeSource, "must be a JSON object")
def an_index_without_a_weight_map(folder):
    model.write_sharded(folder)
    model.write_json(folder / "model.safetensors.index.json", {"weight_map": ["a"]})


@bad(UnsafeSource, "bytes are read|at most")
def an_index_of_40_megabytes(folder):
    model.write_sharded(folder)
    (folder / "model.safetensors.index.json").write_bytes(b" " * 40 * 2**20)


@bad(UnsafeSource, "stored once")
def a_tensor_in_two_shards(folder):
    model.write_sharded(folder)
    header, size = model.entries({name: model.shapes()[name] for name in ["lm_head.weight"]})
    model.write_safetensors(folder / "extra.safetensors", header, bytes(size))
    path = folder / "model.safetensors.index.json"
    found = json.loads(path.read_text())
    found["weight_map"]["lm_head.weight"] = "extra.safetensors"
    model.write_json(path, found)


@bad(UnsafeSource, "two readers would see different models")
def a_shard_that_the_index_does_not_name(folder):
    header, size = model.entries({"model.norm.weight": [8]})
    model.write_safetensors(folder / "model-00009-of-00009.safetensors", header, bytes(size))


@bad(UnsafeSource, "leaves the model's folder")
def a_symlink_to_etc_passwd(folder):
    (folder / "vocab.txt").symlink_to("/etc/passwd")


@bad(UnsafeSource, "leaves the model's folder")
def weights_that_are_a_symlink_outside(folder):
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


@bad(UnsafeSource, "leaves the model's folder")
def a_symlink_to_the_folder_above(folder):
    (folder / "sub").symlink_to("..")


@bad(UnsafeSource, "symbolic link to a folder")
def a_symlink_that_loops_back(folder):
    (folder / "again").symlink_to(".")


@bad(SourceRefused, "leads nowhere")
def symlinks_that_go_round(folder):
    (folder / "one.json").symlink_to("two.json")
    (folder / "two.json").symlink_to("one.json")


@bad(SourceRefused, "leads nowhere")
def a_symlink_to_nothing(folder):
    (folder / "gone.json").symlink_to("nothing.json")


@bad(UnsafeSource, "device, pipe or socket")
def a_named_pipe(folder):
    os.mkfifo(folder / "tokenizer.model")


@bad(UnsafeSource, "control characters")
def a_file_name_with_a_newline(folder):
    (folder / "a\n::set-output name=x::y").write_text("x")


@bad(UnsafeSource, "control characters")
def a_file_name_that_is_no_utf8(folder):
    os.close(os.open(os.fsencode(folder) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))


@bad(UnsafeSource, "control characters")
def a_file_name_that_reads_backwards(folder):
    (folder / "a\u202egpj.exe").write_text("x")


@bad(UnsafeSource, "deeper than")
def folders_without_end(folder):
    (folder / "/".join(["d"] * 40)).mkdir(parents=True)


@bad(SourceRefused, "unpickling a stranger's file can run code")
def pickle_only(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


@bad(SourceRefused, "already quantized or converted")
def gguf_only(folder):
    (folder / "model.safetensors").unlink()
    model.gguf(folder / "model-Q4_K_M.gguf")


@bad(SourceRefused, "adapter")
def an_adapter(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    model.write_json(folder / "adapter_config.json", {"base_model_name_or_path": "a/b"})


@bad(SourceRefused, "diffusers")
def a_diffusion_pipeline(folder):
    (folder / "model.safetensors").unlink()
    model.write_json(folder / "model_index.json", {})


@bad(SourceRefused, "under another name")
def weights_under_another_name(folder):
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")


@bad(SourceRefused, "under another name")
def weights_under_another_name_beside_what_training_leaves(folder):
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    (folder / "training_args.bin").write_bytes(b"x")


@bad(
    SourceRefused,
    "model.safetensors.index.json is missing, which says what each shard (model-00001-of-00002.safetensors, …)",
)
def shards_without_an_index(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "training_args.bin").write_bytes(b"x")


@bad(SourceRefused, "No weights are here but in the folders 'fp16', 'sft'")
def two_models_in_folders(folder):
    for name in ("fp16", "sft"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"x")
    (folder / "model.safetensors").unlink()


@bad(SourceRefused, "diffusers")
def a_diffusion_pipeline_with_pickles(folder):
    a_diffusion_pipeline(folder)
    (folder / "unet").mkdir()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")


@bad(SourceRefused, "no config.json")
def no_config(folder):
    (folder / "config.json").unlink()


# --- config.json ---------------------------------------------------------------------------------------


@bad(UnsafeSource, "num_hidden_layers of config.json must be a whole number from 0 to 2,000")
def a_thousand_million_layers(folder):
    model.config(folder, num_hidden_layers=10**9)


@bad(UnsafeSource, "hidden_size of config.json must be")
def an_absurd_hidden_size(folder):
    model.config(folder, hidden_size=2**40)


@bad(UnsafeSource, "vocab_size of config.json must be")
def an_absurd_vocabulary(folder):
    model.config(folder, vocab_size=10**12)


@bad(UnsafeSource, "max_position_embeddings of config.json must be")
def an_absurd_context(folder):
    model.config(folder, max_position_embeddings=10**15)


@bad(UnsafeSource, "num_attention_heads of config.json must be")
def negative_heads(folder):
    model.config(folder, num_attention_heads=-1)


@bad(UnsafeSource, "hidden_size of config.json must be")
def a_hidden_size_that_is_a_string(folder):
    model.config(folder, hidden_size="8")


@bad(UnsafeSource, "hidden_size of config.json must be")
def a_hidden_size_that_is_true(folder):
    model.config(folder, hidden_size=True)


@bad(UnsafeSource, "does not give the number")
def no_layers_at_all(folder):
    model.config(folder, num_hidden_layers=0)


@bad(Unsupported, "The two must agree")
def more_layers_than_weights(folder):
    model.config(folder, num_hidden_layers=1_999)


@bad(Unsupported, "The two must agree")
def fewer_layers_than_weights(folder):
    model.config(folder, num_hidden_layers=1)


@bad(UnsafeSource, "never runs such code")
def remote_code(folder):
    model.config(folder, architectures=["EvilForCausalLM"], auto_map={"AutoModelForCausalLM": "evil.EvilForCausalLM"})


@bad(
    Unsupported,
    "does not know NobodyKnowsThisForCausalLM as a causal language model, nor as one of images and text. transformers has LlamaForCausalLM",
)
def an_unknown_architecture(folder):
    model.config(folder, architectures=["NobodyKnowsThisForCausalLM"])


@bad(UnsafeSource, "plain identifier")
def an_architecture_with_markup(folder):
    model.config(folder, architectures=["<img src=x onerror=alert(1)>${{ secrets.HF_TOKEN }}"])


@bad(UnsafeSource, "plain identifier")
def a_model_type_like_a_path(folder):
    model.config(folder, model_type="../../evil")


@bad(Unsupported, "must name one class")
def two_architectures(folder):
    model.config(folder, architectures=["LlamaForCausalLM", "MistralForCausalLM"])


@bad(Unsupported, "transformers has LlamaForCausalLM for model_type llama: if the weights are")
def no_architecture(folder):
    model.config(folder, architectures=None)


@bad(SourceRefused, "already quantized")
def an_already_quantized_model(folder):
    model.config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    header, size = model.entries({**model.shapes(), "model.layers.0.self_attn.q_proj.qweight": [8, 1]})
    header["model.layers.0.self_attn.q_proj.qweight"]["dtype"] = "I32"
    model.write_safetensors(folder / "model.safetensors", header, bytes(size))


@bad(UnsafeSource, "text_config of config.json must be a JSON object")
def a_text_config_that_is_a_string(folder):
    model.config(folder, text_config="x")


@bad(UnsafeSource, "tie_word_embeddings")
def ties_that_are_a_string(folder):
    model.config(folder, tie_word_embeddings="yes")


@bad(UnsafeSource, "must be a JSON object; found an array")
def a_config_that_is_a_list(folder):
    model.write_json(folder / "config.json", [])


@bad(UnsafeSource, "not valid JSON")
def a_config_with_a_byte_order_mark_of_another_encoding(folder):
    (folder / "config.json").write_bytes(json.dumps(model.CONFIG).encode("utf-16"))


@bad(UnsafeSource, "twice")
def a_config_with_two_architectures_keys(folder):
    raw = json.dumps(model.CONFIG)[:-1] + ', "architectures": ["Other"]}'
    (folder / "config.json").write_text(raw)


@bad(UnsafeSource, "nests JSON deeper")
def a_config_of_nested_lists(folder):
    (folder / "config.json").write_text('{"a":' + "[" * 50_000 + "]" * 50_000 + "}")


@bad(UnsafeSource, "at most")
def a_config_of_20_megabytes(folder):
    model.config(folder, note="x" * 20_000_000)


@bad(UnsafeSource, "not valid JSON")
def a_config_number_of_a_million_digits(folder):
    (folder / "config.json").write_text('{"hidden_size": ' + "9" * 1_000_000 + "}")


# --- tokenizer and template ----------------------------------------------------------------------------


@bad(SourceRefused, "No tokenizer is here")
def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@bad(UnsafeSource, "tokenizer.json is not valid JSON")
def a_tokenizer_that_is_a_zip(folder):
    (folder / "tokenizer.json").write_bytes(b"PK\3\4" + bytes(100))


@bad(UnsafeSource, "tokenizer.json must be a JSON object")
def a_tokenizer_that_is_a_list(folder):
    model.write_json(folder / "tokenizer.json", [1, 2, 3])


@bad(UnsafeSource, "no `model` object")
def a_tokenizer_without_a_model(folder):
    model.write_json(folder / "tokenizer.json", {"model": "BPE"})


@bad(UnsafeSource, "at most 167,772,160 are read")
def a_tokenizer_of_a_gigabyte(folder):
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**30)


@bad(UnsafeSource, "no SentencePiece model")
def a_sentencepiece_model_of_another_type(folder):
    (folder / "tokenizer.model").write_bytes(b"\x7fELF" + bytes(100))


@bad(UnsafeSource, "tokenizer_config.json must be a JSON object")
def a_tokenizer_config_that_is_a_number(folder):
    model.write_json(folder / "tokenizer_config.json", 1)


@bad(UnsafeSource, "vocab.json must map tokens to whole numbers")
def a_vocabulary_of_strings(folder):
    model.write_json(folder / "vocab.json", {"a": "0"})


@bad(UnsafeSource, "merges.txt is not UTF-8")
def merges_that_are_binary(folder):
    (folder / "merges.txt").write_bytes(b"\xff\xfe\0\1")


@bad(UnsafeSource, "never runs such code")
def a_tokenizer_of_remote_code(folder):
    (folder / "tokenizer.json").unlink()
    model.write_json(folder / "vocab.json", {"a": 0})
    model.write_json(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}})


@bad(UnsafeSource, "at most 262,144")
def a_chat_template_of_10_megabytes(folder):
    (folder / "chat_template.jinja").write_text("{{ x }}" * 1_500_000)


@bad(UnsafeSource, "at most 262,144 bytes")
def a_chat_template_of_10_megabytes_in_the_config(folder):
    model.write_json(folder / "tokenizer_config.json", {"chat_template": "x" * 10_000_000})


@bad(UnsafeSource, "string or a list of named strings")
def a_chat_template_that_is_an_object(folder):
    model.write_json(folder / "tokenizer_config.json", {"chat_template": {"a": 1}})


@bad(UnsafeSource, "string or a list of named strings")
def named_chat_templates_without_names(folder):
    model.write_json(folder / "tokenizer_config.json", {"chat_template": [{"template": "x"}]})


@bad(UnsafeSource, "not UTF-8")
def a_chat_template_that_is_binary(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xff")


@bad(UnsafeSource, "may make over 1,024 characters of one")
def a_normalizer_that_doubles_forty_times(folder):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    _normalizer(folder, {"type": "Sequence", "normalizers": [step] * 40})


@bad(UnsafeSource, "may make over 1,024 characters of one")
def a_normalizer_that_prepends_a_book(folder):
    _normalizer(folder, {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a" * 2_000}]})


@bad(UnsafeSource, "may make over 1,024 characters of one")
def a_normalizer_of_sequences_in_sequences(folder):
    step = {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "aaaaaaa"}
    _normalizer(folder, {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [step, step]}] * 2})


def _normalizer(folder, found):
    model.write_json(folder / "tokenizer.json", model.TOKENIZER | {"normalizer": found})


# --- README.md -----------------------------------------------------------------------------------------


@bad(UnsafeSource, "anchors or aliases")
def an_anchors_bomb(folder):
    lines = ['a: &a ["x","x","x","x","x","x","x","x","x"]']
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(8)]
    model.front_matter(folder, "\n".join(lines))


@bad(UnsafeSource, "anchors or aliases")
def yaml_that_contains_itself(folder):
    model.front_matter(folder, "license: &a [*a]")


@bad(UnsafeSource, "tags can build objects")
def yaml_that_calls_python(folder):
    model.front_matter(folder, "license: !!python/object/apply:os.system ['touch /tmp/owned']")


@bad(UnsafeSource, "tags can build objects")
def yaml_that_builds_a_tuple(folder):
    model.front_matter(folder, "tags: !!python/tuple [a, b]")


@bad(UnsafeSource, "The YAML of README.md is refused")
def broken_yaml(folder):
    model.front_matter(folder, "license: [apache-2.0\nlanguage: {")


@bad(UnsafeSource, "nested deeper")
def yaml_of_nested_lists(folder):
    model.front_matter(folder, "license: " + "[" * 5_000 + "]" * 5_000)


@bad(UnsafeSource, "no mapping of keys")
def yaml_that_is_a_list(folder):
    model.front_matter(folder, "- license: mit")


@bad(UnsafeSource, "is there twice")
def two_licences_under_one_key(folder):
    model.front_matter(folder, "license: mit\nlicense: cc-by-nc-nd-4.0")


@bad(UnsafeSource, "characters; at most")
def yaml_of_a_megabyte(folder):
    model.front_matter(folder, "tags:\n" + "- aaaaaaaaaaaa\n" * 80_000)


@bad(UnsafeSource, "at most 16,777,216")
def a_readme_of_a_gigabyte(folder):
    with (folder / "README.md").open("wb") as file:
        file.truncate(2**30)


@bad(UnsafeSource, "not UTF-8")
def a_readme_that_is_binary(folder):
    (folder / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")


@bad(UnsafeSource, "licence id")
def a_licence_with_markup(folder):
    model.front_matter(
        folder, yaml.safe_dump({"license": "mit\n\n# owned <script>alert(1)</script> `${{ github.token }}`"})
    )


@bad(UnsafeSource, "licence id")
def a_licence_that_is_a_mapping(folder):
    model.front_matter(folder, "license:\n  id: mit")


@bad(UnsafeSource, "http")
def a_licence_link_that_runs_script(folder):
    model.front_matter(folder, "license: other\nlicense_link: javascript:alert(1)")


@bad(UnsafeSource, "printable line")
def a_licence_name_of_many_lines(folder):
    model.front_matter(folder, yaml.safe_dump({"license": "other", "license_name": "a\n| b | c |\n|---|---|"}))


@bad(UnsafeSource, "holds more than 50,000 values")
def yaml_of_47_000_keys(folder):
    model.front_matter(folder, "".join(f"k{number}:\n" for number in range(47_000)))


@bad(UnsafeSource, "licence id")
def yaml_with_a_number_of_base_60(folder):
    model.front_matter(folder, "license: " + "1:" * 200_000 + "1")


@bad(UnsafeSource, "refused")
def yaml_with_a_date_that_is_none(folder):
    model.front_matter(folder, "license: 2024-99-99")


@bad(UnsafeSource, "refused")
def yaml_with_a_list_as_key(folder):
    model.front_matter(folder, "? [a, b]\n: c")


# --- weights that are not numbers: checked after the headers, see test_corpus --------------------------

NOT_FINITE = {
    "a NaN in float32": ("F32", struct.pack("<I", 0x7FC0_0000)),
    "an infinity in float32": ("F32", struct.pack("<f", float("inf"))),
    "a signalling NaN in float32": ("F32", struct.pack("<I", 0x7F80_0001)),
    "a negative infinity in bfloat16": ("BF16", struct.pack("<H", 0xFF80)),
    "a NaN in bfloat16": ("BF16", struct.pack("<H", 0x7FC1)),
    "an infinity in float16": ("F16", struct.pack("<H", 0x7C00)),
    "a NaN in float16": ("F16", struct.pack("<H", 0xFE00)),
    "a NaN in float64": ("F64", struct.pack("<d", float("nan"))),
}
