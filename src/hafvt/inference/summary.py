"""What the text of a recommender says about its folder."""

from __future__ import annotations

from pathlib import Path


def result_lines(name: str, folder: Path) -> list[str]:
    """Return the table of test results in the folder of a run, if it has one, and what to do next.

    Args:
        name: of the model.
        folder: of a run or an export.
    """
    lines = []
    if (folder / "results.json").exists():
        # Imports torch, which an export does not need.
        from hafvt.evaluation.results import read_notes, read_results
        from hafvt.evaluation.tables import plain_table

        lines += [plain_table({name: read_results(folder)}), *read_notes(folder)]
    if (folder / "report.html").exists():
        lines.append(f"open {folder / 'report.html'}")
    return [*lines, f"hafvt serve {folder}"]
