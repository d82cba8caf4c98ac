#!/bin/sh
# The weights of rim that come with the program, from the label maps of SynthSeg (a folder of *.nii.gz).
#
#   training/rim.sh LABELS RUN                  train anew, T1 then T2; goes on where it was stopped
#   training/rim.sh LABELS RUN T1.pt T2.pt      from checkpoints of the first trainings, at whatever iteration they are
#
# RUN gets checkpoints, logs and weights; the weights are then copied into the program. The same label maps and seed
# give the same weights on one kind of processor. Hours of one core for each model.
set -eu
labels=$1 run=$2
iterations=12000
for model in t1 t2; do
    if [ $# -ge 4 ]; then
        [ $model = t1 ] && checkpoint=$3 || checkpoint=$4
        iterations=$(python "$(dirname "$0")/convert.py" "$checkpoint" "$run/$model")
    fi
    qmri train $model "$run/$model" --estimator rim --labels "$labels" --iterations $iterations --seed 0
    rm -rf "$(dirname "$0")/../qmri_bidsapp/weights/rim-$model"
    cp -r "$run/$model/rim-$model" "$(dirname "$0")/../qmri_bidsapp/weights/"
done
