"""The parts that pi-Net and PSJNet share: encoders, transfer networks and softmaxes of two domains."""

from __future__ import annotations

from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.blocks import DomainSoftmaxes, Dropout, ResetFirstGru, init_xavier
from hafvt.models.configs import PiNetConfig
from hafvt.models.sequences import DomainSequence, require_two_domains, split_two_domains


class SharedAccountModel(Model):
    """Two domains, each with a GRU over histories and a GRU that transfers states to the other domain.

    Args:
        name: of the model, for messages.
        item_features: the items.
        config: hyperparameters.
    """

    def __init__(self, name: str, item_features: ItemFeatures, config: PiNetConfig) -> None:
        super().__init__()
        require_two_domains(name, item_features.domains)
        self.config, self.domains = config, item_features.domains
        self.max_length, d = config.max_length, config.width
        self.items = nn.Embedding(len(item_features), d)  # of both domains
        self.encoders = nn.ModuleList(ResetFirstGru(d, d) for _ in range(2))
        self.transfers = nn.ModuleList(ResetFirstGru(d, d) for _ in range(2))
        self.outputs = DomainSoftmaxes(2 * d, self.domains)
        self.dropout = Dropout(config.dropout)
        nn.init.xavier_normal_(self.items.weight)
        for output in self.outputs:
            init_xavier(output)

    def encode_domains(self, batch: Batch) -> tuple[list[DomainSequence], list[Tensor]]:
        """Return each domain's part of merged histories, and the states after its items, (B, T_d, d)."""
        sequences = split_two_domains(batch, self.domains)
        items = [self.dropout(self.items(sequence.batch.items)) for sequence in sequences]
        return sequences, [encoder(x) for encoder, x in zip(self.encoders, items, strict=True)]
