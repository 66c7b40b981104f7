"""Processor time of encoding pictures by CLIP ViT-B/32, for the sizing table.

    OMP_NUM_THREADS=1 python benchmarks/encoding.py

Encodes 32 and then 160 JPEGs of 500 x 500 pixels by `hafvt encode`; the difference leaves out the start. The
weights are random, as the time does not depend on them. Writes results/encoding.md and .json.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from machine import describe, record, sentence

from hafvt.features.encode import encode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.features.conftest import _tokenizer, write_catalog, write_pictures

SIDE, FEW, MANY = 500, 32, 160


def write_checkpoint(folder: Path) -> None:
    """Write CLIP ViT-B/32 with random weights."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    words = _tokenizer(folder, "<|startoftext|>", "<|endoftext|>", "[PAD]")
    text = {"vocab_size": words, "eos_token_id": words - 1, "num_hidden_layers": 1}
    CLIPModel(CLIPConfig(text_config=text)).save_pretrained(folder)  # the default picture tower is ViT-B/32
    CLIPImageProcessorPil().save_pretrained(folder)


def main() -> None:
    """Measure and write."""
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "clip")
        names = [f"{number}.jpg" for number in range(MANY)]
        write_pictures(folder / "pictures", names, SIDE)
        for count in (FEW, MANY):
            titles: list[str | None] = [None] * count
            data = write_catalog(folder / f"data{count}", titles, list(names[:count]), folder / "pictures")
            start = time.process_time()
            encode(data, image=f"clip:{folder / 'clip'}", device="cpu")
            seconds[count] = time.process_time() - start
    per_picture = (seconds[MANY] - seconds[FEW]) / (MANY - FEW)
    machine = describe()
    text = (
        "# Encoding pictures\n\n`OMP_NUM_THREADS=1 python benchmarks/encoding.py`\n\n"
        f"{sentence(machine)}\n\n"
        f"CLIP ViT-B/32, JPEGs of {SIDE} x {SIDE} pixels: {1000 * per_picture:.0f} CPU-ms for each picture, "
        "with reading and decoding it.\n"
    )
    record("encoding", text, {"machine": machine, "cpu_seconds_per_picture": per_picture})


if __name__ == "__main__":
    main()
