"""Serving models over HTTP; every model runs in a process of its own."""
