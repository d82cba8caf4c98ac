#!/bin/sh
# The weights of rim that come with the program, from the label maps of SynthSeg (a folder of *.nii.gz).
#
#   training/rim.sh LABELS RUN [ITERATIONS]
#
# RUN gets checkpoints, logs and weights, and the training goes on where it was stopped; the weights are then copied
# into the program. The same label maps and seed give the same weights on one kind of processor. Hours of one core for
# each model.
set -eu
labels=$1 run=$2 iterations=${3:-5000}
program=$(dirname "$0")/../qmri_bidsapp
for model in t1 t2; do
    qmri train $model "$run/$model" --estimator rim --labels "$labels" --iterations "$iterations" --seed 0
    rm -rf "$program/weights/rim-$model"
    cp -r "$run/$model/rim-$model" "$program/weights/"
done
