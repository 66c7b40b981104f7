"""The files around the package agree with it: versions, workflows, citation, links of the guides."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> str:
    """Return the text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(read("pyproject.toml"))
GUIDES = [
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    ".github/pull_request_template.md",
]
YAML_FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob(".github/**/*.yml"), *ROOT.glob(".*.yaml"), ROOT / "CITATION.cff")
)


@pytest.mark.parametrize("name", YAML_FILES)
def test_configuration_file_is_yaml_with_keys(name):
    assert isinstance(yaml.safe_load(read(name)), dict)


def test_version_is_that_of_citation_and_changelog():
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == version
    assert f"\n## {version} - {citation['date-released']}\n" in read("CHANGELOG.md")


def test_constraints_name_every_requirement_with_a_version_in_its_range():
    pinned = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", read("constraints.txt"), flags=re.M)
    }
    groups = PROJECT["dependency-groups"].values()
    requirements = [*PROJECT["project"]["dependencies"]]
    for group in (*PROJECT["project"]["optional-dependencies"].values(), *groups):
        requirements += [requirement for requirement in group if isinstance(requirement, str)]
    for requirement in requirements:
        name, _, lowest = re.match(r"([\w.-]+)(\[\w+\])?(?:>=([\d.]+))?", requirement).groups()
        version = pinned[re.sub(r"[-_.]+", "-", name).lower()]
        numbers = [[int(part) for part in re.findall(r"\d+", text)] for text in (version, lowest or "0")]
        assert numbers[0] >= numbers[1], requirement


def test_pre_commit_uses_the_pinned_ruff():
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    (revision,) = [
        repository["rev"] for repository in hooks if repository["repo"].endswith("/ruff-pre-commit")
    ]
    assert f"ruff=={revision.removeprefix('v')}\n" in read("constraints.txt")


def test_workflows_try_all_python_versions_that_the_package_names():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    versions = [
        f"Programming Language :: Python :: {v}"
        for v in workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    ]
    named = [c for c in PROJECT["project"]["classifiers"] if re.fullmatch(r".* :: 3\.\d+", c)]
    assert versions == named


def test_make_targets_of_guides_and_workflows_exist():
    makefile = read("Makefile")
    targets = set(re.findall(r"^([a-z-]+(?: [a-z-]+)*):", makefile, flags=re.M))
    targets = {target for group in targets for target in group.split()}
    texts = [*GUIDES, *YAML_FILES, ".ci/run"]
    for text in texts:
        for target in re.findall(
            r"(?:^|`|run: )make ([a-z-]+[a-z])", (ROOT / text).read_text(encoding="utf-8"), flags=re.M
        ):
            assert target in targets or target == "test", (text, target)


@pytest.mark.parametrize("guide", GUIDES)
def test_links_of_guides_lead_to_files_and_headings(guide):
    text = read(guide)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / guide).parent / path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, link


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads have names in /proc on Linux only")
def test_imports_start_no_threads_of_polars():
    code = """
from pathlib import Path
import hafvt.experiments.compare, hafvt.experiments.tune, hafvt.inference.batch, hafvt.training.train
print([path.read_text() for path in Path("/proc/self/task").glob("*/comm")])
"""
    threads = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "polars-0" not in threads  # a process that forks after that waits for them forever
