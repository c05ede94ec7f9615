"""The paper's experiment as a tool: a client that talks HTTP to a server and knows neither torch nor SGLang."""
