"""Files that hold weights: a validated safetensors reader and Martlet's own model folder."""
