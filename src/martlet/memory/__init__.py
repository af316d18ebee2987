"""Where weights live: the plan as a value, and the executors that carry it out."""
