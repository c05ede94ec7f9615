"""Parameters of requests and servers: names, types, ranges, defaults, markers. Imports neither torch nor SGLang."""
