"""A training loop of your own with Lightning Fabric: no LightningModule, devices and precision are Fabric's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset

import mmprompt as mp

fabric = Fabric(accelerator="auto", devices=1)
fabric.seed_everything(1)
fabric.launch()
backbone = mp.load_backbone("tiny", device=str(fabric.device))
data = mp.load_dataset("openart-large", shots=2, seed=1)
images = torch.stack([backbone.preprocess(mp.classification.read_image(item.path)) for item in data.train])
labels = torch.tensor([item.label for item in data.train])
loader = fabric.setup_dataloaders(DataLoader(TensorDataset(images, labels), batch_size=20, shuffle=True))

classifier = mp.CoOp(n_ctx=4).build(backbone, data.class_names)
model, optimizer = fabric.setup(classifier, torch.optim.AdamW(classifier.parameters(), lr=0.01))
for epoch in range(5):
    for batch_images, batch_labels in loader:
        loss = F.cross_entropy(model(batch_images), batch_labels)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
    fabric.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

fabric.print(f"test accuracy {mp.evaluate(classifier, data.test[:200]).accuracy:.1%}")
