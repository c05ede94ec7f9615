"""Latent Exploration Decoding (arXiv 2602.01698) as a plugin for stock SGLang."""

__version__ = "0.1.0"
