"""16-bit inputs times weights of 2, 3, 4 or 8 bits, which cross memory packed and become numbers in registers.

`tile` packs codes offline. A tile is 64 rows by BK columns and lies in memory in one piece: what a program reads
are a few long streams. A 16-bit word of it holds one code from each of P = 16/bits *planes*: word j holds the columns
j, j+Q, j+2Q, ... of its row, with Q = BK/P. Plane i is `(word >> i*bits) & mask` for all words at once and needs no
shuffle. Codes of 3 bits are words of 2-bit planes and words of 1-bit planes.

A half with the bits 0x6400 is 1024, and its lowest mantissa bit weighs 1, so `code | 0x6400` is the number 1024+code.
Two codes cost a shift, one logic instruction of three inputs, and one subtraction of 1024+zero, which is exact.
(0x4300 is 128 in bfloat16 and serves codes below 128.)

The weights are the LEFT operand, out' = W x': rows of W fill the matrix unit however few tokens there are. Where there
are fewer blocks than multiprocessors, the columns are cut into `split` parts, and the last program of a block to arrive
adds the parts up in the order of the columns: the bits of the result do not depend on which program that was."""
import json, math
from functools import cache
from pathlib import Path
import torch
from torch import Tensor
from jaxtyping import Float, Int16, Int32, UInt8
from quantlab.kernels._launch import INTERPRET, constexpr_function, gdc_launch_dependents, gdc_wait, jit, require, tl

RTOL, ATOL = 2e-2, 2e-2      # one rounding of the result to 16 bits, and sums in another order; entries are about 1
ROWS = 64                    # of a tile
BK = {2:128, 3:256, 4:128, 8:64} # columns of a tile

