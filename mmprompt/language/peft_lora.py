"""Low-rank terms in PEFT's two files: their configuration, and their tensors by the names of the model's layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor

from mmprompt.core.learned import Prompt
from mmprompt.core.sources import LowRankTerms
from mmprompt.errors import UserError, bad_file
from mmprompt.models.decoder.inserts import linear_layers
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import LowRank, low_rank_of
from mmprompt.settings import Count, holds

LORA = "LORA"
SAVE_AGAIN = "Save it again with PEFT's save_pretrained."
OTHER_MODEL = "Load it with the model that it was trained on."
NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
NOT_READ = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
"""Settings by which PEFT's terms are more than plain ones of one rank."""


def check_lora(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration of terms that are not plain ones, or without rank or alpha."""
    for name, kind, expected in (
        ("r", Count, "a whole number of 1 or more"),
        ("lora_alpha", Alpha, "a number above 0"),
    ):
        if not holds(config.get(name), kind):
            raise bad_file(path, f"{name} is {str(config.get(name))[:40]}, but {expected} was expected", SAVE_AGAIN)
    more = [name for name in NOT_READ if config.get(name)]
    more += ["bias"] if config.get("bias") not in (None, "none") else []
    for name in more:
        problem = f"{name} is {str(config[name])[:80]}, but only plain low-rank terms of one rank are read"
        raise bad_file(path, problem, "Train it without.")


Alpha = Annotated[float, Gt(0)]


def read_terms(
    path: Path, model: FrozenLanguageModel, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> LowRankTerms:
    """Make low-rank terms of PEFT's tensors, which must be those of this model; `path` is that of their file."""
    rank, layers = config["r"], linear_layers(model.lm)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in sorted(tensors.items()):
        match = NAME.fullmatch(name)
        if match is None:
            raise bad_file(path, f"holds {name}, which no plain LoRA has", "Give a folder of low-rank terms alone.")
        parts.setdefault(match["layer"], {})[match["side"]] = value
    for layer, pair in parts.items():
        if layer not in layers:
            raise bad_file(path, f"holds terms of {layer}, which is no linear layer of {model.name}", OTHER_MODEL)
        n_in, n_out = layers[layer]
        found = {side: list(value.shape) for side, value in pair.items()}
        if found != {"A": [rank, n_in], "B": [n_out, rank]}:
            expected = f"A of [{rank}, {n_in}] and B of [{n_out}, {rank}]"
            raise bad_file(path, f"holds for {layer} {found}, but {model.name} takes {expected}", OTHER_MODEL)
    if not parts:
        raise bad_file(path, "holds no low-rank terms", SAVE_AGAIN)
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    terms = LowRankTerms({f"lm.part[{name}]": list(layers[name]) for name in parts}, rank, scale)
    with torch.no_grad():
        for a, b, pair in zip(terms.a, terms.b, parts.values(), strict=True):
            a.copy_(pair["A"])
            b.copy_(pair["B"])
    return terms


def terms_of(prompt: Prompt) -> dict[str, LowRank]:
    """Return a prompt's terms, of one rank and scale, by the name of the layer that each stands beside."""
    inserts = prompt.inserts()
    terms = {site.part: term for site, term in low_rank_of(inserts).items()}
    if not terms or any(site.part and site.part not in terms for site in inserts):
        raise UserError("this prompt has no low-rank terms alone at the model's layers, but PEFT's LoRA has. Use save.")
    if len({(len(term.a), term.scale) for term in terms.values()}) > 1:
        raise UserError("the low-rank terms of this prompt differ in rank or scale, but PEFT's LoRA has one. Use save.")
    return terms


def lora_content(prompt: Prompt, model: FrozenLanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Lay out a prompt's low-rank terms as PEFT does; see `terms_of` for what is refused."""
    terms = terms_of(prompt)
    first = next(iter(terms.values()))
    rank = len(first.a)
    config = {
        **dict.fromkeys(("auto_mapping", "modules_to_save", "peft_version", "revision")),
        "base_model_name_or_path": model.lm.name_or_path or None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": first.scale * rank,
        "lora_dropout": 0.0,
        "peft_type": LORA,
        "r": rank,
        "target_modules": sorted(terms),
        "task_type": "SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM",
    }
    tensors = {f"base_model.model.{name}.lora_A.weight": term.a.detach() for name, term in terms.items()}
    tensors |= {f"base_model.model.{name}.lora_B.weight": term.b.detach() for name, term in terms.items()}
    return config, tensors
