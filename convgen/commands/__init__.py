"""The commands of `python -m convgen`: each parses, calls and prints, and imports what it needs
when it runs, so that help comes at once."""
