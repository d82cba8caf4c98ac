"""Files that a run or a training leaves behind: atomic writes, weights with their card, checkpoints."""
