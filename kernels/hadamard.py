"""x times an orthogonal matrix of entries of one magnitude, as two small products on the matrix unit.

A Hadamard matrix of n = a b columns that is the Kronecker product of one of a and one of b rows acts on a row of x,
seen as an a x b matrix X, as A X B'. Both factors fit into registers (n = 16384 is 128 x 128), each row is read once
and written once, and the entries 1 and -1 are exact in 16 bits. The product of the first step is split into two 16-bit
numbers, high and low part, before the second: nothing but the last rounding is lost. Written as codes of 8 bits with a
scale for each row, the result is half as many bytes, and a product with 8-bit inputs can follow at once."""
import torch
from torch import Tensor
from jaxtyping import Float
from quantlab.kernels._launch import INTERPRET, jit, require, tl

RTOL, ATOL = 2e-3, 2e-3      # one rounding to 16 bits; entries are about 1

def _check(x, A, B):
    if A.shape[0]!=A.shape[1] or B.shape[0]!=B.shape[1] or len(A)*len(B)!=x.shape[-1]:
        raise ValueError(f'factors of {tuple(A.shape)} and {tuple(B.shape)} for {x.shape[-1]} columns; '
                         'give two square ones whose sizes multiply to it')
    if max(len(A), len(B))>128: raise ValueError(f'a factor of {max(len(A),len(B))} rows; 128 is the limit')

def hadamard_ref(
    x:Float[Tensor,"r n"], # one vector a row
    A:Float[Tensor,"a a"], # entries 1 and -1
    B:Float[Tensor,"b b"], # entries 1 and -1; n = a b
)->Float[Tensor,"r n"]:    # in the dtype of x
    "Every row times the transposed Kronecker product of A and B over the root of n, in float64, rounded once"
    _check(x, A, B)
    X = x.double().unflatten(1, (len(A),len(B)))
    return ((A.double()@X@B.double().T).flatten(1)*x.shape[1]**-.5).to(x.dtype)

@jit
def _kept(t, dtype): # the high and the low part of a float32 number in 16 bits
    high = t.to(dtype)
    return high, (t-high.to(tl.float32)).to(dtype)

@jit
def _hadamard(x, A, B, out, scale, xs, NA, NB, down, norm, PA:tl.constexpr, PB:tl.constexpr, CODES:tl.constexpr):
    "One program: one row"
    r, a, b = tl.program_id(0).to(tl.int64), tl.arange(0, PA), tl.arange(0, PB)
    ok, o = (a<NA)[:,None] & (b<NB)[None,:], a[:,None]*NB+b[None,:]
    X = tl.load(x+r*xs+o, mask=ok, other=0)
    left = tl.load(A+a[:,None]*NA+a[None,:], mask=(a<NA)[:,None] & (a<NA)[None,:], other=0).to(X.dtype)
    right = tl.load(B+b[None,:]*NB+b[:,None], mask=(b<NB)[:,None] & (b<NB)[None,:], other=0).to(X.dtype)
    Z = tl.dot(left, X, input_precision='ieee')*down # sums of NA numbers, brought back to about their size
    high, low = _kept(Z, X.dtype)
    y = tl.dot(low, right, tl.dot(high, right, input_precision='ieee'), input_precision='ieee')*norm
    if CODES:
        s = tl.maximum(tl.max(tl.max(tl.where(ok, tl.abs(y), 0), 1), 0)/127, 1e-10)
        near = (y/s+12582912.)-12582912.
        tl.store(out+r*NA*NB+o, near.to(tl.int8), mask=ok)
        tl.store(scale+r, s)
    else: tl.store(out+r*NA*NB+o, y.to(out.dtype.element_ty), mask=ok)

