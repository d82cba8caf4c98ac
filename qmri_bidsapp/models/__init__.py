"""Signal models: the physics, once, in torch."""
