"""Names of files in a model folder, for those who only look whether they are there."""

__all__ = ["MANIFEST_NAME"]

MANIFEST_NAME = "martlet.json"
