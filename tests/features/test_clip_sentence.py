from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.features.encode import encode
from hafvt.features.modalities import make_encoder

from .conftest import WORDS, Checkpoint


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 255, (30, 20, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.mark.parametrize(("kind", "width"), [("clip", 12), ("siglip", 16)])
def test_clip_encoders_match_the_model(checkpoint: Checkpoint, kind: str, width: int) -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = str(checkpoint(kind))
    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(images=pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        seen = model.vision_model(pixel_values=pixels).pooler_output
        expected = model.visual_projection(seen) if kind == "clip" else seen
    rows = make_encoder("image", f"clip:{folder}", "cpu", 0).encode(pictures())
    assert rows.dtype == np.float32
    assert rows.shape == (3, width)
    np.testing.assert_allclose(rows, expected.numpy(), rtol=1e-5, atol=1e-6)
    titles = make_encoder("title", f"clip:{folder}", "cpu", 0)
    assert titles.encode(["red lamp", "green chair day"]).shape == (2, width)
    assert "torchvision" not in sys.modules


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_clip_titles_longer_than_the_maximum_are_cut(checkpoint: Checkpoint, kind: str) -> None:
    encoder = make_encoder("title", f"clip:{checkpoint(kind)}", "cpu", 0)
    long = " ".join(WORDS * 9)
    rows = encoder.encode([long, " ".join(long.split()[:6]), "night " + long])
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5, atol=1e-6)
    assert np.abs(rows[0] - rows[2]).max() > 1e-4


def test_siglip_titles_in_any_batch_give_the_same_rows(checkpoint: Checkpoint) -> None:
    encoder = make_encoder("title", f"clip:{checkpoint('siglip')}", "cpu", 0)
    alone = encoder.encode(["red lamp"])
    np.testing.assert_allclose(encoder.encode(["red lamp", "green chair small"])[:1], alone, atol=1e-6)


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_encode_with_a_checkpoint_writes_unit_rows_and_hashes(
    checkpoint: Checkpoint, pictured: Dataset, kind: str
) -> None:
    spec = f"{kind}:{checkpoint(kind)}"
    table = encode(pictured, title=spec, batch_size=5, device="cpu")["title"]
    assert table.present.tolist() == [n != 3 for n in range(12)]
    np.testing.assert_allclose(
        np.linalg.norm(table.rows[table.present].astype(np.float32), axis=1), 1, atol=2e-3
    )
    assert all(len(digest) == 64 for digest in table.metadata["settings"]["sha256"].values())
    assert table.metadata["settings"]["sha256"]
    assert table.metadata["encoder"] == spec


def test_sentence_titles_match_the_library(checkpoint: Checkpoint) -> None:
    from sentence_transformers import SentenceTransformer

    folder = str(checkpoint("sentence"))
    values = ["red lamp", "large green chair night"]
    rows = make_encoder("title", f"sentence:{folder}", "cpu", 0).encode(values)
    assert rows.shape == (2, 16)
    np.testing.assert_allclose(rows, SentenceTransformer(folder, device="cpu").encode(values), atol=1e-6)


def test_make_encoder_with_another_kind_of_checkpoint_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(HafvtError, match="is a bert: give a CLIP or SigLIP checkpoint"):
        make_encoder("image", f"clip:{checkpoint('bert')}", "cpu", 0)


@pytest.mark.parametrize(
    "spec", ["clip:no-such/model", "clip:./nowhere", "sentence:nowhere", "sentence:a/b/c", "clip"]
)
def test_make_encoder_with_a_missing_checkpoint_is_refused_in_one_line(spec: str) -> None:
    with pytest.raises(HafvtError, match=r"folder|FOLDER") as caught:
        make_encoder("title", spec, "cpu", 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["clip", "sentence"])
def test_make_encoder_with_pickled_weights_is_refused_and_loads_none(
    checkpoint: Checkpoint, kind: str, tmp_path: Path
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.write_text, (tmp_path / "exploded", "x")

    for path in checkpoint(kind).rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            copy = tmp_path / "model" / path.relative_to(checkpoint(kind))
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    torch.save(Bomb(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(HafvtError, match="safetensors"):
        make_encoder("title", f"{kind}:{tmp_path / 'model'}", "cpu", 0)
    assert not (tmp_path / "exploded").exists()


def test_make_encoder_with_unknown_encoder_or_device_is_refused() -> None:
    with pytest.raises(HafvtError, match=r"no image encoder 'vgg': choose one of classic, clip"):
        make_encoder("image", "vgg", "cpu", 0)
    with pytest.raises(HafvtError, match="no image encoder 'sentence'"):
        make_encoder("image", "sentence:x", "cpu", 0)
    with pytest.raises(HafvtError, match="takes no argument"):
        make_encoder("title", "classic:x", "cpu", 0)
    with pytest.raises(HafvtError, match="--device toaster: choose auto, cpu"):
        make_encoder("title", "clip:x", "toaster", 0)


def test_make_encoder_with_missing_weights_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint("clip"), tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HafvtError, match=r"lacks weights, e\.g\. text_projection\.weight"):
        make_encoder("image", f"clip:{tmp_path / 'clip'}", "cpu", 0)
