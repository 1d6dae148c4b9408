"The documentation's sources, without building it: what the pages say is what is registered, recorded and exported"
import inspect, importlib, json, re, sys
from collections import Counter
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'docs'))
import book, links, pages, tables
from api import module_page
from modules import Module, arguments, modules
from quantlab.core import methods

FOUND = modules()
GPTQ = FOUND['ptq.gptq']
def source(c): return ''.join(c['source'])
def cells_of(name): return json.loads((ROOT/f'nbs/{name}.ipynb').read_text('utf8'))['cells']

# cells

@pytest.mark.parametrize('text, wanted', [
    ('a\n$$x$$\nb', 'a\n\n$$\nx\n$$\n\nb'), ('so $$x=1$$, and', 'so\n\n$$\nx=1,\n$$\n\nand'), ('a $x$ b', 'a $x$ b'),
    ('$$\nx\n$$', '$$\nx\n$$'), ('| a | $$x$$ |', '| a | $x$ |'), ('```\n$$x$$\n```', '```\n$$x$$\n```'),
    ('$$a$$\n\n$$b$$', '$$\na\n$$\n\n$$\nb\n$$')])
def test_equations_stand_alone(text, wanted):
    spaced = re.sub(r' +\|', ' |', book.alone(text)).replace('|  $', '| $')
    assert spaced==wanted and book.alone(book.alone(text))==book.alone(text)

def test_directives_are_read_and_removed():
    found, rest = book.directives('#| export\n#| fig-cap: "a: b"\n\nx = 1 #| no')
    assert (found, rest)==(dict(export='', **{'fig-cap':'a: b'}), 'x = 1 #| no')

def test_names_are_linked_in_prose_only():
    def url(n): return dict(damped='d.html').get(n, '')
    text = '# `damped`\nsee `damped`, `other`, [`damped`](x.md), $`damped`$\n```\n`damped`\n```'
    assert book.linked(text, url)==text.replace('see `damped`', 'see <a href="d.html"><code>damped</code></a>')

def test_links_to_files_that_are_no_pages_go():
    assert book.outgoing('[a](A.md) [b](b.ini) [c](https://x.y)', {'A.md':'a.md'})=='[a](a.md) b [c](https://x.y)'

def test_equations_lead_to_the_code_that_the_references_name():
    marked = [book._marked(c) for c in cells_of('ptq/02_gptq')]
    leads = {re.findall(r'^#+ (.*)', marked[k][2], re.M)[-1]:[book.bound(s) for i in v for j,_,s in marked if j==i]
             for k,v in book.code_of(marked).items()}
    assert ['damped','inverse_factor'] in leads['Step 4: all these inverses are one Cholesky factor']
    assert leads['Step 1: fix one weight, move the others']==[['compensate']] # as the table of the references says
    assert len(leads)==sum('$$' in s for _,kind,s in marked if kind=='markdown')

def test_every_exported_cell_leads_to_its_lines():
    path, lines = ROOT/'nbs/ptq/02_gptq.ipynb', GPTQ.text.splitlines()
    out = '\n'.join(c['source'] for c in book.Book(path, GPTQ, lambda n: '').out())
    spans = {m[1]:m[2] for m in re.finditer(r'id="cell-(\w+)"><a href="\.\./\.\./api/ptq/gptq\.html#L-(\d+)"', out)}
    exported = [c for c in cells_of('ptq/02_gptq') if c['cell_type']=='code' and source(c).startswith('#| export')]
    assert set(spans)=={c['id'] for c in exported}
    for c in exported[1:]: # the first holds imports, which nbdev makes relative
        a, b = GPTQ.cells[c['id']]
        assert str(a)==spans[c['id']] and '\n'.join(lines[a-1:b])==book.directives(source(c))[1]

# modules

def test_cells_of_all_modules_are_in_their_notebooks():
    for m in (m for m in FOUND.values() if m.book):
        assert set(m.cells)<={c['id'] for c in cells_of(m.book)}, m.name

