"""Rules and policies over HTTP give the recommender's lists; wrong ones are refused in one line."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from hafvt.errors import HafvtError
from hafvt.inference.recommender import Recommender
from hafvt.server.app import create_app
from hafvt.server.manager import LoadedModel, ModelSource
from tests.served import ODD_ID

POLICIES = """
default:
  exclude: [i4, i5]
cheap:
  where: price < 20
  max_per: {brand: 2}
  pin: {2: i9}
  exclude_seen: false
"""


@pytest.fixture(scope="module")
def recommender(served_run):
    return Recommender.open(served_run)


@pytest.fixture(scope="module")
def client(served_run, tmp_path_factory):
    policies = tmp_path_factory.mktemp("policies") / "policies.yaml"
    policies.write_text(POLICIES)
    app = create_app(ModelSource(served_run, policies=policies))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def listed(client, **request):
    answer = client.post("/recommend", json={"history": ["i3", "i41"], "domain": "d0", "k": 6, **request})
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def expected(recommender, k=6, **options):
    (result,) = recommender.recommend([["i3", "i41"]], "d0", k, **options)
    return [one.item.item_id for one in result.items]


def test_recommend_rules_give_the_recommenders_list(client, recommender):
    rules = {
        "where": "brand in ('acme') or price > 12",
        "allow": [f"i{n}" for n in range(0, 30, 2)],
        "max_per": {"brand": 1},
    }
    request = {**rules, "pin": {"3": "i1"}, "exclude": ["i8"], "exclude_seen": False}
    assert listed(client, **request) == expected(
        recommender, **rules, pin={3: "i1"}, exclude=[["i8", "i4", "i5"]], exclude_seen=False
    )
    two = expected(recommender, 2, **rules, exclude=[["i8", "i4", "i5"]], exclude_seen=False)
    assert listed(client, **request, k=2) == two


def test_recommend_policy_and_request_both_hold(client, recommender):
    cheap = {"where": "price < 20", "max_per": {"brand": 2}, "pin": {2: "i9"}}
    assert listed(client, policy="cheap") == expected(recommender, **cheap, exclude_seen=False)
    both = expected(recommender, **{**cheap, "where": "price < 20 and price > 3"}, exclude_seen=True)
    assert listed(client, policy="cheap", where="price > 3", exclude_seen=True) == both
    assert listed(client) == expected(recommender, exclude=[["i4", "i5"]])


def test_model_route_lists_policies_and_items_have_attributes(client):
    description = client.get("/model").json()
    assert description["policies"] == ["default", "cheap"]
    assert description["attributes"] == ["brand", "price"]
    assert client.get("/items/i3").json()["attributes"] == {"brand": "acme", "price": 3.0}
    assert client.get("/items/i5").json()["attributes"] == {"price": 5.0}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"where": "size > 3"}, "no column 'size': the items have item_id"),
        ({"where": "repeat('x', 1000000000) = brand"}, "use no functions but"),
        ({"where": "price > 3" + " " * 2000}, "where is too long: give at most 2000 characters"),
        ({"max_per": {"size": 2}}, "no column 'size' in the items table"),
        ({"max_per": {"brand": 0}}, "max_per has '0'"),
        ({"max_per": {"brand": "2"}}, "max_per.brand is no whole number"),
        ({"pin": {"first": "i3"}}, "pin has 'first': give a whole number"),
        ({"policy": "unknown"}, "no policy 'unknown': choose one of default, cheap"),
    ],
)
def test_recommend_wrong_rule_is_refused_in_one_line(client, rules, message):
    answer = client.post("/recommend", json={"history": ["i3"], "domain": "d0", **rules})
    assert answer.status_code == 422
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_recommend_unknown_ids_of_rules_are_listed(client):
    request = {"history": ["i3"], "domain": "d0", "allow": ["i1", ODD_ID, "x"], "pin": {"1": "y"}}
    assert client.post("/recommend", json=request).json()["unknown_rule_ids"] == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cheap: {where: size > 3}", "policy 'cheap': where 'size > 3': no column 'size'"),
        ("cheap: {price: 3}", "policy 'cheap': no field 'price': choose from where, allow"),
        ("cheap: {exclude_seen: maybe}", "exclude_seen is 'maybe': write true or false"),
        ("cheap: 3", "write a policy as a name, a colon and indented lines"),
        ("cheap: {where: [}", "it is not YAML"),
        ("{cheap: {where: price > 3}, cheap: {where: price > 4}}", "line 1: a name is there twice"),
    ],
)
def test_open_wrong_policies_raise(served_run, tmp_path, text, message):
    (tmp_path / "policies.yaml").write_text(text)
    with pytest.raises(HafvtError) as caught:
        LoadedModel.open(ModelSource(served_run, policies=tmp_path / "policies.yaml"))
    assert message in str(caught.value)
    assert str(tmp_path / "policies.yaml") in str(caught.value)


def test_changed_policies_are_among_the_watched_files(served_run, tmp_path):
    file = tmp_path / "policies.yaml"
    file.write_text(POLICIES)
    source = ModelSource(served_run, policies=file)
    before = source.file_states()
    file.write_text(POLICIES + "  where: price > 1\n")
    assert source.file_states() != before
    with pytest.raises(HafvtError, match="no file of at most"):
        LoadedModel.open(ModelSource(served_run, policies=tmp_path / "missing.yaml"))
