"""The contestants of external.py and the settings that each is tried with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FILMS, GOODS = "movielens-posters", "amazon-food-kitchen"
LENGTHS = {FILMS: 50, GOODS: 20}  # longest history, in items; nearly all of most histories
OURS = "hafvt"

Settings = dict[str, Any]


@dataclass(frozen=True)
class Rival:
    """A model of a library.

    Attributes:
        library: name of its environment, and of its script `contestants/LIBRARY_converged.py`.
        trials: by data set, the settings of each trial: width 64 with a learning rate that converges soon,
            the published settings, and width 128 with more dropout. What is published is that of the nearest
            data set in the model's repository, or else the library's defaults.
    """

    library: str
    trials: dict[str, list[Settings]]


def _rectools(base: Settings, published: Settings, large: Settings) -> list[Settings]:
    first = {
        "model": "sasrec",
        "n_factors": 64,
        "n_blocks": 2,
        "n_heads": 2,
        "dropout_rate": 0.2,
        "lr": 0.003,
    }
    first |= base
    return [first, first | {"lr": 0.001} | published, first | {"n_factors": 128, "dropout_rate": 0.3} | large]


# eSASRec (Tikhonovich et al., RecSys 2025): LiGR blocks and sampled softmax with 256 negatives. Among the
# 2,321 films the softmax over all items costs no more than the sampled one, which estimates it.
_SOFTMAX: Settings = {"loss": "softmax"}
_SAMPLED: Settings = {"loss": "sampled_softmax", "n_negatives": 256, "n_blocks": 1, "n_heads": 1}
_LIGR: Settings = {"ligr": True, "n_heads": 1}
_ML1M: Settings = {
    "n_heads": 1,
    "dropout_rate": 0.1,
}  # configs/paper/loo/ml_1m.yaml of the paper's repository
_BEAUTY: Settings = {"n_factors": 256}  # configs/paper/loo/s3_beauty_ligr.yaml
_BERT4REC: Settings = {
    "model": "bert4rec",
    "ligr": True,
    "loss": "softmax",
    "mask_prob": 0.3,
}
# gSASRec (Petrov and Macdonald, RecSys 2023) by RecTools' loss, with t of the authors' config_ml1m.py.
_GBCE: Settings = {"loss": "gBCE", "gbce_t": 0.75, "n_negatives": 64}
_GSASREC_ML1M: Settings = {"n_negatives": 256, "n_blocks": 3, "n_heads": 1, "dropout_rate": 0.1}


def _replay(*, content: bool) -> list[Settings]:
    first = {"width": 64, "blocks": 2, "heads": 2, "dropout": 0.2, "learning_rate": 0.003, "batch_size": 128}
    first["content"] = content
    published = {"width": 192, "heads": 4, "dropout": 0.3, "learning_rate": 0.001}
    return [first, first | published, first | {"width": 128, "dropout": 0.3}]


def _vbpr() -> list[Settings]:
    first = {"k": 64, "k2": 64, "batch_size": 1000, "learning_rate": 0.005, "epochs_per_fit": 2}
    published = {"k": 10, "k2": 10, "batch_size": 100}
    return [first, first | published, first | {"k": 128, "k2": 128, "lambda_w": 0.1}]


def _own(model: str, width: str, rate: float) -> list[Settings]:
    first = {"model": model, "batch_size": 128, "learning_rate": rate, "params": {width: 64}}
    defaults = {"model": model, "params": {}}
    return [first, defaults, first | {"params": {width: 128, "dropout": 0.3}}]


def _counting(model: str, *params: Settings) -> list[Settings]:
    return [{"model": model, "params": values} for values in params]


_KNN = _counting("item-knn", {}, {"num_neighbors": 300}, {"decay": 0.8})

RIVALS = {
    OURS: Rival("hafvt", dict.fromkeys(LENGTHS, _own("hafvt", "id_width", 0.003))),
    "sasrec": Rival("hafvt", dict.fromkeys(LENGTHS, _own("sasrec", "width", 0.003))),
    "eSASRec (RecTools)": Rival(
        "rectools",
        {
            FILMS: _rectools(_SOFTMAX | _LIGR, _ML1M | {"loss": "sampled_softmax", "n_negatives": 256}, {}),
            GOODS: _rectools(_SAMPLED | _LIGR, _BEAUTY, {}),
        },
    ),
    "SASRec (RePlay)": Rival("replay", dict.fromkeys(LENGTHS, _replay(content=False))),
    "SASRec with content (RePlay)": Rival("replay", dict.fromkeys(LENGTHS, _replay(content=True))),
    "VBPR (Cornac)": Rival("cornac", dict.fromkeys(LENGTHS, _vbpr())),
    "SASRec (RecTools)": Rival(
        "rectools", {FILMS: _rectools(_SOFTMAX, _ML1M, {}), GOODS: _rectools(_SAMPLED, _BEAUTY, {})}
    ),
    "gSASRec (RecTools)": Rival("rectools", dict.fromkeys(LENGTHS, _rectools(_GBCE, _GSASREC_ML1M, {}))),
    "item-knn": Rival("hafvt", dict.fromkeys(LENGTHS, _KNN)),
    # The films have no dates.
    "hafvt without dates": Rival(
        "hafvt",
        {
            FILMS: [],
            GOODS: [
                {**settings, "params": {**settings["params"], "use_request_date": False}}
                for settings in _own("hafvt", "id_width", 0.003)
            ],
        },
    ),
    "recent-popularity": Rival(
        "hafvt",
        {FILMS: [], GOODS: _counting("recent-popularity", {"days": 7}, {"days": 30}, {"days": 90})},
    ),
    "BERT4Rec (RecTools)": Rival(
        "rectools",
        {
            FILMS: _rectools(_BERT4REC, {"n_factors": 256, "n_heads": 4}, {}),
            GOODS: _rectools(_BERT4REC | _SAMPLED, {"n_factors": 256, "n_heads": 4}, {}),
        },
    ),
}
