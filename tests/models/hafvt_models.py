"""Small models of HAF-VT and of its literal equations, for several tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from hafvt.features.item_features import (
    ItemFeatures,
    load_item_features,
)
from hafvt.models import build_model, configure
from hafvt.models.configs import HafVtConfig, HafVtPaperConfig

SMALL = HafVtConfig(id_width=10, dropout=0.0)


CONFIGS = {
    "default": SMALL,
    "unmixed": configure("hafvt", "unmixed").replace(id_width=10, dropout=0.0),
    "ids": SMALL.replace(modalities=("id",)),
    "content": SMALL.replace(modalities=("image", "title"), cold_item_boost=3.0),
    "merged": SMALL.replace(hierarchy=False),
    "odd": SMALL.replace(id_width=9, blocks=3, cluster_sizes=()),
    "own ids": SMALL.replace(id_shrinkage=0.0),
    "paper": HafVtPaperConfig(width=10, dropout=0.0),
    "paper, ids": HafVtPaperConfig(width=10, dropout=0.0, modalities=("id",), lambda1=0.7),
}


OURS = [name for name in CONFIGS if "paper" not in name]


def build(data, config, seed: int = 0, item_features: ItemFeatures | None = None):
    """Returns a model in evaluation mode whose parameters all differ from zero."""
    torch.manual_seed(seed)
    name = "hafvt-paper" if isinstance(config, HafVtPaperConfig) else "hafvt"
    model = build_model(name, item_features or load_item_features(data), config)
    for key, p in model.named_parameters():
        if key == "repeat_logit":
            torch.nn.init.constant_(p, -0.02)
        elif "ids" not in key:
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def without_interactions(item_features: ItemFeatures, *items: int) -> ItemFeatures:
    """Returns the features with one training interaction of every item but these."""
    counts = torch.ones(len(item_features))
    counts[list(items)] = 0
    return replace(item_features, train_counts=counts)
