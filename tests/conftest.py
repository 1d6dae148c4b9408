"""Everything here must happen before torch, triton or quantlab is imported for the first time."""
import os
os.environ.setdefault('TRITON_INTERPRET', '1') # kernels run in Triton's interpreter
os.environ.setdefault('OMP_NUM_THREADS', '1')  # sums have one order, and two notebooks share two cores
os.environ.update(HF_HUB_OFFLINE='1', MPLBACKEND='agg')

from jaxtyping import install_import_hook
install_import_hook('quantlab', 'beartype.beartype') # annotations of shape and dtype are checked in every call

import torch
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
