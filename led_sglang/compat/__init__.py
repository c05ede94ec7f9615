"""Releases of SGLang: where their sources come from."""
