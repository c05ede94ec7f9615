"""Latent Exploration Decoding (arXiv 2602.01698) as a plugin for stock SGLang.

`enable` switches LED on for SGLang's offline Engine; `python -m led_sglang.launch` starts a server. Importing this
package loads neither torch nor SGLang: each name of `__all__` is loaded when it is first read.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from led_sglang.config.checks import LedParamError
    from led_sglang.config.fields import LedParams
    from led_sglang.config.server import ServerConfig
    from led_sglang.launch import enable

__all__ = ["LedParamError", "LedParams", "ServerConfig", "__version__", "enable"]

__version__ = "0.1.0"

_HOMES = {
    "LedParamError": "led_sglang.config.checks",
    "LedParams": "led_sglang.config.fields",
    "ServerConfig": "led_sglang.config.server",
    "enable": "led_sglang.launch",
}


if not TYPE_CHECKING:  # to a type checker every name but those of __all__ is an error

    def __getattr__(name: str) -> Any:
        """A public name, from the module that defines it. Raises AttributeError for another one."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
