"""Make the language model `tiny`: the captioner's, taught the names of things in six more languages.

    python scripts/pretrain_tiny_language.py train  --work DIR     # fetches emojibase-data once with npm; resumes
    python scripts/pretrain_tiny_language.py export --work DIR

A document is a list such as `spanish : bear = oso , bread = pan , wheel = rueda`: English names and those of one
language, with a title or without one. It is trained together with sentences
that the captioner itself writes without an image, so that it still knows them. Two threads take about 15 minutes.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from make_language_data import LANGUAGES, emoji_entries, is_short, names_by_language
from openart.artwork import NAMES_PACKAGE, fetch, new_folder
from openart.export import CAPTIONER_FILES, copy_tokenizer
from openart.state import State, load_state, save_state

ASSETS = Path(__file__).resolve().parents[1] / "mmprompt" / "assets" / "tiny"
SEED, N_STEPS, N_WARM, LR = 7, 2400, 50, 2e-3
N_PAIRS, MOST_PAIRS, N_SENTENCES = 168, 6, 24
"""Pairs of names a step, pairs a list at most, sentences a step."""
TITLED = 0.75
"""Share of lists that say in which language they are."""
N_REMEMBERED, MOST_WORDS, CHECKPOINT_EVERY = 20_000, 3, 250
IGNORED = -100
CHECKPOINT = "tiny-language.safetensors"


def dictionary(work: Path) -> dict[str, list[tuple[str, str]]]:
    """Pairs of names by language: English, and the language's own."""
    folder = fetch(*NAMES_PACKAGE, work) / "package"
    names = names_by_language(folder)
    found: dict[str, list[tuple[str, str]]] = {code: [] for code in LANGUAGES}
    for hexcode, name, _ in emoji_entries(folder):
        if is_short([name, *(names[code][hexcode] for code in LANGUAGES)], MOST_WORDS):
            for code in LANGUAGES:
                found[code].append((name, names[code][hexcode]))
    return found


def draw_lists(pairs: dict[str, list[tuple[str, str]]], rng: random.Random) -> list[str]:
    """Lists of equally many pairs of names, each of one language."""
    n, texts = rng.randint(1, MOST_PAIRS), []
    for _ in range(N_PAIRS // n):
        code = rng.choice(list(pairs))
        title = f"{LANGUAGES[code]} : " if rng.random() < TITLED else ""
        texts.append(title + " , ".join(f"{english} = {other}" for english, other in rng.sample(pairs[code], n)))
    return texts


def remembered(lm: Any, tokenizer: Any, n: int) -> list[str]:
    """Sentences that the captioner's language model writes without an image."""
    texts: list[str] = []
    begun = torch.full((500, 1), tokenizer.bos_token_id)
    while len(texts) < n:
        ids = lm.generate(begun, attention_mask=torch.ones_like(begun), do_sample=True, top_k=0, max_new_tokens=40)
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts[:n]


def batch(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [N, L] with start and end, padded; the mask [N, L]; labels [N, L]."""
    found = tokenizer(texts, padding=True, return_tensors="pt")
    return found.input_ids, found.attention_mask, found.input_ids.masked_fill(found.attention_mask == 0, IGNORED)


def rate(step: int) -> float:
    """Up, then straight down to nothing."""
    return LR * min(1.0, (step + 1) / N_WARM) * (1 - step / N_STEPS)


def state_of(work: Path) -> State:
    """Where a run is: its last checkpoint, or the captioner's language model before the first step."""
    lm = AutoModelForCausalLM.from_pretrained(ASSETS / "captioner", dtype=torch.float32)
    state = State(lm, torch.optim.AdamW(lm.parameters(), lr=LR, weight_decay=0.01, betas=(0.9, 0.98)))
    if (work / CHECKPOINT).exists():
        load_state(state, work / CHECKPOINT)
    return state


def learn(state: State, batches: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    """One step over several batches; gives the loss of a token."""
    for group in state.optimiser.param_groups:
        group["lr"] = rate(state.step)
    n_tokens = sum(int(mask.sum()) for _, mask, _ in batches)
    losses = [
        state.model(input_ids=ids, attention_mask=mask, labels=labels).loss * (mask.sum() / n_tokens)
        for ids, mask, labels in batches
    ]
    loss = torch.stack(losses).sum()
    state.optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimiser.step()
    state.step += 1
    return loss.item()


def train(work: Path) -> None:
    """Train, from the last checkpoint if there is one.

    Args:
        work: folder for the fetched package and the checkpoint.
    """
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "captioner")
    pairs, place = dictionary(work), work / "tiny-language-sentences.json"
    if not place.exists():
        captioner = AutoModelForCausalLM.from_pretrained(ASSETS / "captioner", dtype=torch.float32).eval()
        place.write_text(json.dumps(remembered(captioner, tokenizer, N_REMEMBERED)))
    sentences = json.loads(place.read_text())
    state = state_of(work)
    state.model.train()
    while state.step < N_STEPS:
        rng = random.Random(f"{SEED} {state.step}")
        texts = draw_lists(pairs, rng), rng.sample(sentences, N_SENTENCES)
        loss = learn(state, [batch(tokenizer, some) for some in texts])
        if state.step % CHECKPOINT_EVERY == 0 or state.step == N_STEPS:
            save_state(state, work / CHECKPOINT, {})
            print(f"step {state.step}/{N_STEPS}  loss {loss:.3f}", flush=True)


def export(work: Path) -> None:
    """Write the model (fp16) and its tokenizer as a folder of transformers' own form.

    Args:
        work: folder of the checkpoint.
    """
    with new_folder(ASSETS / "language") as part:
        state_of(work).model.half().save_pretrained(part)
        shutil.copymode(part / "config.json", part / "model.safetensors")  # safetensors lets nobody else read its files
        copy_tokenizer(ASSETS / "captioner", part, CAPTIONER_FILES)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "export": export}, description=__doc__)
