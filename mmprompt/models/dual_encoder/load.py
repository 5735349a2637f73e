"""Names of backbones, and what `load_backbone` makes of them.

    tiny                               the embedded default, for drawings
    photo, photo-small                 for photographs; their parts are fetched once
    open_clip:ARCHITECTURE/TAG         an open_clip model with published weights
    open_clip:ARCHITECTURE//FILE       an open_clip model with a checkpoint of your own
    open_clip:hf-hub:OWNER/NAME        an open_clip model on the hub
    hf:NAME                            a transformers CLIPModel or SiglipModel, by name or folder
    timm:NAME                          an image tower of timm alone, with published weights
    timm:NAME//FILE                    the same with a checkpoint of your own
    timm:hf-hub:OWNER/NAME             an image tower on the hub
    FOLDER                             a folder of any of these libraries

Loading itself is the libraries' own; this module turns what goes wrong there into one line.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.files import read_json
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.frozen import LoadOptions
from mmprompt.models.packaged import PHOTOS, find_packaged
from mmprompt.progress import doing
from mmprompt.quiet import quiet
from mmprompt.settings import checked, expanded

if TYPE_CHECKING:
    from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder

ASSETS = Path(__file__).parents[2] / "assets"
TINY = ASSETS / "tiny"
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOADERS = {
    "captioner": ("mmprompt.captioning.readers.load", "load_captioner"),
    "language-model": ("mmprompt.models.decoder.load", "load_language_model"),
}
"""By kind of model, what loads it: each a room's own, imported when it is asked for."""
MODEL_OF: dict[str, Any] = {"classification": "dual-encoder", "captioning": "captioner", "language": "language-model"}
"""By kind of run, the kind of model that it is learned on."""
FORMS = (
    "Use tiny, photo, photo-small, open_clip:ARCHITECTURE/TAG, open_clip:ARCHITECTURE//FILE, hf:NAME, timm:NAME or a "
    "folder."
)
_one_at_a_time = threading.RLock()
"""Of the models that are loaded: what is set meanwhile is set for the whole process."""


@dataclass(frozen=True)
class Source:
    """Where a backbone comes from, in the words of the library that loads it.

    `model` is an architecture, folder or hub name and `weights` a tag or file, None where the model brings its own.
    `place` is the local file or folder that holds the weights, None where they come from the hub.
    """

    library: Literal["open_clip", "transformers", "timm"]
    model: str
    weights: str | None = None
    place: Path | None = None


@overload
def load_backbone(
    name: str | Path = ...,
    device: str = ...,
    dtype: str = ...,
    cache_dir: str | Path | None = ...,
    trust_remote_code: bool = ...,
    kind: Literal["dual-encoder"] = ...,
) -> DualEncoder: ...


@overload
def load_backbone(
    name: str | Path = ...,
    device: str = ...,
    dtype: str = ...,
    cache_dir: str | Path | None = ...,
    trust_remote_code: bool = ...,
    *,
    kind: Literal["captioner", "language-model"],
) -> Any: ...


@checked
def load_backbone(
    name: str | Path = "tiny",
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    kind: Literal["dual-encoder", "captioner", "language-model"] = "dual-encoder",
) -> Any:
    """Load a frozen dual encoder, or an image tower alone: evaluation mode, no weight with a gradient.

    Args:
        name: one of the forms at the top of this file.
        device: `"auto"` takes cuda, then mps, then cpu; else a torch device.
        dtype: `"auto"` is float32; `"float64"` everywhere but on mps; `"bfloat16"`, `"float16"` on accelerators.
        cache_dir: where downloads are kept, instead of the libraries' own folders.
        trust_remote_code: whether code that a model brings along may run.
        kind: the others are what `load_captioner` and `load_language_model` load by the same settings.
    Raises:
        UserError: no such name, weights that are not there, or a model with parts that are not known.
    """
    if kind in LOADERS:
        module, function = LOADERS[kind]
        return getattr(import_module(module), function)(name, device, dtype, cache_dir, trust_remote_code)
    name = str(name)
    source = find_source(name)
    options = read_options(device, dtype, cache_dir, trust_remote_code)
    with doing(f"loading {name}"), one_line_errors(name, source, options.cache_dir):
        backbone = _load(name, source, options)
    backbone.cache_dir = options.cache_dir
    return backbone


def _load(name: str, source: Source, options: LoadOptions) -> FrozenDualEncoder:
    """Have the library of a source load it."""
    if source.library == "open_clip":
        from mmprompt.models.dual_encoder.open_clip import load_open_clip

        return load_open_clip(name, source.model, source.weights, options)
    if source.library == "timm":
        from mmprompt.models.dual_encoder.timm_models import load_timm

        return load_timm(name, source.model, source.weights, options)
    from mmprompt.models.dual_encoder.transformers_clip import load_transformers

    return load_transformers(name, source.model, options)


