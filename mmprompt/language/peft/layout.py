"""What PEFT's two files of a prompt hold: `adapter_config.json`, and `adapter_model.safetensors` in the layout of
each kind. Read and checked here; PEFT itself is not needed, and no pickle is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmprompt.errors import UserError, bad_file, is_count
from mmprompt.files import read_json, read_tensors

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
VECTORS, COLUMNS, ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
PROMPT, P_TUNING, PREFIX, MULTITASK = "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"
KINDS = (PROMPT, P_TUNING, PREFIX, MULTITASK)
CAUSAL, ENCODED = "CAUSAL_LM", "SEQ_2_SEQ_LM"
SAVE_AGAIN = "Save it again with PEFT's save_pretrained."


@dataclass(frozen=True)
class Shape:
    """What a configuration says of the tensors.

    Args:
        kind: PEFT's name of it, one of `KINDS`.
        task_type: `CAUSAL`, `ENCODED` or None.
        n_vectors: n, vectors or keys and values of a block.
        n_copies: how often n vectors stand in the file, 1 or 2; None where it does not say.
        model: the rest of it, num_layers and the like.
    """

    kind: str
    task_type: str | None
    n_vectors: int
    n_copies: int | None
    model: Mapping[str, Any]


def read_shape(folder: Path) -> Shape:
    """What `adapter_config.json` says, as far as a prompt can be read from it.

    Raises:
        UserError: it is missing, broken, or that of something else.
    """
    path = folder / CONFIG
    if not path.is_file():
        inner = min((found.parent.name for found in folder.glob(f"*/{CONFIG}")), default=None)
        advice = "Give a folder that PEFT's save_pretrained wrote." if inner is None else f"Give {folder / inner}."
        raise bad_file(folder, f"holds no {CONFIG}, so it is no prompt of PEFT's", advice)
    config = read_json(path)
    if not isinstance(config, dict):
        raise bad_file(path, "is no JSON object", SAVE_AGAIN)
    kind = config.get("peft_type")
    if kind not in KINDS:
        said = "has no peft_type" if kind is None else f"has the peft_type {str(kind)[:40]!r}"
        raise bad_file(path, f"{said}, but one of {', '.join(KINDS)} was expected", "Give a folder of those.")
    task_type = config.get("task_type")
    if task_type not in (None, CAUSAL, ENCODED):
        problem = f"was trained for {str(task_type)[:40]!r}, but {CAUSAL} or {ENCODED} was expected"
        raise bad_file(path, problem, "Only prompts of models that write text are read.")
    if config.get("modules_to_save"):
        problem = f"keeps modules of the model too (modules_to_save is {str(config['modules_to_save'])[:80]})"
        raise bad_file(path, problem, "Only vectors are read.")
    n_vectors, n_copies = config.get("num_virtual_tokens"), config.get("num_transformer_submodules")
    if not isinstance(n_vectors, int) or not is_count(n_vectors):
        problem = f"num_virtual_tokens is {str(n_vectors)[:40]}, but a whole number of 1 or more was expected"
        raise bad_file(path, problem, SAVE_AGAIN)
    if n_copies is not None and not is_count(n_copies, 2):
        problem = f"num_transformer_submodules is {str(n_copies)[:40]}, but 1 or 2 was expected"
        raise bad_file(path, problem, SAVE_AGAIN)
    return Shape(kind, task_type, n_vectors, n_copies, config)


def read_adapter(folder: Path, shape: Shape) -> dict[str, Tensor]:
    """The tensors by PEFT's names, in float32; of two copies of the vectors the first.

    Returns:
        `VECTORS`: [n, D], or of a prefix [n, J 2 H D/H]; of several tasks too `COLUMNS` [T, n, R] and `ROWS` [T, R, D].
    Raises:
        UserError: they are missing, broken, or of another shape than the configuration says.
    """
    path = folder / TENSORS
    if not path.is_file():
        if (folder / PICKLE).is_file():
            problem = f"holds its tensors as a pickle alone ({PICKLE}), which is never read"
            raise bad_file(folder, problem, "Save it again with PEFT's save_pretrained, which writes safetensors.")
        raise bad_file(folder, f"holds no {TENSORS}", SAVE_AGAIN)
    tensors = read_tensors(path)
    names = (VECTORS, COLUMNS, ROWS) if shape.kind == MULTITASK else (VECTORS,)
    for name in names:
        if name not in tensors:
            raise bad_file(path, f"holds no {name}, which a {shape.kind} prompt has", SAVE_AGAIN)
    unknown = sorted(tensors.keys() - set(names))
    if unknown:
        raise bad_file(
            path, f"holds {unknown[0]}, which no {shape.kind} prompt has", "Give a folder of a prompt alone."
        )
    copies = (1,) if shape.kind == PREFIX else (shape.n_copies,) if shape.n_copies else (1, 2)
    _check_shapes(path, shape.n_vectors, copies, tensors)
    found = {name: value.float() for name, value in tensors.items()}
    found[VECTORS] = found[VECTORS][: shape.n_vectors]
    if shape.kind == MULTITASK:
        found[COLUMNS] = found[COLUMNS][:, : shape.n_vectors]
    return found


def _check_shapes(path: Path, n_vectors: int, copies: tuple[int, ...], tensors: Mapping[str, Tensor]) -> None:
    vectors = tensors[VECTORS]
    n_rows = [n_vectors * n for n in copies]
    if vectors.dim() != 2 or vectors.shape[0] not in n_rows or not vectors.is_floating_point():
        expected = " or ".join(f"[{n}, width]" for n in n_rows)
        raise _bad_shape(path, VECTORS, vectors, f"{expected} for {n_vectors} virtual tokens")
    if COLUMNS not in tensors:
        return
    n_all, width = vectors.shape
    columns, rows = tensors[COLUMNS], tensors[ROWS]
    if columns.dim() != 3 or columns.shape[1] != n_all or 0 in columns.shape or not columns.is_floating_point():
        raise _bad_shape(path, COLUMNS, columns, f"[tasks, {n_all}, rank]")
    of_rows = [columns.shape[0], columns.shape[2], width]
    if list(rows.shape) != of_rows or not rows.is_floating_point():
        raise _bad_shape(path, ROWS, rows, str(of_rows))


def _bad_shape(path: Path, name: str, value: Tensor, expected: str) -> UserError:
    kind = str(value.dtype).removeprefix("torch.")
    problem = f"{name} is {list(value.shape)} of {kind}, but {expected} of floating-point numbers was expected"
    return bad_file(path, problem, SAVE_AGAIN)


def blocks_of(values: Tensor, n_blocks: int, width: int, is_encoder_decoder: bool) -> list[Tensor]:
    """The keys and values [n, width] of each block of a decoder, of rows [n, J width] of a prefix.

    PEFT stores J blocks side by side. Behind an encoder it hands out pairs of them, the second of which it then drops,
    and begins again where they end: block i is given the (2 i mod J)-th.
    """
    stored = values.split(width, dim=1)
    step = 2 if is_encoder_decoder else 1
    return [stored[step * block % len(stored)] for block in range(n_blocks)]


def rows_of(blocks: Sequence[Tensor], is_encoder_decoder: bool) -> Tensor:
    """The rows [n, J width] of a prefix that `blocks_of` takes apart: behind an encoder every other block is empty."""
    spaced = [
        part for block in blocks for part in ((block, torch.zeros_like(block)) if is_encoder_decoder else (block,))
    ]
    return torch.cat(spaced, dim=1)


@dataclass(frozen=True)
class Base:
    """What a configuration says of the frozen model.

    Args:
        base_model_name_or_path: where the model is from, None where it is from nowhere.
        task_type: `CAUSAL` or `ENCODED`.
        num_layers, num_attention_heads: of the model; of a prefix those of its keys and values.
        token_dim: width of a vector; of a prefix that of all heads' keys.
    """

    base_model_name_or_path: str | None
    task_type: str
    num_layers: int
    num_attention_heads: int
    token_dim: int


def config_of(kind: str, base: Base, n_vectors: int, n_tasks: int = 1, rank: int = 1) -> dict[str, Any]:
    """An `adapter_config.json` as PEFT writes it, keys sorted.

    Args:
        kind: PEFT's name of it.
        base: the model.
        n_vectors: n.
        n_tasks: of a multitask prompt.
        rank: of its matrices.
    """
    found: dict[str, Any] = asdict(base) | {
        "auto_mapping": None,
        "inference_mode": True,
        "modules_to_save": None,
        # One copy of the vectors, which PEFT reads as well as two; but its prefixes need an encoder to be named.
        "num_transformer_submodules": 2 if kind == PREFIX and base.task_type == ENCODED else 1,
        "num_virtual_tokens": n_vectors,
        "peft_type": kind,
        "peft_version": None,
        "revision": None,
    }
    if kind == PREFIX:
        found |= {"encoder_hidden_size": base.token_dim, "init_weights": None, "prefix_projection": False}
    else:
        found |= {
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_kwargs": None,
            "tokenizer_name_or_path": None,
        }
    if kind == MULTITASK:
        found |= {
            "num_ranks": rank,
            "num_tasks": n_tasks,
            "prompt_tuning_init_state_dict_path": None,
            "prompt_tuning_init_task": 0,
        }
    return dict(sorted(found.items()))
