"""Random-weight captioners of transformers' larger kinds: width 32, two layers, saved as the library saves its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipImageProcessor,
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    OPTConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
    T5Config,
)

from tests.small_models import IMAGE, LAYERS, PATCH, SIGLIP_MERGES, WIDTH, byte_letters, randomise

HEADS = 4
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<boi>", "<eoi>", "<turn>"]
PAD, BOS, EOS, UNKNOWN, IMAGE_ID, BOI, EOI, TURN = range(len(SPECIALS))
CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' }}{% for c in m.content %}"
    "{{ image if c.type == 'image' else '\n' + c.text }}{% endfor %}{% else %}{{ ' ASSISTANT: ' }}"
    "{% for c in m.content %}{{ c.text }}{% endfor %}{{ '<turn>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def build_tokenizer(ends: bool = False, image_id: int = IMAGE_ID) -> PreTrainedTokenizerFast:
    """Byte-pair encoding that can write any text; with `ends` it puts the end token after one, as T5's does."""
    tokens = [*SPECIALS, *byte_letters(), *map("".join, SIGLIP_MERGES)]
    tokens[IMAGE_ID], tokens[image_id] = tokens[image_id], tokens[IMAGE_ID]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=SIGLIP_MERGES, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    frame = ("$A </s>", [("</s>", EOS)]) if ends else ("<s> $A", [("<s>", BOS)])
    tokenizer.post_processor = processors.TemplateProcessing(single=frame[0], special_tokens=frame[1])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={f"{token[1:-1]}_token": token for token in SPECIALS[4:]},
    )


VOCABULARY = len(build_tokenizer())


def save(model: Any, folder: Path, *parts: Any) -> Path:
    """The model with every weight moved, and what reads its inputs."""
    randomise(model, seed=1)
    for part in (model, *parts):
        part.save_pretrained(folder)
    return folder


def save_blip2_opt(folder: Path, **text: Any) -> Path:
    lm = OPTConfig(
        hidden_size=WIDTH,
        ffn_dim=48,
        word_embed_proj_dim=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=40,
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        **text,
    )
    return save_blip2(folder, lm, ends=False)


def save_blip2_t5(folder: Path, **text: Any) -> Path:
    lm = T5Config(
        d_model=WIDTH,
        d_kv=6,
        d_ff=48,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
        **text,
    )
    return save_blip2(folder, lm, ends=True)


def save_blip2(folder: Path, lm: Any, ends: bool) -> Path:
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "encoder_hidden_size": WIDTH,
            "cross_attention_frequency": 1,
        },
        text_config=lm.to_dict(),
        num_query_tokens=3,
        image_token_index=IMAGE_ID,
    )
    torch.manual_seed(0)
    processor = BlipImageProcessor(size={"height": IMAGE, "width": IMAGE})
    return save(Blip2ForConditionalGeneration(config), folder, processor, build_tokenizer(ends))


def save_llava(folder: Path, chat: str | None = CHAT, images: Any = None, **text: Any) -> Path:
    config = LlavaConfig(
        vision_config=VISION | {"model_type": "clip_vision_model"},
        text_config=TEXT | {"model_type": "llama", "vocab_size": VOCABULARY} | text,
        image_token_index=IMAGE_ID,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    processor = LlavaProcessor(
        images or CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size=IMAGE),
        build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat and chat.replace("image if", "'<image>' if"),
    )
    return save(LlavaForConditionalGeneration(config), folder, processor)


