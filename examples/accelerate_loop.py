"""A training loop of your own with Hugging Face accelerate: devices, precision and processes are accelerate's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import mmprompt as mp

torch.manual_seed(1)
accelerator = Accelerator(cpu=not torch.cuda.is_available())
backbone = mp.load_backbone("tiny", device=str(accelerator.device))
data = mp.load_dataset("openart-large", shots=2, seed=1)
images = torch.stack([backbone.preprocess(mp.classification.read_image(item.path)) for item in data.train])
labels = torch.tensor([item.label for item in data.train])
loader = DataLoader(TensorDataset(images, labels), batch_size=20, shuffle=True)

model = mp.CoOp(n_ctx=4).build(backbone, data.class_names)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for epoch in range(5):
    for batch_images, batch_labels in loader:
        loss = F.cross_entropy(prepared(batch_images), batch_labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

model = accelerator.unwrap_model(prepared)
accelerator.print(f"test accuracy {mp.evaluate(model, data.test[:200]).accuracy:.1%}")
