#!/usr/bin/env bash
# CIFAR-10, ResNet-18 in bfloat16, random 10 %: the published setting with a shorter training.
#
#   experiments/accelerator/classification.sh SEEDS [DATASET] [flags of experiments.classification]
#
# Rows of earlier seeds lie in cifar10-resnet18/ beside this file; a run adds those that are
# missing up to SEEDS, and one that is cut off goes on.
set -euo pipefail
here=$(dirname "$0")
python3 -m experiments.classification --dataset "${2:-cifar10}" --augment True --model resnet18 \
    --precision bfloat16 --seeds "$1" --workers 6 --out "$here/cifar10-resnet18" \
    --recipes experiments/classification/configs/cifar10-resnet18-random-0.1.json \
    --train.epochs 30 --train.batch-size 256 "${@:3}"
