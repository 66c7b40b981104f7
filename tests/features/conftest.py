"""Fixtures: a dataset with pictures and titles, and tiny checkpoints with random weights."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no network; must be set before huggingface_hub is imported

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from hafvt.data.dataset import Dataset, Domain, write_dataset

WORDS = ["red", "green", "blue", "small", "large", "lamp", "chair", "film", "night", "day"]


def write_pictures(folder: Path, names: list[str], side: int = 40) -> None:
    """Write noisy pictures whose color depends on their index."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for n, name in enumerate(names):
        pixels = random.integers(0, 80, (side, side, 3)) + np.array(
            [(90, 0, 0), (0, 90, 0), (0, 0, 90)][n % 3]
        )
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name, "JPEG")


def write_catalog(
    folder: Path, titles: list[str | None], images: list[str | None], image_root: Path | None
) -> Dataset:
    """Write and return a dataset of items a0, a1, ... and one user."""
    items = len(titles)
    table = pl.DataFrame(
        {
            "item_id": [f"a{n}" for n in range(items)],
            "domain": ["d"] * items,
            "title": titles,
            "image": images,
        },
        schema_overrides={"title": pl.String, "image": pl.String},
    )
    return write_dataset(
        folder,
        domains=[Domain("d", 0, items)],
        item_table=table,
        user_ids=pl.Series(["u"]),
        items=np.array([0, 1, 0]),
        times=np.arange(3),
        offsets=np.array([0, 3]),
        train_lengths=np.array([1]),
        valid=np.array([1]),
        test=np.array([2]),
        image_root=image_root,
    )


@pytest.fixture
def pictured(tmp_path: Path) -> Dataset:
    """Twelve items: 3 has no picture and no title, the picture of 5 is broken, that of 7 is missing."""
    names = [f"{n}.jpg" for n in range(12)]
    write_pictures(tmp_path / "pictures", names)
    (tmp_path / "pictures" / "5.jpg").write_text("not a picture")
    (tmp_path / "pictures" / "7.jpg").unlink()
    titles: list[str | None] = [f"{WORDS[n % 10]} {WORDS[(n * 3 + 1) % 10]} {n}" for n in range(12)]
    images: list[str | None] = list(names)
    titles[3] = images[3] = None
    return write_catalog(tmp_path / "data", titles, images, tmp_path / "pictures")


Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A function that returns the folder of a checkpoint: "clip", "siglip", "bert" or "sentence"."""
    folders: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            {"clip": _clip, "siglip": _siglip, "bert": _bert, "sentence": _sentence}[kind](folders[kind])
        return folders[kind]

    return get


def _tokenizer(folder: Path, start: str, end: str, pad: str) -> int:
    """Save a tokenizer of words with start and end of text; return the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: n for n, word in enumerate(dict.fromkeys([pad, "[UNK]", *WORDS, start, end]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(start, vocabulary[start]), (end, vocabulary[end])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=pad, unk_token="[UNK]"
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def _clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, set_seed

    words = _tokenizer(folder, "<|startoftext|>", "<|endoftext|>", "[PAD]")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**tower, "vocab_size": words, "max_position_embeddings": 8, "eos_token_id": words - 1}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    set_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)


def _siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, set_seed

    words = _tokenizer(folder, "<s>", "</s>", "[PAD]")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**tower, "vocab_size": words, "max_position_embeddings": 8}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    set_seed(0)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def _bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel, set_seed

    words = _tokenizer(folder, "[CLS]", "[SEP]", "[PAD]")
    set_seed(0)
    config = BertConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)


def _sentence(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    _bert(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    pooling = Pooling(16)
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder))
