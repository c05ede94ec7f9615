"""What the user said to SGLang, in whatever spelling: its own parser tells, which is the one that will read it."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from sglang.srt.server_args import ServerArgs

try:
    from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger
except ImportError:  # SGLang 0.5.17
    from sglang.srt.server_args_config_parser import ConfigArgumentMerger


def merged(argv: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """The settings of a YAML file and then the command line, as SGLang puts them together: the later word wins.

    A setting of null is not said. Raises SystemExit for a setting that SGLang reads from no file.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    if not settings:
        return list(argv)
    with tempfile.TemporaryDirectory(prefix="led-sglang-settings-") as folder:
        file = Path(folder) / "settings.yaml"
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        try:
            found: list[str] = ConfigArgumentMerger(_parser()).merge_config_with_args(["--config", str(file), *argv])
        except (ValueError, TypeError) as error:  # TypeError: a date within a mapping
            raise SystemExit(f"led_sglang: --config: {error}") from error
    return found


def said(argv: Sequence[str]) -> set[str]:
    """Fields of ServerArgs that these arguments name, by flag, alias or abbreviation.

    Raises SystemExit for what SGLang's parser refuses, and for a `--config` that it would take and not read.
    """
    parser = _parser()
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    found = set(vars(parser.parse_known_args(argv)[0]))
    if "config" in found:
        raise SystemExit("led_sglang: --config has to be spelled in full, and stands in no file itself")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m led_sglang.launch")
    ServerArgs.add_cli_args(parser)
    return parser