def load_again(name: str, fingerprint: str, device: str, dtype: str, cache_dir: str | None = None) -> DualEncoder:
    """Load the frozen model of a pickle, which must have its weights; the arguments are its own attributes."""
    backbone = load_backbone(name, device, dtype, cache_dir)
    if backbone.fingerprint != fingerprint:
        problem = f"has other weights ({backbone.fingerprint[:12]}) than were pickled with ({fingerprint[:12]})"
        raise bad_file(name, problem, "Put the weights back, or train on these.")
    return backbone


def read_options(device: str, dtype: str, cache_dir: str | Path | None, trust_remote_code: bool) -> LoadOptions:
    """Read what a user says of loading; the arguments are those of `load_backbone`."""
    place = _choose_device(device)
    cache = None if cache_dir is None else str(cache_dir)
    return LoadOptions(place, _choose_dtype(dtype, place), cache, trust_remote_code)


@contextlib.contextmanager
def one_line_errors(name: str, source: Source, cache_dir: str | None) -> Iterator[None]:
    """Turn whatever a library raises while it loads into one line, and hold its own warnings and log lines back.

    Where nobody said whether code of a model may run, transformers asks on the terminal, also for a model that another
    one names; with no time to answer it refuses.
    """
    from transformers import dynamic_module_utils

    with _one_at_a_time:
        disabled, time_to_answer = logging.root.manager.disable, dynamic_module_utils.TIME_OUT_REMOTE_CODE
        logging.disable(logging.ERROR)
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
        try:
            with quiet():
                yield
        except (UserError, ImportError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the libraries raise a dozen kinds for a missing or damaged file
            raise _not_loaded(name, source, cache_dir, error) from None
        finally:
            logging.disable(disabled)
            dynamic_module_utils.TIME_OUT_REMOTE_CODE = time_to_answer


def list_backbones() -> list[str]:
    """List the names that can be loaded without a path: ours, and open_clip's published dual encoders."""
    import open_clip

    names = []
    for architecture, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(architecture) or {}
        text = config.get("text_cfg", {}).get("hf_model_name")
        if "multimodal_cfg" not in config and (text is None or "roberta" in text):  # no other is read
            names.append(f"open_clip:{architecture}/{tag}")
    return ["tiny", *PHOTOS, *names]


def find_source(name: str) -> Source:
    """Read a backbone's name, which must have one of the known forms and name what is there."""
    if name == "tiny":
        return folder_source(TINY)
    if name in PHOTOS:
        return folder_source(find_packaged(name))
    if name.startswith("open_clip:"):
        return _open_clip_source(name.removeprefix("open_clip:"))
    if name.startswith("timm:"):
        return _timm_source(name.removeprefix("timm:"))
    model = name.removeprefix("hf:")
    folder = expanded(model)
    if folder.is_dir():
        return folder_source(folder)
    if model != name:
        return Source("transformers", model)
    if folder.is_file():
        raise bad_file(name, "is a file without an architecture", f"Use open_clip:ARCHITECTURE//{name}.")
    if re.fullmatch(r"[\w-]+/[\w.]+-[\w.-]+", name):  # OWNER/NAME, as on the hub
        raise UserError(f"there is no backbone or folder {name!r}. Did you mean 'hf:{name}'? {FORMS}")
    known, published = list_backbones(), f"open_clip:{name.replace('/', '-')}/openai"
    hint = nearest(published if published in known else name, known)
    raise UserError(f"there is no backbone or folder {name!r}. {hint} {FORMS}")


def folder_source(folder: Path) -> Source:
    """Tell by its configuration file which library a folder belongs to."""
    if (folder / "open_clip_config.json").is_file():
        return Source("open_clip", f"local-dir:{folder}", place=folder)
    if (folder / "config.json").is_file():
        settings = read_json(folder / "config.json")
        if not isinstance(settings, dict):
            raise bad_file(folder / "config.json", "is no JSON object", "Give a complete model folder.")
        if "architecture" in settings and "model_type" not in settings:
            return Source("timm", f"local-dir:{folder}", place=folder)
        return Source("transformers", str(folder), place=folder)
    raise bad_file(
        folder,
        "holds neither open_clip_config.json nor config.json" if folder.is_dir() else "is not there",
        "Give a folder as open_clip, transformers or timm save one.",
    )


def _timm_source(model: str) -> Source:
    """Read what follows `timm:`."""
    import timm

    if model.startswith("hf-hub:"):
        return Source("timm", model)
    if expanded(model).is_dir():
        return folder_source(expanded(model))
    name, _, file = model.partition("//")
    if "/" in name:
        raise bad_file(name, "is not there", "Give a folder as timm saves one; for the hub, timm:hf-hub:OWNER/NAME.")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models(), "timm.list_models() names them.")
        raise UserError(f"timm has no model {architecture!r}. {near}")
    if file:
        for path in (expanded(file), Path("/", file)):  # NAME//file beside us, and NAME//abs/file
            if path.is_file():
                return Source("timm", name, str(path), place=path)
        raise bad_file(file, "is not there", "Give the path of a safetensors or weights-only checkpoint.")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown_name(f"pretrained tag of {architecture}", tag, tags)
    if not tag and not timm.list_pretrained(architecture) and not tags:
        raise UserError(f"timm:{name} has no published weights. Use timm:{name}//path/to/weights.safetensors.")
    return Source("timm", name)


