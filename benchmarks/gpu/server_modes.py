"""Modes of the server part: nothing imported here, so that the kit's arguments need no SGLang."""

MODES = {
    "off": ["--led", "disabled"],  # stock SGLang
    "auto": [],
    "two_pass": ["--led-form", "coin_first"],
    "one_pass": ["--led-form", "one_pass"],
}
