"""Parts that several architectures are made of; functions of weights, no state of their own."""
