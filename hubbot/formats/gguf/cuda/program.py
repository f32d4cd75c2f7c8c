"""One type's program: ggml's encoder and decoder of it as kernels that take a block a thread.

    encode(count, x, y, columns, importance, sigma2)   float32 -> blocks; importance and sigma2 may be null
    decode(count, x, y)                                blocks -> float32
    sigma2(count, x, sigma2, columns)                  where encode asks for a row's mean square
    set_grid(count, which, points, map, neighbours)    where encode searches in a grid
    take_odd(count, seen)                              what the blocks since the last call said of themselves

`prelude.h` is what they are compiled into.
"""

from __future__ import annotations

import re
from pathlib import Path

from hubbot.formats.gguf.cuda.text import GgmlText, TextChanged, replaced

__all__ = ["PROGRAMS", "block_size", "program", "weighs_rows"]

_LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
_WEIGHED = ("q4_0", "q4_1", "q5_0", "q5_1")  # with importance, every weight counts by its row's mean square
_K_QUANTS = ("q2_K", "q3_K", "q4_K", "q5_K", "q6_K")
_TERNARY = ("tq1_0", "tq2_0")
_BLOCK_OF_32 = (*_LEGACY, "iq4_nl")
_SEARCHES = ("make_qx_quants", "make_q3_quants", "make_qkx2_quants", "make_qkx3_quants", "make_qp_quants")
_NEIGHBOURS = ("iq2_find_best_neighbour", "iq3_find_best_neighbour", "iq1_find_best_neighbour2")
# type -> tables that its decoder looks in
_TABLES = {
    "iq4_nl": ("kvalues_iq4nl",), "iq4_xs": ("kvalues_iq4nl",),
    "iq2_xxs": ("iq2xxs_grid", "ksigns_iq2xs", "kmask_iq2xs"), "iq2_xs": ("iq2xs_grid", "ksigns_iq2xs", "kmask_iq2xs"),
    "iq2_s": ("iq2s_grid", "kmask_iq2xs"), "iq3_xxs": ("iq3xxs_grid", "ksigns_iq2xs", "kmask_iq2xs"),
    "iq3_s": ("iq3s_grid", "kmask_iq2xs"), "iq1_s": ("iq1s_grid",), "iq1_m": ("iq1s_grid",),
}  # fmt: skip
# what ggml's callers of these put on their stack
_SCRATCH = {
    "iq3_s": (
        "float scales[8], weight[32], xval[32], waux[32]; int8_t L[32], Laux[32]; bool on[8], onaux[8]; uint8_t signs[4];",
        "32, {row}, scales, weight, xval, L, Laux, waux, on, onaux, signs",
    ),
    "iq1_s": (
        "float scales[8], weight[32], sumx[33], sumw[33], pairs[64]; int8_t L[32], shifts[8]; uint16_t index[4];",
        "{row}, scales, weight, sumx, sumw, pairs, L, index, shifts",
    ),
    "iq1_m": (
        "float scales[16], weight[16], pairs[32]; int8_t L[16], shifts[16]; uint16_t index[2];",
        "{row}, scales, weight, pairs, L, index, shifts",
    ),
    "iq3_xxs": ("", "256, {row}"),
}
_GRID_TYPES = ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq1_s", "iq1_m")

PROGRAMS = (*_LEGACY, *_K_QUANTS, "iq4_nl", "iq4_xs", *_GRID_TYPES, *_TERNARY)


def block_size(name: str) -> int:
    """Weights in a block of a type."""
    return 32 if name in _BLOCK_OF_32 else 256


def weighs_rows(name: str) -> bool:
    """Whether encode with importance needs sigma2."""
    return name in _WEIGHED


def program(text: GgmlText, name: str) -> str:
    """The C++ text of one of PROGRAMS. Raises TextChanged where ggml's text is another than it was written for."""
    pieces = [*_common(text), *_encoder(text, name), *_decoder(text, name)]
    return "\n".join(pieces)


