"""The encoder and modality that docs/how-to/extend.md adds work as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.features import modalities
from hafvt.features.encode import encode
from hafvt.features.modalities import MODALITIES
from hafvt.features.new_items import encode_new_items

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def words_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the modality `words` to the table, from the two code blocks of the page."""
    page = (DOCS / "how-to" / "extend.md").read_text(encoding="utf-8")
    section = page.split("## A new encoder or modality\n")[1].split("\n## ")[0]
    file, line = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    assert len(line.splitlines()) == 1
    names = dict(vars(modalities))
    exec(compile(file, "hashed.py", "exec"), names)
    monkeypatch.setitem(MODALITIES, "words", eval(f"{{{line}}}", names)["words"])


@pytest.mark.usefixtures("words_modality")
def test_documented_encoder_encodes_a_dataset_and_new_items_alike(pictured: Dataset) -> None:
    table = encode(pictured, encoders={"words": "hashed:16"}, batch_size=5)["words"]
    assert table.present.tolist() == [item != 3 for item in range(12)]
    assert table.rows.shape == (12, 16)
    new = encode_new_items(pictured, "words", pictured.item_table[4:6], None)
    np.testing.assert_array_equal(new.rows, table.rows[4:6])
    (table.folder / "fitted_arrays.npz").unlink()
    with pytest.raises(HafvtError, match=r"fitted_arrays.npz does not exist: run hafvt encode for words"):
        encode_new_items(pictured, "words", pictured.item_table[4:6], None)


@pytest.mark.usefixtures("words_modality")
def test_documented_encoder_with_other_settings_is_refused_for_new_items(
    pictured: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(pictured, encoders={"words": "hashed:16"})
    encoder = MODALITIES["words"].encoders["hashed"]

    def changed(argument: str, *, device: str, seed: int) -> object:
        return encoder("8", device=device, seed=seed)

    monkeypatch.setitem(MODALITIES["words"].encoders, "hashed", changed)
    with pytest.raises(HafvtError, match=r"is not what made .*/features/words \(other: width\)"):
        encode_new_items(pictured, "words", pictured.item_table, None)


def test_encode_with_an_unknown_modality_is_refused(pictured: Dataset) -> None:
    with pytest.raises(HafvtError, match="no encoders for modality 'sound': choose one of image, title"):
        encode(pictured, encoders={"sound": "classic"})
