from qmri_bidsapp.api import Maps as Maps
from qmri_bidsapp.api import certify as certify
from qmri_bidsapp.api import fit as fit
from qmri_bidsapp.api import score_motion as score_motion

__version__: str
