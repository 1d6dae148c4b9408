"""Triton if it is installed, and a clear refusal where a kernel cannot run.

Kernel files take `jit` and `tl` from here, so that they import on a machine that has neither triton nor a GPU."""
import importlib.util, inspect
import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec('triton') is not None

if HAS_TRITON:
    import triton
    import triton.language as tl
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
    INTERPRET, constexpr_function = bool(triton.knobs.runtime.interpret), triton.constexpr_function
    def jit(f): return triton.jit(inspect.unwrap(f)) # no wrapper that checks types: kernels call kernels by name
else:
    class _Absent: # names such as tl.constexpr are looked up when a kernel is defined
        def __getattr__(self, name): return None
    INTERPRET, tl = False, _Absent()
    def jit(f): return f
    constexpr_function, gdc_launch_dependents, gdc_wait = jit, None, None

def require(
    name:str,   # of the kernel, for the message
    *ts:Tensor, # what it is called with
)->None:
    "RuntimeError, with the remedy, unless a Triton kernel can run on `ts`"
    if not HAS_TRITON: raise RuntimeError(f'{name}: triton is not installed; install it, or call {name}_ref')
    if INTERPRET and any(t.dtype is torch.bfloat16 for t in ts):
        raise RuntimeError(f'{name}: the interpreter computes bfloat16 wrongly; use float32, or call {name}_ref')
    if not INTERPRET and not all(t.is_cuda for t in ts):
        raise RuntimeError(f'{name}: use tensors on a GPU, or start Python with TRITON_INTERPRET=1, or call {name}_ref')
