"""One experiment: its requests, its progress, its end."""