@pytest.mark.parametrize('name', ['ptq.gptq','core.walk','formats.int','bench.league'])
def test_arguments_are_those_of_the_signature(name):
    live = importlib.import_module(f'quantlab.{name}')
    for n,node in FOUND[name].names.items():
        if not (inspect.isfunction(o:=getattr(live,n)) or inspect.isclass(o)) or n[0]=='_': continue
        told = [a for a in arguments(node, FOUND[name].notes) if a.name!='returns']
        assert [a.name.lstrip('*') for a in told]==[p for p in inspect.signature(o).parameters if p!='self'], n

def test_a_page_of_a_module_holds_every_name_and_line():
    text = module_page(GPTQ)
    assert all(f'id="{n}"' in text for n in GPTQ.names)
    assert len(re.findall('id="L-', text))==len(GPTQ.text.splitlines())

def test_comments_say_what_arguments_mean():
    H, damp, out = arguments(GPTQ.names['damped'], GPTQ.notes)
    assert (H.name, H.type, H.default, H.says)==('H', 'Float64[Tensor, "i i"]', '', 'sum over tokens of x xT')
    assert (damp.default, out.name, out.says)==('0.01', 'returns', 'positive definite unless rounding spoils it')
    assert arguments(GPTQ.names['GPTQ'], GPTQ.notes)[1].says=='fraction of the mean diagonal of H that is added to it'

# tables

def test_the_catalogue_is_the_registry():
    rows, known = tables.catalogue(), methods()
    assert {r['name']:(r['kind'],r['paper']) for r in rows}=={m.name:(m.kind,m.paper) for m in known.values()}
    said = Counter((r['method'],r['verdict']) for r in tables.lines('evidence.jsonl') if r['method'] in known)
    assert Counter({(r['name'],v):n for r in rows for v,n in r['verdicts'].items()})==said
    assert all((ROOT/f'nbs/{r["book"]}.ipynb').is_file() for r in rows)
    assert tables.catalogue_table(rows).count('<tr>')==len(rows)+1

def test_the_evidence_page_holds_every_claim():
    claims = tables.lines('evidence.jsonl'); text = tables.evidence_table(claims, {})
    assert text.count('<tr>')==len(claims)+1 and {r['verdict'] for r in claims}<=set(tables.VERDICTS)
    assert all(tables.ticks(r['text']) in text for r in claims)

def test_what_is_shown_is_escaped():
    row = dict(method='<b>', text='a<b', paper='x & y', protocol='"', here={'k<':1.23456}, verdict='reproduced', seed=0,
               python='3', torch='2')
    text = tables.evidence_table([row], {})
    assert '&lt;b&gt;' in text and 'a&lt;b' in text and 'x &amp; y' in text and 'k&lt; <b>1.23</b>' in text

# links

def test_broken_links_are_found(tmp_path):
    links_of = ''.join(f'<a href="{u}">x</a>' for u in ('b.html#y','b.html#z','c.html','https://x.y','b.html#q=1'))
    (tmp_path/'a.html').write_text(f'{links_of}<script src="https://x.y/z.js"></script><img src="d.png">')
    (tmp_path/'b.html').write_text('<p id="y">'); (tmp_path/'s.css').write_text('@import "//x.y/z.css"')
    assert links.problems(tmp_path)==['a.html: loads https://x.y/z.js from elsewhere',
        'a.html: b.html#z has no such anchor', 'a.html: c.html leads nowhere', 'a.html: d.png leads nowhere',
        's.css: loads from elsewhere']

def test_the_texts_name_pages_that_exist():
    for name in ('read','index','evidence','leagues'):
        text = (ROOT/f'docs/{name}.md').read_text('utf8')
        for to in re.findall(r'\]\((nbs/[^)]+)\)', text): assert (ROOT/to).is_file(), f'docs/{name}.md: {to}'
        assert set(re.findall(r'\]\(([^)]+)\)', text))<=set(re.findall(r'\]\(([^)]+)\)', pages.prose(text,FOUND))), name
    assert {d for d,_,_ in pages.CARDS}=={'nbs/index','read','use','contribute','evidence','league/index'}
