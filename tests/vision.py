"""Tiny models that read text and images, with random weights, as Hub folders: configuration, weights, tokenizer, processor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from hubbot.demo.tokenizer import write_tokenizer
from hubbot.model.absent import parts_left_out
from tests.gpt2 import teach_converter, write_gpt2_tokenizer
from tests.models import _GROUPED, VOCABULARY, _pieces, _spread

__all__ = ["VISION", "Vision", "make_vision"]

_LENGTH = 512  # tokens of context: an image takes some


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """How to make one family's tiny model.

    marks: the tokens around images, by the key of the configuration that wants the id (or a name of nothing).
    """

    config: str  # class in transformers
    text: dict[str, Any]
    vision: dict[str, Any]
    marks: dict[str, str]
    values: dict[str, Any] = field(default_factory=dict)  # of the whole
    preprocessor: dict[str, Any] = field(default_factory=dict)  # preprocessor_config.json
    processor: dict[str, Any] = field(default_factory=dict)  # processor_config.json
    bytes_vocabulary: bool = True
    space_prefix: bool = False
    chat: str = "<image>"  # how the chat template writes an image


_TEXT: dict[str, Any] = _GROUPED | {"max_position_embeddings": _LENGTH, "pad_token_id": 0}
_HALF: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_QWEN = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
_SIGLIP: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **_HALF}

VISION: dict[str, Vision] = {
    "gemma3": Vision(
        config="Gemma3Config",
        text=_TEXT | {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 64},
        vision={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 112,
            "patch_size": 14,
        },
        values={"mm_tokens_per_image": 4},
        marks={
            "image_token_index": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        preprocessor={
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": 112, "width": 112},
            "image_seq_length": 4,
            **_HALF,
        },
        processor={"processor_class": "Gemma3Processor", "image_seq_length": 4},
        bytes_vocabulary=False,
        chat="<start_of_image>",
    ),
    "qwen2_5_vl": Vision(
        config="Qwen2_5_VLConfig",
        text=_TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}},
        vision={
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 256,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
        marks=_QWEN,
        preprocessor={
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 56 * 56,
            "max_pixels": 448 * 448,
            **_PATCHES,
        },
        processor={"processor_class": "Qwen2_5_VLProcessor"},
        chat="<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "qwen2_vl": Vision(
        config="Qwen2VLConfig",
        text=_TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}},
        vision={"depth": 4, "embed_dim": 64, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 256, "patch_size": 14},
        marks=_QWEN,
        preprocessor={
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 56 * 56,
            "max_pixels": 448 * 448,
            **_PATCHES,
        },
        processor={"processor_class": "Qwen2VLProcessor"},
        chat="<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "smolvlm": Vision(
        config="SmolVLMConfig",
        text=_TEXT | {"model_type": "llama", "head_dim": 64, "architectures": ["VLlama3ForCausalLM"]},
        vision=_SIGLIP | {"image_size": 64, "patch_size": 16},
        values={"scale_factor": 2},
        marks={
            "image_token_id": "<image>",
            "fake": "<fake_token_around_image>",
            "global": "<global-img>",
            "end": "<end_of_utterance>",
        },
        preprocessor={
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": 128},
            "max_image_size": {"longest_edge": 64},
            **_HALF,
        },
        processor={"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    ),
    "mistral3": Vision(
        config="Mistral3Config",
        text=_TEXT | {"model_type": "mistral", "head_dim": 64, "sliding_window": None},
        vision={
            "model_type": "pixtral",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "head_dim": 32,
            "image_size": 112,
            "patch_size": 14,
            "hidden_act": "silu",
        },
        values={"spatial_merge_size": 2, "vision_feature_layer": -1, "multimodal_projector_bias": False},
        marks={"image_token_index": "[IMG]", "break": "[IMG_BREAK]", "end": "[IMG_END]"},
        preprocessor={
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 112},
            "patch_size": 14,
            **_HALF,
        },
        processor={"processor_class": "PixtralProcessor", "patch_size": 14, "spatial_merge_size": 2},
        bytes_vocabulary=False,
        space_prefix=True,
        chat="[IMG]",
    ),
    "internvl": Vision(
        config="InternVLConfig",
        text=_TEXT | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
        vision=_SIGLIP
        | {"model_type": "internvl_vision", "image_size": [112, 112], "patch_size": [14, 14]}
        | {"num_hidden_layers": 4}  # the converter takes the numbers of its projector's layers, up to 3, for blocks
        | {"architectures": ["InternVisionModel"]},
        values={"downsample_ratio": 0.5, "image_seq_length": 16},
        marks={"image_token_id": "<IMG_CONTEXT>", "begin": "<img>", "end": "</img>"},
        preprocessor={
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 112, "width": 112},
            **_HALF,
        },
        processor={"processor_class": "InternVLProcessor", "image_seq_length": 16},
        chat="<img><IMG_CONTEXT></img>",
    ),
    "llava": Vision(
        config="LlavaConfig",
        text=_TEXT | {"model_type": "llama", "head_dim": 64},
        vision=_SIGLIP | {"model_type": "clip_vision_model", "image_size": 112, "patch_size": 14, "projection_dim": 64},
        marks={"image_token_index": "<image>"},
        preprocessor={
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 112},
            "crop_size": {"height": 112, "width": 112},
            **_HALF,
        },
        processor={"processor_class": "LlavaProcessor", "patch_size": 14, "vision_feature_select_strategy": "default"},
        bytes_vocabulary=False,
        space_prefix=True,
    ),
    "qwen3_vl": Vision(
        config="Qwen3VLConfig",
        text=_TEXT
        | {
            "head_dim": 64,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
        },
        vision={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 256,
            "patch_size": 16,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        marks=_QWEN,
        preprocessor={
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": 64 * 64, "longest_edge": 512 * 512},
            **_PATCHES,
            "patch_size": 16,
        },
        processor={"processor_class": "Qwen3VLProcessor"},
        chat="<|vision_start|><|image_pad|><|vision_end|>",
    ),
}

_KNOWN_MARKS = ("image_", "boi_", "eoi_", "video_", "vision_", "audio_")


def make_vision(kind: str, into: Path, *, plan: Vision | None = None, dtype: str = "bfloat16") -> Path:
    """Write a tiny random model that sees images as a Hub folder, and return the folder."""
    plan = plan or VISION[kind]
    into.mkdir(parents=True, exist_ok=True)
    ids = (_write_bytes if plan.bytes_vocabulary else _write_pieces)(plan, into)
    text = plan.text | {"vocab_size": ids["size"], "bos_token_id": ids["begin"], "eos_token_id": ids["end"]}
    parts = {"text_config": text, "vision_config": plan.vision} if plan.vision else text  # Chameleon has no tower
    config = getattr(transformers, plan.config)(
        **parts,
        **plan.values,
        **{key: ids[mark] for key, mark in plan.marks.items() if key.startswith(_KNOWN_MARKS)},
    )
    torch.manual_seed(0)
    with parts_left_out(config):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    _spread(model, torch.Generator().manual_seed(0))
    model.to(getattr(torch, dtype)).save_pretrained(into)
    _write(into / "preprocessor_config.json", plan.preprocessor)
    _write(into / "processor_config.json", plan.processor)
    (into / "chat_template.jinja").write_text(_template(plan.chat), encoding="utf-8")
    front = "---\nlicense: mit\nlanguage: [en]\npipeline_tag: image-text-to-text\n---\n# Tiny random model\n"
    (into / "README.md").write_text(front, encoding="utf-8")
    return into


def _template(image: str) -> str:
    """A conversation whose messages are text, or lists of texts and images."""
    return (
        "{% for message in messages %}### {{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + image
        + "{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}### assistant\n{% endif %}"
    )


def _write_bytes(plan: Vision, into: Path) -> dict[str, int]:
    """GPT-2's vocabulary with the marks behind it; what each is, and how many there are."""
    teach_converter()
    marks = list(plan.marks.values())
    size = write_gpt2_tokenizer(into, length=_LENGTH, more=marks)
    _name_marks(plan, into)
    return {
        **{mark: size - len(marks) + at for at, mark in enumerate(marks)},
        "size": size,
        "begin": 50256,
        "end": 50256,
    }


