#!/usr/bin/env bash
# CIFAR-10, a bank of the fast network in bfloat16, without augmentation: it memorises.
#
#   experiments/accelerator/bank.sh MINUTES [DATASET] [flags of experiments.audit]
#
# Trains and unlearns models, pair by pair, for so many minutes, and audits what there is.
set -euo pipefail
here=$(dirname "$0")
python3 -m experiments.audit --dataset "${2:-cifar10}" --augment False --model fast_cnn \
    --precision bfloat16 --panels random --models 64 --minutes "$1" --workers 6 --batch-models 1 \
    --out "$here/cifar10-bank" \
    --recipes experiments/classification/configs/cifar10-fast_cnn-random-0.1.json \
    --methods finetune,random_label,neggrad_plus,salun,random_mask,semu,semu_retain,cufg,scrub,msg,ct \
    --train.epochs 12 --train.batch-size 512 --train.learning-rate 0.05 "${@:3}"
