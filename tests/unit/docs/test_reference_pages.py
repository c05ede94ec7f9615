"""docs/reference is what the tables say, and the tables are whole."""

import pytest

from led_sglang.config.arguments import ARGUMENTS
from led_sglang.config.fields import FIELDS
from led_sglang.integration.hooks.table import HOOK_TARGETS
from led_sglang.serving.command_line import build_parser
from scripts import generated, reference_pages


def text_of(name: str) -> str:
    return reference_pages.pages()[reference_pages.FOLDER / name]


def test_every_page_is_current() -> None:
    assert generated.stale(reference_pages.pages()) == [], "run python scripts/reference_pages.py"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("parameters.md", list(FIELDS)),
        ("arguments.md", [action.option_strings[-1] for action in build_parser()._actions]),
        ("arguments.md", [argument.flag for argument in ARGUMENTS]),
        ("hooks.md", [target.removeprefix("sglang.srt.") for target in HOOK_TARGETS]),
    ],
)
def test_a_page_has_every_row(page: str, names: list[str]) -> None:
    text = text_of(page)
    keys = {FIELDS[name].key if page == "parameters.md" else name for name in names}
    assert [key for key in keys if f"| `{key}` |" not in text] == []


def test_a_page_that_is_not_current_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reference_pages.PAGES, "hooks.md", lambda: "# Other hooks")
    assert [page.name for page in generated.stale(reference_pages.pages())] == ["hooks.md"]


def test_metrics_are_those_of_a_scrape() -> None:
    text = text_of("metrics.md")
    for name in ("led_sglang_tokens_total", "led_sglang_fallbacks_total", "led_sglang_explore_depth"):
        assert f"| `{name}` |" in text
    assert "| counter | `reason` |" in text and "| counter | `method` |" in text
