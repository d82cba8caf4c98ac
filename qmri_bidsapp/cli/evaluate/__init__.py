"""The commands of ``qmri evaluate``."""
