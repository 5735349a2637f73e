"""Prompts in PEFT's two files, read; PEFT itself is not needed, and no pickle is read.

PEFT puts its vectors before everything, the start token of the text too; that is what `TEMPLATE` says. What `save_peft`
writes beside its files, template and words of labels, is read too.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from mmprompt.core.file import read_sealed, refuse_other_backbone
from mmprompt.core.header import RESTORE, BackboneFacts
from mmprompt.core.learned import Given, Learned, Prompt, Source
from mmprompt.core.sources import LowRankTerms
from mmprompt.errors import bad_file
from mmprompt.files import read_bytes, read_json, read_tensors, sha256_bytes
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.sources import MultitaskVectors
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.inserts import linear_layers
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import LM_INPUT, Site, vectors_of
from mmprompt.settings import Count, checked, holds, validate
from mmprompt.version import __version__

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SIDE, COMPILED = "mmprompt.json", "mmprompt.safetensors"
VECTORS, COLUMNS, ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
PROMPT, P_TUNING, PREFIX, MULTITASK = "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"
LORA = "LORA"
KINDS = (PROMPT, P_TUNING, PREFIX, MULTITASK, LORA)
CAUSAL, ENCODED = "CAUSAL_LM", "SEQ_2_SEQ_LM"
FORMAT = 1
MAX_BYTES = 2**31

TEMPLATE = "{soft}{bos}{text}{answer}"
"""What PEFT does with a text: vectors, then the text as the tokenizer frames it. Of a prefix, `{soft}` is nothing."""
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
CHANGES_WEIGHTS = ("corda", "loftq", "lora_ga", "olora", "pissa")
"""What initialisations begin with that change the model's own weights: terms so begun belong to the changed ones."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """The content of `mmprompt.json`.

    Args:
        tasks: names of the tasks, where PEFT has numbers.
        holds: of a compiled prompt the slots whose keys and values it holds, as in `Question`; texts follow them
            without start tokens of their own.
        adapter_sha256: of the tensors beside it.
        compiled_sha256: of `mmprompt.safetensors`, the vectors that were compiled; None where none were.
    """

    format: int
    mmprompt: str
    backbone: BackboneFacts
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
    """Load what PEFT wrote: prompt tuning, P-tuning, prefix tuning, multitask prompt tuning or LoRA.

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
        compiled = read_sealed(folder / COMPILED, side.compiled_sha256)
        sources = [Learned(Site.parse(name), values) for name, values in compiled.items()]
    elif config["peft_type"] == LORA:
        sources = [read_terms(folder / TENSORS, model, config, tensors)]
    elif config["peft_type"] == PREFIX:
        sources = _keys_values(folder, model, config, tensors[VECTORS])
    else:
        sources = [Learned(LM_INPUT, _of_width(folder, model, tensors[VECTORS]))]
    vectors = vectors_of(Prompt(Template.parse(TEMPLATE), *sources).inserts("lm")).get(LM_INPUT)
    n_vectors = 0 if vectors is None else vectors.n_vectors
    parsed = Template.parse(template or (TEMPLATE if side is None else side.template))
    n_soft = _n_bare(folder, parsed, n_vectors, model)
    if verbalizer is None and side is not None and side.verbalizer is not None:
        verbalizer = Verbalizer.from_dict(side.verbalizer)
    prompt = Prompt(parsed.with_soft(n_soft), *sources).to(model.device).requires_grad_(False).eval()
    prompted = LanguagePredictor(model, prompt, verbalizer)
    if template is not None and n_vectors and prompted.bound.opening != tuple(range(-1, -1 - n_vectors, -1)):
        _log.warning("PEFT puts its vectors before everything, but this template does not. Begin it with {soft}{bos}.")
    return prompted


def read_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json` and check what a prompt is read by."""
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
        raise bad_file(path, problem, "Only vectors and low-rank terms are read.")
    if kind == LORA:
        check_lora(path, config)
        return config
    numbers = {
        "num_virtual_tokens": (Count, "a whole number of 1 or more"),
        "num_transformer_submodules": (Literal[1, 2] | None, "1 or 2"),
    }
    for name, (kind_of_number, expected) in numbers.items():
        if not holds(config.get(name), kind_of_number):
            raise bad_file(path, f"{name} is {str(config.get(name))[:40]}, but {expected} was expected", SAVE_AGAIN)
    return config


def check_lora(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration of terms that are not plain ones, or without rank or alpha."""
    for name, kind, expected in (
        ("r", Count, "a whole number of 1 or more"),
        ("lora_alpha", Annotated[float, Gt(0)], "a number above 0"),
    ):
        if not holds(config.get(name), kind):
            raise bad_file(path, f"{name} is {str(config.get(name))[:40]}, but {expected} was expected", SAVE_AGAIN)
    more = [name for name in NOT_READ if config.get(name)]
    more += ["bias"] if config.get("bias") not in (None, "none") else []
    for name in more:
        problem = f"{name} is {str(config[name])[:80]}, but only plain low-rank terms of one rank are read"
        raise bad_file(path, problem, "Train it without.")
    start = str(config.get("init_lora_weights"))
    if start.lower().startswith(CHANGES_WEIGHTS):
        problem = f"init_lora_weights is {start[:40]}, which changed the model's own weights before these terms learned"
        advice = "Save it with PEFT's path_initial_model_for_weight_conversion, or train it with another."
        raise bad_file(path, problem, advice)


def read_adapter(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Read the tensors by PEFT's names, in float32; of two copies of the vectors the first.

    `VECTORS` are [n, D], or of a prefix [n, J 2 H D/H]; of several tasks, `COLUMNS` are [T, n, R], `ROWS` [T, R, D].
    """
    path = folder / TENSORS
    if not path.is_file():
        if (folder / PICKLE).is_file():
            problem = f"holds its tensors as a pickle alone ({PICKLE}), which is never read"
            raise bad_file(folder, problem, "Save it again with PEFT's save_pretrained, which writes safetensors.")
        raise bad_file(folder, f"holds no {TENSORS}", SAVE_AGAIN)
    tensors = read_tensors(path)
    if config["peft_type"] == LORA:
        return {name: value.float() for name, value in tensors.items()}
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
    """Read `mmprompt.json`, None where there is none."""
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
    """Return the vectors of all tasks, or of one."""
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
    """Return keys and values by block, from rows [n, J width] that hold those of all blocks.

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


def _n_bare(folder: Path, template: Template, n_vectors: int, model: FrozenLanguageModel) -> int:
    """Count the vectors of a bare `{soft}`, so that the template takes all."""
    n_fixed = template.bind(model.tokenizer, model.start_ids, model.is_encoder_decoder).n_soft
    n_bare = n_vectors - n_fixed
    if n_bare < 0 or (n_bare > 0 and not template.has_bare_soft):
        raise bad_file(
            folder,
            f"holds {n_vectors} vectors among the tokens, but the template has {n_fixed} soft slots",
            "Write {soft} for all of them." if n_vectors else "Write it without.",
        )
    return n_bare
