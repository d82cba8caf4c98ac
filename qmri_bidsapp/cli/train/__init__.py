"""The commands of qmri train."""
