"""The commands: each file parses, calls the function of the same name in `api`, and prints."""
