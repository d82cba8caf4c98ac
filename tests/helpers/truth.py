"""A small output folder of the app and the truth of its data set, without a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from qmri_bidsapp.bids.record import FitRecord, MapRecord, SeriesRecord, SubjectRecord, TruthMaps, TruthRecord
from qmri_bidsapp.bids.record_files import write_record
from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.uncertainty.inverse import Trust
from qmri_bidsapp.uncertainty.ood import Reason

SHAPE = (16, 16, 12)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
#: Voxels of the region that no model describes.
REGION = (slice(2, 5), slice(2, 5), slice(2, 5))


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def write_output(folder: Path, *, scale: float = 1.0, subject: str = "01") -> tuple[Path, Path]:
    """Write maps of T1 with Gaussian errors and their truth; return output folder and data set.

    Parameters
    ----------
    folder : Path
    scale : float
        Stated standard deviation over the right one.
    subject : str
    """
    out, data = folder / "out", folder / "data"
    rng = np.random.default_rng(int(subject))
    truth = rng.uniform(0.8, 1.5, SHAPE).astype(np.float32)
    estimate = (truth + 0.1 * rng.standard_normal(SHAPE)).astype(np.float32)
    std = np.full(SHAPE, 0.1 * scale, np.float32)
    flag = np.full(SHAPE, Reason.TYPICAL, np.uint8)
    flag[REGION] = Reason.MISFIT
    flag[8, 8, 8] = Reason.OUTLIER
    labels = np.full(SHAPE, 2, np.uint8)
    labels[:, :, :6] = 1
    stem = f"sub-{subject}/anat/sub-{subject}"
    images = {
        "T1map": estimate,
        "desc-nllsstd_T1map": std,
        "desc-nllst1status_dseg": np.full(SHAPE, Status.OK, np.uint8),
        "desc-nllst1trust_dseg": np.full(SHAPE, Trust.RANGE_GIVEN, np.uint8),
        "desc-nllst1flag_dseg": flag,
        "desc-nllst1usable_mask": (flag == Reason.TYPICAL).astype(np.uint8),
        "desc-nllstruthlow_T1map": estimate - np.float32(1.6449) * std,
        "desc-nllstruthhigh_T1map": estimate + np.float32(1.6449) * std,
        "desc-nllsbias_T1map": np.zeros_like(std),
    }
    for name, values in images.items():
        save(out / f"{stem}_{name}.nii.gz", values)
    true_dir = data / "derivatives" / "truth"
    region = np.zeros(SHAPE, np.uint8)
    region[REGION] = 1
    save(true_dir / f"{stem}_T1map.nii.gz", np.where(region, np.float32(np.nan), truth))
    save(true_dir / f"{stem}_dseg.nii.gz", labels)
    save(true_dir / f"{stem}_label-unmodelled_mask.nii.gz", region)
    (out / "dataset_description.json").write_text(json.dumps({"SourceDatasets": [{"URL": data.resolve().as_uri()}]}))
    write_record(_record(subject, stem), out)
    return out, data


def _record(subject: str, stem: str) -> SubjectRecord:
    def name(what: str) -> str:
        return f"{stem}_{what}.nii.gz"

    t1 = MapRecord("t1", "T1", "s", None, name("T1map"), name("desc-nllsstd_T1map"))
    r1 = replace(t1, parameter="r1", estimate=name("R1map"), std=name("desc-nllsstd_R1map"))
    fit = FitRecord("IRT1", "IRT1", "t1", "T1", "source", "nlls", "Least squares", "Cramer-Rao",
                    name("desc-nllst1status_dseg"), (t1, r1))  # fmt: skip
    limits = TruthMaps(
        "t1", name("desc-nllsbias_T1map"), name("desc-nllstruthlow_T1map"), name("desc-nllstruthhigh_T1map")
    )
    certified = TruthRecord(
        "IRT1", "t1", "nlls", None, (limits,), name("desc-nllst1trust_dseg"), name("desc-nllst1flag_dseg")
    )
    usable = UsableRecord("IRT1", "t1", "nlls", name("desc-nllst1usable_mask"))
    series = SeriesRecord("IRT1", "IRT1", {}, ())
    return SubjectRecord(subject, "1", series=(series,), fits=(fit,), truths=(certified,), usables=(usable,))
