"""Packed codes of 2, 4 or 8 bits to numbers: unpack, subtract the group's zero point, multiply by the group's scale."""
import torch
from torch import Tensor
from jaxtyping import Float32, Float, Shaped, UInt8
from quantlab.kernels._launch import jit, require, tl

RTOL = ATOL = 0     # code - zero is exact and its product with the scale rounds once, here and in the reference
BLOCK = {2:4096, 4:2048, 8:1024} # codes of one program: 1024 bytes of input

def _codes(packed, scale, zero, bits, group): # number of codes, after checking that the inputs belong together
    if bits not in BLOCK: raise ValueError(f'bits={bits}; a byte is cut into codes of 2, 4 or 8 bits')
    if group<1: raise ValueError(f'group={group}; a group has at least one code')
    if zero.shape!=scale.shape:
        raise ValueError(f'{len(zero)} zero points for {len(scale)} scales; each group has one of each')
    n = len(scale)*group
    need = -(-n*bits//8)
    if len(packed)!=need: raise ValueError(f'{len(packed)} bytes for {n} codes of {bits} bits; {need} are needed')
    if max(n, need*packed.stride(0))>=2**30:
        raise ValueError(f'{n} codes; positions are 32-bit, cut the tensor into parts below 2**30')
    return n

def dequantize_ref(
    packed:UInt8[Tensor,"m"],  # codes as one little-endian bit stream
    scale:Float[Tensor,"r"],   # distance between levels, one per group
    zero:Shaped[Tensor,"r"],   # code of zero, one per group, any dtype
    bits:int,                  # bits of a code
    group:int,                 # neighbouring codes that share scale and zero
)->Float32[Tensor,"r g"]:      # decoded numbers, one row per group
    "(code - zero)*scale for every code"
    k = torch.arange(_codes(packed, scale, zero, bits, group), device=packed.device)
    c = (packed[k*bits//8] >> k*bits%8) & 2**bits-1
    return (c.reshape(-1,group).float()-zero.float()[:,None])*scale.float()[:,None]

@jit
def _dequantize(packed, scale, zero, out, n, group, ps, ss, zs, BITS:tl.constexpr, BLOCK:tl.constexpr):
    "One program decodes BLOCK neighbouring codes"
    per:tl.constexpr = 8//BITS
    o = tl.program_id(0)*BLOCK+tl.arange(0, BLOCK)
    inside, r = o<n, o//group
    byte = tl.load(packed+(o//per)*ps, mask=inside, other=0).to(tl.int32)
    c = (byte >> (o%per)*BITS) & ((1 << BITS)-1)
    s = tl.load(scale+r*ss, mask=inside, other=0).to(tl.float32)
    z = tl.load(zero+r*zs, mask=inside, other=0).to(tl.float32)
    tl.store(out+o, (c.to(tl.float32)-z)*s, mask=inside)

def dequantize(
    packed:UInt8[Tensor,"m"],  # little-endian bit stream: lower index in lower bits; any stride, no alignment
    scale:Float[Tensor,"r"],   # one per group; any stride
    zero:Shaped[Tensor,"r"],   # one per group; any stride
    bits:int,                  # bits of a code
    group:int,                 # neighbouring codes that share scale and zero
    block:int=0,               # codes of one program, a power of two; 0 takes it from BLOCK
)->Float32[Tensor,"r g"]:      # row-major; bytes moved: n bits/8 read, 4 n written, and 2 numbers per group read
    "`dequantize_ref` as one Triton kernel; RuntimeError where it cannot run"
    n = _codes(packed, scale, zero, bits, group)
    require('dequantize', packed, scale, zero)
    out, block = torch.empty(len(scale), group, dtype=torch.float32, device=packed.device), block or BLOCK[bits]
    strides = (t.stride(0) for t in (packed,scale,zero))
    if n: _dequantize[(-(-n//block),)](packed, scale, zero, out, n, group, *strides, bits, block)
    return out

def moved(
    packed:UInt8[Tensor,"m"], scale:Float[Tensor,"r"], zero:Shaped[Tensor,"r"], bits:int, group:int, # as above
)->int: # bytes
    "What must be read and written at least: codes, scales and zero points once, float32 results once"
    return sum(t.numel()*t.element_size() for t in (packed,scale,zero))+4*len(scale)*group

def _make(device, r, group, bits, zero=torch.uint8, scale=torch.float16, fill=None):
    g, m = torch.Generator().manual_seed(r*group), -(-r*group*bits//8)
    packed = torch.randint(0, 256, (m,), generator=g, dtype=torch.uint8)
    if fill is not None: packed = torch.tensor(fill, dtype=torch.uint8).repeat(m)[:m]
    s, z = torch.randn(r, generator=g).to(scale), torch.randint(0, 2**bits, (r,), generator=g).to(zero)
    return packed.to(device), s.to(device), z.to(device), bits, group

def cases(
    device='cpu', # where the tensors are made
)->dict:          # name of what is awkward about it -> arguments
    "Inputs on which kernel and reference must agree"
    def make(*a, **k): return _make(device, *a, **k)
    packed, s, z, bits, group = make(74, 60, 4)
    return dict(one=make(1,1,4), odd=make(37,65,2), two=make(16,128,2), four=make(16,64,4), eight=make(8,32,8),
                many_programs=make(67,64,4), extremes=make(6,32,4,fill=[0,255]), extremes_two=make(5,64,2,fill=[255,0]),
                extremes_eight=make(4,32,8,fill=[0,255]), strided=(packed[::2], s[::2], z[::2], bits, group),
                empty=make(0,64,4), signed_zero=make(9,21,4,torch.int8),
                wide_scale=make(7,33,8,torch.float32,torch.float32))

def loads(
    device='cuda', # where the tensors are made
)->dict:           # shape and width in words -> arguments
    "Inputs of the size of real layers, for measuring"
    sizes = [(o,i,b) for o,i in ((4096,4096),(8192,28672)) for b in (2,4,8)]
    return {f'{o}x{i} {b} bits group 128':_make(device, o*i//128, 128, b) for o,i,b in sizes}

def builds()->list: # (kernel, types of its arguments, its constants) that must compile for a GPU
    "Every width"
    like = dict(packed='*u8', scale='*fp16', zero='*u8', out='*fp32', **{k:'i32' for k in ('n','group','ps','ss','zs')})
    return [(_dequantize, like, dict(BITS=b, BLOCK=n)) for b,n in BLOCK.items()]
