"""GPTQ's walk over a run of columns: round one, pay its error to those behind it, go on; all rows at once.

The columns of a run depend on each other and the rows do not. So a program keeps ROWS rows of the run in registers and
walks over its columns: a column is taken out by a masked sum, rounded, and its error times a row of the factor is
subtracted. One launch takes the place of about ten for every column."""
import torch
from torch import Tensor
from jaxtyping import Float
from quantlab.kernels._launch import jit, require, tl

RTOL, ATOL = 1e-4, 1e-3      # of errors, differences of numbers of up to 1e4; a code may differ at a tie
ROWS = 16                    # of a program

def _check(W, U, scale, zero, bits):
    if not 1<=bits<=8: raise ValueError(f'bits={bits}; codes have 1 to 8 bits')
    if tuple(U.shape)!=(W.shape[1],)*2: raise ValueError(f'U of {tuple(U.shape)}; {(W.shape[1],)*2} is needed')
    if W.shape[1]>256: raise ValueError(f'{W.shape[1]} columns in a run; give 256 at most')
    if len(scale)!=len(W) or len(zero)!=len(W):
        raise ValueError(f'{len(scale)} scales and {len(zero)} zero points for {len(W)} rows; each row has one of each')

def sweep_ref(
    W:Float[Tensor,"o i"],   # columns of a run, corrected for the runs before it
    U:Float[Tensor,"i i"],   # their rows and columns of the upper Cholesky factor of the inverse Hessian
    scale:Float[Tensor,"o"], # distance between levels, one a row
    zero:Float[Tensor,"o"],  # code of zero, one a row
    bits:int,                # of a code
)->Float[Tensor,"2 o i"]:    # codes, and errors over the diagonal of U: W - value = errors @ U
    "Column after column"
    _check(W, U, scale, zero, bits)
    W, C, E = W.clone(), torch.zeros_like(W), torch.zeros_like(W)
    for j in range(W.shape[1]):
        C[:,j] = ((W[:,j]/scale).round()+zero).clamp(0, 2**bits-1)
        E[:,j] = (W[:,j]-(C[:,j]-zero)*scale)/U[j,j]
        W[:,j:] -= E[:,j,None]*U[j,j:]
    return torch.stack([C, E])

@jit
def _sweep(W, U, scale, zero, codes, errors, O, I, ws, us, TOP, ROWS:tl.constexpr, COLS:tl.constexpr):
    "One program: ROWS rows"
    r, c = tl.program_id(0)*ROWS+tl.arange(0, ROWS), tl.arange(0, COLS)
    real, ok = r<O, (r<O)[:,None] & (c<I)[None,:]
    s, z = tl.load(scale+r, mask=real, other=1), tl.load(zero+r, mask=real, other=0)
    w = tl.load(W+r.to(tl.int64)[:,None]*ws+c[None,:], mask=ok, other=0)
    q, e = tl.zeros_like(w), tl.zeros_like(w)
    for j in range(I):
        u, here = tl.load(U+j*us+c, mask=c<I, other=0), (c==j)[None,:]
        v = tl.sum(tl.where(here, w, 0), 1)
        near = tl.div_rn(v, s)
        near = (near+12582912.)-12582912. # to the nearest integer, ties to even, below 2^22
        a = tl.minimum(tl.maximum(near+z, 0), TOP)
        b = tl.div_rn(v-(a-z)*s, tl.sum(tl.where(c==j, u, 0), 0))
        w -= b[:,None]*u[None,:]
        q, e = tl.where(here, a[:,None], q), tl.where(here, b[:,None], e)
    o = r.to(tl.int64)[:,None]*I+c[None,:]
    tl.store(codes+o, q, mask=ok)
    tl.store(errors+o, e, mask=ok)

def sweep(
    W:Float[Tensor,"o i"],   # float32, as for the reference
    U:Float[Tensor,"i i"],   # float32; what is below its diagonal must be zero
    scale:Float[Tensor,"o"], # as for the reference
    zero:Float[Tensor,"o"],  # as for the reference
    bits:int,                # as for the reference
    rows:int=ROWS,           # of a program, a power of two
)->Float[Tensor,"2 o i"]:
    "`sweep_ref` as one Triton kernel; RuntimeError where it cannot run"
    _check(W, U, scale, zero, bits)
    require('sweep', W, U, scale, zero)
    (o, i), out = W.shape, torch.empty(2, *W.shape, dtype=torch.float32, device=W.device)
    if not o: return out
    W, U, scale, zero = (t.contiguous().float() for t in (W,U,scale,zero))
    cols = max(16, 1<<(i-1).bit_length())
    _sweep[(-(-o//rows),)](W, U, scale, zero, out[0], out[1], o, i, i, i, 2.**bits-1, rows, cols, num_warps=4)
    return out

def moved(W, U, scale, zero, bits)->int: # arguments of the reference -> bytes
    "What must be read and written at least"
    return 4*(3*W.numel()+U.numel()+scale.numel()+zero.numel())

def _make(device, o, i, bits):
    g = torch.Generator().manual_seed(o+i)
    X = torch.randn(4*i, i, generator=g, dtype=torch.float64)
    U = torch.linalg.cholesky(torch.linalg.inv(X.T@X/(4*i)+.1), upper=True).float()
    W, zero = torch.randn(o, i, generator=g), torch.randint(0, 2**bits, (o,), generator=g).float()
    return W.to(device), U.to(device), (torch.rand(o, generator=g)/2**bits+.1).to(device), zero.to(device), bits

def cases(
    device='cpu', # where the tensors are made
)->dict:          # name of what is awkward about it -> arguments
    "Inputs on which kernel and reference must agree"
    def make(*a): return _make(device, *a)
    W, U, s, z, bits = make(40, 64, 4)
    return dict(one=make(1,1,4), odd=make(37,50,3), two=make(16,128,2), full=make(20,256,8),
                extremes=(W*1e4, U, s, z, bits), strided=(W[::2], U, s[::2], z[::2], bits), empty=make(0,16,4),
                too_wide=make(2,257,4), too_many=(W, U, s, z, 9))

def loads(
    device='cuda', # where the tensors are made
)->dict:           # size in words -> arguments
    "Inputs of the size of real layers, for measuring"
    return {f'{o} rows, {i} columns':_make(device, o, i, 4) for o in (4096,14336) for i in (64,128)}

def builds()->list: # (kernel, types of its arguments, its constants) that must compile for a GPU
    "Two widths of a run"
    like = dict(**{k:'*fp32' for k in ('W','U','scale','zero','codes','errors')},
                **{k:'i32' for k in ('O','I','ws','us')}, TOP='fp32')
    return [(_sweep, like, dict(ROWS=ROWS, COLS=c)) for c in (64,128)]
