"""A linear layer on `wna16` or `lookup`: what `QLinear(backend='triton')` computes with."""
import math
from dataclasses import replace
import torch
from torch import Tensor, nn
from quantlab.kernels import lookup as L, wna16 as W
from quantlab.kernels._launch import require

GRIDS = 'formats.int.affine_rows', 'formats.int.centred_rows' # code less zero times scale, group by group
LISTS = 'formats.nf.nf_rows', 'formats.minifloat.minifloat_rows' # one of sixteen numbers times scale

def _scales(q): # a scale of each row, or of the tensor, as [o,groups]
    s, o = q.parts['scale'], q.shape[0]
    return (s.reshape(-1).expand(o) if s.numel()<o else s).reshape(o, -1)

def _affine(q): # codes [o,i], scale [o,groups], zero or None, bits
    (o, i), bits, s, z = q.shape, q.width['codes'], _scales(q), q.parts.get('zero')
    if z is not None and not torch.equal(z.float().round().clamp(0,255).to(z.dtype), z):
        raise ValueError("backend='triton' needs whole zero points from 0 to 255: use backend='dense' or 'ref'")
    if z is not None: z = (z.reshape(-1).expand(o) if z.numel()<o else z).reshape(o, -1)
    elif q.meta['mid']!=2**(bits-1): z = torch.full_like(s, q.meta['mid'])
    return q.parts['codes'].reshape(o,i).to(torch.uint8), s, z, bits

def _numbers(q): # what each of the sixteen codes stands for at scale 1
    parts = dict(codes=torch.arange(16, dtype=torch.uint8)[None], scale=torch.ones(1,1).half())
    return replace(q, parts=parts, width=dict(codes=4, scale=16), shape=(1,16)).decode().flatten()

class Fused(nn.Module):
    "x times the transposed coded weight, in float16 or bfloat16; float32 inputs are rounded to float16"
    def __init__(self, codes, scale, zero, bits, table=None):
        nn.Module.__init__(self)
        self.bits, self.group = bits, codes.shape[1]//scale.shape[1]
        W._check(codes, codes, scale.T, None if zero is None else zero.T, bits, self.group)
        def keep(name, t): self.register_buffer(name, t, persistent=False)
        keep('words', W.tile(codes, bits)); keep('scale', scale.T.contiguous().half())
        keep('zero', None if zero is None else zero.T.contiguous().to(torch.uint8)); keep('table', table)
        keep('count', torch.zeros(math.ceil(len(codes)/64)*16, dtype=torch.int32))

    def _times(self, x):
        if self.table is not None:
            return L.run(x, self.words, self.scale, self.table.to(x.dtype), self.group, count=self.count)
        return W.product(x, self.words, self.scale, self.zero, self.bits, self.group, self.count)

    def forward(self, x:Tensor, bias:Tensor|None=None):
        require("QLinear(backend='triton')", x, self.words)
        t = x.half() if x.dtype is torch.float32 else x
        y = self._times(t.reshape(-1,t.shape[-1])).reshape(*x.shape[:-1], -1).to(x.dtype)
        return y if bias is None else y+bias.to(y)

def fused(
    q,        # a `QTensor` on an integer grid, or on a list of sixteen numbers
)->Fused:     # a layer without bias
    "The layer that multiplies with `q`; ValueError if no kernel knows its format or its sizes"
    bits = q.width.get('codes')
    if q.fmt in LISTS and bits==4:
        return Fused(q.parts['codes'].reshape(q.shape).to(torch.uint8), _scales(q), None, 4, _numbers(q))
    if q.fmt in GRIDS and bits in W.BK: return Fused(*_affine(q))
    raise ValueError(f"backend='triton' multiplies with integer grids of {', '.join(map(str,W.BK))} bits and lists of "
                     f"sixteen numbers; this weight has format {q.fmt}, {bits} bits: use backend='dense' or 'ref'")
