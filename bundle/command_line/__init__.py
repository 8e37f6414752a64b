"""The command line: configs by name, checks of the user's input, and errors in one sentence."""
