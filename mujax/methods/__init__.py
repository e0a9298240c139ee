"""Published methods, one file each, as triples ``(init, step, finish)``.

:mod:`mujax.methods.base` says what the three functions take and return.
"""

from mujax.methods.adversarial import amun as amun
from mujax.methods.adversarial import boundary_shrink as boundary_shrink
from mujax.methods.base import FORGET as FORGET
from mujax.methods.base import RETAIN as RETAIN
from mujax.methods.base import DataUse as DataUse
from mujax.methods.base import LossFn as LossFn
from mujax.methods.base import Method as Method
from mujax.methods.base import PairLossFn as PairLossFn
from mujax.methods.base import State as State
from mujax.methods.base import StepInfo as StepInfo
from mujax.methods.base import plain_loss as plain_loss
from mujax.methods.base import trainable_fraction as trainable_fraction
from mujax.methods.base import with_data as with_data
from mujax.methods.cufg import cufg as cufg
from mujax.methods.cufg import released_forget_weight as released_forget_weight
from mujax.methods.cufg import released_threshold as released_threshold
from mujax.methods.cufg import ufg as ufg
from mujax.methods.dampening import fisher as fisher
from mujax.methods.dampening import ssd as ssd
from mujax.methods.distillation import Outputs as Outputs
from mujax.methods.distillation import OutputsFn as OutputsFn
from mujax.methods.distillation import bad_teacher as bad_teacher
from mujax.methods.distillation import delete as delete
from mujax.methods.distillation import mark_forgotten as mark_forgotten
from mujax.methods.distillation import oracle_matching as oracle_matching
from mujax.methods.distillation import scrub as scrub
from mujax.methods.esd import esd as esd
from mujax.methods.finetune import finetune as finetune
from mujax.methods.finetune import retrain as retrain
from mujax.methods.gradient_ascent import gdr_gma as gdr_gma
from mujax.methods.gradient_ascent import gradient_ascent as gradient_ascent
from mujax.methods.gradient_ascent import neggrad_plus as neggrad_plus
from mujax.methods.influence import influence as influence
from mujax.methods.part import loss_on_part as loss_on_part
from mujax.methods.part import on_part as on_part
from mujax.methods.resets import ct as ct
from mujax.methods.resets import msg as msg
from mujax.methods.salun import random_label as random_label
from mujax.methods.salun import salun as salun
from mujax.methods.salun import salun_soft as salun_soft
from mujax.methods.semu import semu as semu
from mujax.methods.semu import semu_retain as semu_retain
from mujax.methods.semu import trained_kernels as trained_kernels
from mujax.methods.sfron import sfron as sfron
from mujax.methods.sparse import l1_sparse as l1_sparse
