"""Class features straight from the papers' definition, at full length and one class after another.

Slow and plain on purpose: every slot of every class through every layer of the library's own modules.
It imports nothing of the package.
"""

import torch
import torch.nn.functional as F


def ids_with_context(words, n_name, n_ctx, position, start, end, pad, length):
    """The ids of one class, -1 - m where context vector m stands: CoOp's string, slot by slot."""
    ctx = [-1 - m for m in range(n_ctx)]
    name, rest = words[:n_name], words[n_name:]
    if position == "end":
        row = ctx + name + rest
    elif position == "middle":
        row = ctx[: n_ctx // 2] + name + ctx[n_ctx // 2 :] + rest
    else:
        row = name + ctx + rest
    row = ([] if start is None else [start]) + row + [end]
    return row + [pad] * (length - len(row)), len(row) - 1


def embed(rows, table, ctx, class_index=None):
    """[1, L, D]: the table's vector of each id, the context's where the id is negative."""
    own = ctx if ctx is None or ctx.dim() == 2 else ctx[class_index]
    return torch.stack([table[i] if i >= 0 else own[-1 - i] for i in rows])[None]


def open_clip_features(model, rows, ends, ctx, deep=None):
    """Unit-norm class features of an open_clip CLIP or TextTransformer tower, layer by layer."""
    tower = model.text if hasattr(model, "text") else model
    features = []
    for c, (row, end) in enumerate(zip(rows, ends, strict=True)):
        x = embed(row, tower.token_embedding.weight, ctx, c) + tower.positional_embedding
        for layer, block in enumerate(tower.transformer.resblocks):
            x = overwrite(x, row, (deep or {}).get(layer), c)
            x = block(x, attn_mask=tower.attn_mask)
        pooled = tower.ln_final(x)[:, -1 if getattr(tower, "pool_type", "argmax") == "last" else end]
        projection = tower.text_projection
        features.append(pooled @ projection if isinstance(projection, torch.Tensor) else projection(pooled))
    return F.normalize(torch.cat(features), dim=-1)


def transformers_features(model, rows, ends, ctx, deep=None):
    """Unit-norm class features of a transformers CLIPModel or SiglipModel, layer by layer."""
    tower = model.text_model
    bidirectional = type(model).__name__.startswith("Siglip")
    features = []
    for c, (row, end) in enumerate(zip(rows, ends, strict=True)):
        length = len(row)
        x = embed(row, tower.embeddings.token_embedding.weight, ctx, c)
        x = x + tower.embeddings.position_embedding.weight[:length]
        mask = None if bidirectional else torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)[None, None]
        for layer, block in enumerate(tower.encoder.layers):
            x = overwrite(x, row, (deep or {}).get(layer), c)
            x = block(x, attention_mask=mask)
        x = tower.final_layer_norm(x)
        features.append(tower.head(x[:, -1]) if bidirectional else model.text_projection(x[:, end]))
    return F.normalize(torch.cat(features), dim=-1)


def bert_features(model, rows, ends, ctx, deep=None):
    """Unit-norm class features of an open_clip model with a BERT of transformers, padding masked, layer by layer."""
    tower = model.text
    features = []
    for c, (row, end) in enumerate(zip(rows, ends, strict=True)):
        x = tower.transformer.embeddings(
            inputs_embeds=embed(row, tower.transformer.get_input_embeddings().weight, ctx, c)
        )
        seen = torch.arange(len(row)) <= end
        mask = torch.zeros(len(row), dtype=x.dtype).masked_fill(~seen, float("-inf"))[None, None, None]
        for layer, block in enumerate(tower.transformer.encoder.layer):
            x = overwrite(x, row, (deep or {}).get(layer), c)
            x = block(x, attention_mask=mask)
        features.append(tower.proj(x[:, seen].mean(dim=1)))
    return F.normalize(torch.cat(features), dim=-1)


def overwrite(x, row, values, class_index):
    """The deep vectors in place of the first context slots."""
    if values is None:
        return x
    own = values if values.dim() == 2 else values[class_index]
    slots = [own[-1 - i] if -1 - len(own) < i < 0 else x[0, j] for j, i in enumerate(row)]
    return torch.stack([s if i < 0 else x[0, j] for j, (i, s) in enumerate(zip(row, slots, strict=True))])[None]
