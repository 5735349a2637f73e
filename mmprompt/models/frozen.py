"""What all frozen models share: how they are loaded, what identifies their weights, how they see an image."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmprompt.errors import UserError, bad_file
from mmprompt.files import read_json


@dataclass(frozen=True)
class LoadOptions:
    """How a reader loads a model, whatever the library.

    A `cache_dir` of None is the library's own folder; `device_map` is transformers' own, and None is one device.
    """

    device: torch.device
    dtype: torch.dtype
    cache_dir: str | None = None
    trust_remote_code: bool = False
    device_map: Any = None


def hub_options(options: LoadOptions) -> dict[str, Any]:
    """Return the keywords that transformers' loaders take from the user."""
    return {"cache_dir": options.cache_dir, "trust_remote_code": options.trust_remote_code}


def load_complete(
    model_class: Any,
    source: str,
    options: LoadOptions,
    unread: str | None = None,
    gguf_file: str | None = None,
    use_safetensors: bool | None = None,
    dtype: torch.dtype = torch.float32,
    device_map: Any = None,
) -> Any:
    """Load a model of one of transformers' classes, and refuse one whose files lack some of its weights.

    Args:
        model_class: with a `from_pretrained`.
        source: a folder, or a name on the hub.
        options: cache folder, and whether remote code may run.
        unread: how the names of weights begin that nobody reads, so that files may lack them.
        gguf_file: the file of the folder that holds the weights, where they are in GGUF.
        dtype: of the weights as they are read.
        device_map: where weights are put as they are read, quantised ones too; None where they are moved afterwards.
        use_safetensors: True takes no weights in any other format; None takes weights-only checkpoints too.
    """
    if use_safetensors and Path(source).is_dir():
        for path in Path(source).glob("*.index.json"):
            listed = read_json(path)
            parts = listed.get("weight_map", {}) if isinstance(listed, dict) else {}
            others = sorted({str(name) for name in parts.values() if not str(name).endswith(".safetensors")})
            if others:
                raise bad_file(path, f"names {others[0]}, but only safetensors are read", "Save the model as such.")
    with no_progress_bar():
        model, report = model_class.from_pretrained(
            source,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            gguf_file=gguf_file,
            use_safetensors=use_safetensors,
            **hub_options(options),
        )
    missing = [key for key in report["missing_keys"] if unread is None or not key.startswith(unread)]
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} weights of its model, {min(missing)!r} among "
            "them, but all were expected. Get the complete checkpoint."
        )
    return model


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hold back transformers' bar over weights that are read in a moment; the hub's own bars for downloads stay."""
    from transformers.utils import logging as transformers_logging

    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def freeze(model: nn.Module, options: LoadOptions) -> None:
    """Put a model in evaluation mode, on its device, with no weight that can learn; refuse NaN and infinity."""
    if all(getattr(model, name, None) is None for name in ("hf_device_map", "hf_quantizer")):  # else it is as it loaded
        model.to(device=options.device, dtype=options.dtype)
    model.eval().requires_grad_(False)
    for name, weight in stored(model.named_parameters()):
        if weight.is_floating_point() and not weight.is_meta and not bool(weight.isfinite().all()):
            raise UserError(f"the weights hold NaN or infinity in {name!r}. Get the checkpoint as it was published.")


def stored(tensors: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """List the plain tensors of a model; torchao keeps the numbers and scales of a weight in one of its own kind."""
    for name, tensor in tensors:
        if not isinstance(tensor, Tensor):
            continue
        if type(tensor.data) is not Tensor and hasattr(tensor, "__tensor_flatten__"):
            yield from stored((f"{name}.{part}", getattr(tensor, part)) for part in tensor.__tensor_flatten__()[0])
        else:
            yield name, tensor


def fingerprint(model: nn.Module) -> str:
    """Return the hex SHA-256 over the sorted names, dtypes, shapes and bytes of all parameters and stored buffers.

    Buffers that a library computes and does not store in checkpoints (masks, position numbers) are left out: they are
    no weights, and they differ between releases.
    """
    digest = hashlib.sha256()
    state = model.state_dict()
    if any(tensor.is_meta for _, tensor in stored(state.items())):  # kept on the CPU's or the disk's side until read
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        state = get_state_dict_offloaded_model(model)
    for name, tensor in sorted(stored(state.items()), key=itemgetter(0)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)  # in row order, not copied
    return digest.hexdigest()


def architecture(model: nn.Module) -> str:
    """Return the hex SHA-256 over what decides beside the weights what a model computes: the kinds of its modules, and
    their numbers, words and functions.
    """
    found = [
        [name, type(part).__qualname__, *(_facts_of(item) for item in sorted(vars(part).items()) if _is_fact(item[0]))]
        for name, part in model.named_modules()
    ]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _is_fact(name: str) -> bool:
    """Return whether an attribute of a module of that name counts: not the library's own, nor where it was read."""
    return not name.startswith("_") and name != "name_or_path"


def _facts_of(value: Any) -> Any:
    """Return numbers and words as they are, and the name of anything else."""
    if isinstance(value, tuple | list):
        return [_facts_of(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


@dataclass(frozen=True)
class PixelTransform:
    """From an image, or from pixels already cut to size H = W, to the normalised input of an image tower.

    `apply` is the library's transform of one RGB image and `text` what it does, in one line; `mean` and `std` are per
    colour, for pixels in 0..1.
    """

    apply: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    text: str

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise pixels [..., 3, H, W] in 0..1."""
        mean, std = (torch.tensor(values, device=images.device).to(images.dtype) for values in (self.mean, self.std))
        return (images - mean[:, None, None]) / std[:, None, None]


def describe(steps: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> str:
    """Describe a transform in one line: its steps, then mean and standard deviation."""
    means, stds = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return f"{', '.join(steps)}, mean {means}; std {stds}"
