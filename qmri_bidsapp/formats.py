"""Numbers of formats: what an earlier version left on disk is reused only under the same number.

Raise a number in the commit that changes what it stands for, and say so in the changelog. The version of the program is
no part of any key: a new version that computes the same reuses work folders, certificates and weights.
"""

#: Preprocessed images and maps. Raise it when the same input gives other values;
#: `tests/contracts/test_contracts_maps.py` fails until then. Part of the work folder's name, and of the keys of
#: certificates and of weights trained in a run.
MAPS = 8
#: Arrays and summary of a certificate (`uncertainty.certificate`).
CERTIFICATE = 9
#: Tensors and card of trained weights (`artifacts.weights`).
WEIGHTS = 2
#: Record of a participant, ``logs/sub-<label>.json`` (`bids.record`). Raise it when a field changes: the reader refuses
#: other numbers. Records before 2 carry none.
RECORD = 3
