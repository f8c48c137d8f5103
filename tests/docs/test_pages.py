"""Links lead somewhere, every page can be reached, and the reference names all that the code has."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks, pages

from pytest_sandbox import errors, spec
from pytest_sandbox.runtime import cgroups, probe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[Path, str]]:
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    found = _LINK.findall(text)
    return [((page.parent / target).resolve() if target else page, anchor[1:]) for target, anchor in found]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target}#{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in seen:
            seen.add(page)
            todo += [target for target, _ in links(page) if target.suffix == ".md"]
    assert set(pages()) - seen == set()


def reference(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("option", spec.OPTIONS)
def test_the_reference_names_every_option_of_the_marker(option: str) -> None:
    assert f"`{option}`" in reference("marker.md")


def test_the_reference_lists_the_hidden_paths_and_the_capabilities_as_they_are() -> None:
    for path in spec.HIDDEN_BY_DEFAULT:
        assert f"`{path}`" in (ROOT / "docs/explanation/host-image.md").read_text(encoding="utf-8")
    security = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    listed = re.search(r"<!-- default capabilities -->\n(.*?)\n\n", security, re.DOTALL)
    assert listed is not None
    assert sorted(re.findall(r"`([A-Z_]+)`", listed[1])) == sorted(spec.DEFAULT_CAPABILITIES)


def test_the_reference_names_every_error_with_its_builtin() -> None:
    page = reference("errors.md")
    for name, builtin in re.findall(r"── (\w+)\s+\((\w+)\)", errors.__doc__ or ""):
        assert re.search(rf"^\| `{name}` \| `{builtin}` \|", page, re.MULTILINE), name


def test_the_reference_names_every_probe_of_the_doctor() -> None:
    page = reference("doctor.md")
    for finding in (*probe.probe(), *cgroups.findings()):
        assert f"`{finding.name}`" in page


def test_the_reference_names_every_option_of_the_command_line(pytestconfig: pytest.Config) -> None:
    page = reference("command-line.md")
    ours = [option for group in pytestconfig._parser._groups if group.name == "sandbox" for option in group.options]
    assert ours
    for option in [one for one in ours if not one.dest.startswith("sandbox_coming_")]:
        assert f"`{option.names()[0]}" in page


@pytest.mark.parametrize("block", list(blocks("toml")), ids=lambda block: block.name)
def test_toml_examples_can_be_read(block: object) -> None:
    tomllib.loads(block.text)  # type: ignore[attr-defined]


@pytest.mark.parametrize("environment", ["demo", "tests"])
def test_the_readme_has_one_line_that_sets_up_and_runs(environment: str) -> None:
    lines = [line for block in blocks("console") if block.page.name == "README.md" and block.page.parent == ROOT
             for line in block.text.splitlines() if line.endswith(f"tox run -e {environment}")]
    assert len(lines) == 1
    assert "pip install" in lines[0]
