"""How fast a model runs on this machine, against what the machine could do."""
