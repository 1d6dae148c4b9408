"""Measure kernels on this machine's GPU beside their reference and beside a plain copy of as many bytes.

    python -m quantlab.kernels._bench                   # every kernel and every table
    python -m quantlab.kernels._bench dequantize layers # some

Writes data/bench/<name>.jsonl: device, versions, load, bytes that must move, median microseconds of each. Tables that
compare layers and models with other programs are those of `_peers`."""
import importlib, json, statistics, sys
from functools import partial
from pathlib import Path
import torch

ROOT = Path(__file__).resolve().parents[1]

def median_us(
    f,               # a function that launches work on the GPU
    repeats:int=50,  # timed calls, after ten that are not
)->float:            # microseconds
    "Median time of `f()` between two GPU events; a write of 256 MB before each call empties the cache"
    empty, times = torch.empty(2**28, dtype=torch.uint8, device='cuda'), []
    for k in range(repeats+10):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        empty.zero_(); a.record(); f(); b.record(); torch.cuda.synchronize()
        if k>=10: times.append(a.elapsed_time(b)*1000)
    return statistics.median(times)

def where()->dict:
    "The device and the versions"
    import triton
    return dict(device=torch.cuda.get_device_name(), torch=torch.__version__, triton=triton.__version__)

def measured(
    name:str, # of a kernel file
)->list:      # one dict per load
    "Times of a kernel, of its reference and of a copy; AssertionError if kernel and reference differ"
    m, rows = importlib.import_module(f'quantlab.kernels.{name}'), []
    kernel, ref = getattr(m, name), getattr(m, name+'_ref')
    def same(args): torch.testing.assert_close(kernel(*args), ref(*args), rtol=m.RTOL, atol=m.ATOL)
    for args in m.cases('cuda').values(): valid(same, args)
    for load,args in m.loads('cuda').items():
        same(args)
        a = torch.empty(m.moved(*args)//2, dtype=torch.uint8, device='cuda'); b = torch.empty_like(a)
        work = dict(kernel=lambda: kernel(*args), ref=lambda: ref(*args), copy=lambda: b.copy_(a))
        us = {k:round(median_us(f), 1) for k,f in work.items()}
        rows.append(dict(kernel=name, load=load, bytes=m.moved(*args), us=us))
    return rows

def valid(f, args): # cases that are refused are for the tests
    try: return f(args)
    except ValueError: return None

def main():
    if not torch.cuda.is_available(): sys.exit('make bench: no NVIDIA GPU, or a torch that was built without CUDA')
    from quantlab.kernels._peers import TABLES
    work = {f.stem:partial(measured, f.stem) for f in sorted((ROOT/'kernels').glob('[!_]*.py'))} | TABLES
    for name in sys.argv[1:] or work:
        rows, out = [{**r, **where()} for r in work[name]()], ROOT/'data'/'bench'/f'{name}.jsonl'
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(''.join(json.dumps(r)+'\n' for r in rows), encoding='utf8')
        for r in rows: print(name, json.dumps({k:v for k,v in r.items() if k not in where()}), flush=True)

if __name__=='__main__': main()
