"""The inspector's files, alone and in one page with a recording."""

import json
import re

import pytest

from led_sglang import inspector


def test_a_recording_cannot_leave_its_script_element() -> None:
    hostile = "</script><script>alert(1)</script><!--"
    page = inspector.single_file({"question": hostile, "model": "", "note": "", "sides": {"led": [], "plain": []}})
    data = re.search(r'<script type="application/json" id="recording">(.*?)</script>', page, re.DOTALL)
    assert data is not None and json.loads(data.group(1))["question"] == hostile
    assert page.count("<script") == 1 + len(inspector.SCRIPTS) and "stylesheet" not in page


def test_nothing_of_the_page_comes_from_elsewhere() -> None:
    for name in inspector.TYPES:
        text = inspector.read(name).decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(|innerHTML|insertAdjacentHTML|document\.write|eval\(", text), name


def test_only_the_pages_files_are_read() -> None:
    with pytest.raises(KeyError):
        inspector.read("../params.py")
