"""What every command shares: arguments, files, HTTP, and how it ends."""
