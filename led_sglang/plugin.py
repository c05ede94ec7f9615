"""Entry point `sglang.srt.plugins`: SGLang calls `register` in every process; inert unless LED was switched on."""

from led_sglang.config.server import server_config

__all__ = ["register"]


def register() -> None:
    """Register the hooks of `integration.hooks` with SGLang's registry, once, if a configuration was exported."""
    if server_config() is None:
        return
    from led_sglang.integration.hooks.register import register_hooks

    register_hooks()
