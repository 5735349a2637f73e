"""Copies of a language model whose weights learn: LoRA, bottleneck adapters, or all of them.

They are what prompts are compared with, and LoRA can be learned together with a prompt. The frozen model stays as it
is; LoRA itself is PEFT's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprompt.errors import UserError, bad_file
from mmprompt.files import make_folder, read_json, read_tensors, tensor_bytes, write_bytes, write_json
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.settings import Count, check_settings

PEFT_START = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Lora:
    """Matrices of low rank beside every linear layer of the blocks (Hu et al. 2022, "LoRA")."""

    rank: Count = 8
    """Rank of the matrices."""
    alpha: Count = 16
    """They are scaled by alpha / rank."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Adapters:
    """A small network behind every block (Houlsby et al. 2019; one a block as Pfeiffer et al. 2021)."""

    width: Count = 16
    """Width of the bottleneck."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class FullTuning:
    """All weights of the model."""


Tuning = Lora | Adapters | FullTuning


@dataclass(frozen=True)
class TunedModel:
    """A copy of a frozen model with weights that learn.

    Args:
        model: the copy; it is asked like every other.
        tuning: what learns.
        weights: what learns, by name.
    """

    model: FrozenLanguageModel
    tuning: Tuning
    weights: Mapping[str, nn.Parameter]

    def module(self) -> nn.Module:
        """Return the learning weights as a module of their own, for the loop."""
        return nn.ParameterDict({name.replace(".", "/"): weight for name, weight in self.weights.items()})

    def finish(self) -> None:
        """End the learning: the copy is known by what its weights are now."""
        self.model.lm.requires_grad_(False)
        self.model.fingerprint = self.model.compute_fingerprint()

    def tensors(self) -> dict[str, Tensor]:
        """Return the learned tensors by name."""
        return {name: weight.detach() for name, weight in self.weights.items()}


class Bottleneck(nn.Module):
    """Down, a nonlinearity, and up again, added to what went in; nothing before it learns."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Act as a hook behind a block, whose output is a tensor or begins with one."""
        x = output[0] if isinstance(output, tuple) else output
        x = x + self.up(torch.nn.functional.gelu(self.down(x)))
        return (x, *output[1:]) if isinstance(output, tuple) else x


def tuned_copy(model: FrozenLanguageModel, tuning: Tuning) -> TunedModel:
    """Copy a model, with new weights that learn or all of them; its answers are the model's own at first.

    Raises:
        UserError: LoRA without peft, or a model whose blocks are not found.
    """
    lm = copy.deepcopy(model.lm)
    if isinstance(tuning, Lora):
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise UserError('LoRA needs peft. Install it: pip install "mmprompt[llm]".') from None
        head = lm.get_output_embeddings()
        linear = ("Linear", "Conv1D")  # GPT-2's linear layers are transformers' Conv1D
        targets = [name for name, part in lm.named_modules() if type(part).__name__ in linear and part is not head]
        inject_adapter_in_model(LoraConfig(r=tuning.rank, lora_alpha=tuning.alpha, target_modules=targets), lm)
        lm.to(next(lm.parameters()).device)
    elif isinstance(tuning, Adapters):
        config = lm.config.get_text_config()
        counts = {config.num_hidden_layers, getattr(config, "num_decoder_layers", None)}
        lists = [part for part in lm.modules() if isinstance(part, nn.ModuleList) and len(part) in counts]
        if not lists:
            raise UserError(f"the blocks of a {type(lm).__name__} are not found, so it takes no adapters. Use LoRA.")
        first = next(lm.parameters())
        for block in (block for part in lists for block in part):
            adapter = Bottleneck(config.hidden_size, tuning.width).to(first.device, first.dtype)
            block.add_module("mmprompt_adapter", adapter)
            block.register_forward_hook(adapter.forward)
    else:
        lm.requires_grad_(True)
    weights = {name: weight for name, weight in lm.named_parameters() if weight.requires_grad}
    return TunedModel(FrozenLanguageModel(model.name, lm, model.tokenizer), tuning, weights)


def write_lora(tuned: TunedModel, folder: Path) -> None:
    """Write LoRA's matrices as a folder that PEFT reads."""
    assert isinstance(tuned.tuning, Lora), "the others have no such folder"
    from peft import get_peft_model_state_dict

    folder = make_folder(folder)
    state = get_peft_model_state_dict(tuned.model.lm)
    config = {
        "base_model_name_or_path": tuned.model.name,
        "inference_mode": True,
        "lora_alpha": tuned.tuning.alpha,
        "peft_type": "LORA",
        "r": tuned.tuning.rank,
        "target_modules": sorted({name.split(".lora_")[0] for name in state}),
        "task_type": "SEQ_2_SEQ_LM" if tuned.model.is_encoder_decoder else "CAUSAL_LM",
    }
    tensors = {PEFT_START + name: value.contiguous() for name, value in state.items()}
    write_bytes(folder / WEIGHTS, tensor_bytes(tensors))
    write_json(folder / CONFIG, config)


def read_lora(folder: Path, model: FrozenLanguageModel) -> TunedModel:
    """Copy a model with LoRA's matrices of a folder of `write_lora`, which must fit it."""
    config = read_json(folder / CONFIG)
    tuned = tuned_copy(model, Lora(config["r"], config["lora_alpha"]))
    state = {name.removeprefix(PEFT_START): value for name, value in read_tensors(folder / WEIGHTS).items()}
    named = {name.replace(".default.", "."): weight for name, weight in tuned.weights.items()}
    if named.keys() != state.keys() or any(named[name].shape != state[name].shape for name in named):
        raise bad_file(folder / WEIGHTS, f"does not fit {model.name}", "Load it with the model it was learned on.")
    with torch.no_grad():
        for name, weight in named.items():
            weight.copy_(state[name])
    tuned.finish()
    return tuned


def describe(tuning: Tuning) -> dict[str, Any]:
    """Describe it for a file, JSON-ready."""
    return {"kind": type(tuning).__name__, **asdict(tuning)}
