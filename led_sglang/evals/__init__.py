"""The paper's experiment as a tool: an HTTP client that imports neither torch nor SGLang."""
