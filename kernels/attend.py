"""One new token looks at keys and values that stay packed: attention over a cache of 2, 4 or 8 bits.

Keys have a scale and a smallest number for every channel of a block of tokens, values for every group of channels of a
token, as KIVI stores them. A byte holds P = 8/bits codes that lie d/P channels apart, so that plane i of a row of bytes
is a run of neighbouring channels. A program has the query heads of one head of the keys and walks over blocks of a part
of the tokens with a running maximum and a running sum, so that no decoded key and no row of probabilities is ever
written. It returns the logarithm of the sum too. By that number the parts are joined, and attention over newer tokens
in 16 bits, computed apart, is joined to them."""
import math
import torch
from torch import Tensor
from jaxtyping import Float, UInt8
from quantlab.kernels._launch import jit, require, tl

RTOL, ATOL = 1e-2, 1e-2      # decoded numbers and probabilities are rounded to 16 bits; entries are about 1
PROGRAMS = 264               # two for each multiprocessor of an H200

def _check(q, k, ks, v, vs, bits):
    (h, n, w), d = k.shape, k.shape[2]*8//bits if bits in (2,4,8) else 0
    if not d: raise ValueError(f'bits={bits}; a byte is cut into codes of 2, 4 or 8 bits')
    if q.shape[0]!=h or q.shape[2]!=d: raise ValueError(f'q of {tuple(q.shape)}; ({h}, heads, {d}) is needed')
    if d&(d-1) or w<16: raise ValueError(f'{d} channels; use a power of two of at least {16*8//bits}')
    if v.shape!=k.shape: raise ValueError(f'values of {tuple(v.shape)} bytes beside keys of {tuple(k.shape)}')
    if ks.shape[1] and n%ks.shape[1] or (n//max(ks.shape[1],1))&(n//max(ks.shape[1],1))-1:
        raise ValueError(f'{ks.shape[1]} blocks of keys for {n} tokens; blocks hold 16, 32, 64, ... tokens')
    if d%vs.shape[2]: raise ValueError(f'{vs.shape[2]} groups for {d} channels of the values; give a divisor')
    return h, n, d

def packed(
    c:UInt8[Tensor,"h n d"], # codes
    bits:int,                # of a code
)->UInt8[Tensor,"h n w"]:    # bytes of codes that lie d*bits/8 channels apart
    "Codes in the order in which the kernel reads them"
    p = c.long().unflatten(-1, (8//bits,-1))
    return (p << (torch.arange(8//bits, device=c.device)*bits)[:,None]).sum(-2).to(torch.uint8)

def _codes(b, bits): # and back
    m = torch.arange(8//bits, device=b.device)[:,None]*bits
    return ((b.long()[...,None,:] >> m) & 2**bits-1).flatten(-2)

def attend_ref(
    q:Float[Tensor,"h r d"],   # queries of one token, r heads for each head of the keys
    k:UInt8[Tensor,"h n w"],   # keys, from `packed`
    ks:Float[Tensor,"h b d"],  # distance between levels of a channel in a block of tokens
    kl:Float[Tensor,"h b d"],  # its smallest number
    v:UInt8[Tensor,"h n w"],   # values, from `packed`
    vs:Float[Tensor,"h n g"],  # distance between levels of a group of channels of a token
    vl:Float[Tensor,"h n g"],  # its smallest number
    bits:int,                  # of a code
)->Float[Tensor,"h r e"]:      # what is taken from the values, and last the logarithm of the sum; float32
    "Softmax of q k' over the root of d, times v, in float64"
    h, n, d = _check(q, k, ks, v, vs, bits)
    if not n: return torch.cat([torch.zeros_like(q), torch.full_like(q[...,:1], -math.inf)], -1).float()
    ks, kl = (t.double().repeat_interleave(n//ks.shape[1], 1) for t in (ks,kl))
    vs, vl = (t.double().repeat_interleave(d//vs.shape[2], 2) for t in (vs,vl))
    K, V = _codes(k,bits).double()*ks+kl, _codes(v,bits).double()*vs+vl
    l = q.double()@K.transpose(1,2)*d**-.5
    return torch.cat([l.softmax(-1)@V, l.logsumexp(-1, True)], -1).float()

@jit
def _planes(b, I:tl.constexpr, C:tl.constexpr, BITS:tl.constexpr): # codes of C planes from I on, side by side
    if C==1: return ((b.to(tl.int32) >> (BITS*I)) & ((1 << BITS)-1)).to(tl.float32)
    else:
        x, y = _planes(b, I, C//2, BITS), _planes(b, I+C//2, C//2, BITS)
        return tl.join(x, y).permute(0,2,1).reshape(x.shape[0], 2*x.shape[1])

@jit
def _attend(q, k, ks, kl, v, vs, vl, out, R, N, span, scaling, D:tl.constexpr, W:tl.constexpr, T:tl.constexpr,
            G:tl.constexpr, BITS:tl.constexpr, RS:tl.constexpr, BLOCK:tl.constexpr):
    "One program: one head of the keys with all its query heads, over `span` tokens"
    first = tl.program_id(1)*span
    h, r, c, w = tl.program_id(0).to(tl.int64), tl.arange(0, RS), tl.arange(0, D), tl.arange(0, W)
    Q = tl.load(q+h*R*D+r[:,None]*D+c[None,:], mask=(r<R)[:,None], other=0)
    top, total = tl.full((RS,), float('-inf'), tl.float32), tl.zeros((RS,), tl.float32)
    acc = tl.zeros((RS,D), tl.float32)
    for t in range(first, tl.minimum(first+span,N), BLOCK): # a block of tokens lies in one block of keys
        n = t+tl.arange(0, BLOCK)
        at, cell = (h*N+n)[:,None]*W+w[None,:], (h*(N//T)+t//T)*D+c
        K = _planes(tl.load(k+at), 0, 8//BITS, BITS)*tl.load(ks+cell)[None,:]+tl.load(kl+cell)[None,:]
        l = tl.dot(Q, tl.trans(K.to(Q.dtype)), input_precision='ieee')*scaling
        high = tl.maximum(top, tl.max(l, 1))
        p, fade = tl.exp(l-high[:,None]), tl.exp(top-high)
        cell = (h*N+n)[:,None]*G+c[None,:]*G//D
        V = _planes(tl.load(v+at), 0, 8//BITS, BITS)*tl.load(vs+cell)+tl.load(vl+cell)
        acc = acc*fade[:,None]+tl.dot(p.to(Q.dtype), V.to(Q.dtype), input_precision='ieee')
        total, top = total*fade+tl.sum(p, 1), high
    o = out+(tl.program_id(1)*tl.num_programs(0)+h)*R*(D+1)+r*(D+1)
    tl.store(o[:,None]+c[None,:], acc/total[:,None], mask=(r<R)[:,None])
    tl.store(o+D, top+tl.log(total), mask=r<R)

def attend(
    q:Float[Tensor,"h r d"],   # float16, bfloat16 or float32
    k:UInt8[Tensor,"h n w"],   # as for the reference
    ks:Float[Tensor,"h b d"],  # as for the reference
    kl:Float[Tensor,"h b d"],  # as for the reference
    v:UInt8[Tensor,"h n w"],   # as for the reference
    vs:Float[Tensor,"h n g"],  # as for the reference
    vl:Float[Tensor,"h n g"],  # as for the reference
    bits:int,                  # as for the reference
)->Float[Tensor,"h r e"]:
    "`attend_ref` as one Triton kernel; RuntimeError where it cannot run"
    require('attend', q, k, ks, v, vs)
    h, n, d = _check(q, k, ks, v, vs, bits)
    if not n: return attend_ref(q, k, ks, kl, v, vs, vl, bits)
    q, k, v = (t.contiguous() for t in (q,k,v))
    ks, kl, vs, vl = (t.float().contiguous() for t in (ks,kl,vs,vl))
    r, block = q.shape[1], min(n//ks.shape[1], 64)
    span = -(-n//(block*parts_of(h, n//block)))*block
    out = torch.empty(-(-n//span), h, r, d+1, device=q.device)
    _attend[(h,len(out))](q, k, ks, kl, v, vs, vl, out, r, n, span, d**-.5, d, k.shape[2], n//ks.shape[1], vs.shape[2],
                          bits, max(16, 1<<(r-1).bit_length()), block)
    return joined(out)

def parts_of(
    h:int,      # heads of the keys
    blocks:int, # of tokens
)->int:         # at least one
    "Parts of the tokens: two programs a multiprocessor, as far as each has a block"
    return max(1, min(blocks, -(-PROGRAMS//h)))

def joined(
    parts:Float[Tensor,"p h r e"], # from `attend`, each over other tokens
)->Float[Tensor,"h r e"]:          # over all of them
    "Attention over sets of tokens from attention over each, added up in their order"
    l = parts[...,-1:]; total = l.logsumexp(0)
    return torch.cat([((l-total).exp()*parts[...,:-1]).sum(0), total], -1)

def moved(q, k, ks, kl, v, vs, vl, bits)->int: # arguments of the reference -> bytes
    "What must be read and written at least; scales and smallest numbers in 16 bits"
    return k.numel()+v.numel()+4*ks.numel()+4*vs.numel()+2*q.numel()+4*q.numel()

def _make(device, h, r, n, d, bits, block=32, g=2, dtype=torch.float16):
    s = torch.Generator().manual_seed(h+r+n+d+bits)
    def codes(): return packed(torch.randint(0, 2**bits, (h,n,d), generator=s, dtype=torch.uint8), bits)
    def cells(*shape):
        return ((torch.rand(shape,generator=s)+.5)*2/2**bits).half(), (torch.randn(shape,generator=s)-1).half()
    q = torch.randn(h, r, d, generator=s).to(dtype)
    args = q, codes(), *cells(h, n//block, d), codes(), *cells(h, n, g)
    return *(t.to(device) for t in args), bits

def cases(
    device='cpu', # where the tensors are made
)->dict:          # name of what is awkward about it -> arguments
    "Inputs on which kernel and reference must agree"
    def make(*a, **k): return _make(device, *a, **k)
    q, *rest = make(2, 4, 64, 64, 2)
    x, b = torch.ones(1,1,1).half(), torch.ones(1,1,1,dtype=torch.uint8); one = x, b, x, x, b, x, x, 8
    return dict(one=tuple(t.to(device) if isinstance(t,Tensor) else t for t in one), odd=make(1,3,96,64,4),
                two=make(2,2,64,64,2), eight=make(1,1,128,32,8), many=make(1,20,32,64,4),
                long=make(2,2,544,32,4),
                single=make(1,2,32,64,4,16,4,torch.float32),
                extremes=(q*30, *rest), strided=(q[:,::2], *rest), empty=make(1,2,0,64,4),
                three_bits=(q, *rest[:-1], 3))

def loads(
    device='cuda', # where the tensors are made
)->dict:           # size in words -> arguments
    "Caches of a large model, for measuring"
    return {f'{n} tokens, {b} bits':_make(device, 32, 4, n, 128, b, 32, 4) for n in (4096,16384) for b in (2,4)}

def builds()->list: # (kernel, types of its arguments, its constants) that must compile for a GPU
    "Two widths"
    like = dict(q='*fp16', k='*u8', ks='*fp32', kl='*fp32', v='*u8', vs='*fp32', vl='*fp32', out='*fp32',
                R='i32', N='i32', span='i32', scaling='fp32')
    return [(_attend, like, dict(D=128, W=128*b//8, T=32, G=4, BITS=b, RS=16, BLOCK=32)) for b in (2,4)]
