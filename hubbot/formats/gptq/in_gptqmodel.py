"""What GPTQModel makes of a model before it reads a weight, in a process of its own: it changes transformers' classes.

`python -m hubbot.formats.gptq.in_gptqmodel FOLDER` writes a `Definition` as JSON on its last line. The steps are those
of GPTQModel 7.7's `from_quantized` (models/loader.py), on the meta device, so that no model is too large.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hubbot.environment import PROCESS
from hubbot.model.empty import auto_class, plain_config
from hubbot.model.foreign import said

PROCESS.setdefault("GPTQMODEL_CPU_WORKERS", "2")

_TOKENS = 8
# What code raises that does not fit; anything else comes of tensors without values, and says nothing.
_MISFITS = (AttributeError, TypeError, KeyError, IndexError)


class _Coded(nn.Module):
    """Stands for a layer of codes: it computes, and has no weight."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.out_features, self.in_features = outputs, inputs

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.new_empty(*rows.shape[:-1], self.out_features)


def describe(folder: Path) -> dict[str, Any]:
    import defuser
    from gptqmodel.models.auto import check_and_get_model_definition
    from gptqmodel.models.loader import _convert_model_with_defuser, check_versions

    config = plain_config(folder)
    definition = check_and_get_model_definition(str(folder))
    check_versions(definition, definition.require_pkgs)
    defuser.replace_fused_blocks(config.model_type)
    with torch.device("meta"):
        model = auto_class(config).from_config(config, dtype=torch.bfloat16, attn_implementation="eager").eval()
    _convert_model_with_defuser(definition, model, cleanup_original=True)
    _try_imports(definition)
    coded = _coded_layers(definition, model, config)
    for path, (outputs, inputs) in coded.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, _Coded(outputs, inputs))
    return {"layers": coded, "tensors": list(model.state_dict()), "fault": _fault(model)}


def _try_imports(definition: Any) -> None:
    """What it changes in transformers when a model is there must be found there. Raises ImportError."""
    try:
        definition.monkey_patch(definition.__new__(definition))
    except ImportError:
        raise
    except Exception:  # noqa: BLE001 - no model is there
        return


def _coded_layers(definition: Any, model: nn.Module, config: Any) -> dict[str, tuple[int, int]]:
    """Path -> outputs and inputs of the layers that it takes codes for."""
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import find_modules

    asked = QuantizeConfig(bits=4, group_size=32)
    with definition._module_tree_context(definition._resolve_effective_module_tree(model, asked)):
        inside = tuple(definition.extract_layers_node())
        outside = (definition.lm_head, *definition.get_base_modules(model))
        ends = tuple(end for together in definition.simple_layer_modules(config, asked) for end in together)
        modules = find_modules(model)
    return {
        path: _size(module)
        for path, module in modules.items()
        if path.startswith(inside) and not path.startswith(outside) and path.endswith(ends)
        if definition.should_quantize_module(model, path, module, asked)
    }


def _size(module: Any) -> tuple[int, int]:
    return (module.nf, module.nx) if hasattr(module, "nf") else tuple(module.weight.shape[:2])


def _fault(model: nn.Module) -> str | None:
    """What a forward pass stops at, for as far as tensors without values go."""
    tokens = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    try:
        with torch.inference_mode():
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    except _MISFITS as error:
        return said(error)
    except Exception:  # noqa: BLE001 - a value was asked for
        return None
    return None


def main(folder: Path) -> None:
    try:
        found = describe(folder)
    except Exception as error:  # noqa: BLE001 - what another library says of a model is the answer
        found = {"layers": {}, "tensors": [], "fault": re.sub(r" \(/[^)]*\)", "", said(error))}  # without paths
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
