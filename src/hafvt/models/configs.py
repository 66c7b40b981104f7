"""The hyperparameters of each model, with type, range, default and description, and the named presets.

This module imports no torch, so that `hafvt train MODEL --help` starts at once. A model's class lies in the
module of the same name, which imports its hyperparameters from here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hafvt.errors import HafvtError
from hafvt.models.hyperparameters import Depth, DropoutRate, Length, ModelConfig, Temperature, Weight, Width

NumNegatives = Annotated[int, Field(ge=0, le=1_000_000)]
ClusterSizes = Annotated[tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...], Field(max_length=8)]
NumPrefixes = Annotated[int, Field(ge=1, le=10_000)]


class SequenceConfig(ModelConfig):
    """Hyperparameters of all models of histories."""

    max_length: Length = 50
    """Longest history, in items: the latest ones. Training cuts longer ones into windows of this length."""
    width: Width = 128
    """Width d of item embeddings and states."""


class AttentionConfig(SequenceConfig):
    """Hyperparameters of models with self-attention blocks."""

    blocks: Depth = 2
    """Self-attention blocks of each encoder."""
    heads: Depth = 2
    """Attention heads per block; a divisor of the width."""

    @model_validator(mode="after")
    def _require_divisor(self) -> Self:
        """Refuse heads that do not divide the width."""
        if self.width % self.heads:
            remedy = f"choose a multiple of {self.heads} as the width, or other heads"
            raise ValueError(f"parameter heads {self.heads} does not divide width {self.width}: {remedy}")
        return self


class ContentConfig(ModelConfig):
    """Hyperparameters of models that read encoded features."""

    modalities: tuple[str, ...] | None = None
    """Modalities to use: "id" and names of encoded features; None uses the id and all encoded features."""
    max_length: Length = 50
    """Longest merged history, in items: the latest ones. Training cuts longer ones into windows."""

    @model_validator(mode="after")
    def _require_distinct_modalities(self) -> Self:
        """Refuse an empty list and names that it repeats."""
        names = self.modalities or ("",)
        if self.modalities == () or len(set(names)) < len(names):
            listed = ", ".join(names)
            raise ValueError(
                f"parameter modalities lists {listed or 'nothing'}: name at least one, each once"
            )
        return self

    def choose_modalities(self, encoded: Collection[str]) -> tuple[str, ...]:
        """Return the modalities to use, given the names of the encoded features.

        Raises:
            HafvtError: a modality is not encoded.
        """
        names = self.modalities or ("id", *sorted(encoded))
        if missing := [name for name in names if name not in ("id", *encoded)]:
            raise HafvtError(
                f"no features {', '.join(missing)}: encode them, or leave them out of modalities"
            )
        return names


class HafVtConfig(ContentConfig):
    """Hyperparameters of HAF-VT. benchmarks/results/study-2026-11.md shows what they are worth."""

    id_width: Width = 128
    """Width of id embeddings and encoder states."""
    blocks: Depth = 2
    """Transformer blocks of the encoder of each sequence."""
    gated: bool | None = None
    """Whether the blocks have gates. None decides: they do with at least 100,000 training interactions. On
    fewer, they overfit."""
    dropout: DropoutRate = 0.2
    """Dropout rate on the encoders' inputs and in their blocks."""
    temperature: Temperature = 0.1
    """Divisor of the cosines in every softmax (4-6)."""
    hierarchy: bool = True
    """Whether each domain's sequence is encoded beside the merged sequence; else the merged one alone."""
    lambda2: Weight = 3.0
    """Weight of the merged sequence in loss (9) and score (10); a domain's own sequence has weight 1. Without
    `hierarchy`, it only multiplies the whole loss and all scores of (10), which changes no rank."""
    modality_branches: bool = True
    """Whether each modality has branches of its own, mixed by (7). Otherwise only ids have branches, content
    acts through the input embeddings alone, and training takes 60 % of the time (preset unmixed)."""
    cluster_sizes: ClusterSizes = (5, 20, 80)
    """Average numbers of items in a cluster of items with similar content, one for each clustering. Items of
    a cluster share a learned embedding, which enters their input embeddings; empty for none."""
    id_shrinkage: Annotated[float, Field(ge=0, le=1_000_000)] = 20.0
    """Training interactions at which an item's own id and its clusters have equal weights. The own id has
    the weight n / (n + id_shrinkage) after n interactions."""
    cold_item_boost: Annotated[float, Field(gt=0, le=1000)] = 1.5
    """Factor on the scores of cold items, which are flatter than those of trained items. It does not affect
    training."""
    use_request_date: bool | None = None
    """Whether states depend on the date of the request. None decides: they do if items of the last 30 days
    explain the validation targets better than all items do."""
    num_negatives: NumNegatives = 0
    """Items sampled at each step for each softmax, with log-q correction; 0 uses all items."""


