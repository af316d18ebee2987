"""The Python API: load a model by name, then fill, write, chat, generate, score."""

from martlet.api.loading import load, plan
from martlet.api.model import Model

__all__ = ["Model", "load", "plan"]
