"""Kernels beside what else does the same work on this machine's GPU, in one run: tables of layers and models.

Every time is the median of replays of a CUDA graph that holds one call for each of several copies of the weights, more
of them than the cache keeps: no weight is read twice in a row."""
import math, statistics
import torch
from torch.nn import functional as F
from quantlab.kernels import attend as A, hadamard as H, lookup as L, wna16 as W

SHAPES = (4096,4096), (4096,28672), (14336,4096), (8192,28672) # columns, rows of the weights
BATCHES = 1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096

def graph_us(
    calls,       # functions that launch work on the GPU, one for each copy of the weights
    reps:int=21, # replays
)->float:        # microseconds
    "Median time of one call"
    side = torch.cuda.Stream(); side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side): [f() for f in calls[:2]]
    torch.cuda.current_stream().wait_stream(side)
    g, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(g): [f() for f in calls]
    for _ in range(reps+2):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); g.replay(); b.record(); torch.cuda.synchronize(); times.append(a.elapsed_time(b)*1000/len(calls))
    return statistics.median(times[2:])

def packed(n, k, bits, group=128, seed=0): # words and scales of a random layer
    g = torch.Generator('cuda').manual_seed(seed)
    s = ((torch.rand(k//group, n, generator=g, device='cuda')+.5)/(2**bits*k**.5)).half()
    return torch.randint(-2**15, 2**15, (n*k*bits//16,), generator=g, dtype=torch.int16, device='cuda'), s

def _tinygemm(n, k, x, copies): # torch's own kernel for codes of 4 bits
    q = torch.randint(0, 256, (n,k//2), dtype=torch.uint8, device='cuda')
    sz = torch.rand(k//128, n, 2, device='cuda').bfloat16()
    ws = [torch._convert_weight_to_int4pack(q, 8) for _ in range(copies)]
    return [lambda w=w: torch._weight_int4pack_mm(x.bfloat16(), w, 128, sz) for w in ws]

def layer(m, n, k, bits): # one row of the table
    copies = max(3, min(20, math.ceil(400e6/(n*k*bits/8))))
    ws, s = [packed(n,k,bits,seed=i)[0] for i in range(copies)], packed(n, k, bits)[1]
    x, count = torch.randn(m, k, device='cuda').half(), torch.zeros(2**16, dtype=torch.int32, device='cuda')
    def fused(w): return W.run(x, w, s, None, bits, 128, count=count)
    full = W.dense(ws[0], s, None, bits, 128); want = x[:64].double()@full.double().T; got = fused(ws[0])
    error = ((got[:64].double()-want).norm()/want.norm()).item()
    assert error<2e-3 and torch.equal(fused(ws[0]), got), f'{(m,n,k,bits)}: error {error}, or not the same bits twice'
    bf = [torch.randn(n, k, device='cuda', dtype=torch.bfloat16) for _ in range(3)]; xb = x.bfloat16()
    us = dict(bf16=graph_us([lambda w=w: xb@w.T for w in bf]), fused=graph_us([lambda w=w: fused(w) for w in ws]),
              decoded=graph_us([lambda w=w: x@W.dense(w, s, None, bits, 128).T for w in ws[:3]]))
    if bits==4 and m<=128: us |= _others(m, n, k, x, ws, s, count, min(copies,6))
    return dict(m=m, n=n, k=k, bits=bits, group=128, error=error, plan=W.blocks(m,n,k,bits),
                decodes=W.decodes(m,n,k,bits), us={a:round(t,2) for a,t in us.items()})

def _others(m, n, k, x, ws, s, count, copies): # a table of sixteen numbers; torch's kernel
    t, xb = torch.linspace(-1, 1, 16, device='cuda').half(), x.bfloat16()
    return dict(table=graph_us([lambda w=w: L.run(x, w, s, t, 128, count=count) for w in ws]),
                int4pack=graph_us(_tinygemm(n, k, xb, copies)))

def layers()->list:
    "The product, every width and shape"
    wide = [(m,n,k,4) for k,n in SHAPES for m in BATCHES]
    rest = [(m,n,k,b) for b in (2,3,8) for k,n in SHAPES for m in (1,8,16,64)]
    return [layer(*a) for a in wide+rest]

_WIDE = dict(qkv=(6144,4096), o=(4096,4096), up=(28672,4096), down=(4096,14336)) # rows, columns: Llama 3 8B

def _linears(bits): # 32 layers, name -> function; 16 is a plain product in bfloat16
    def one(n, k, seed):
        if bits==16: w = torch.randn(n, k, device='cuda', dtype=torch.bfloat16)/k**.5; return lambda x: x@w.T
        (w, s), count = packed(n, k, bits, seed=seed), torch.zeros(2**14, dtype=torch.int32, device='cuda')
        return lambda x: W.run(x, w, s, None, bits, 128, count=count)
    return [{a:one(n,k,4*i) for a,(n,k) in _WIDE.items()} for i in range(32)]

def _step(x, layers, caches, head): # one token of each sequence, 512 tokens back; no learned norms
    for f,(K,V) in zip(layers, caches):
        q, k, v = f['qkv'](F.rms_norm(x,x.shape[-1:])).split((4096,1024,1024), -1)
        K[:,:,-1], V[:,:,-1] = k.unflatten(1,(8,128)), v.unflatten(1,(8,128))
        a = F.scaled_dot_product_attention(q.unflatten(1,(32,1,128)), K, V, enable_gqa=True)
        x = x+f['o'](a.flatten(1))
        g, u = f['up'](F.rms_norm(x,x.shape[-1:])).chunk(2, -1); x = x+f['down'](F.silu(g)*u)
    return x@head.T

def decoder()->list:
    "Tokens a second of a decoder with the shapes of an 8B model and random weights, head in 16 bits"
    rows = []
    for bits in (16,8,4,3,2):
        fs, dtype = _linears(bits), torch.bfloat16 if bits==16 else torch.float16
        head = torch.randn(128256, 4096, device='cuda', dtype=dtype)/64
        for b in (1,8,32):
            c = [[torch.randn(b, 8, 512, 128, device='cuda', dtype=dtype) for _ in 'kv'] for _ in fs]
            x = torch.randn(b, 4096, device='cuda', dtype=dtype)
            us = graph_us([lambda: _step(x,fs,c,head)])
            rows.append(dict(bits=bits, batch=b, us=round(us,1), tokens_per_s=round(b*1e6/us,1)))
        del fs, head, c; torch.cuda.empty_cache()
    return rows

def rotations()->list:
    "The transform, with and without codes, beside a product with the whole matrix"
    rows = []
    for name,(x,A,B) in H.loads().items():
        Q = torch.kron(A, B)*x.shape[1]**-.5; xs = [x.clone() for _ in range(4)]
        us = dict(fused=graph_us([lambda t=t: H.hadamard(t,A,B) for t in xs]),
                  codes=graph_us([lambda t=t: H.hadamard_codes(t,A,B) for t in xs]),
                  matmul=graph_us([lambda t=t: t@Q.T for t in xs]), copy=graph_us([lambda t=t: t.clone() for t in xs]))
        rows.append(dict(load=name, us={a:round(t,2) for a,t in us.items()}))
    return rows

def caches()->list:
    "One token that looks at a cache, beside torch's attention to keys and values in 16 bits"
    rows = []
    for name,args in A.loads().items():
        q, v = args[0], args[4]; (h, r, d), n = q.shape, v.shape[1]
        K, V = (torch.randn(1, h, n, d, device='cuda', dtype=q.dtype) for _ in 'kv')
        packs = [tuple(t.clone() if torch.is_tensor(t) else t for t in args) for _ in range(3)]
        us = dict(packed=graph_us([lambda a=a: A.attend(*a) for a in packs]),
                  half=graph_us([lambda c=c: F.scaled_dot_product_attention(q[None], c[0], c[1], enable_gqa=True)
                                 for c in [(K,V), (K.clone(),V.clone()), (K.clone(),V.clone())]]))
        rows.append(dict(load=name, heads=h, queries=r, tokens=n, bytes=A.moved(*args), half_bytes=4*h*n*d,
                         us={a:round(t,2) for a,t in us.items()}))
    return rows

TABLES = dict(layers=layers, decoder=decoder, rotations=rotations, caches=caches)
