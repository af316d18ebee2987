"""Text to token ids and back, exactly as each model was trained."""
