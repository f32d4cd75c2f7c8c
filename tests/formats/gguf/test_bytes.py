"""Whole files, byte for byte what llama.cpp's own converter and llama-quantize write from the same weights."""

import re
import shutil

import pytest

from hubbot.formats.gguf import TYPES
from tests.formats.gguf.chain import convert, make, quantize
from tests.models import make_model

NEED_IMATRIX = {"IQ3_XS", "IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}
PLAIN = {"F32", "F16", "BF16"}
DENSE = [name for name in TYPES if name != "MXFP4_MOE"]  # which is of experts


def _equal_files(folder, types, out, monkeypatch, *, imatrix=False, outtype="bf16"):
    files, _ = make(folder, types, out, imatrix=imatrix, decoded=False)
    base = convert(folder, out / "base.gguf", outtype)
    monkeypatch.chdir(out / "gguf")  # llama-quantize writes the importance matrix's name as it was given
    for name in types:
        weighed = f"{folder.name}.imatrix" if imatrix and name not in PLAIN else None
        theirs = quantize(base, out / f"{name}.gguf", name, weighed)
        assert files[name].paths[0].read_bytes() == theirs.read_bytes(), name


def test_static_files_equal_llama_quantizes(llama, tmp_path, monkeypatch):
    _equal_files(llama, ["Q8_0", "Q4_K_M", "BF16"], tmp_path, monkeypatch)


@pytest.mark.slow
def test_static_files_of_all_types_equal_llama_quantizes(llama, tmp_path, monkeypatch):
    _equal_files(llama, [name for name in DENSE if name not in NEED_IMATRIX], tmp_path, monkeypatch)


@pytest.mark.slow
def test_files_of_all_types_with_an_importance_matrix_equal_llama_quantizes(llama, tmp_path, monkeypatch):
    _equal_files(llama, DENSE, tmp_path, monkeypatch, imatrix=True)


@pytest.mark.slow
def test_ggmls_own_encoders_write_the_same_files(llama, tmp_path, monkeypatch):
    from hubbot.formats.gguf import codec

    monkeypatch.setattr(codec, "encoder", lambda kind: None)
    _equal_files(llama, ["Q4_K_M", "IQ4_XS"], tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sources_of_other_precisions_are_converted_without_loss(dtype, tmp_path, monkeypatch):
    folder = make_model("llama", tmp_path / "tiny", dtype=dtype)
    outtype = {"float16": "f16", "float32": "f32"}[dtype]
    _equal_files(folder, ["Q5_K_M", "F16", "BF16", "F32"], tmp_path / "out", monkeypatch, outtype=outtype)


@pytest.mark.slow
def test_widths_that_k_quants_cannot_hold_fall_back_as_llama_cpp_does(tmp_path, monkeypatch):
    from tests.formats.gguf.odd import make_odd_llama

    folder = make_odd_llama(tmp_path / "odd")
    _equal_files(folder, ["Q4_K_M", "IQ4_XS", "Q6_K", "Q2_K"], tmp_path / "out", monkeypatch)
    files, _ = make(folder, ["Q4_K_M"], tmp_path / "again")
    (note,) = (note for note in files["Q4_K_M"].notes if "falling back" in note)
    assert "not divisible by 256" in note
    assert "  " not in note
    assert re.search(r"; so do \d+ more tensors$", note)


def test_the_same_input_gives_the_same_bytes_whatever_the_folder_was_called(llama, tmp_path):
    first, _ = make(llama, ["Q4_0"], tmp_path / "a")
    copy = shutil.copytree(llama, tmp_path / "b" / llama.name)
    second, _ = make(copy, ["Q4_0"], tmp_path / "c", threads=1)
    assert first["Q4_0"].paths[0].read_bytes() == second["Q4_0"].paths[0].read_bytes()
