"""A small random captioner with a plain language model, and captions for it: words are numbers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mmprompt.captioning.data import CaptionData, read_captions
from mmprompt.captioning.readers.captioner import CaptionTokenizer, FrozenCaptioner, PrefixDecoder
from mmprompt.models.frozen import PixelTransform

N_IMAGE, START, END, WORDS, SIDE = 3, 0, 1, 40, 4


def small_language_model(kind: str, scale: float = 6.0) -> nn.Module:
    """Two blocks of width 32; with weights that are scaled up, or it would say one word for ever."""
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=END)
        model: nn.Module = GPT2LMHeadModel(config)
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=WORDS,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                eos_token_id=END,
            )
        )
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= scale
    return model.double().eval().requires_grad_(False)


class CountingEncoder(nn.Module):
    """Image features from the mean colour; it counts the images it was shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(3, N_IMAGE * 8).double().requires_grad_(False)
        self.n_seen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.n_seen += len(images)
        return self.linear(images.mean((2, 3))).unflatten(1, (N_IMAGE, 8)).tanh()


def small_captioner(kind: str = "llama", scale: float = 6.0) -> FrozenCaptioner:
    """A captioner in double precision; every word is a number from 2 to 39, a wording in letters is read as some."""
    lm, encoder = small_language_model(kind, scale), CountingEncoder()
    torch.manual_seed(2)
    mapper = nn.Linear(8, 32).double().requires_grad_(False)
    decoder = PrefixDecoder(lm, mapper, START, END, N_IMAGE)
    tokenizer = CaptionTokenizer(
        lambda text: [int(word) if word.isdigit() else 2 + len(word) for word in text.split()],
        lambda ids: " ".join(map(str, ids)),
    )
    pixels = PixelTransform(to_pixels, (0.0,) * 3, (1.0,) * 3, SIDE, "resized to 4")
    return FrozenCaptioner(
        "small", nn.ModuleDict({"lm": lm, "encoder": encoder, "mapper": mapper}), encoder, decoder, tokenizer, pixels
    )


def to_pixels(image: Image.Image) -> torch.Tensor:
    """One colour an image."""
    return torch.tensor(image.resize((1, 1)).getpixel((0, 0))).float()[:, None, None].expand(3, SIDE, SIDE) / 255


def small_captions(folder: Path, n: int = 12, focus: str = "numbers") -> CaptionData:
    """Images of one colour each, with two captions of one focus."""
    lines = []
    for number in range(n):
        Image.new("RGB", (8, 8), (20 * number, 255 - 20 * number, 40)).save(folder / f"{number}.png")
        captions = [f"{2 + number} {3 + number} 5", f"7 {2 + number}"]
        split = "train" if number < n - 4 else "val" if number < n - 2 else "test"
        lines.append(json.dumps({"image": f"{number}.png", "captions": captions, "focus": focus, "split": split}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return read_captions(folder / "captions.jsonl")
