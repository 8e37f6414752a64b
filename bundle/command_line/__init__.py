"""The command line: configs by name, checks of what a user types, and errors in one sentence."""