def save_paligemma(folder: Path, kind: str = "gemma", image_id: int = IMAGE_ID, **text: Any) -> Path:
    """`kind` is gemma (PaliGemma) or gemma2 (PaliGemma 2, with windows and capped logits)."""
    tokenizer = build_tokenizer(image_id=image_id)
    images = SiglipImageProcessor(size={"height": IMAGE, "width": IMAGE})
    images.image_seq_length = (IMAGE // PATCH) ** 2
    processor = PaliGemmaProcessor(images, tokenizer)  # adds its own tokens
    config = PaliGemmaConfig(
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=TEXT | {"model_type": kind, "vocab_size": len(tokenizer), "head_dim": 6} | text,
        image_token_index=image_id,
        projection_dim=WIDTH,
    )
    torch.manual_seed(0)
    return save(PaliGemmaForConditionalGeneration(config), folder, processor)


def save_gemma3(folder: Path, **text: Any) -> Path:
    own = {"layer_types": ["sliding_attention", "full_attention"]}  # by default too few layers to have a full one
    config = Gemma3Config(
        vision_config=VISION | {"vision_use_head": False},
        text_config=TEXT
        | own
        | {"vocab_size": VOCABULARY, "head_dim": 8, "sliding_window": 8, "eos_token_id": [EOS, TURN]}
        | text,
        mm_tokens_per_image=4,
        image_token_index=IMAGE_ID,
        boi_token_index=BOI,
        eoi_token_index=EOI,
    )
    torch.manual_seed(0)
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": IMAGE, "width": IMAGE}),
        build_tokenizer(),
        chat_template=CHAT.replace("image if", "'<boi>' if"),
        image_seq_length=4,
    )
    return save(Gemma3ForConditionalGeneration(config), folder, processor)


def save_qwen2_vl(folder: Path, **text: Any) -> Path:
    """Positions along three axes, as many tokens as an image's form and size ask for."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<|video_pad|>"], special_tokens=True)
    edges = {"shortest_edge": 32 * 32, "longest_edge": 48 * 48}
    sizes: dict[str, Any] = {"patch_size": PATCH, "merge_size": 2, "size": edges}
    config = Qwen2VLConfig(
        vision_config={
            "depth": LAYERS, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": HEADS, "patch_size": PATCH,
        },
        text_config=TEXT
        | {"max_position_embeddings": 96, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
        | {"vocab_size": len(tokenizer)}
        | text,
        image_token_id=IMAGE_ID,
        video_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    chat = CHAT.replace("image if", "'<image>' if")
    parts = Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes)
    return save(Qwen2VLForConditionalGeneration(config), folder, Qwen2VLProcessor(*parts, chat_template=chat))


def save_smolvlm(folder: Path, **text: Any) -> Path:
    """An image is cut into tiles, whose tokens stand between those that say which tile it is."""
    tokenizer = build_tokenizer()
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer.add_tokens(["<fake_token_around_image>", "<global-img>", "<video>", *tiles], special_tokens=True)
    config = SmolVLMConfig(
        vision_config=VISION,
        text_config=TEXT | {"model_type": "llama", "vocab_size": len(tokenizer)} | text,
        image_token_id=IMAGE_ID,
        scale_factor=2,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    sizes = {"size": {"longest_edge": 2 * IMAGE}, "max_image_size": {"longest_edge": IMAGE}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes),
        tokenizer,
        SmolVLMVideoProcessor(**sizes),
        image_seq_len=(IMAGE // PATCH // 2) ** 2,
        chat_template=CHAT.replace("image if", "'<image>' if"),
    )
    return save(SmolVLMForConditionalGeneration(config), folder, processor)


def save_llava_onevision(folder: Path, **text: Any) -> Path:
    """An image is seen whole and in tiles, with a learned token after each row of the tiles."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    pinpoints = [[IMAGE, IMAGE], [IMAGE, 2 * IMAGE], [2 * IMAGE, IMAGE]]
    config = LlavaOnevisionConfig(
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(tokenizer)} | text,
        image_token_index=IMAGE_ID,
        video_token_index=len(tokenizer) - 1,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_9",
    )
    torch.manual_seed(0)
    size = {"height": IMAGE, "width": IMAGE}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(IMAGE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT.replace("image if", "'<image>' if"),
    )
    return save(LlavaOnevisionForConditionalGeneration(config), folder, processor)