def _open_clip_source(model: str) -> Source:
    """Read what follows `open_clip:`."""
    import open_clip

    if model.startswith("hf-hub:"):
        return Source("open_clip", model)
    architecture, _, weights = model.partition("/")
    if architecture not in open_clip.list_models():
        raise UserError(
            f"open_clip has no architecture {architecture!r}. {nearest(architecture, open_clip.list_models())}"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights in tags:
        return Source("open_clip", architecture, weights)
    for file in (weights, weights.lstrip("/")):  # ARCH//abs/file, and ARCH//file beside us
        path = expanded(file)
        if path.is_file():
            return Source("open_clip", architecture, str(path), place=path)
    if "/" in weights or Path(weights).suffix in (".safetensors", ".pt", ".pth", ".bin"):
        raise bad_file(weights, "is not there", "Give the path of a safetensors or weights-only checkpoint.")
    if weights:
        raise unknown_name(f"pretrained tag of {architecture}", weights, tags)
    raise UserError(
        f"open_clip:{architecture} names no weights. Published tags: {', '.join(tags) or 'none'}. "
        f"Use open_clip:{architecture}/TAG or open_clip:{architecture}//path/to/weights.safetensors."
    )


def nearest(name: str, known: list[str], listed: str = "See mmprompt backbones list.") -> str:
    """Return the nearest of many names as a hint, or where to see them all."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else listed


def _choose_device(device: str) -> torch.device:
    """Return the torch device of a name, which must be on this machine."""
    if device == "auto":
        own = os.environ.get("LOCAL_RANK", "0")  # of the processes of one job on this machine
        device = f"cuda:{own}" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return find_device("device", device, "Use auto, cpu, cuda, cuda:0 or mps.")


def find_device(setting: str, device: Any, advice: str) -> torch.device:
    """Return the torch device of a setting, on which numbers can be kept."""
    try:
        kept = torch.zeros(1, device=device)
        kept.item()  # which `meta` has not
    except (RuntimeError, AssertionError, ImportError, TypeError):
        raise bad_value(setting, repr(device), "this machine has no such device", advice) from None
    return kept.device


def _choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype of a name, in which the device must be able to compute."""
    if dtype == "auto":
        return torch.float32
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, ["auto", *DTYPES])
    if device.type == "cpu" and dtype in ("bfloat16", "float16"):
        raise bad_value("dtype", dtype, "on the CPU this is slower and less exact than float32", "Use `dtype='auto'`.")
    if device.type == "mps" and dtype == "float64":
        raise bad_value("dtype", dtype, "mps has no float64", "Use `dtype='auto'` or `device='cpu'`.")
    return DTYPES[dtype]


def _not_loaded(name: str, source: Source, cache_dir: str | None, error: Exception) -> UserError:
    """Word what a library could not load: what was looked for, where, and how to give a local copy."""
    reason = textwrap.shorten(str(error), 160, placeholder=" ...") or type(error).__name__
    if source.place is not None:
        return bad_file(
            source.place,
            f"cannot be loaded by {source.library} ({reason})",
            "Give a complete model folder, or a safetensors or weights-only checkpoint that fits the architecture.",
        )
    from huggingface_hub.constants import HF_HUB_CACHE

    remote = source.model.removeprefix("hf-hub:")
    local_copy = "hf:path/to/folder" if source.library == "transformers" else "path/to/folder"
    if source.library == "timm" and not source.model.startswith("hf-hub:"):
        remote, local_copy = f"timm/{source.model}", f"timm:{source.model}//path/to/weights.safetensors"
    if source.weights is not None:
        import open_clip

        published = open_clip.get_pretrained_cfg(source.model, source.weights)
        remote = published.get("hf_hub") or published.get("url") or source.weights
        local_copy = f"open_clip:{source.model}//path/to/weights.safetensors"
    return UserError(
        f"the weights of {name} ({remote}) are neither in {cache_dir or HF_HUB_CACHE} nor to be had from the hub "
        f"({reason}). Connect once, or give a local copy: {local_copy}."
    )
