"""Names of models: what is bundled, what lies in a folder, what must be fetched."""
