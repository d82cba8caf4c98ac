"""Training of the motion score: simulation of motion, heads, augmentation, training, accuracy."""
