"""Every argument of the installed SGLang has a verdict, so that none of a new release slips in unread."""

from collections import Counter
from pathlib import Path

import pytest
from sglang.srt.server_args import ServerArgs

from led_sglang.integration.support import UNSUPPORTED
from scripts import arguments

VERDICTS = arguments.verdicts()
GATEWAY = {"servicer_impl", "metrics_host", "metrics_port"}  # of smg's servicer, a plugin that another test may load
OLD = {"grpc_mode"}  # SGLang 0.5.17's


def installed() -> set[str]:
    """Fields that a user can set, by a flag or from Python."""
    return {field for field in ServerArgs._NS_BY_FIELD if not field.startswith("_")}


def judged() -> Counter[str]:
    groups = [*VERDICTS["untested"].values(), *VERDICTS["cannot matter"].values()]
    return Counter([*VERDICTS["works"], *UNSUPPORTED, *(field for group in groups for field in group)])


def test_every_argument_of_the_installed_release_has_one_verdict() -> None:
    """A new one: refuse it in `support.UNSUPPORTED`, or put it into patches/arguments.json with a test or a reason."""
    found = judged()
    assert installed() - set(found) == set(), "read what it does, then give it a verdict"
    assert set(found) - installed() <= OLD, "SGLang does not have these any more"
    assert [field for field, number in found.items() if number > 1] == []


def test_every_flag_of_the_parser_is_an_argument() -> None:
    """One that were no field of ServerArgs would have no verdict."""
    flags = set(arguments.flags()) - {"help", "config"} - GATEWAY
    assert len(flags) > 400 and flags <= installed()


@pytest.mark.parametrize(("field", "test"), VERDICTS["works"].items())
def test_what_works_is_in_the_test_that_is_named(field: str, test: str) -> None:
    text = Path(test).read_text(encoding="utf-8")
    assert arguments.flag(field)[2:] in text or field in text


def test_the_page_says_the_same() -> None:
    assert arguments.page() == arguments.PAGE.read_text(encoding="utf-8"), "run scripts/arguments.py"
