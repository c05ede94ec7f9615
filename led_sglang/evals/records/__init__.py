"""Samples on disk, and what is counted and estimated from them."""
