"""Bodies for NVIDIA graphics cards: sources in CUDA C++, compiled when first used."""
