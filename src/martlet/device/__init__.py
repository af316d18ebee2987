"""What the machine has: memory, processors, graphics cards, and how sizes are written."""