def _write_pieces(plan: Vision, into: Path) -> dict[str, int]:
    """A SentencePiece vocabulary, with the marks as tokens that were added to it."""
    write_tokenizer(_pieces(plan.space_prefix), into, length=_LENGTH, space_prefix=plan.space_prefix)
    ids = {mark: VOCABULARY + at for at, mark in enumerate(plan.marks.values())}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": at, "content": mark, "special": True, **plain} for mark, at in ids.items()]
    fast = json.loads((into / "tokenizer.json").read_text())
    _write(into / "tokenizer.json", fast | {"added_tokens": [*fast["added_tokens"], *added]})
    decoder = {str(each.pop("id")): each for each in added}
    told = json.loads((into / "tokenizer_config.json").read_text())
    _write(into / "tokenizer_config.json", told | {"added_tokens_decoder": decoder})
    _name_marks(plan, into)
    return {**ids, "size": VOCABULARY + len(ids), "begin": 1, "end": 2}


def _name_marks(plan: Vision, into: Path) -> None:
    """Processors ask their tokenizer for the marks by name."""
    path = into / "tokenizer_config.json"
    names = {
        key.replace("_token_id", "_token").replace("_token_index", "_token"): mark for key, mark in plan.marks.items()
    }
    extra = {
        "image_token": "image_token",
        "boi_token": "boi_token",
        "eoi_token": "eoi_token",
        "video_token": "video_token",
    }
    told = json.loads(path.read_text())
    _write(path, told | {"extra_special_tokens": {key: names[key] for key in extra if key in names}})


def _write(path: Path, value: Mapping[str, Any]) -> None:
    if value:
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


Maker = Callable[..., Path]