def _launched(x, A, B, out, scale, codes):
    pa, pb = (max(16, 1<<(len(t)-1).bit_length()) for t in (A,B))
    x, down = x if x.stride(1)==1 else x.contiguous(), 2.**-((len(A).bit_length()-1)//2)
    if len(x): _hadamard[(len(x),)](x, A.contiguous(), B.contiguous(), out, scale, x.stride(0), len(A), len(B),
                                    down, x.shape[1]**-.5/down, pa, pb, codes, num_warps=4 if pa*pb<=4096 else 8)
    return out

def hadamard(
    x:Float[Tensor,"r n"], # float16, bfloat16 or float32
    A:Float[Tensor,"a a"], # as for the reference, in the dtype of x
    B:Float[Tensor,"b b"], # as for the reference, in the dtype of x
)->Float[Tensor,"r n"]:
    "`hadamard_ref` as one Triton kernel; RuntimeError where it cannot run"
    _check(x, A, B)
    require('hadamard', x, A, B)
    return _launched(x, A, B, torch.empty(x.shape, dtype=x.dtype, device=x.device), x, False)

def hadamard_codes(
    x:Float[Tensor,"r n"], # as for `hadamard`
    A:Float[Tensor,"a a"], # as for `hadamard`
    B:Float[Tensor,"b b"], # as for `hadamard`
)->tuple:               # codes of -127 to 127 [r,n], distance between levels [r]
    "The transformed rows as 8-bit codes, without a number of 16 bits ever being written"
    _check(x, A, B)
    require('hadamard', x, A, B)
    scale = torch.empty(len(x), dtype=torch.float32, device=x.device)
    return _launched(x, A, B, torch.empty(x.shape, dtype=torch.int8, device=x.device), scale, True), scale

def moved(x, A, B)->int: # arguments of the reference -> bytes
    "What must be read and written at least"
    return 2*x.numel()*x.element_size()

def _signs(n): # Sylvester's matrix, or the one of 12 rows times it
    k = (n//12 if n%3==0 else n).bit_length()-1
    S = torch.ones(1, 1)
    for _ in range(k): S = torch.cat([torch.cat([S,S],1), torch.cat([S,-S],1)])
    if n%3: return S
    squares = {i*i%11 for i in range(1,11)}
    Q = torch.tensor([[0 if i==j else 1 if (i-j)%11 in squares else -1 for j in range(11)] for i in range(11)])
    P = torch.ones(12, 12); P[1:,1:] = Q-torch.eye(11); P[1:,0] = -1; P[1:,1:] += 2*torch.eye(11)
    return torch.kron(S, P)

def _make(device, r, a, b, dtype=torch.float16):
    x = torch.randn(r, a*b, generator=torch.Generator().manual_seed(r+a+b))
    return tuple(t.to(device, dtype) for t in (x, _signs(a), _signs(b)))

def cases(
    device='cpu', # where the tensors are made
)->dict:          # name of what is awkward about it -> arguments
    "Inputs on which kernel and reference must agree"
    def make(*k): return _make(device, *k)
    x, A, B = make(6, 16, 32)
    return dict(one=make(1,1,1), odd=make(3,12,8), even=make(4,64,64), largest=make(2,128,128), core=make(2,32,48),
                single=make(2,16,16,torch.float32), extremes=(x*1000, A, B), strided=(x[::2], A, B),
                empty=make(0,4,4), wrong=(x, A, A))

def loads(
    device='cuda', # where the tensors are made
)->dict:           # size in words -> arguments
    "Activations of real layers, for measuring"
    sizes = (64,64), (64,128), (128,128), (96,128)
    return {f'{r} rows of {a*b}':_make(device, r, a, b) for r in (16,4096) for a,b in sizes}

def builds()->list: # (kernel, types of its arguments, its constants) that must compile for a GPU
    "Both kinds of output"
    def one(kind, out, codes):
        like = dict(**{k:'*'+kind for k in ('x','A','B')}, out='*'+out, scale='*fp32',
                    **{k:'i32' for k in ('xs','NA','NB')}, down='fp32', norm='fp32')
        return _hadamard, like, dict(PA=64, PB=64, CODES=codes)
    return [one('fp16','fp16',False), one('bf16','i8',True)]
