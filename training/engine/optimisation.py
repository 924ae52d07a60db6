"""What the optimiser does with which parameter."""

from __future__ import annotations

import torch

from training.engine.config import TrainConfig
from training.models import EmbeddingModel


def parameter_groups(module: torch.nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Parameters with the learning rate of their modality: clouds 1e-3 and images 1e-4 in the papers."""
    clouds = [p for name, p in module.named_parameters() if _reads_clouds(module, name) and p.requires_grad]
    images = [p for name, p in module.named_parameters() if not _reads_clouds(module, name) and p.requires_grad]
    return [
        group
        for group in (
            {"params": images, "lr": config.learning_rate},
            {"params": clouds, "lr": config.cloud_learning_rate},
        )
        if group["params"]
    ]


def optimiser_of(module: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimiser of what learns in ``module``."""
    groups = parameter_groups(module, config)
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=config.weight_decay)


def learning_schedule(optimiser: torch.optim.Optimizer, config: TrainConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """The configured course of the learning rates, one step of it for each step of the optimiser."""
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=config.steps)
    every = config.step_every
    milestones = range(every, config.steps, every) if every else [2 * config.steps // 3]
    return torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones=list(milestones), gamma=config.step_factor)


def _reads_clouds(module: torch.nn.Module, parameter: str) -> bool:
    """Whether the innermost embedding model that owns the parameter reads clouds only, or its module of it does."""
    owner, only_clouds = module, False
    for part in parameter.split("."):
        if isinstance(owner, EmbeddingModel):
            only_clouds = owner.uses_clouds and (not owner.uses_images or part in owner.cloud_modules)
        child = getattr(owner, part, None)
        if not isinstance(child, torch.nn.Module):
            break
        owner = child
    return only_clouds
