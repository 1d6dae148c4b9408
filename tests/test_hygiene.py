"""What keeps the checkout readable: modules match their notebooks, imports go down, no file breaks the house rules."""
import ast, filecmp, json, os, re, shutil, statistics, subprocess, sys
from functools import cache
from pathlib import Path
import pytest
from quantlab.recipes.new import ROOMS

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(p for p in (ROOT/'quantlab').rglob('*.py') if p.name!='_modidx.py' and 'kernels' not in p.parts)
KERNELS = sorted((ROOT/'kernels').glob('*.py'))
CODE = MODULES+KERNELS
TESTS = sorted((ROOT/'tests').glob('*.py'))
NBS = ROOT/'nbs'
BOOKS = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
SECTIONS = ('Imports', 'Problem', 'Derivation', 'Smallest implementation', 'Brute force', 'The method', 'What it buys',
            'Where it does not help', 'In a chain', 'Pitfalls', 'References', 'Register')
NOT_METHODS = {'core', 'testbeds', 'bench', 'export', 'kernels', 'recipes'}

def short(p): return str(Path(p).relative_to(ROOT))
tree = cache(lambda p: ast.parse(p.read_text('utf8')))
cells = cache(lambda p: json.loads(p.read_text('utf8'))['cells'])
def source(c): return ''.join(c['source'])
def code_cells(p): return [(k,c) for k,c in enumerate(cells(p)) if c['cell_type']=='code']
def lines(): # (place, line) of all code that a person wrote
    for p in KERNELS+TESTS: yield from ((f'{short(p)}:{n}',l) for n,l in enumerate(p.read_text('utf8').splitlines(),1))
    for p in BOOKS: yield from ((f'{short(p)} cell {k}',l) for k,c in code_cells(p) for l in source(c).splitlines())
def none(offenders): # a list that must be empty
    offenders = list(dict.fromkeys(offenders))
    if offenders: pytest.fail(f'{len(offenders)} offenders\n'+'\n'.join(offenders), pytrace=False)
books = pytest.mark.parametrize('book', [pytest.param(b, id=short(b)) for b in BOOKS])

# generated files

