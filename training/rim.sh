#!/bin/sh
# The weights of rim that come with the program, from the label maps of SynthSeg (a folder of *.nii.gz).
#
#   training/rim.sh LABELS RUN
#
# RUN gets checkpoints, logs and weights, and the training goes on where it was stopped; the weights are then copied
# into the program. The same label maps and seed give the same weights on one kind of processor. About half an hour of
# one core for T1 and forty minutes for T2, and six more each for the standard deviations, learned after the network.
# Where RUN has the checkpoints of trained networks, only the standard deviations are learned.
set -eu
labels=$1 run=$2
program=$(dirname "$0")/../qmri_bidsapp
train() {
    qmri train "$1" "$run/$1" --estimator rim --labels "$labels" --iterations "$2" --seed 0
    rm -rf "$program/weights/rim-$1"
    cp -r "$run/$1/rim-$1" "$program/weights/"
}
train t1 3500
train t2 5000