class HafVtPaperConfig(ContentConfig):
    """Hyperparameters of the literal equations of HAF-VT."""

    width: Width = 256
    """Width q of id embeddings."""
    dropout: DropoutRate = 0.3
    """Dropout rate on the input and output of attention."""
    lambda1: Weight = 0.3
    """Weight of other domains' sequences in loss (9) and score (10)."""
    lambda2: Weight = 3.0
    """Weight of the merged sequence in loss (9) and score (10)."""


class Gru4RecConfig(SequenceConfig):
    """Hyperparameters of GRU4Rec."""

    layers: Depth = 1
    """Number of GRU layers."""
    dropout_embed: DropoutRate = 0.2
    """Dropout rate on the item embeddings."""
    dropout_hidden: DropoutRate = 0.2
    """Dropout rate on the hidden states."""
    loss: Literal["catalog", "cross-entropy", "bpr-max"] = "catalog"
    """Cross-entropy over the target's domain without sampling, or one of the paper's two sampled losses."""
    num_negatives: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    """Negatives drawn for each batch; for the sampled losses."""
    sample_alpha: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Negatives are drawn in proportion to popularity to this power; for the sampled losses."""
    logq: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Strength of the correction for how often a negative is drawn; for the loss cross-entropy."""
    bpreg: Weight = 1.0
    """Weight of the squared scores of the negatives; for the loss bpr-max."""
    elu: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Alpha of an ELU on the scores, 0 for none; for the loss bpr-max."""

    def unused_parameters(self) -> dict[str, str]:
        """See `ModelConfig`: parameters of the losses that are not chosen."""
        losses = {"logq": "cross-entropy", "bpreg": "bpr-max", "elu": "bpr-max"}
        losses |= dict.fromkeys(("num_negatives", "sample_alpha"), "cross-entropy or bpr-max")
        return {
            name: f"with the loss {self.loss}: leave it out, or choose the loss {allowed}"
            for name, allowed in losses.items()
            if self.loss not in allowed.split(" or ")
        }


class SasRecConfig(AttentionConfig):
    """Hyperparameters of SASRec."""

    dropout: DropoutRate = 0.3
    """Dropout rate on the input and on the outputs of both sub-layers of a block."""
    paper_blocks: bool = False
    """Uses the blocks, input scaling and positions of the paper in place of pre-norm blocks."""
    loss: Literal["catalog", "binary"] = "catalog"
    """Cross-entropy over all items, or the paper's binary cross-entropy against one drawn item."""
    num_negatives: NumNegatives = 0
    """Items drawn at each step for the loss catalog, with log-q correction; 0 uses all items."""

    def unused_parameters(self) -> dict[str, str]:
        """See `ModelConfig`: the binary loss draws one item."""
        remedy = "with the loss binary: leave it out, or choose the loss catalog"
        return {"num_negatives": remedy} if self.loss == "binary" else {}


SASREC_PAPER = {"width": 50, "heads": 1, "dropout": 0.5, "paper_blocks": True, "loss": "binary"}
"""The model and loss of the paper."""


class SrGnnConfig(SequenceConfig):
    """Hyperparameters of SR-GNN."""

    steps: Depth = 1
    """Rounds of message passing on the graph."""
    hybrid: bool = True
    """Joins the last item's state to the session's in (7); False corresponds to the code's `nonhybrid`."""
    num_prefixes: NumPrefixes = 4
    """Prefixes of each history in a training step."""


class PiNetConfig(SequenceConfig):
    """Hyperparameters of pi-Net."""

    latent_users: Depth = 4
    """Number K of latent users of an account."""
    dropout: DropoutRate = 0.2
    """Dropout rate on item embeddings and before the softmax."""
    tie_user_projections: bool = False
    """Uses V_f in place of V_s, as the authors' code does."""


class PsjNetConfig(PiNetConfig):
    """Hyperparameters of PSJNet-II."""


