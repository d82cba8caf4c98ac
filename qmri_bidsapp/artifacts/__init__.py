"""Files that training leaves: weights with their card, checkpoints."""
