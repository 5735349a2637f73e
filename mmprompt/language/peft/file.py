"""Prompts that PEFT wrote, read from its own two files; PEFT itself is not needed, and no pickle is read.

PEFT puts its vectors before everything, the start token of the text too; that is what `TEMPLATE` says. What `save_peft`
writes beside its files, template and words of labels, is read too.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmprompt.core.file import refuse_other_backbone
from mmprompt.core.header import RESTORE
from mmprompt.core.learned import Given, Learned, Prompt, Source
from mmprompt.data.strict_yaml import validate
from mmprompt.errors import bad_file
from mmprompt.files import read_bytes, read_json, read_tensors, sha256_bytes
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.sources import MultitaskVectors
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.vectors import LM_INPUT
from mmprompt.models.sites import Site
from mmprompt.settings import Count, checked, holds
from mmprompt.version import __version__

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SIDE, COMPILED = "mmprompt.json", "mmprompt.safetensors"
VECTORS, COLUMNS, ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
PROMPT, P_TUNING, PREFIX, MULTITASK = "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"
KINDS = (PROMPT, P_TUNING, PREFIX, MULTITASK)
CAUSAL, ENCODED = "CAUSAL_LM", "SEQ_2_SEQ_LM"
FORMAT = 1
MAX_BYTES = 2**31

TEMPLATE = "{soft}{bos}{text}{answer}"
"""What PEFT does with a text: vectors, then the text as the tokenizer frames it. Of a prefix, `{soft}` is nothing."""
SAVE_AGAIN = "Save it again with PEFT's save_pretrained."
OTHER_MODEL = "Load it with the model that it was trained on."
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """The frozen model, as in a prompt file."""

    name: str
    fingerprint: str
    transform: str


@dataclass(frozen=True)
class Side:
    """The content of `mmprompt.json`.

    Args:
        format: of this file.
        mmprompt: the version that wrote it.
        backbone: the frozen model.
        template: with the number of its vectors.
        verbalizer: the words of each label.
        tasks: names of the tasks, where PEFT has numbers.
        holds: of a compiled prompt the slots whose keys and values it holds, as in `Question`; texts follow them
            without start tokens of their own.
        adapter_sha256: of the tensors beside it.
        compiled_sha256: of `mmprompt.safetensors`, the vectors that were compiled; None where none were.
    """

    format: int
    mmprompt: str
    backbone: Backbone
    template: str
    verbalizer: dict[str, Any] | None
    tasks: list[str]
    holds: list[int]
    adapter_sha256: str
    compiled_sha256: str | None


@checked
def load_peft(
    folder: Path | str,
    model: FrozenLanguageModel | str,
    template: str | None = None,
    verbalizer: Verbalizer | None = None,
    task: str | int | None = None,
) -> LanguagePredictor:
    """Load a prompt that PEFT wrote: prompt tuning, P-tuning, prefix tuning or multitask prompt tuning.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        model: the frozen model or its name.
        template: by default the one that `save_peft` kept, else `TEMPLATE`.
        verbalizer: by default the one that `save_peft` kept, else none.
        task: which task of a multitask prompt, by number or name; by default all, and rows name theirs ("0", "1", ...
            where PEFT wrote them).
    Raises:
        UserError: files are missing or broken, of another kind, or do not fit the model or the template.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = read_adapter(folder, config)
    side = read_side(folder)
    model = load_language_model(model) if isinstance(model, str) else model
    if side is not None:
        refuse_other_backbone(folder, asdict(side), model)
    expected = ENCODED if model.is_encoder_decoder else CAUSAL
    if config.get("task_type") not in (None, expected):
        problem = f"is a prompt for {config['task_type']}, but {model.name} is a model for {expected}"
        raise bad_file(folder, problem, OTHER_MODEL)
    if config["peft_type"] == MULTITASK:
        sources: list[Source] = _multitask(folder, model, config, tensors, side, task)
    elif task is not None:
        raise bad_file(folder, f"is a prompt of one task, but the task {task!r} was asked for", "Leave the task out.")
    elif side is not None and side.compiled_sha256 is not None:
        if sha256_bytes(read_bytes(folder / COMPILED, MAX_BYTES)) != side.compiled_sha256:
            raise bad_file(folder / COMPILED, "was changed after it was saved (its hash does not match)", RESTORE)
        compiled = read_tensors(folder / COMPILED)
        sources = [Learned(Site.parse(name), values) for name, values in compiled.items()]
    elif config["peft_type"] == PREFIX:
        sources = _keys_values(folder, model, config, tensors[VECTORS])
    else:
        sources = [Learned(LM_INPUT, _of_width(folder, model, tensors[VECTORS]))]
    vectors = Prompt(Template.parse(TEMPLATE), *sources).inserts("lm").get(LM_INPUT)
    n_vectors = 0 if vectors is None else vectors.tensors[0].shape[-2]
    parsed = Template.parse(template or (TEMPLATE if side is None else side.template))
    n_soft = _n_bare(folder, parsed, n_vectors, model)
    if verbalizer is None and side is not None and side.verbalizer is not None:
        verbalizer = Verbalizer.from_dict(side.verbalizer)
    prompt = Prompt(parsed.with_soft(n_soft), *sources).to(model.device).requires_grad_(False)
    prompted = LanguagePredictor(model, prompt, verbalizer)
    if template is not None and n_vectors and prompted.bound.opening != tuple(range(-1, -1 - n_vectors, -1)):
        _log.warning("PEFT puts its vectors before everything, but this template does not. Begin it with {soft}{bos}.")
    return prompted