def _common(text: GgmlText) -> list[str]:
    prelude = Path(__file__).with_name("prelude.h").read_text(encoding="utf-8")
    halves = [
        text.conversion(name)
        for name in ("fp32_from_bits", "fp32_to_bits", "ggml_compute_fp16_to_fp32", "ggml_compute_fp32_to_fp16")
    ]
    # a NaN's low bits differ: x86 makes 0xffc00000, of which nearest_int makes 0, a card 0x7fffffff
    nearest = replaced(
        r"return \(i & 0x007fffff\) - 0x00400000;",
        "return val != val ? 0 : (i & 0x007fffff) - 0x00400000;",
        text.function("nearest_int"),
    )
    searches = [_unrolled(text.function(search), "n") for search in _SEARCHES]
    return [
        prelude, text.constants(r"GROUP_MAX_EPS\w*|IQ3S_BLOCK_SIZE|IQ1[SM]_BLOCK_SIZE|NGRID_IQ1S|IQ1[SM]_DELTA"), text.structs(),
        *halves, _HALF, nearest, *searches, text.function("get_scale_min_k4"),
    ]  # fmt: skip


_HALF = """
FUNCTION ggml_half hubbot_half(float v) {
    const ggml_half h = ggml_compute_fp32_to_fp16(v);
    if ((h & 0x7c00) == 0x7c00) hubbot_odd |= NOT_FINITE;
    return h;
}
KERNEL(take_odd, int * seen) { EACH(b) { *seen = hubbot_odd; hubbot_odd = 0; } }
"""

_ENCODE = """
KERNEL(encode, const float * x, block_{name} * y, int columns, const float * importance, const float * sigma2) {{
    EACH(b) {{
        const float * q = importance ? importance + b*{size} % columns : importance;
        {body}
    }}
}}
"""

_DECODE = """
KERNEL(decode, const block_{name} * x, float * y) {{
    EACH(b) dequantize_row_{name}(x + b, y + b*{size}, {size});
}}
"""

_SIGMA2 = """
KERNEL(sigma2, const float * x, float * sigma2, int columns) {
    EACH(b) {
        const float * row = x + b*columns;
        float sum_x2 = 0;
        for (int j = 0; j < columns; ++j) sum_x2 += row[j]*row[j];
        sigma2[b] = sum_x2/(int64_t) columns;
    }
}
"""

_SET_GRID = """
VARIABLE iq{k}_entry_t iq{k}_data[4];
KERNEL(set_grid, int which, {kind} * points, int * map, uint16_t * neighbours) {{
    EACH(b) {{ iq{k}_data[which].grid = points; iq{k}_data[which].map = map; iq{k}_data[which].neighbours = neighbours; }}
}}
"""


def _encoder(text: GgmlText, name: str) -> list[str]:
    if name in _LEGACY:
        pieces, body = _legacy(text, name)
    elif name in _K_QUANTS:
        pieces = [text.function(f"quantize_row_{name}_{kind}") for kind in ("ref", "impl")]
        body = f"if (q) quantize_row_{name}_impl(x + b*256, y + b, 256, q); else quantize_row_{name}_ref(x + b*256, y + b, 256);"
    elif name in _TERNARY:
        pieces = [text.function(f"quantize_row_{name}_ref").replace("lroundf(", "hubbot_lround(")]
        body = f"quantize_row_{name}_ref(x + b*256, y + b, 256);"
    elif name in _GRID_TYPES:
        pieces, body = _in_grid(text, name)
    else:
        pieces, body = _four_bit_values(text, name)
    return [*pieces, _ENCODE.format(name=name, size=block_size(name), body=body)]


def _decoder(text: GgmlText, name: str) -> list[str]:
    encoder_has = ("kvalues_iq4nl",)
    tables = [text.table(table) for table in _TABLES.get(name, ()) if table not in encoder_has]
    return [*tables, text.function(f"dequantize_row_{name}"), _DECODE.format(name=name, size=block_size(name))]


def _legacy(text: GgmlText, name: str) -> tuple[list[str], str]:
    plain = text.function(f"quantize_row_{name}_ref")
    if name == "q8_0":
        plain = replaced(r"= roundf\(x0\);", "= hubbot_int(roundf(x0));", plain)
    else:
        plain = replaced(r"\((u?int8_t)\)\(x", r"(\1)hubbot_int(x", plain, count=2)
    plain = _unrolled(plain, "qk|qk/2|QK8_0")
    if name not in _WEIGHED:
        return [plain], f"quantize_row_{name}_ref(x + b*32, y + b, 32);"
    weighed = replaced(
        r"^ *float sum_x2 = 0;\n[^\n]*\n *float sigma2 = sum_x2/n_per_row;\n",
        "",
        text.function(f"quantize_row_{name}_impl"),
    )
    weighed = replaced(
        r"const float \* quant_weights\) \{", "const float * quant_weights, const float sigma2) {", weighed
    )
    body = f"if (q) quantize_row_{name}_impl(x + b*32, y + b, 32, q, sigma2[b*32 / columns]); else quantize_row_{name}_ref(x + b*32, y + b, 32);"
    return [plain, _unrolled(weighed, r"QK\w+|16"), _SIGMA2], body


