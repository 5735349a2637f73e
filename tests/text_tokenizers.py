"""Tokenizers of each kind that templates meet, built on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

SENTENCES = [
    "It was a great movie and I like it a lot.",
    "It was a terrible film, so bad that I left.",
    "The mood of this text is positive or negative.",
    "Text: the answer is great. Answer: good, bad, happy, sad.",
]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(chat_template: str | None = CHAT, starts: bool = False) -> Any:
    """Byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM2 have it; it may put a start token before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if starts:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
    )


def sentence_piece() -> Any:
    """Words that begin with a mark for their blank, one put before every text, as Llama 2 and T5 have it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    words = [f"▁{word}" for sentence in SENTENCES for word in sentence.split()]
    bare = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    bare.train_from_iterator(words, trainer)
    tokenizer.model = bare.model
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special[:3]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def crossing() -> Any:
    """Tokens that reach over a blank or a mark: "a b" and "b:a" are one each."""
    vocabulary = {letter: number for number, letter in enumerate(["a", "b", " ", ":", "a ", "a b", "b:", "b:a"])}
    merges = [("a", " "), ("a ", "b"), ("b", ":"), ("b:", "a")]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, merges)))


def of_bytes() -> Any:
    """A slow tokenizer: every byte is a token, and there are no offsets."""
    return ByT5Tokenizer()