@pytest.fixture(scope='module')
def generated(tmp_path_factory): # the notebooks alone, exported and cleaned
    new = tmp_path_factory.mktemp('checkout')
    for f in ('pyproject.toml','settings.ini'): shutil.copy(ROOT/f, new)
    shutil.copytree(ROOT/'nbs', new/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    (new/'quantlab').mkdir(); shutil.copy(ROOT/'quantlab/__init__.py', new/'quantlab')
    env = {k:v for k,v in os.environ.items() if k!='IN_TEST'}
    for c in ('nbdev-export','nbdev-clean'):
        subprocess.run([Path(sys.executable).parent/c], cwd=new, env=env, check=True, capture_output=True)
    return new

def test_modules_are_what_the_notebooks_export(generated):
    def modules(root):
        return {str(p.relative_to(root)) for p in (root/'quantlab').rglob('*.py') if 'kernels' not in p.parts}
    here, there = modules(ROOT), modules(generated)
    changed = [f for f in here & there if not filecmp.cmp(ROOT/f, generated/f, shallow=False)]
    none([f'{f}: no notebook exports it' for f in here-there]+
         [f'{f}: not what its notebook exports; run nbdev-export' for f in [*(there-here), *changed]])

def test_notebooks_are_clean(generated):
    none(f'{short(b)}: run nbdev-clean' for b in BOOKS if not filecmp.cmp(b, generated/short(b), shallow=False))

def test_index_pages_say_what_is_there():
    from quantlab.recipes.index import room_page
    rooms = sorted({b.parent for b in BOOKS if b.parent!=NBS and b.name!='00_index.ipynb'})
    pages = {r:r/'00_index.ipynb' for r in rooms}
    none(f"{short(p)}: run quantlab index" for r,p in pages.items()
         if not p.is_file() or p.read_text("utf8")!=room_page(r))

# notebooks

@books
def test_outputs_are_stored(book):
    outputs = [o for _,c in code_cells(book) for o in c['outputs']]
    if book.name[0]!='_' and code_cells(book): assert outputs, 'no outputs are stored; run it, then nbdev-clean'
    assert not [o for o in outputs if o['output_type']=='error'], 'an error is stored as output'

@books
def test_size(book): assert book.stat().st_size<=400_000, f'{book.stat().st_size//1000} KB; 400 KB is the limit'

@books
def test_sections(book):
    code = '\n'.join(source(c) for _,c in code_cells(book))
    if '\n__methods__ = ' not in '\n'+code or book.parent.name in NOT_METHODS: return
    text = '\n'.join(source(c) for c in cells(book) if c['cell_type']=='markdown')
    heads = re.findall(r'^#+\s+(.*)', text, re.M)
    missing = [s for s in SECTIONS if not any(s.lower() in h.lower() for h in heads)]
    if not re.search(r'^#+ .*Claim|^\*\*Claim', text, re.M): missing.append('Claim')
    assert not missing, f'sections missing: {", ".join(missing)}'
    figures = [o for _,c in code_cells(book) for o in c['outputs'] if 'image/png' in o.get('data',())]
    assert figures or book.name[0]=='_', 'no figure is stored'

# code

BANNED = dict(TODO=r'\bTODO\b|\bFIXME\b', unfinished=r'\bNotImplementedError\b',
              trust=r'\btrust_remote_code\s*=\s*True', future=r'^from __future__ import annotations',
              path=r'(?<![\w.:/])/(?:home|root|tmp|work|opt|usr)/')

def test_banned_words():
    others = [(place,l) for place,l in lines() if not place.startswith(short(__file__))]
    none(f'{place}: {name}: {l.strip()}' for place,l in others for name,r in BANNED.items() if re.search(r,l))

def test_banned_imports_and_handlers():
    def bad(n):
        if isinstance(n, ast.ExceptHandler) and n.type is None: return 'bare except'
        imported = isinstance(n, (ast.Import,ast.ImportFrom))
        names = [a.name for a in n.names]+[getattr(n,'module',None)] if imported else []
        return 'pickle' if 'pickle' in names else None
    none(f'{short(p)}:{n.lineno} {bad(n)}' for p in CODE for n in ast.walk(tree(p)) if bad(n))

def written(p): # code lines of a module: no blank line, comment, module docstring or list of names
    body = [n for n in tree(p).body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
            and not (isinstance(n, ast.Assign) and isinstance(n.value, ast.List) and n.targets[0].id=='__all__')]
    text = p.read_text('utf8').splitlines()
    def first(n): return min([n.lineno, *(d.lineno for d in getattr(n,'decorator_list',()))])
    return [l for n in body for l in text[first(n)-1:n.end_lineno] if l.strip() and l.strip()[0]!='#']

def test_core_is_small(): # what every technique stands on has to fit in a head
    core = [p for p in MODULES if p.parent.name=='core']
    size = sum(len(written(p)) for p in core)
    assert size<=2500, f'core has {size} lines of code; 2500 is the limit: move what one room needs into that room'
    defs = [n for p in core for n in ast.walk(tree(p)) if isinstance(n, (ast.FunctionDef,ast.AsyncFunctionDef))]
    assert statistics.median(n.end_lineno-n.lineno+1 for n in defs)<10

def test_functions_are_short():
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    defs = [(p,n) for p in CODE+TESTS for n in ast.walk(tree(p)) if isinstance(n, kinds)]
    long = {(p,n.lineno,n.name):size for p,n in defs if (size:=n.end_lineno-n.lineno+1)>25}
    none(f'{short(p)}:{line} {name} has {size} lines; 25 is the limit' for (p,line,name),size in long.items())

def test_lines_are_short(): none(f'{place}: {len(l)} columns; 120 is the limit' for place,l in lines() if len(l)>120)

# imports

def module(p):
    name = '.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
    return name if name.startswith('quantlab') else 'quantlab.'+name

def imports(p): # dotted names inside quantlab that `p` imports, at any depth
    package = (module(p) if p.name=='__init__.py' else module(p).rpartition('.')[0]).split('.')
    for n in ast.walk(tree(p)):
        if isinstance(n, ast.Import): yield from (a.name for a in n.names if a.name.startswith('quantlab.'))
        if not isinstance(n, ast.ImportFrom): continue
        above = package[:len(package)-n.level+1] if n.level else []
        base = '.'.join([*above, *filter(None,[n.module])])
        if base.startswith('quantlab'): yield from (f'{base}.{a.name}' for a in n.names)

def room(m): return m.split('.')[1] if m.count('.') else ''

def test_imports_go_down_the_rooms():
    level = {r:k for k,r in enumerate(ROOMS)} # kernels have no level: anybody may call them
    pairs = [(p,i) for p in MODULES for i in imports(p) if room(i) in level and room(module(p)) in level]
    none(f'{short(p)} imports {i}, a later room' for p,i in pairs if level[room(i)]>level[room(module(p))])

def test_kernels_stand_alone():
    none(f'{short(p)} imports {i}' for p in KERNELS for i in imports(p) if room(i)!='kernels')

def test_rooms_are_known():
    here = [d.name for d in NBS.iterdir() if d.is_dir() and d.name[0] not in '._']
    none(f'{r}: not a room; the rooms are {", ".join(ROOMS)}' for r in here if r not in (*ROOMS,'kernels'))

def test_no_import_cycle():
    known = {module(p):p for p in CODE}
    def target(i): return i if i in known else i.rpartition('.')[0]
    graph, done = {m:{target(i) for i in imports(p)} & known.keys() for m,p in known.items()}, set()
    def visit(m, path):
        if m in path: pytest.fail('a cycle: '+' -> '.join([*path[path.index(m):], m]), pytrace=False)
        if m not in done: [visit(n, [*path,m]) for n in sorted(graph[m])]; done.add(m)
    for m in graph: visit(m, [])

def python(code, *args):
    return subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, cwd=ROOT)

def test_import_is_fast_and_needs_no_torch():
    code = ('import sys, time; t = time.perf_counter(); import quantlab\n'
            'print(time.perf_counter()-t, "torch" in sys.modules)')
    runs = [python(code).stdout.split() for _ in range(3)]
    assert runs[0][1]=='False' and min(float(r[0]) for r in runs)<.1

def test_every_module_imports_without_triton():
    code = 'import importlib, sys; sys.modules["triton"] = None; [importlib.import_module(m) for m in sys.argv[1:]]'
    r = python(code, *map(module, CODE))
    assert r.returncode==0, r.stderr

# checkout

def test_kernels_folder_is_reached_through_a_link():
    assert os.readlink(ROOT/'quantlab/kernels')=='../kernels', 'quantlab/kernels must be a link to ../kernels'
    assert not (ROOT/'kernels/__init__.py').exists(), 'a top-level package called kernels breaks transformers'

def test_checkout_travels():
    command = 'git ls-files -z --cached --others --exclude-standard'.split()
    r = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if r.returncode: pytest.skip('not a git checkout')
    sizes = {f:(ROOT/f).stat().st_size for f in r.stdout.split('\0') if f and (ROOT/f).is_file()}
    total, largest = sum(sizes.values())/1e6, sorted(sizes, key=sizes.get)[-5:]
    assert total<60, f'{total:.0f} MB; 60 is the limit. The largest: {largest}'