def _four_bit_values(text: GgmlText, name: str) -> tuple[list[str], str]:
    """iq4_nl and iq4_xs. The nearest value is found by counting, not by ggml's chain of dependent loads."""
    values = text.numbers("kvalues_iq4nl")
    if len(values) != 16 or values != sorted(values):
        raise TextChanged(f"kvalues_iq4nl is {values}, not 16 rising numbers")
    count = " + ".join(f"!(x < {value}.f)" for value in values[1:15])
    nearest = (
        f"FUNCTION int hubbot_nearest_value(float x) {{\n    const int c = {count};\n"
        "    return x - kvalues_iq4nl[c] < kvalues_iq4nl[c + 1] - x ? c : c + 1;\n}\n"
    )
    rows = replaced(
        r"best_index_int8\(16, values, ", "hubbot_nearest_value(", text.function("quantize_row_iq4_nl_impl"), count=4
    )
    pieces = [text.table("kvalues_iq4nl"), nearest, rows]
    if name == "iq4_nl":
        return pieces, (
            "uint8_t L[32]; float weight[32]; uint16_t unused_h; float scale;\n"
            "        quantize_row_iq4_nl_impl(32, 32, x + b*32, &y[b].d, y[b].qs, &unused_h, NULL, &scale, weight, L, kvalues_iq4nl, q, 7);"
        )
    return pieces, (
        "uint8_t L[256]; float weight[32]; float scales[8];\n"
        "        quantize_row_iq4_nl_impl(256, 32, x + b*256, &y[b].d, y[b].qs, &y[b].scales_h, y[b].scales_l, scales, weight, L, kvalues_iq4nl, q, 7);"
    )


def _in_grid(text: GgmlText, name: str) -> tuple[list[str], str]:
    """The types that look for the nearest point of a grid; where ggml would end the process, point 0 is taken and told."""
    k = 3 if name.startswith("iq3") else 2
    neighbour = {"iq2": _NEIGHBOURS[0], "iq3": _NEIGHBOURS[1], "iq1": _NEIGHBOURS[2]}[name[:3]]
    search = _kept_alive(text.function(neighbour))
    rows = text.function(f"quantize_row_{name}_impl")
    casts = 2 if name == "iq3_xxs" else 1
    rows = replaced(r"(block_\w+) \* y = vy;", r"\1 * y = (\1 *) vy;", rows, count=casts)
    if name.startswith("iq1"):
        rows = replaced(
            r"qsort\(pairs, block_size, 2\*sizeof\(float\), iq1_sort_helper\);", "hubbot_sort(pairs, block_size);", rows
        )
        rows = _kept_alive(rows)
    pieces = [
        text.type(f"iq{k}_entry_t"),
        _SET_GRID.format(k=k, kind="uint32_t" if k == 3 else "uint64_t"),
        text.function(f"iq{k}_data_index"),
        search,
        rows,
    ]
    scratch, arguments = _SCRATCH.get(name, ("", "{row}"))
    return pieces, f"{scratch} quantize_row_{name}_impl({arguments.format(row='x + b*256, y + b, 256, q')});"


def _kept_alive(function: str) -> str:
    return replaced(
        r"GGML_ASSERT\(grid_index >= 0\);", "if (grid_index < 0) { hubbot_odd |= LOST; grid_index = 0; }", function
    )


def _unrolled(function: str, bound: str) -> str:
    """Loops from a constant up to `bound` told to be unrolled, so that arrays of a group stay in registers."""
    loop = rf"for \(int (\w) = (\d); \1 < (?:{bound}); (?:\+\+\1|\1\+\+)\)"
    return re.sub(loop, lambda found: f"UNROLL {found[0]}", function)
