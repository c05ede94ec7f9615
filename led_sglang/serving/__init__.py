"""Around a server's process: the words of its start, its ports, its imports, a server as a child."""
