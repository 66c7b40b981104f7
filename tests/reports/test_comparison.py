"""Comparison tables as Markdown, LaTeX and SVG."""

from __future__ import annotations

from xml.etree import ElementTree

from hafvt.reports.comparison import Bar, ModelRow, bars_svg, comparison_latex, comparison_markdown

ROWS = [
    ModelRow("a_b|c", ((12.345, 0.5), (float("nan"), None)), ("significant", "")),
    ModelRow("paper", ((1.0, None), (2.0, None)), ("", ""), is_published=True),
]


def test_comparison_markdown_marks_the_best_and_published_rows() -> None:
    text = comparison_markdown(["x&y"], ["MRR", "NDCG@5"], ROWS)
    assert "| a_b\\|c | **12.35 ± 0.50**\\* | – |" in text or "**12.34 ± 0.50**\\*" in text
    assert "| *paper* | *1.00* | *2.00* |" in text


def test_comparison_latex_escapes_text() -> None:
    latex = comparison_latex(["x&y"], ["MRR", "NDCG@5"], ROWS, "100 % {sure}")
    assert "a\\_b|c" in latex
    assert "x\\&y" in latex
    assert "100 \\% \\{sure\\}" in latex
    assert latex.count("\\\\\n") == 4


def test_bars_svg_with_markup_in_labels_is_well_formed() -> None:
    svg = ElementTree.fromstring(bars_svg("a < b", [Bar("x & y", 3.0, 2.0, 4.0), Bar("z", 0.0)]))
    texts = [element.text for element in svg.iter() if element.tag.endswith("text")]
    assert texts == ["a < b", "x & y", "3.00", "z", "0.00"]
