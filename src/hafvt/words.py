"""The words for people, in one list: page and report have one word for one thing."""

from __future__ import annotations

MODALITY_NAMES = {"id": "choices", "image": "pictures", "title": "titles", "attributes": "attributes"}
"""What a modality compares; a modality that is missing here keeps its name."""

MODALITY_REASONS = {
    "id": "what others chose with them",
    "image": "similar pictures",
    "title": "similar titles",
    "attributes": "similar attributes",
}
"""The same as the reason for a recommendation."""

PHRASES = {
    "because": "Because of",
    "chosen_next": "Chosen next",
    "important_items": "Items that mattered most",
    "shares": "Where the score comes from",
    "popular": "Popular: chosen {count} times.",
    "no_explanation": "This model cannot explain its scores.",
}
"""By name: what the page and the report say."""


def modality_name(modality: str) -> str:
    """Return the name of a modality for people."""
    return MODALITY_NAMES.get(modality, modality)
