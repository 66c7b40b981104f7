import math

from hafvt.evaluation.metrics import MetricValue
from hafvt.evaluation.tables import best_models, domains_of, interval, plain_table, results_markdown
from hafvt.tables import markdown_table, percent

RESULTS = {
    "ours": {
        "overall": {"MRR": MetricValue(0.123, 0.118, 0.129), "HR@1": MetricValue(0.05)},
        "food": {"MRR": MetricValue(0.1, 0.09, 0.11), "HR@1": MetricValue(0.04)},
    },
    "theirs": {
        "overall": {"MRR": MetricValue(0.1, 0.095, 0.105), "HR@1": MetricValue(0.06)},
        "food": {"MRR": MetricValue(math.nan)},
        "kitchen": {"MRR": MetricValue(0.2)},
    },
}


def test_percent_and_interval_without_a_number_are_empty() -> None:
    assert (percent(0.12345), percent(None), percent(math.nan)) == ("12.35", "–", "–")
    assert interval(MetricValue(0.1, 0.09, 0.11)) == "[9.00, 11.00]"
    assert interval(MetricValue(0.1)) == interval(MetricValue(0.1, math.nan, 0.2)) == ""


def test_domains_of_several_models_put_overall_last() -> None:
    assert domains_of(RESULTS) == ["food", "kitchen", "overall"]


def test_best_models_without_a_rival_are_none() -> None:
    assert best_models(RESULTS, "overall", "MRR") == {"ours"}
    assert best_models(RESULTS, "overall", "HR@1") == {"theirs"}
    assert best_models(RESULTS, "food", "MRR") == best_models(RESULTS, "kitchen", "MRR") == set()


def test_markdown_table_with_pipes_and_line_breaks_escapes_them() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1\n2"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 2 |\n"


def test_results_markdown_marks_the_best_with_intervals() -> None:
    lines = results_markdown(RESULTS).splitlines()
    assert lines[0] == "| domain | model | MRR (%) | HR@1 (%) |"
    assert "| overall | ours | **12.30** [11.80, 12.90] | 5.00 |" in lines
    assert "| overall | theirs | 10.00 [9.50, 10.50] | **6.00** |" in lines
    assert "| kitchen | theirs | 20.00 | – |" in lines


def test_plain_table_of_two_models_is_aligned_and_marks_the_best() -> None:
    table = plain_table(RESULTS)
    lines = table.splitlines()
    row = next(number for number, line in enumerate(lines) if "12.30*" in line)
    assert "[11.80, 12.90]" in lines[row + 1]  # not symmetric about 12.30
    assert lines[row].index("12.30") + len("12.30") == lines[row + 1].index("]") + 1
    assert "[9.50, 10.50]" in lines[row + 3]
    assert table.splitlines()[-1].endswith("best of its domain")
    heads = [line for line in table.splitlines() if "MRR" in line]
    assert len(heads) == 3
    assert len(set(map(len, heads))) == 1


def test_plain_table_of_one_model_or_none_marks_nothing() -> None:
    assert "*" not in plain_table({"ours": RESULTS["ours"]})
    assert plain_table({}) == "in %, below each value its 95 % interval"
