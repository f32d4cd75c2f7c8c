"""Models that see images which the table alone makes; those that the suite makes too are in `tests.vision`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.conformance.gemma3n import GEMMA3N
from tests.vision import _HALF, _PATCHES, _QWEN, _SIGLIP, _TEXT, VISION, Vision

__all__ = ["DOTS3", "PLANS", "PUBLISHED", "SLIDING", "transpose_experts"]

_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
_ROUTED: dict[str, Any] = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
_DELTA: dict[str, Any] = {
    "head_dim": 64,
    "layer_types": ["linear_attention", "full_attention"],
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim"], 64),
    **dict.fromkeys(["linear_num_key_heads", "linear_num_value_heads"], 4),
}


# What Dots 3's layers with a window have for themselves, as config.json has it on the Hub.
SLIDING = {
    **dict.fromkeys(["swa_num_attention_heads", "swa_num_key_value_heads"], 4),
    **dict.fromkeys(["swa_q_lora_rank", "swa_kv_lora_rank"], 256),
    "swa_head_dim": 96,
    "swa_qk_nope_head_dim": 64,
    "swa_qk_rope_head_dim": 32,
    "swa_v_head_dim": 64,
}

# Keys of Dots 3's text that config.json has on the Hub, but not when transformers saves it.
DOTS3: dict[str, Any] = {
    **SLIDING,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "sliding_window_size": 64,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "apply_mla_qkv_lora_rescale": True,
}


def _rotary(section: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section, **more}}


def _tower(**more: Any) -> dict[str, Any]:
    """A vision tower as Qwen's configurations name its sizes."""
    return {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 256, **more}


_QWEN3: dict[str, Any] = {
    "marks": _QWEN,
    "preprocessor": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 64 * 64, "longest_edge": 512 * 512},
        **_PATCHES,
        "patch_size": 16,
    },
    "processor": {"processor_class": "Qwen3VLProcessor"},
    "chat": "<|vision_start|><|image_pad|><|vision_end|>",
}
_GEMMA4 = {
    "image_token_id": "<|image|>",
    "boi_token_id": "<|image>",
    "eoi_token_id": "<image|>",
    "audio_token_id": "<|audio|>",
    "video_token_id": "<|video|>",
}
_QWEN3_TOWER = _tower(patch_size=16, num_position_embeddings=64)
_GLM: dict[str, Any] = {
    "marks": {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
        "mask": "[gMASK]",
        "user": "<|user|>",
        "observation": "<|observation|>",
    },
    "preprocessor": {
        "image_processor_type": "Glm4vImageProcessor",
        "size": {"shortest_edge": 112 * 112, "longest_edge": 512 * 512},
        **_PATCHES,
    },
    "processor": {"processor_class": "Glm4vProcessor"},
    "chat": "<|begin_of_image|><|image|><|end_of_image|>",
}
_GLM_TOWER = _tower(patch_size=14, image_size=112)

