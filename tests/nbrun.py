"""Run notebooks as nbdev-test does, each in a process of its own, and note which exported statements were never run.

    python tests/nbrun.py nbs/core/01_grid.ipynb          # run and report
    python tests/nbrun.py --save nbs/core/01_grid.ipynb   # run, and store the outputs

nbdev-test runs several notebooks in one process, so that one can change what the next one sees; it knows no limit of
memory, and it cannot tell whether a notebook runs the code that it exports."""
import argparse, ast, builtins, multiprocessing, os, resource, socket, sys, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPORTS, SKIPPED = {'export','exports','exporti'}, {'slow','gpu'}
LOADED = 'torch matplotlib.figure nbdev.test jaxtyping beartype transformers.models.llama.modeling_llama warm'.split()
fork = multiprocessing.get_context('forkserver')

class Marks(ast.NodeTransformer):
    "Puts a mark before every statement of the functions that a cell defines"
    def __init__(self): self.cell, self.wanted, self.ran = None, {}, set()
    def visit_Module(self, tree):
        if self.cell is not None: self.functions(tree)
        return ast.fix_missing_locations(tree)
    def functions(self, node): # the outermost ones
        for n in ast.iter_child_nodes(node):
            if isinstance(n, (ast.FunctionDef,ast.AsyncFunctionDef)): self.blocks(n)
            else: self.functions(n)
    def blocks(self, node): # every block of statements that belongs to `node`
        for f in ('body','orelse','finalbody'):
            if getattr(node,f,None): setattr(node, f, [s for old in getattr(node,f) for s in self.marked(old)])
        for n in (*getattr(node,'handlers',()), *getattr(node,'cases',())): self.blocks(n)
    def marked(self, s):
        self.blocks(s)
        if isinstance(s, ast.Pass) or isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant): return [s]
        key = self.cell, s.lineno, s.col_offset
        self.wanted[key] = ast.unparse(s).splitlines()[0]
        return [ast.copy_location(ast.Expr(ast.Call(ast.Name('_ran_', ast.Load()), [ast.Constant(key)], [])), s), s]

def offline(): # a notebook has all that it needs on the machine
    connect = socket.socket.connect
    def refuse(self, address):
        far = isinstance(address,tuple) and address[0] not in ('localhost','127.0.0.1','::1')
        if far: raise OSError(f'no network in tests: {address}')
        return connect(self, address)
    socket.socket.connect = refuse

def usage(): # seconds of processor time so far, megabytes at the peak
    own, children = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    kilobytes = own.ru_maxrss if sys.platform=='linux' else own.ru_maxrss/1024
    return own.ru_utime+own.ru_stime+children.ru_utime+children.ru_stime, int(kilobytes/1024)

def execute(path, flags=(), save=False): # in this process
    from execnb.shell import CaptureShell
    from fastcore.nbio import does_cell_eval, write_nb
    from nbdev.process import NBProcessor
    os.environ['IN_TEST'] = '1'; sys.path.insert(0, str(ROOT)); os.chdir(Path(path).parent); offline()
    nb, shell = NBProcessor(path, rm_directives=False, process=True).nb, CaptureShell(path)
    marks, skipped = Marks(), SKIPPED-set(flags)
    shell.ast_transformers.append(marks); builtins._ran_ = marks.ran.add
    def skip(cell):
        names = set(getattr(cell,'directives_',None) or {})
        marks.cell = cell.idx_ if names & EXPORTS else None
        return cell.cell_type!='code' or not does_cell_eval(cell, True) or bool(names & skipped)
    start = usage()[0]
    try: shell.run_all(nb, exc_stop=True, preproc=skip)
    except Exception: return dict(error=shell.prettytb(path))
    if save: write_nb(nb, path)
    missed = [f'cell {k[0]} line {k[1]}: {text}' for k,text in sorted(marks.wanted.items()) if k not in marks.ran]
    return dict(error='', seconds=usage()[0]-start, megabytes=usage()[1], missed=missed)

def _child(pipe, path, options): pipe.send(execute(path, **options)); pipe.close()

def run(path, limit=600, **options): # in a process that ends with it; `limit` in seconds
    ours, theirs = fork.Pipe(False)
    p = fork.Process(target=_child, args=(theirs, str(path), options)); p.start(); theirs.close()
    try: return ours.recv() if ours.poll(limit) else dict(error=f'{path}: stopped after {limit} s')
    except EOFError: p.join(); return dict(error=f'{path}: its process died with exit code {p.exitcode}')
    finally: p.join(2); p.kill()

def run_all(paths, workers=2, slots=None, **options): # path -> future of what `run` returns; a run takes one of `slots`
    fork.set_forkserver_preload(LOADED)
    def one(p):
        with slots or nullcontext(): return run(p, **options)
    pool = ThreadPoolExecutor(workers)
    return pool, {p:pool.submit(one, p) for p in paths}

def faults(r, seconds, megabytes=2048): # what is wrong with a run, as lines
    if r['error']: return [r['error']]
    out = [f'{r["seconds"]:.0f} s of processor time; the limit is {seconds} s'] if r['seconds']>seconds else []
    if r['megabytes']>megabytes: out.append(f'{r["megabytes"]} MB; the limit is {megabytes} MB')
    return out+[f'exported but never run by its own notebook, {m}' for m in r['missed']]

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('paths', nargs='+', type=Path)
    a.add_argument('--save', action='store_true', help='store outputs in the notebook')
    a.add_argument('--flags', default='', help='run cells with these flags too, such as "gpu slow"')
    a = a.parse_args(); bad = 0
    _, runs = run_all([p.resolve() for p in a.paths], save=a.save, flags=a.flags.split(), limit=3600)
    for p,r in runs.items():
        r = r.result(); f = faults(r, float('inf')); bad += bool(f)
        said = f or [f'{r["seconds"]:.1f} s, {r["megabytes"]} MB']
        print(p.relative_to(ROOT), *said, sep='\n    ' if f else ': ', flush=True)
    sys.exit(bool(bad))

if __name__=='__main__':
    for k,v in dict(TRITON_INTERPRET='1', OMP_NUM_THREADS='1', MPLBACKEND='agg').items(): os.environ.setdefault(k, v)
    main()