def read_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json` and check what a prompt is read by.

    Raises:
        UserError: it is missing, broken, or that of something else.
    """
    path = folder / CONFIG
    if not path.is_file():
        inner = min((place.parent.name for place in folder.glob(f"*/{CONFIG}")), default=None)
        advice = "Give a folder that PEFT's save_pretrained wrote." if inner is None else f"Give {folder / inner}."
        raise bad_file(folder, f"holds no {CONFIG}, so it is no prompt of PEFT's", advice)
    config = read_json(path)
    if not isinstance(config, dict):
        raise bad_file(path, "is no JSON object", SAVE_AGAIN)
    kind, task_type, modules = (config.get(name) for name in ("peft_type", "task_type", "modules_to_save"))
    if kind not in KINDS:
        said = "has no peft_type" if kind is None else f"has the peft_type {str(kind)[:40]!r}"
        raise bad_file(path, f"{said}, but one of {', '.join(KINDS)} was expected", "Give a folder of those.")
    if task_type not in (None, CAUSAL, ENCODED):
        problem = f"was trained for {str(task_type)[:40]!r}, but {CAUSAL} or {ENCODED} was expected"
        raise bad_file(path, problem, "Only prompts of models that write text are read.")
    if modules:
        problem = f"keeps modules of the model too (modules_to_save is {str(modules)[:80]})"
        raise bad_file(path, problem, "Only vectors are read.")
    n_vectors, n_copies = config.get("num_virtual_tokens"), config.get("num_transformer_submodules")
    if not holds(n_vectors, Count):
        problem = f"num_virtual_tokens is {str(n_vectors)[:40]}, but a whole number of 1 or more was expected"
        raise bad_file(path, problem, SAVE_AGAIN)
    if not holds(n_copies, Literal[1, 2] | None):
        problem = f"num_transformer_submodules is {str(n_copies)[:40]}, but 1 or 2 was expected"
        raise bad_file(path, problem, SAVE_AGAIN)
    return config


def read_adapter(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Read the tensors by PEFT's names, in float32; of two copies of the vectors the first.

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
    kind, n, n_copies = config["peft_type"], config["num_virtual_tokens"], config.get("num_transformer_submodules")
    names = (VECTORS, COLUMNS, ROWS) if kind == MULTITASK else (VECTORS,)
    for name in names:
        if name not in tensors:
            raise bad_file(path, f"holds no {name}, which a {kind} prompt has", SAVE_AGAIN)
    for name in sorted(tensors.keys() - set(names)):
        raise bad_file(path, f"holds {name}, which no {kind} prompt has", "Give a folder of a prompt alone.")

    def check(name: str, expected: str, is_fit: bool) -> None:
        sizes, dtype = list(tensors[name].shape), tensors[name].dtype
        if not is_fit or 0 in sizes or not dtype.is_floating_point:
            has = f"{name} is {sizes} of {str(dtype).removeprefix('torch.')}"
            raise bad_file(path, f"{has}, but {expected} of floating-point numbers was expected", SAVE_AGAIN)

    vectors = tensors[VECTORS]
    n_rows = [n * copy for copy in ((1,) if kind == PREFIX else (n_copies,) if n_copies else (1, 2))]
    expected = " or ".join(f"[{n}, width]" for n in n_rows)
    check(VECTORS, f"{expected} for {n} virtual tokens", vectors.dim() == 2 and vectors.shape[0] in n_rows)
    if kind == MULTITASK:
        columns, (n_all, width) = tensors[COLUMNS], vectors.shape
        check(COLUMNS, f"[tasks, {n_all}, rank]", columns.dim() == 3 and columns.shape[1] == n_all)
        shape = [columns.shape[0], columns.shape[2], width]
        check(ROWS, f"{shape}", list(tensors[ROWS].shape) == shape)
        tensors[COLUMNS] = columns[:, :n]
    tensors[VECTORS] = vectors[:n]
    return {name: value.float() for name, value in tensors.items()}


def read_side(folder: Path) -> Side | None:
    """Read `mmprompt.json`, None where there is none.

    Raises:
        UserError: it is broken, of a newer format, or of other tensors.
    """
    path = folder / SIDE
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise bad_file(path, "is no JSON object", RESTORE)
    side = validate(Side, content, path)
    if side.format > FORMAT:
        problem = f"has format {side.format}, but this mmprompt {__version__} reads up to {FORMAT}"
        raise bad_file(path, problem, "Upgrade mmprompt.")
    if sha256_bytes(read_bytes(folder / TENSORS, MAX_BYTES)) != side.adapter_sha256:
        problem = f"was written with another {TENSORS} than the one beside it"
        raise bad_file(path, problem, "Restore the folder as it was saved, or remove this file.")
    return side


def _of_width(folder: Path, model: FrozenLanguageModel, values: Tensor) -> Tensor:
    if values.shape[1] != model.width:
        problem = f"its vectors are {values.shape[1]} wide, but those of {model.name} are {model.width}"
        raise bad_file(folder, problem, OTHER_MODEL)
    return values


def _multitask(
    folder: Path,
    model: FrozenLanguageModel,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    side: Side | None,
    task: str | int | None,
) -> list[Source]:
    """The vectors of all tasks, or of one."""
    values, columns, rows = _of_width(folder, model, tensors[VECTORS]), tensors[COLUMNS], tensors[ROWS]
    names = [str(number) for number in range(len(columns))] if side is None else side.tasks
    if len(names) != len(columns):
        raise bad_file(folder / SIDE, f"names {len(names)} tasks, but there are {len(columns)}", "Name each.")
    if model.is_encoder_decoder and config.get("num_transformer_submodules") != 1:
        _log.warning(
            "PEFT trains %d vectors before the decoder's tokens too, but generates without them; they are left out. "
            "Scores of labels differ from those of PEFT's forward, and saved again the prompt has lost them.",
            len(values),
        )
    source = MultitaskVectors.of(names, values, columns, rows)
    if task is None:
        return [source]
    name = names[task] if isinstance(task, int) and 0 <= task < len(names) else str(task)
    (vectors,) = source(Given(task=name)).values()
    return [Learned(LM_INPUT, vectors.tensors[0])]


def _keys_values(folder: Path, model: FrozenLanguageModel, config: dict[str, Any], values: Tensor) -> list[Source]:
    """Keys and values by block, from rows [n, J width] that hold those of all blocks.

    Behind an encoder PEFT hands out pairs of the J stored blocks, the second of which it then drops, and begins again
    where they end: block i is given the (2 i mod J)-th, so any J will do.
    """
    if model.kv_shape is None:
        raise bad_file(folder, f"holds keys and values, but {model.name} takes none", OTHER_MODEL)
    is_encoded = model.is_encoder_decoder
    if is_encoded and config.get("num_transformer_submodules") == 1:
        problem = (
            "was trained with num_transformer_submodules 1, by which PEFT hides the encoder's text from the decoder"
        )
        raise bad_file(folder, problem, "Only prefixes with 2, PEFT's default here, are read.")
    n_layers, n_heads, head_width = model.kv_shape
    width, n_numbers = 2 * n_heads * head_width, values.shape[1]
    own = {"num_attention_heads": n_heads, "token_dim": n_heads * head_width}
    own |= {} if is_encoded else {"num_layers": n_layers}
    other = next((name for name in own if config.get(name) not in (None, own[name])), None)
    if other is not None or (n_numbers % width != 0 if is_encoded else n_numbers != n_layers * width):
        said = f"of {n_numbers} numbers" if other is None else f"of {other} {str(config[other])[:40]}"
        problem = (
            f"holds keys and values {said}, but {model.name} takes {n_layers * width} numbers: "
            f"{n_layers} blocks, {n_heads} heads of width {head_width}, keys and values"
        )
        raise bad_file(folder, problem, OTHER_MODEL)
    blocks = values.split(width, dim=1)
    step = 2 if is_encoded else 1
    return [Learned(Site("lm.kv", layer), blocks[step * layer % len(blocks)]) for layer in range(n_layers)]


def _n_bare(folder: Path, template: Template, n_vectors: int, model: FrozenLanguageModel) -> int:
    """Count the vectors of a bare `{soft}`, so that the template takes all."""
    n_fixed = template.bind(model.tokenizer, model.start_ids, 0, model.is_encoder_decoder).n_soft
    n_bare = n_vectors - n_fixed
    if n_bare < 0 or (n_bare > 0 and not template.has_bare_soft):
        raise bad_file(
            folder,
            f"holds {n_vectors} vectors among the tokens, but the template has {n_fixed} soft slots",
            "Write {soft} for all of them." if n_vectors else "Write it without.",
        )
    return n_bare
