"""Named policies: rules of recommendations in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hafvt.data.ids import id_texts
from hafvt.errors import HafvtError
from hafvt.inference.rules import NO_RULES, Rules, make_rules
from hafvt.settings import compose_yaml

MAX_FILE_BYTES = 10_000_000
DEFAULT_POLICY = "default"  # of requests that name none
FIELDS = (*Rules._fields, "exclude", "exclude_seen")


class Policy(NamedTuple):
    """Rules with a name in a file of policies.

    Attributes:
        rules: the rules.
        exclude: ids of items not to recommend.
        exclude_seen: see `Recommender.recommend`.
    """

    rules: Rules = NO_RULES
    exclude: tuple[str, ...] = ()
    exclude_seen: bool | None = None


def read_policies(file: str | Path) -> dict[str, Policy]:
    """Return the policies in a YAML file by name; their fields are the rules, `exclude` and `exclude_seen`.

    Raises:
        HafvtError: the file cannot be read, or a policy in it is wrong.
    """
    path = Path(file)
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise HafvtError(f"no file of at most {MAX_FILE_BYTES:,} bytes is there: check the path")
        root = compose_yaml(path.read_text(encoding="utf-8"))
        content = {} if root is None else _texts(root)
        if not isinstance(content, dict) or not all(isinstance(one, dict) for one in content.values()):
            raise HafvtError("write a policy as a name, a colon and indented lines such as where: price < 20")
        return {name: _read_policy(name, fields) for name, fields in content.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise HafvtError(f"--policies {file}: it cannot be read ({error}): save it as UTF-8") from None
    except HafvtError as error:
        raise HafvtError(f"--policies {file}: {error}") from None


def choose_policy(policies: Mapping[str, Policy], name: str | None) -> Policy:
    """Return the policy of a name; without a name the policy "default", or one without rules.

    Raises:
        HafvtError: there is no policy of this name.
    """
    if name is None:
        return policies.get(DEFAULT_POLICY, Policy())
    if name not in policies:
        names = f"choose one of {', '.join(policies)}" if policies else "there is no file of policies"
        raise HafvtError(f"no policy {name[:80]!r}: {names}")
    return policies[name]


def _read_policy(name: str, fields: dict[str, Any]) -> Policy:
    """Return a policy from the texts of its fields."""
    try:
        if unknown := [field for field in fields if field not in FIELDS]:
            raise HafvtError(f"no field {unknown[0][:80]!r}: choose from {', '.join(FIELDS)}")
        exclude_seen = fields.pop("exclude_seen", None)
        if exclude_seen not in (None, "true", "false"):
            raise HafvtError(f"exclude_seen is {str(exclude_seen)[:80]!r}: write true or false")
        exclude = tuple(id_texts(fields.pop("exclude", ()), "exclude"))
        return Policy(make_rules(**fields), exclude, None if exclude_seen is None else exclude_seen == "true")
    except HafvtError as error:
        raise HafvtError(f"policy {name[:80]!r}: {error}") from None


def _texts(node: yaml.Node) -> Any:
    """Return a YAML node as texts, lists and dictionaries: 007 is the id "007"."""
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_texts(part) for part in node.value]
    if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise HafvtError(f"line {node.start_mark.line + 1}: a name is not a text: write it as a word")
    values = {key.value: _texts(value) for key, value in node.value}
    if len(values) < len(node.value):
        raise HafvtError(f"line {node.start_mark.line + 1}: a name is there twice: keep one")
    return values
