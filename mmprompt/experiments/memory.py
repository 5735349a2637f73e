"""The most memory that some work took."""

from __future__ import annotations

from pathlib import Path

import torch


def forget_peak(device: torch.device | None = None) -> None:
    """Forget the most memory so far, of a GPU or else of this process; of a process Linux alone can."""
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    place = Path("/proc/self/clear_refs")
    if place.exists():
        place.write_text("5")


def peak_bytes(device: torch.device | None = None) -> int:
    """Give the most memory since the peak was forgotten, in bytes; 0 where the system does not say."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
