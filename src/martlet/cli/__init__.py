"""The command line: `martlet VERB ...`, one module a verb."""
