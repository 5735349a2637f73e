"""The prompt as an ordinary module in a training loop of your own: plain PyTorch, no `fit`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import mmprompt as mp

torch.manual_seed(1)
backbone = mp.load_backbone("tiny")
data = mp.load_dataset("openart-large", shots=2, seed=1)
images = torch.stack([backbone.preprocess(mp.classification.read_image(item.path)) for item in data.train])
labels = torch.tensor([item.label for item in data.train])
loader = DataLoader(TensorDataset(images, labels), batch_size=20, shuffle=True)

model = mp.CoOp(n_ctx=4).build(backbone, data.class_names)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)  # the context vectors, and nothing else
for epoch in range(5):
    for batch_images, batch_labels in loader:
        loss = F.cross_entropy(model(batch_images), batch_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

learned = sum(parameter.numel() for parameter in model.parameters())
print(f"{learned} learned numbers, test accuracy {mp.evaluate(model, data.test[:200]).accuracy:.1%}")
