"""Estimators with a trained spatial network: the recurrent inference machine and the residual network."""

from __future__ import annotations

from typing import ClassVar

from qmri_bidsapp.core.acquisition import Acquisition, MultiEcho
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.spatial.base import SpatialNetwork
from qmri_bidsapp.estimators.spatial.error_head import SliceNetwork
from qmri_bidsapp.estimators.spatial.patches import FIRST_TIME, LAST_TIME
from qmri_bidsapp.estimators.spatial.recurrent import RecurrentInferenceMachine
from qmri_bidsapp.estimators.spatial.residual import ResidualNetwork
from qmri_bidsapp.models.base import SignalModel

#: Largest factor by which a protocol may begin later than the latest of the training, or end before the earliest.
#: Beyond it the protocol hardly determines relaxation times of the brain, and the estimate would follow the training.
MAX_REACH = 2.0


class RecurrentInference(SpatialNetwork):
    """Recurrent inference machine; see `recurrent.RecurrentInferenceMachine`."""

    name: ClassVar[str] = "rim"
    title: ClassVar[str] = "Recurrent inference machine"
    reference: ClassVar[str] = (
        "Sabidussi et al. 2021, Med Image Anal 74:102220; Putzky and Welling 2017, arXiv:1706.04008"
    )
    network_version: ClassVar[str] = "rim-2"
    is_general: ClassVar[bool] = True
    methods: ClassVar[str] = (
        "With the estimator rim, estimates are those of a recurrent inference machine trained on slices simulated "
        "from label maps of heads, with protocols drawn at random [@sabidussi]; standard deviations, where the "
        "weights provide them, were learned from the errors on such slices."
    )

    @classmethod
    def check(cls, model: SignalModel, acquisition: Acquisition) -> None:
        """Raise ProtocolError also if the times are far from those of the training; see `SpatialNetwork.check`."""
        super().check(model, acquisition)
        name = "echo" if isinstance(acquisition, MultiEcho) else "inversion"
        times = getattr(acquisition, f"{name}_time")
        latest = MAX_REACH * FIRST_TIME[type(acquisition)][1]
        earliest = LAST_TIME[type(acquisition)][0] / MAX_REACH
        if min(times) > latest or max(times) < earliest:
            raise ProtocolError(
                f"Estimator {cls.name} needs {name} times that begin by {latest:g} s and end at {earliest:g} s or "
                f"later, got {min(times):g} to {max(times):g} s, which hardly determine the brain's relaxation times: "
                "use estimator nlls, whose standard deviations say so, or resnet, trained for these times."
            )

    @classmethod
    def build(cls, model: SignalModel, acquisition: Acquisition) -> SliceNetwork:
        """Return the network, which takes any number of measurements."""
        return RecurrentInferenceMachine(model)


class ResidualEstimation(SpatialNetwork):
    """Residual network; see `residual.ResidualNetwork`."""

    name: ClassVar[str] = "resnet"
    title: ClassVar[str] = "Residual network"
    reference: ClassVar[str] = "Sabidussi et al. 2021, Med Image Anal 74:102220; He et al. 2016, CVPR 770"
    network_version: ClassVar[str] = "resnet-1"
    is_general: ClassVar[bool] = False
    methods: ClassVar[str] = (
        "With the estimator resnet, estimates are those of a residual network trained on simulated slices of the "
        "protocol, made from label maps of heads [@sabidussi]; standard deviations, where the weights provide them, "
        "were learned from the errors on such slices."
    )

    @classmethod
    def build(cls, model: SignalModel, acquisition: Acquisition) -> SliceNetwork:
        """Return the network for this number of measurements."""
        return ResidualNetwork(model, acquisition.n_measurements)
