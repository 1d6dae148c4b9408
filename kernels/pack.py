"""Weights to codes in the order in which `wna16` and `lookup` read them, without a code of one byte ever being written.

Rounding a layer and packing it are a dozen passes over memory in plain torch: divide, round, shift, clamp, cast, then
sort the codes into tiles and planes and join them to words. Here a program reads one tile of weights once, plane by
plane, and writes its words. Scales and zero points are given: they come from a search, or from GPTQ."""
import torch
from torch import Tensor
from jaxtyping import Float, Int16, UInt8
from quantlab.kernels._launch import jit, require, tl
from quantlab.kernels.wna16 import BK, ROWS, tile

RTOL = ATOL = 0              # the same codes

def _check(w, scale, zero, bits, group): # rows, columns
    n, k = w.shape
    if bits not in BK: raise ValueError(f'bits={bits}; codes have {", ".join(map(str,BK))} bits')
    if k%BK[bits]: raise ValueError(f'{k} columns; codes of {bits} bits need a multiple of {BK[bits]}')
    if group<1 or k%group: raise ValueError(f'group={group}; use a divisor of {k}')
    if tuple(scale.shape)!=(k//group, n) or zero is not None and zero.shape!=scale.shape:
        raise ValueError(f'scale of {tuple(scale.shape)}; {(k//group, n)} is needed, and as many zero points')
    return n, k

def pack_ref(
    w:Float[Tensor,"n k"],         # weights
    scale:Float[Tensor,"g n"],     # distance between levels, not zero, one for each group of columns
    zero:UInt8[Tensor,"g n"]|None, # code of zero; None is 2^(bits-1) everywhere
    bits:int,                      # of a code
    group:int,                     # columns that share a scale
)->Int16[Tensor,"m"]:              # words
    "The nearest code of every weight, in float32, ties to even; then `wna16.tile`"
    _check(w, scale, zero, bits, group)
    def wide(t): return t.float().T.repeat_interleave(group, 1)
    at = (w.float()/wide(scale)).round()+(2**(bits-1) if zero is None else wide(zero))
    return tile(at.clamp(0, 2**bits-1).to(torch.uint8), bits)

@jit
def _coded(w, scale, zero, n, c, ws, N, real, GROUP:tl.constexpr, BITS:tl.constexpr, ASYM:tl.constexpr):
    "Codes of the columns c of the rows n"
    at = (c//GROUP).to(tl.int64)[None,:]*N+n[:,None]
    v = tl.load(w+n.to(tl.int64)[:,None]*ws+c[None,:], mask=real[:,None], other=0).to(tl.float32)
    v = tl.div_rn(v, tl.load(scale+at, mask=real[:,None], other=1).to(tl.float32))
    v = tl.minimum(tl.maximum(v, -1024.), 1024.)   # beyond all codes anyway
    v = (v+12582912.)-12582912.                    # to the nearest integer, ties to even
    if ASYM: v += tl.load(zero+at, mask=real[:,None], other=0).to(tl.float32)
    else: v += 2**(BITS-1)
    return tl.where(real[:,None], tl.minimum(tl.maximum(v, 0), 2**BITS-1).to(tl.int32), 0)

@jit
def _pack(w, scale, zero, out, ws, N, K, GROUP:tl.constexpr, BITS:tl.constexpr, COLS:tl.constexpr, Q:tl.constexpr,
          ASYM:tl.constexpr):
    "One program: the words of one tile"
    t, block, j = tl.program_id(0), tl.program_id(1), tl.arange(0, Q)
    row = tl.arange(0, 64); n = block*64+row; real = n<N
    PER:tl.constexpr = 5 if BITS==3 else 16//BITS # planes of a word
    op = out+block.to(tl.int64)*(K*BITS//16*64)+t*(4*COLS*BITS)+row[:,None]*Q+j[None,:]
    for k in tl.static_range(3 if BITS==3 else 1):
        word = tl.zeros((64,Q), tl.int32)
        for i in tl.static_range(PER):
            c = _coded(w, scale, zero, n, t*COLS+(k*PER+i)*Q+j, ws, N, real, GROUP, BITS, ASYM)
            word |= c << (i*BITS)
        if BITS==3: # a bit of the sixteenth plane
            c = _coded(w, scale, zero, n, t*COLS+15*Q+j, ws, N, real, GROUP, BITS, ASYM)
            word |= ((c >> k) & 1) << 15
        tl.store(op+k*64*Q, word.to(tl.int16))

def pack(
    w:Float[Tensor,"n k"],         # float16, bfloat16 or float32; any row stride
    scale:Float[Tensor,"g n"],     # as for the reference
    zero:UInt8[Tensor,"g n"]|None, # as for the reference
    bits:int,                      # as for the reference
    group:int,                     # as for the reference
)->Int16[Tensor,"m"]:              # words; rows are filled up to a multiple of 64 with zeros
    "`pack_ref` as one Triton kernel; RuntimeError where it cannot run"
    require('pack', w, scale)
    n, k = _check(w, scale, zero, bits, group)
    w, scale = w if w.stride(1)==1 else w.contiguous(), scale.contiguous()
    zeros, blocks = scale if zero is None else zero.contiguous(), -(-n//ROWS)
    q = BK[bits]//(16 if bits==3 else 16//bits)
    out = torch.empty(blocks*ROWS*k*bits//16, dtype=torch.int16, device=w.device)
    if n: _pack[(k//BK[bits],blocks)](w, scale, zeros, out, w.stride(0), n, k, group, bits, BK[bits], q,
                                      zero is not None)
    return out

def moved(w, scale, zero, bits, group)->int: # arguments of the reference -> bytes
    "What must be read and written at least"
    z = 0 if zero is None else zero.numel()
    return w.numel()*w.element_size()+w.numel()*bits//8+scale.numel()*scale.element_size()+z

def _make(device, n, k, bits, group, asym=False, dtype=torch.float32):
    g = torch.Generator().manual_seed(n+k+bits)
    w = torch.randn(n, k, generator=g).to(dtype); s = ((torch.rand(k//group, n, generator=g)+.5)*3/2**bits).half()
    z = torch.randint(0, 2**bits, (k//group,n), generator=g, dtype=torch.uint8) if asym else None
    return w.to(device), s.to(device), z if z is None else z.to(device), bits, group

def cases(
    device='cpu', # where the tensors are made
)->dict:          # name of what is awkward about it -> arguments
    "Inputs on which kernel and reference must agree"
    def make(*a, **k): return _make(device, *a, **k)
    w, s, z, bits, group = make(6, 256, 4, 128, True)
    one = torch.ones(1,1,device=device)
    return dict(one=(one, one, None, 4, 1), odd=make(65,256,4,32), two=make(64,256,2,128,True),
                three=make(66,512,3,64,True), eight=make(64,128,8,128),
                half=make(64,128,4,128,dtype=torch.float16), narrow=make(64,128,4,8),
                ties=(s.repeat_interleave(group,0).T[:,:256]*.5, s, z, bits, group),
                extremes=(w*1e30, s, z, bits, group),
                strided=(torch.cat([w,w],1)[:,:256], s, z, bits, group), empty=make(0,128,4,128),
                cut=make(64,128,4,128)[:3]+(4,48))

def loads(
    device='cuda', # where the tensors are made
)->dict:           # shape and width in words -> arguments
    "Layers of the size of real ones, for measuring"
    return {f'{k}x{n} {b} bits':_make(device, n, k, b, 128, True, torch.float16)
            for k,n in ((4096,4096),(4096,28672)) for b in (3,4)}

def builds()->list: # (kernel, types of its arguments, its constants) that must compile for a GPU
    "Three widths"
    def one(bits, kind, asym):
        like = dict(w='*'+kind, scale='*fp16', zero='*u8' if asym else '*fp16', out='*i16', ws='i32', N='i32', K='i32')
        return _pack, like, dict(GROUP=64, BITS=bits, COLS=BK[bits], Q=16 if bits<4 else 32, ASYM=asym)
    return [one(2,'fp32',True), one(3,'fp16',True), one(4,'bf16',False)]