class MifnConfig(SequenceConfig):
    """Hyperparameters of MIFN."""

    dropout: DropoutRate = 0.2
    """Dropout rate on item embeddings and before the softmax."""
    max_nodes: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Largest number N of items in the graph of a history; 200 in the authors' code."""
    links_per_item: Annotated[int, Field(ge=1, le=1000)] = 8
    """Most frequent links K of each item that are kept in each relation."""
    hops: Annotated[int, Field(ge=0, le=16)] = 2
    """Largest distance of a node from the history, in links."""
    num_prefixes: NumPrefixes = 2
    """Prefixes of each history in a training step."""
    dropout_at_evaluation: bool = False
    """Keeps dropout on during evaluation, as the authors' code does."""


class TriCdrConfig(AttentionConfig):
    """Hyperparameters of Tri-CDR."""

    dropout: DropoutRate = 0.3
    """Dropout rate in the encoders."""
    temperature: Temperature = 0.2
    """Divides the cosines in the softmax over items; the authors' code multiplies by 5."""
    pretrain_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 100
    """First training steps, which train the encoders alone; choose more for tens of thousands of steps."""
    num_prefixes: NumPrefixes = 8
    """Prefixes of each history in a training step after the first `pretrain_steps`."""
    contrast_weight: Weight = 0.1
    """Weight of the contrastive loss between the sequences, 0 for none."""
    contrast_rates: tuple[Weight, Weight, Weight] = (1.0, 1.0, 1.0)
    """Relative weights of the pairs mixed-source, mixed-target and source-target in the contrastive loss."""
    contrast_temperature: Temperature = 0.1
    """Divides the cosines in the contrastive loss."""
    triplet_weight: Weight = 1.0
    """Weight of the triplet loss, 0 for none; 5 or 10 in the authors' code."""
    triplet_margin: Weight = 4.0
    """Least difference of the distances source-target and source-mixed in the triplet loss."""
    normalize_over_candidates: bool = False
    """Normalizes item embeddings over the candidates in evaluation, as the authors' code does."""

    @model_validator(mode="after")
    def _require_positive_rate(self) -> Self:
        """Refuse rates that sum to 0."""
        if not sum(self.contrast_rates):
            raise ValueError("contrast_rates sum to 0: choose at least one rate above 0")
        return self

    def unused_parameters(self) -> dict[str, str]:
        """See `ModelConfig`: parameters of losses with weight 0."""
        parts = {
            "contrast_rates": "contrast_weight",
            "contrast_temperature": "contrast_weight",
            "triplet_margin": "triplet_weight",
        }
        return {
            name: f"with {weight} 0: leave it out, or choose a {weight} above 0"
            for name, weight in parts.items()
            if getattr(self, weight) == 0
        }


class C2dsrConfig(AttentionConfig):
    """Hyperparameters of C2DSR."""

    graph_layers: Depth = 1
    """Layers of the graph convolution."""
    heads: Depth = 1
    """Attention heads per block; a divisor of the width."""
    dropout: DropoutRate = 0.3
    """Dropout rate on item embeddings and in the blocks."""
    prediction_weight: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Weight lambda of the prediction losses; the infomax loss has weight 1 - lambda."""
    weighted_transitions: bool = False
    """Weights a transition of the graph by its frequency, as the authors' code does."""


class PopularityConfig(ModelConfig):
    """The popularity model has no hyperparameters."""


class RecentPopularityConfig(ModelConfig):
    """Hyperparameters of popularity in the last days."""

    days: Annotated[int, Field(ge=1, le=100_000)] = 30
    """Days before the time of the request, or before the end of the training data if that is earlier."""


class SeasonalPopularityConfig(ModelConfig):
    """Hyperparameters of popularity in the same season."""

    days: Annotated[int, Field(ge=1, le=365)] = 30
    """Days of the year, half of them before the date of the request and half after it."""


class ItemKnnConfig(ModelConfig):
    """Hyperparameters of item-based nearest neighbors."""

    max_length: Length = 50
    """Longest history, in items; older items are cut."""
    num_neighbors: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Most similar items of each domain that are kept for each item."""
    shrinkage: Annotated[float, Field(ge=0, le=1_000_000)] = 10.0
    """Added to the denominator of the cosine, so that items with few users have lower similarities."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of an item of the history in relation to the next later one; 1 weighs all alike."""
