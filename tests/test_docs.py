"""The pages that are made from code agree with it, and links between pages lead somewhere."""

import inspect
import re
from pathlib import Path

import pytest

from hubbot import errors
from hubbot.cards.reference import settings_page
from hubbot.runtimes.page import filled, runtimes_page
from hubbot.settings import Settings
from hubbot.settings.sections import Section

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]


def test_the_settings_page_is_what_make_docs_writes():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page()


def keys_of(section: type[Section], path: str = "") -> set[str]:
    keys = set()
    for key, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys |= keys_of(kind, f"{path}{key}.")
        else:
            keys.add(path + key)
    return keys


def test_every_setting_is_on_the_page_with_its_meaning():
    rows, section = {}, ""
    for line in settings_page().splitlines():
        if heading := re.match(r"## `\[([a-z_.]+)\]`", line):
            section = f"{heading[1]}."
        elif row := re.match(r"\| `([a-z_0-9]+)` \|.*\| (.*) \|$", line):
            rows[section + row[1]] = row[2]
    assert keys_of(Settings) <= set(rows)
    assert [key for key, meaning in rows.items() if len(meaning) < 8] == []


def test_every_error_is_on_the_errors_page_with_its_exit_code():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    classes = dict(inspect.getmembers(errors, lambda each: inspect.isclass(each) and issubclass(each, Exception)))
    assert rows == {name: each.exit_code for name, each in classes.items()}


def test_the_drawn_tree_of_errors_is_the_real_one():
    drawn = {name: int(code) for name, code in re.findall(r"(\w+) +(\d+)", errors.__doc__.split("A message")[0])}
    assert drawn == {name: getattr(errors, name).exit_code for name in errors.__all__}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_to_files_that_exist(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_runtimes_page_is_what_make_docs_writes():
    assert (ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8") == runtimes_page()


@pytest.mark.parametrize("page", ["README.md", "docs/formats.md"])
def test_what_other_pages_say_of_runtimes_is_what_make_docs_writes(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- runtimes " in text
    assert filled(text) == text