def _check(x, q, scale, zero, bits, group): # rows, columns
    if bits not in BK: raise ValueError(f'bits={bits}; codes have {", ".join(map(str,BK))} bits')
    n, k = q.shape
    if x.shape[-1]!=k: raise ValueError(f'x has {x.shape[-1]} columns, the weights {k}; they must agree')
    if k%BK[bits]: raise ValueError(f'{k} columns; codes of {bits} bits need a multiple of {BK[bits]}')
    if group<16 or k%group or BK[bits]%group and group%BK[bits]:
        raise ValueError(f'group={group}; use a divisor of {k} that divides {BK[bits]} or is a multiple of it, '
                         'from 16 up')
    if tuple(scale.shape)!=(k//group, n) or zero is not None and zero.shape!=scale.shape:
        raise ValueError(f'scale of {tuple(scale.shape)}; {(k//group, n)} is needed, and as many zero points')
    return n, k

def _words(c, bits): # [n,t,BK] codes -> [n,t,w,Q] words: one of each plane, or three of sixteen planes
    def joined(planes, at): # codes shifted to their bits and added up
        w = (planes << torch.tensor(at, device=c.device)[:,None]).sum(-2)
        return torch.where(w>=2**15, w-2**16, w).to(torch.int16)
    p = c.long().unflatten(-1, (16 if bits==3 else 16//bits, -1))
    if bits!=3: return joined(p, [k*bits for k in range(16//bits)])[...,None,:]
    files = [torch.cat([p[...,5*k:5*k+5,:], p[...,15:,:]>>k&1], -2) for k in range(3)]
    return torch.stack([joined(f, [0,3,6,9,12,15]) for f in files], -2)

def tile(
    q:UInt8[Tensor,"n k"], # codes
    bits:int,              # of a code
)->Int16[Tensor,"m"]:      # words; rows are filled up to a multiple of 64 with zeros
    "Codes in the order in which the kernel reads them: tile by tile"
    if bits not in BK or q.shape[1]%BK[bits]:
        raise ValueError(f'{q.shape[1]} codes of {bits} bits a row; use a multiple of {BK.get(bits,BK)}')
    rows = -(-len(q)//ROWS)*ROWS
    c = torch.cat([q, q.new_zeros(rows-len(q), q.shape[1])]).unflatten(1, (-1,BK[bits]))
    w = _words(c, bits).unflatten(0, (-1,ROWS)) # [blocks, 64, t, w, Q]
    return w.permute(0,2,3,1,4).flatten()

def wna16_ref(
    x:Float[Tensor,"m k"],          # inputs
    q:UInt8[Tensor,"n k"],          # codes
    scale:Float[Tensor,"g n"],      # distance between levels, one for each group of columns
    zero:UInt8[Tensor,"g n"]|None,  # code of zero; None is 2^(bits-1) everywhere
    bits:int,                       # of a code
    group:int,                      # columns that share a scale
)->Float[Tensor,"m n"]:
    "x times the transposed decoded weights, in float64, rounded once"
    _check(x, q, scale, zero, bits, group)
    def wide(t): return t.double().T.repeat_interleave(group, 1)
    W = (q.double()-(2**(bits-1) if zero is None else wide(zero)))*wide(scale)
    return (x.double()@W.T).to(x.dtype)

@constexpr_function
def _place(i, bits, half): # word of plane i, shift that brings its code into a mantissa, its bit there
    per = 5 if bits==3 else 16//bits
    room, at = (10 if half else 7)//bits*bits, i%per*bits
    return i//per, at//room*room, at%room

@constexpr_function
def _base(at, half): # what code 0 at this bit is worth: base/2^at
    return (1024 if half else 128)/2**at

@constexpr_function
def _number(v, half): # bits of a number, twice
    import struct
    n = struct.unpack('<H', struct.pack('<e', v))[0] if half else struct.unpack('<I', struct.pack('<f', v))[0]>>16
    return f'0x{n:04x}{n:04x}'

@constexpr_function
def _asm(i, bits, half): # words and -(base+zero) -> code less zero, two at a time
    kind, base = ('f16','0x64006400') if half else ('bf16','0x43004300')
    if bits==3 and i==15: # the top bits of three words
        take = ('shr.u32 t, $1, 15; and.b32 t, t, 0x00010001; shr.u32 u, $2, 14; lop3.b32 t, u, 0x00020002, t, 0xea; '
                f'shr.u32 u, $3, 13; lop3.b32 t, u, 0x00040004, t, 0xea; or.b32 t, t, {base};')
        at = 0
    else:
        word, shift, at = _place(i, bits, half); m = (2**bits-1)<<at
        move = f'shr.u32 t, ${word+1}, {shift};' if shift else f'mov.b32 t, ${word+1};'
        take = f'{move} lop3.b32 t, t, 0x{m:04x}{m:04x}, {base}, 0xea;'
    last = 4 if bits==3 else 2
    if at: put = f'mov.b32 u, {_number(2.**-at,half)}; fma.rn.{kind}x2 $0, t, u, ${last};'
    else: put = f'add.rn.{kind}x2 $0, t, ${last};'
    return f'{{ .reg .b32 t; .reg .b32 u; {take} {put} }}'

@jit
def _plane(words, z, I:tl.constexpr, BITS:tl.constexpr, HALF:tl.constexpr, PLAIN:tl.constexpr): # plane I less zero
    LAST:tl.constexpr = BITS==3 and I==15
    P:tl.constexpr = _place(0 if LAST else I, BITS, HALF)
    off = (-_base(P[2],HALF)-z).to(tl.float16 if HALF else tl.bfloat16)[:,None]
    if PLAIN:
        w = words[P[0]].to(tl.int32)
        if LAST: c = ((w >> 15) & 1) | ((words[1].to(tl.int32) >> 14) & 2) | ((words[2].to(tl.int32) >> 13) & 4)
        else: c = (w >> (P[1]+P[2])) & ((1 << BITS)-1)
        return (c+_base(P[2],HALF)).to(off.dtype)+off
    elif BITS==3:
        into = [words[0], words[1], words[2], off]
        return tl.inline_asm_elementwise(_asm(I,BITS,HALF), '=r,r,r,r,r', into, off.dtype, True, 2)
    else: return tl.inline_asm_elementwise(_asm(I,BITS,HALF), '=r,r,r', [words[0],off], off.dtype, True, 2)

@jit
def _span(words, z, I:tl.constexpr, C:tl.constexpr, BITS:tl.constexpr, HALF:tl.constexpr, PLAIN:tl.constexpr):
    "C planes from I on, side by side; of 0 bits if they are numbers already"
    if C==1:
        if BITS==0: return words[I]
        else: return _plane(words, z, I, BITS, HALF, PLAIN)
    else:
        a, b = _span(words,z,I,C//2,BITS,HALF,PLAIN), _span(words,z,I+C//2,C//2,BITS,HALF,PLAIN)
        return tl.join(a, b).permute(0,2,1).reshape(a.shape[0], 2*a.shape[1])

@jit
def _load(wp, real, Q:tl.constexpr, BITS:tl.constexpr): # words of a tile
    w = tl.load(wp, mask=real[:,None], other=0, eviction_policy='evict_first')
    if BITS!=3: return (w,)
    else:
        w1 = tl.load(wp+64*Q, mask=real[:,None], other=0, eviction_policy='evict_first')
        return w, w1, tl.load(wp+128*Q, mask=real[:,None], other=0, eviction_policy='evict_first')

@jit
def _zero(zero, r, N, n, real, BITS:tl.constexpr, ASYM:tl.constexpr): # code of zero of each row
    if ASYM: return tl.load(zero+r*N+n, mask=real, other=0).to(tl.float32)
    else: return tl.full(n.shape, 2**(BITS-1), tl.float32)

@jit
def _group(words, x, s, z, acc, seen, G:tl.constexpr, PG:tl.constexpr, RUN:tl.constexpr, Q:tl.constexpr,
           BITS:tl.constexpr, HALF:tl.constexpr, PLAIN:tl.constexpr):
    "`acc` and the product of the planes of group G of a tile with its inputs"
    sums = tl.zeros_like(acc)
    for p in tl.static_range(PG//RUN):
        a = _span(words, z, G*PG+p*RUN, RUN, BITS, HALF, PLAIN).to(x.dtype.element_ty)
        sums = tl.dot(a, tl.load(x+(G*PG+p*RUN)*Q, mask=seen[None,:], other=0), sums)
    return acc+sums*s.to(tl.float32)[:,None]

@jit
def _write(acc, out, part, here, m, n, M, N, pk, split, ONE:tl.constexpr):
    "The result; of several parts the last to arrive adds them up, in their order"
    o, ok = m.to(tl.int64)[None,:]*N+n[:,None], (m<M)[None,:] & (n<N)[:,None]
    if ONE: tl.store(out+o, acc.to(out.dtype.element_ty), mask=ok)
    else:
        tl.store(part+pk.to(tl.int64)*M*N+o, acc, mask=ok, cache_modifier='.cg')
        tl.debug_barrier()
        if tl.atomic_add(here, 1, sem='acq_rel')==split-1:
            total, p = tl.zeros_like(acc), part+o
            for k in range(split):
                total += tl.load(p, mask=ok, other=0, cache_modifier='.cg')
                p += M*N
            tl.store(out+o, total.to(out.dtype.element_ty), mask=ok)
            tl.store(here, 0)

@jit
def _overlap():
    "The next kernel may be launched while this one runs, which itself waits for the end of the last"
    gdc_launch_dependents()
    gdc_wait()

@jit
def _wna16(x, words, scale, zero, out, part, count, M, N, K, xs, split, GROUP:tl.constexpr, BITS:tl.constexpr,
           COLS:tl.constexpr, Q:tl.constexpr, BM:tl.constexpr, BN:tl.constexpr, RUN:tl.constexpr, ONE:tl.constexpr,
           ASYM:tl.constexpr, PLAIN:tl.constexpr):
    "One program: BN rows of W by BM tokens, over 1/split of the columns; RUN planes in a product"
    pm, pn, pk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    NG:tl.constexpr = COLS//GROUP if GROUP<COLS else 1 # groups of a tile
    PG:tl.constexpr = COLS//Q//NG                      # planes of a group
    R:tl.constexpr = PG if PG<RUN else RUN
    WALK:tl.constexpr = BM>=64 # carried addresses cost registers and save instructions
    HALF:tl.constexpr = BITS==8 or x.dtype.element_ty==tl.float16 # 128+code in bfloat16 needs codes below 128
    first, last = pk*(K//COLS)//split, (pk+1)*(K//COLS)//split
    if not PLAIN: _overlap()
    n, m = pn*BN+tl.arange(0, BN), pm*BM+tl.arange(0, BM)
    seen, real, acc = m<M, n<N, tl.zeros((BN,BM), tl.float32)
    wp = words+(n//64).to(tl.int64)[:,None]*(K*BITS*4)+first*(4*COLS*BITS)+(n%64)[:,None]*Q+tl.arange(0, Q)[None,:]
    xp = x+m.to(tl.int64)[None,:]*xs+first*COLS+tl.arange(0, R*Q)[:,None]
    after = tl.load(scale+first*COLS//GROUP*N+n, mask=real, other=0) # scales come one group ahead
    for t in range(first, last):
        w = _load(wp if WALK else wp+(t-first)*(4*COLS*BITS), real, Q, BITS)
        for g in tl.static_range(NG):
            s, r, h = after, t*COLS//GROUP+g, t*COLS//GROUP+g+1 if NG>1 else (t+1)*COLS//GROUP
            after, z = tl.load(scale+h*N+n, mask=real & (h*GROUP<K), other=0), _zero(zero, r, N, n, real, BITS, ASYM)
            acc = _group(w, xp if WALK else xp+(t-first)*COLS, s, z, acc, seen, g, PG, R, Q, BITS, HALF, PLAIN)
        wp, xp = (wp+4*COLS*BITS, xp+COLS) if WALK else (wp, xp)
    _write(acc, out, part, count+pn*tl.num_programs(0)+pm, m, n, M, N, pk, split, ONE)

@jit
def _dense(words, scale, zero, out, N, K, GROUP:tl.constexpr, BITS:tl.constexpr, COLS:tl.constexpr, Q:tl.constexpr,
           ASYM:tl.constexpr, PLAIN:tl.constexpr):
    "One program: the weights of one tile"
    t, n = tl.program_id(0), tl.program_id(1)*64+tl.arange(0, 64)
    NG:tl.constexpr = COLS//GROUP if GROUP<COLS else 1
    PG:tl.constexpr = COLS//Q//NG
    HALF:tl.constexpr = BITS==8 or out.dtype.element_ty==tl.float16
    real, size = n<N, K*BITS//16*64
    wp = words+(n//64).to(tl.int64)[:,None]*size+(n%64)[:,None]*Q+tl.arange(0, Q)[None,:]+t*(4*COLS*BITS)
    w, op = _load(wp, real, Q, BITS), out+n.to(tl.int64)[:,None]*K+t*COLS+tl.arange(0, PG*Q)[None,:]
    for g in tl.static_range(NG):
        r = t*COLS//GROUP+g
        s = tl.load(scale+r*N+n, mask=real, other=0).to(tl.float32)
        a = _span(w, _zero(zero, r, N, n, real, BITS, ASYM), g*PG, PG, BITS, HALF, PLAIN).to(tl.float32)*s[:,None]
        tl.store(op+g*PG*Q, a.to(out.dtype.element_ty), mask=real[:,None])

def dense(
    words:Int16[Tensor,"w"],       # from `tile`
    scale:Float[Tensor,"g n"],     # as for the reference
    zero:UInt8[Tensor,"g n"]|None, # as for the reference
    bits:int, group:int,           # as for the reference
    dtype=torch.float16,           # of the result
)->Float[Tensor,"n k"]:
    "The decoded weights"
    n, k, q = scale.shape[1], len(scale)*group, BK[bits]//(16 if bits==3 else 16//bits)
    out = torch.empty(n, k, dtype=dtype, device=words.device)
    _dense[(k//BK[bits], -(-n//64))](words, scale, scale if zero is None else zero, out, n, k, group, bits, BK[bits], q,
                                     zero is not None, INTERPRET)
    return out

@cache
def _plans(): return json.loads(Path(__file__).with_suffix('.json').read_text(encoding='utf8'))

@cache
def _plan(m, n, k, bits): # of the nearest shape that was tuned, if need be for 4 bits
    rows = [r for r in _plans() if r['bits']==bits and r['m']>=m] or [r for r in _plans() if r['bits']==4]
    size = min({r['m'] for r in rows if r['m']>=m} or {max(r['m'] for r in rows)})
    def far(r): return abs(math.log(r['n']/n))+abs(math.log(r['k']/k))
    return min((r for r in rows if r['m']==size), key=far)

def blocks(
    m:int, n:int, k:int, # tokens, rows and columns of the weights
    bits:int,            # of a code; 0 for a table of sixteen numbers
)->tuple:                # tokens and rows of a block, parts of the columns, warps, stages, planes at once, registers
    "Block sizes of the nearest shape that was tuned; 0 registers leave them to the compiler"
    bm, bn, split, *rest = _plan(m, n, k, bits)['plan']
    return bm, bn, max(1, min(split, k//(4*BK.get(bits,BK[4])))), *rest

def decodes(
    m:int, n:int, k:int, # as for `blocks`
    bits:int,            # as for `blocks`
)->bool:
    "Whether decoding first and the library's product were faster, at the nearest shape that was tuned"
    return _plan(m, n, k, bits).get('decode', False)

def run(
    x:Float[Tensor,"m k"],         # inputs, float16 or bfloat16, any row stride
    words:Int16[Tensor,"w"],       # from `tile`
    scale:Float[Tensor,"g n"],     # as for the reference
    zero:UInt8[Tensor,"g n"]|None, # as for the reference
    bits:int, group:int,           # as for the reference
    plan:tuple=(),                 # block sizes; empty takes them from `blocks`
    count:Int32[Tensor,"c"]|None=None, # zeros, one for each block of the result, and zeros afterwards; None makes them
)->Float[Tensor,"m n"]:
    "The product with packed weights"
    (m, k), n = x.shape, scale.shape[1]
    bm, bn, split, warps, stages, planes, regs = plan or blocks(m, n, k, bits)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not m: return out
    split = min(split, k//BK[bits]); grid = (-(-m//bm), -(-n//bn), split)
    part = torch.empty(split*m*n if split>1 else 0, dtype=torch.float32, device=x.device)
    need = grid[0]*grid[1] if split>1 else 0
    if count is None or len(count)<need: count = torch.zeros(need, dtype=torch.int32, device=x.device)
    x = x if x.stride(1)==1 else x.contiguous()
    q = BK[bits]//(16 if bits==3 else 16//bits)
    zeros = scale if zero is None else zero
    _wna16[grid](x, words, scale, zeros, out, part, count, m, n, k, x.stride(0), split, group, bits, BK[bits], q, bm,
                 bn, planes, split==1, zero is not None, INTERPRET, num_warps=warps, num_stages=stages,
                 launch_pdl=True, maxnreg=regs or None)
    return out

def product(
    x:Float[Tensor,"m k"],         # as for `run`
    words:Int16[Tensor,"w"],       # as for `run`
    scale:Float[Tensor,"g n"],     # as for `run`
    zero:UInt8[Tensor,"g n"]|None, # as for `run`
    bits:int, group:int,           # as for `run`
    count:Int32[Tensor,"c"]|None=None, # as for `run`
)->Float[Tensor,"m n"]:
    "`run`, or the library's product with decoded weights, whichever was faster where it was measured"
    if decodes(len(x), scale.shape[1], x.shape[1], bits): return x@dense(words, scale, zero, bits, group, x.dtype).T
    return run(x, words, scale, zero, bits, group, count=count)

def wna16(
    x:Float[Tensor,"m k"],          # inputs, float16 or bfloat16
    q:UInt8[Tensor,"n k"],          # codes, one a byte; a layer packs them once, with `tile`, and calls `run`
    scale:Float[Tensor,"g n"],      # as for the reference
    zero:UInt8[Tensor,"g n"]|None,  # as for the reference
    bits:int,                       # of a code
    group:int,                      # columns that share a scale
    plan:tuple=(),                  # block sizes; empty takes them from `blocks`
)->Float[Tensor,"m n"]:
    "`wna16_ref` as one Triton kernel; RuntimeError where it cannot run"
    require('wna16', x, q, scale)
    _check(x, q, scale, zero, bits, group)
    return run(x, tile(q,bits), scale.contiguous(), None if zero is None else zero.contiguous(), bits, group, plan)

def moved(x, q, scale, zero, bits, group)->int: # arguments of the reference -> bytes
    "What must be read and written at least"
    w = q.numel()*bits//8+scale.numel()*scale.element_size()+(0 if zero is None else zero.numel())
    return w+x.numel()*x.element_size()+len(x)*len(q)*x.element_size()

def _make(device, m, n, k, bits, group, asym=False, dtype=torch.float16):
    g = torch.Generator().manual_seed(m+n+k+bits)
    x = torch.randn(m, k, generator=g).to(dtype)
    q = torch.randint(0, 2**bits, (n,k), generator=g, dtype=torch.uint8)
    s = ((torch.rand(k//group, n, generator=g)+.5)/(2**bits*k**.5)).half()
    z = torch.randint(0, 2**bits, (k//group,n), generator=g, dtype=torch.uint8) if asym else None
    return x.to(device), q.to(device), s.to(device), z if z is None else z.to(device), bits, group

def cases(
    device='cpu', # where the tensors are made
)->dict:          # name of what is awkward about it -> arguments
    "Inputs on which kernel and reference must agree"
    def make(*a, **k): return _make(device, *a, **k)
    one = (torch.ones(1,1,dtype=torch.float16), torch.ones(1,1,dtype=torch.uint8), torch.ones(1,1), None, 4, 1)
    x, q, s, z, *rest = make(6, 64, 256, 4, 128)
    full = make(3, 64, 256, 4, 64)
    return dict(one=tuple(t.to(device) if isinstance(t,Tensor) else t for t in one), odd=make(17,65,256,4,128),
                two=make(5,64,256,2,128,True), three=make(5,130,512,3,64,True), four=make(3,64,512,4,32,True),
                eight=make(5,64,256,8,64,True), long_group=make(2,64,512,4,256), three_long=make(33,64,512,3,512),
                extremes=(full[0]*100, full[1]//15*15, *full[2:]), strided=(x[::2], q, s, z, *rest),
                empty=make(0,64,128,4,128), bad_group=make(1,64,128,4,8))

def loads(
    device='cuda', # where the tensors are made
)->dict:           # shape, width and tokens in words -> arguments
    "Inputs of the size of real layers, for measuring"
    return {f'{k}x{n} {b} bits batch {m}':_make(device, m, n, k, b, 128)
            for k,n in ((4096,4096),) for b in (2,3,4,8) for m in (1,16)}

def builds()->list: # (kernel, types of its arguments, its constants) that must compile for a GPU
    "Every width, both types of inputs"
    def one(bits, kind, asym, run):
        like = dict(x='*'+kind, words='*i16', scale='*fp16', zero='*u8' if asym else '*fp16', out='*'+kind,
                    part='*fp32', count='*i32', **{k:'i32' for k in ('M','N','K','xs','split')})
        return _wna16, like, dict(GROUP=64, BITS=bits, COLS=BK[bits], Q=16 if bits<4 else 32, BM=16, BN=64, RUN=run,
                                  ONE=not asym, ASYM=asym, PLAIN=False)
    return [one(2,'fp16',False,1), one(3,'fp16',True,8), one(4,'bf16',True,1), one(8,'bf16',False,1)]
