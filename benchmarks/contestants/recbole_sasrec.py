"""SASRec of RecBole, by its own trainer: a row for each prefix, as it wants."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from common import BATCH, BLOCKS, DROPOUT, HEADS, LENGTH, RATE, WIDTH, K, Meter, arguments, read, write
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer


def write_rows(path: Path, rows: list[tuple[int, np.ndarray]]) -> None:
    """Writes sequences and next items as RecBole's atomic file."""
    with path.open("w") as file:
        file.write("user_id:token\titem_id_list:token_seq\titem_id:token\n")
        for user, row in rows:
            file.write(f"{user}\t{' '.join(map(str, row[:-1]))}\t{row[-1]}\n")


def main() -> None:
    options = arguments()
    log = read(options.log)
    folder = options.out / "log"
    folder.mkdir(exist_ok=True)
    prefixes = [(u, row[:n]) for u, row in enumerate(log.train) for n in range(2, len(row) + 1)]
    write_rows(folder / "log.train.inter", prefixes)
    some = [(u, np.append(row, row[-1])) for u, row in enumerate(log.history)]  # the last is not looked at
    for part in ("valid", "test"):
        write_rows(folder / f"log.{part}.inter", some)
    config = Config(
        model="SASRec",
        dataset="log",
        config_dict={
            "data_path": str(options.out),
            "checkpoint_dir": str(options.out / "saved"),
            "benchmark_filename": ["train", "valid", "test"],
            "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
            "alias_of_item_id": ["item_id_list"],
            "MAX_ITEM_LIST_LENGTH": LENGTH,
            "n_layers": BLOCKS,
            "n_heads": HEADS,
            "hidden_size": WIDTH,
            "inner_size": 4 * WIDTH,
            "hidden_dropout_prob": DROPOUT,
            "attn_dropout_prob": DROPOUT,
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "train_batch_size": BATCH * 16,
            "learning_rate": RATE,
            "epochs": options.passes,
            "eval_step": 0,
            "show_progress": False,
            "use_gpu": False,
            "seed": 0,
            "state": "ERROR",
        },
    )
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    with Meter() as training:
        trainer.fit(train, saved=False, show_progress=False)
    number = dataset.field2token_id["item_id"]
    ours = np.full(dataset.item_num, -1)
    for token, index in number.items():
        if token != "[PAD]":
            ours[index] = int(token)
    model.eval()
    with Meter() as ranking, torch.inference_mode():
        tops = []
        for cut in range(0, len(log.history), 256):
            rows = log.history[cut : cut + 256]
            table = np.zeros((len(rows), LENGTH), dtype=np.int64)
            for n, row in enumerate(rows):
                table[n, : len(row)] = [number[str(item)] for item in row]
            lengths = torch.tensor([len(row) for row in rows])
            queries = Interaction({"item_id_list": torch.from_numpy(table), "item_length": lengths})
            scores = model.full_sort_predict(queries)
            scores[:, 0] = -torch.inf
            tops.append(ours[scores.topk(K).indices.numpy()])
    write(
        options.out,
        log,
        options.passes,
        training,
        ranking,
        np.concatenate(tops),
        f"recbole {version('recbole')}",
    )


if __name__ == "__main__":
    main()