PLANS: dict[str, Vision] = VISION | {
    "gemma3n": GEMMA3N,
    "llava": replace(  # Pixtral, the tower that llama.cpp's converter knows under this class
        VISION["mistral3"],
        config="LlavaConfig",
        values={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        processor={"processor_class": "PixtralProcessor", "patch_size": 14},
    ),
    "qwen3_vl_moe": Vision(
        config="Qwen3VLMoeConfig",
        text=_TEXT
        | _EXPERTS
        | {"head_dim": 64, "moe_intermediate_size": 512}
        | _rotary([12, 10, 10], mrope_interleaved=True),
        vision=_QWEN3_TOWER | {"depth": 3, "deepstack_visual_indexes": [0]},
        **_QWEN3,
    ),
    "qwen3_5": Vision(
        config="Qwen3_5Config",
        text=_TEXT | _DELTA | _rotary([3, 3, 2], partial_rotary_factor=0.25),
        vision=_QWEN3_TOWER,
        **_QWEN3,
    ),
    "qwen3_5_moe": Vision(
        config="Qwen3_5MoeConfig",
        text=_TEXT
        | _EXPERTS
        | _DELTA
        | {"shared_expert_intermediate_size": 256}
        | _rotary([3, 3, 2], partial_rotary_factor=0.25),
        vision=_QWEN3_TOWER,
        **_QWEN3,
    ),
    "qwen4_exp": Vision(
        config="Qwen4ExpConfig",
        text=_TEXT
        | _EXPERTS
        | _DELTA
        | {
            "shared_expert_intermediate_size": 256,
            "hc_lowrank": 32,
            "output_gate_type": "sigmoid",
            "layer_types": ["linear_attention", "indexed_attention"],
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 64,
            "indexer_budget": 256,
            "indexer_compress_ratio": 4,
        }
        | _rotary([3, 3, 2], partial_rotary_factor=0.25),
        vision=_QWEN3_TOWER,
        **_QWEN3,
    ),
    "glm4v": Vision(
        config="Glm4vConfig",
        text=_TEXT | {"head_dim": 64} | _rotary([4, 6, 6], partial_rotary_factor=0.5),
        vision=_GLM_TOWER,
        **_GLM,
    ),
    "glm4v_moe": Vision(
        config="Glm4vMoeConfig",
        text=_TEXT | _ROUTED | {"head_dim": 64} | _rotary([4, 6, 6], partial_rotary_factor=0.5),
        vision=_GLM_TOWER,
        **_GLM,
    ),
    "glm_ocr": Vision(
        config="GlmOcrConfig",
        text=_TEXT | {"head_dim": 64} | _rotary([8, 12, 12], partial_rotary_factor=1.0),
        vision=_GLM_TOWER,
        **_GLM,
    ),
    "exaone4_5": Vision(
        config="Exaone4_5_Config",
        text=_TEXT | {"model_type": "exaone4", "num_hidden_layers": 4, "head_dim": 64, "sliding_window": 64},
        vision=_tower(depth=4, patch_size=14, num_key_value_heads=1, window_size=112, fullatt_block_indexes=[1, 3]),
        marks={
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "begin": "<vision>",
            "end": "</vision>",
        },
        preprocessor={
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 56 * 56,
            "max_pixels": 448 * 448,
            **_PATCHES,
        },
        processor={"processor_class": "Exaone4_5_Processor"},
        chat="<vision><|image_pad|></vision>",
    ),
    "gemma4": Vision(
        config="Gemma4Config",
        text=_TEXT
        | {
            "num_hidden_layers": 6,
            "head_dim": 64,
            "global_head_dim": 128,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 64,
        },
        vision=_SIGLIP
        | {
            "num_key_value_heads": 2,
            "head_dim": 32,
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "position_embedding_size": 128,
        },
        values={"audio_config": None},
        marks=_GEMMA4,
        preprocessor={
            "image_processor_type": "Gemma4ImageProcessor",
            "image_mean": [0.0] * 3,
            "image_std": [1.0] * 3,
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "max_soft_tokens": 140,  # of which llama.cpp makes 70 or more
        },
        processor={"processor_class": "Gemma4Processor"},
        bytes_vocabulary=False,
        chat="<|image|>",
    ),
    "llama4": Vision(
        config="Llama4Config",
        text=_TEXT
        | {
            "num_hidden_layers": 4,
            "head_dim": 64,
            "intermediate_size_mlp": 512,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
        },
        vision=_SIGLIP
        | {
            "num_hidden_layers": 3,
            "image_size": 112,
            "patch_size": 14,
            "intermediate_size": 256,
            "pixel_shuffle_ratio": 0.5,
        }
        | dict.fromkeys(["vision_output_dim", "projector_input_dim", "projector_output_dim"], 128),
        marks={
            "image_token_index": "<|patch|>",
            "boi_token_index": "<|image_start|>",
            "eoi_token_index": "<|image_end|>",
            "image": "<|image|>",
        },
        preprocessor={
            "image_processor_type": "Llama4ImageProcessor",
            "size": {"height": 112, "width": 112},
            "max_patches": 1,
            **_HALF,
        },
        processor={"processor_class": "Llama4Processor", "patch_size": 14},
        chat="<|image|>",
    ),
    "paddleocr_vl": Vision(
        config="PaddleOCRVLConfig",
        text=_TEXT | {"head_dim": 64} | _rotary([8, 12, 12]),
        vision=_SIGLIP
        | {"num_hidden_layers": 3, "image_size": 112, "patch_size": 14, "architectures": ["PaddleOCRVisionModel"]},
        marks={
            "image_token_id": "<|IMAGE_PLACEHOLDER|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|IMAGE_START|>",
            "vision_end_token_id": "<|IMAGE_END|>",
        },
        preprocessor={
            "image_processor_type": "PaddleOCRVLImageProcessor",
            "min_pixels": 56 * 56,
            "max_pixels": 448 * 448,
            **_HALF,
            "patch_size": 14,
            "temporal_patch_size": 1,
            "merge_size": 2,
        },
        processor={"processor_class": "PaddleOCRVLProcessor"},
        bytes_vocabulary=False,
        space_prefix=True,
        chat="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
    ),
    "hunyuan_vl": Vision(
        config="HunYuanVLConfig",
        text=_TEXT | {"head_dim": 64} | _rotary([8, 8, 8, 8], rope_type="dynamic", alpha=1000.0, factor=1.0),
        vision=_SIGLIP
        | {
            "num_hidden_layers": 3,
            "patch_size": 16,
            "out_hidden_size": 256,
            "text_hidden_size": 256,
            "img_max_token_num": 64,
            "max_image_size": 512,
        },
        marks={
            "image_token_id": "<img>",
            "image_start": "<im_start>",
            "image_end": "<im_end>",
            "image_newline": "<im_newline>",
        },
        preprocessor={
            "image_processor_type": "HunYuanVLImageProcessor",
            "min_pixels": 64 * 64,
            "max_pixels": 512 * 512,
            **_HALF,
            "patch_size": 16,
            "temporal_patch_size": 1,
            "merge_size": 2,
        },
        processor={"processor_class": "HunYuanVLProcessor"},
        chat="<im_start><img><im_end>",
    ),
    "minicpmv4_6": Vision(
        config="MiniCPMV4_6Config",
        text=_TEXT | _DELTA | {"model_type": "qwen3_5_text"} | _rotary([3, 3, 2], partial_rotary_factor=0.25),
        vision=_SIGLIP | {"image_size": 980, "patch_size": 14, "insert_layer_id": 0},
        values={"insert_layer_id": 0, "image_size": 448},
        marks={
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "begin": "<image>",
            "end": "</image>",
            "slice": "<slice>",
            "slice_end": "</slice>",
        },
        preprocessor={
            "image_processor_type": "MiniCPMV4_6ImageProcessor",
            "max_slice_nums": 9,
            "scale_resolution": 448,
            "patch_size": 14,
            **_HALF,
        },
        processor={"processor_class": "MiniCPMV4_6Processor"},
        chat="<image><|image_pad|></image>",
    ),
    "janus": Vision(
        config="JanusConfig",
        text=_TEXT | {"model_type": "llama", "head_dim": 64},
        vision=_SIGLIP
        | {"image_size": 112, "patch_size": 14, "mlp_ratio": 2.0, "projection_dim": 256, "num_image_tokens": 64},
        values={
            "vq_config": {
                "base_channels": 32,
                "num_embeddings": 64,
                "latent_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "num_patches": 8,
                "projection_dim": 256,
                "image_token_embed_dim": 256,
            }
        },
        marks={"image_token_id": "<image_placeholder>", "begin": "<begin_of_image>", "end": "<end_of_image>"},
        preprocessor={
            "image_processor_type": "JanusImageProcessor",
            "size": {"height": 112, "width": 112},
            "min_size": 14,
            **_HALF,
        },
        processor={"processor_class": "JanusProcessor"},
        chat="<begin_of_image><image_placeholder><end_of_image>",
    ),
    "muse_glimmer": Vision(
        config="MuseGlimmerConfig",
        text=_TEXT | {"head_dim": 64, "sliding_window": 64},
        vision=_SIGLIP | {"patch_size": 14, "pos_emb_height": 8, "pos_emb_width": 8, "max_position_embeddings": 64},
        values={"out_hidden_size": 256, "projector_hidden_size": 128},
        marks={"image_token_id": "<|patch|>", "video_token_id": "<|video|>", "turn": "<|eot|>"},
        preprocessor={"image_processor_type": "MuseGlimmerImageProcessor", **_PATCHES},
        processor={"processor_class": "MuseGlimmerProcessor"},
        chat="<|patch|>",
    ),
    "gemma4_unified": Vision(
        config="Gemma4UnifiedConfig",
        text=_TEXT | {"num_hidden_layers": 6, "head_dim": 64, "global_head_dim": 128, "sliding_window": 64},
        vision={
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "mm_embed_dim": 64,
            "mm_posemb_size": 128,
            "output_proj_dims": 64,
        },
        values={"audio_config": {"audio_embed_dim": 64}},  # which the converter takes for granted
        marks=_GEMMA4,
        preprocessor={
            "image_processor_type": "Gemma4UnifiedImageProcessor",
            "image_mean": [0.0] * 3,
            "image_std": [1.0] * 3,
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "max_soft_tokens": 140,
        },
        processor={"processor_class": "Gemma4UnifiedProcessor"},
        bytes_vocabulary=False,
        chat="<|image|>",
    ),
    "glm5_next": Vision(
        config="Glm5NextConfig",
        text=_TEXT
        | _ROUTED
        | {"num_key_value_heads": 4, "mlp_layer_types": ["dense", "sparse"], "n_shared_experts": 1}
        | {"layer_types": ["linear_attention", "full_attention"], "linear_head_dim": 64, "linear_num_heads": 4}
        | {"kv_lora_rank": 256, "q_lora_rank": 256, "qk_rope_head_dim": 0, "qk_nope_head_dim": 64, "v_head_dim": 64}
        | {"index_n_heads": 4, "index_head_dim": 64, "index_topk": 128, "index_kpool": 16},
        vision=_GLM_TOWER | {"projection_intermediate_size": 128},
        **_GLM | {"preprocessor": _GLM["preprocessor"] | {"min_image_tokens": 16, "max_image_tokens": 324}},
    ),
    "chameleon": Vision(
        config="ChameleonConfig",
        text=_TEXT | {"num_key_value_heads": 4},  # llama.cpp's converter divides by them for the width of a head
        vision={},
        values={
            "vocabulary_map": {"<image>": 50257, "IMGIMGAAZ": 500, "IMGIMGABZ": 501},
            "vq_config": {
                "embed_dim": 32,
                "num_embeddings": 64,
                "latent_channels": 32,
                "resolution": 64,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
            },
        },
        marks={"image_token_id": "<image>", "begin": "<racm3:break>", "end": "<eoss>"},
        preprocessor={"image_processor_type": "ChameleonImageProcessor"},
        processor={"processor_class": "ChameleonProcessor"},
    ),
    "dots3_note": Vision(
        config="Dots3NoteConfig",
        text=_TEXT
        | _ROUTED
        | {"num_key_value_heads": 4, "head_dim": 96, "mlp_layer_types": ["dense", "sparse"], "n_shared_experts": 1}
        | {"kv_lora_rank": 256, "q_lora_rank": 256, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64, "v_head_dim": 64}
        | {"index_n_heads": 4, "index_head_dim": 64, "index_topk": 128, "shared_experts_intermediate_size": 256}
        | {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"], "sliding_window": 64, **SLIDING},
        vision=_SIGLIP
        | {
            "patch_size": 14,
            "adapter_in_dim": 64,
            "adapter_out_dim": 256,
            "num_local_experts": 2,
            "moe_intermediate_size": 64,
            "mlp_layer_types": ["dense", "sparse"],
        },
        values={
            "audio_config": {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "downsample_hidden_size": 32,
                "adapter_input_size": 64,
                "adapter_out_dim": 256,
            }
        },
        marks={
            "image_token_id": "<|imgpad|>",
            "video_token_id": "<|vidpad|>",
            "audio_token_id": "<|audpad|>",
            "end": "<|endofassistant|>",
        },
        preprocessor={"image_processor_type": "Qwen2VLImageProcessor", **_PATCHES},
        processor={"processor_class": "Dots3NoteProcessor"},
    ),
    "minimax_m3_vl": Vision(
        config="MiniMaxM3VLConfig",
        text=_TEXT
        | {"head_dim": 64, "rotary_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 256}
        | {"dense_intermediate_size": 512, "shared_intermediate_size": 256, "mlp_layer_types": ["dense", "sparse"]}
        | {"index_n_heads": 2, "index_head_dim": 64, "layer_types": ["full_attention", "minimax_m3_sparse"]}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}},
        vision=_SIGLIP
        | {
            "image_size": 112,
            "patch_size": 14,
            "num_hidden_layers": 4,
            "hidden_size": 160,
        },  # heads of 80, as on the Hub; four as InternVL's
        values={"projector_hidden_size": 256},
        marks={"image_token_index": "<image>", "video_token_index": "<video>"},
        preprocessor={"image_processor_type": "MiniMaxM3VLImageProcessor", **_PATCHES},
        processor={"processor_class": "MiniMaxM3VLProcessor"},
    ),
    "step3p7": Vision(
        config="Step3p7Config",
        text=_TEXT
        | {"head_dim": 64, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
        | {"num_local_experts": 4, "share_expert_dim": 256, "sliding_window": 64, "num_sliding_attention_heads": 4}
        | {"layer_types": ["full_attention", "sliding_attention"], "mlp_layer_types": ["dense", "sparse"]}
        | {"rope_theta": [10000.0, 10000.0], "partial_rotary_factors": [0.5, 1.0]},
        vision=_SIGLIP | {"image_size": 112, "patch_size": 14, "mlp_ratio": 2.0},
        marks={"image_token_id": "<im_patch>", "start": "<im_start>", "end": "<im_end>"},
        preprocessor={"image_processor_type": "Step3p7ImageProcessor", **_HALF},
        processor={"processor_class": "Step3p7Processor"},
        chat="<im_patch>",
    ),
}

# Keys that config.json has on the Hub, but not when transformers saves it.
PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma4_unified": {"text_config": {"moe_intermediate_size": None}},
    "dots3_note": {"text_config": DOTS3},
    "glm5_next": {
        "text_config": {
            "mla_use_nope": True,
            "first_k_dense_replace": 1,
            "linear_attn_config": {
                "head_dim": 64,
                "num_heads": 4,
                "short_conv_kernel_size": 4,
                "gate_lower_bound": -5.0,
            },
        }
    },
    "minimax_m3_vl": {
        "text_config": {
            "n_shared_experts": 1,
            "moe_layer_freq": [0, 1],
            "scoring_func": "sigmoid",
            "sparse_attention_config": {
                "sparse_num_index_heads": 2,
                "sparse_index_dim": 64,
                "sparse_topk_blocks": 16,
                "sparse_block_size": 128,
                "sparse_local_block": 1,
                "sparse_attention_freq": [0, 1],
            },
        }
    },
    "step3p7": {
        "text_config": {
            "num_attention_groups": 2,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "moe_layers_enum": "1",
            "moe_every_n_layer": 1,
            "rope_parameters": None,
            "rope_theta": [10000.0, 10000.0],
            "partial_rotary_factors": [0.5, 1.0],
            "attention_other_setting": {"num_attention_heads": 4, "num_attention_groups": 2},
        }
    },
}


def transpose_experts(folder: Path) -> Path:
    """Inputs before outputs, as Qwen3-VL's checkpoints on the Hub; transformers reads both and saves the other."""
    [path] = folder.glob("*.safetensors")
    tensors = load_file(path)
    turned = {name: value.mT.contiguous() for name, value in tensors.items() if ".experts." in name}
    save_file(tensors | turned, path, metadata={"format": "pt"})
    return folder
