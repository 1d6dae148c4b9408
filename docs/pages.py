"The sources of all pages: notebooks, records, texts and modules."
import re
from pathlib import Path
import tables
from api import module_page
from book import Book, alone, linked, markdown, notebook, outgoing, raw
from modules import ROOT, modules
from tables import catalogue, catalogue_table, chip, esc, evidence_table, lines, link, plain_table

DOCS = Path(__file__).parent
SRC = DOCS/'_build/src'
WIDE = '---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n' # a page without contents on the right

def write(path, text): # or bytes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text,str) else text)

def toctree(docs, caption=''):
    return '\n'.join(['```{toctree}', *([f':caption: {caption}'] if caption else []), ':hidden:', '', *docs, '```'])

def rooms(): # those that hold notebooks, in reading order
    from quantlab.recipes.new import ROOMS
    return [r for r in (*ROOMS,'kernels') if (ROOT/f'nbs/{r}/00_index.ipynb').is_file()]

# from notebooks

TEXTS = {'README.md':'use.html', 'CONTRIBUTING.md':'contribute.html'} # files of the checkout and their pages

def urls(found): # (name, module that speaks) -> address of its documentation from the top of the site, or nothing
    where = {}
    for m in found.values():
        for n in m.names: where.setdefault(n, []).append(m)
    def find(name, own=None):
        if name in TEXTS: return TEXTS[name]
        if own and name in own.names: return f'{own.page}.html#{name}'
        if name in found: return f'{found[name].page}.html'
        at = where.get(name, [])
        return f'{at[0].page}.html#{name}' if len(at)==1 and len(name)>2 else ''
    return find

def facts(key, module, rows, up): # the line below a title: where the code is, what stands, how to run it
    parts = [link(f'{up}{module.page}.html', f'quantlab.{module.name}')] if module else []
    for r in rows:
        chips = ' '.join(chip(v,r['verdicts'][v]) for v in tables.VERDICTS if r['verdicts'][v])
        at = link(f'{up}evidence.html#q=method:{r["name"]}', esc(r["name"]))
        parts.append(f'<span>{at}, {r["kind"]} {chips}</span>')
    how = f'<span>run it: <code>make lab</code>, <code>{key}.ipynb</code></span>'
    if not key.endswith('00_index'): parts.append(how)
    return raw(f'<div class="ql-facts">{" ".join(parts)}</div>') if parts else ''

def books(): # every notebook that is meant to be read
    paths = sorted((ROOT/'nbs').rglob('*.ipynb'))
    return [p for p in paths if not any(s[0] in '._' for s in p.relative_to(ROOT).parts)]

def book_page(path, found, rows): # cells for Sphinx
    key = str(path.relative_to(ROOT/'nbs').with_suffix('')); up = '../'*(key.count('/')+1)
    m, find = next((m for m in found.values() if m.book==key), None), urls(found)
    def url(name): return (u:=find(name,m)) and up+u
    cells = list(Book(path, m, url, facts(key, m, [r for r in rows if r['book']==key], up)).out())
    if path.name=='00_index.ipynb':
        others = sorted(p.stem for p in path.parent.glob('[0-9]*.ipynb') if p!=path)
        cells.append(markdown(toctree(others)))
    return cells

def book_pages(found, rows):
    for path in books(): write(SRC/path.relative_to(ROOT), notebook(book_page(path,found,rows)))

# from records

CARDS = (('nbs/index','Tour','quantization in ten figures'), ('read','Read','how a notebook is built'),
         ('use','Use','install, quantize, compare'), ('contribute','Contribute','add a method as one notebook'),
         ('evidence','Evidence','what papers claim, and what was measured'),
         ('league/index','Leagues','all methods at equal stored bits'))

def front_page(rows, n): # n notebooks
    counts = ' '.join(chip(v, sum(r['verdicts'][v] for r in rows)) for v in tables.VERDICTS)
    cards = ''.join(link(f'{d}.html', f'<b>{t}</b> {s}') for d,t,s in CARDS)
    body = [(DOCS/'index.md').read_text('utf8').format(n=len(rows), books=n),
            raw(f'<nav class="ql-cards">{cards}</nav>'), '## Catalogue',
            raw(f'<p class="ql-counts">{counts} <span>of {len(lines("evidence.jsonl"))} claims</span></p>'),
            raw(catalogue_table(rows)),
            toctree(['Tour <nbs/index>','read','use','Contribute <contribute>'], 'Start'),
            toctree(['evidence','league/index'], 'Results'), toctree(['Modules <api/index>'], 'Reference'),
            toctree([f'{r} <nbs/{r}/00_index>' for r in rooms()], 'Rooms')]
    return WIDE+'\n\n'.join(body)+'\n'

def evidence_page(rows):
    claims = evidence_table(lines('evidence.jsonl'), {r['name']:r['book'] for r in rows})
    return WIDE+(DOCS/'evidence.md').read_text('utf8')+'\n'+raw(claims)+'\n'

def roomy(ax): # the figure of a league, its legend below and its title left to the page
    handles, names = ax.get_legend_handles_labels(); fig = ax.figure
    ax.get_legend().remove(); fig.set_size_inches(9, 5+.2*-(-len(names)//3)); fig.suptitle('')
    fig.legend(handles, names, loc='outside lower center', ncols=3, fontsize=8, frameon=False)
    return fig

def league_pages(rows):
    from quantlab.bench.contests import LEAGUES, figure, standing
    from quantlab.bench.league import standings
    home, said = {r['name']:r['book'] for r in rows}, {}
    (SRC/'league').mkdir(parents=True, exist_ok=True)
    for kind in LEAGUES:
        if not (recorded:=standings(kind)): continue
        ax = figure(kind, recorded); said[kind] = ax.figure.get_suptitle()
        roomy(ax).savefig(SRC/f'league/{kind}.svg', metadata=dict(Date=None))
        page = league_page(kind, recorded[0]['protocol'], standing(kind,recorded).rows, said[kind], home)
        write(SRC/f'league/{kind}.md', page)
    chains = sorted({k for r in lines('league.jsonl') if (k:=r.get('kind','')).startswith('chain ')})
    if chains: write(SRC/'league/chains.md', chains_page({k:standings(k) for k in chains}))
    said |= dict(chains='what each link of a chain of techniques adds') if chains else {}
    entries = '\n'.join(f'- [{k}]({k}.md): {t}' for k,t in said.items())
    write(SRC/'league/index.md', f'{(DOCS/"leagues.md").read_text("utf8")}\n\n{entries}\n\n{toctree(list(said))}\n')

def league_page(kind, protocol, shown, title, home):
    terms = '\n'.join(f'| {k} | {esc(v)} |' for k,v in protocol.items())
    options = f':alt: Loss against stored bits for every {kind}; {title}\n:class: ql-figure'
    parts = [f'# League: {kind}', f'> {title}.', f'```{{image}} {kind}.svg\n{options}\n```', '## Table',
             raw(plain_table(f'league-{kind}', shown, home, '../')), '## Protocol',
             f'| what | value |\n|---|---|\n{terms}']
    return WIDE+'\n\n'.join(parts)+'\n'

def chains_page(recorded): # chain -> its rows
    keep = ('method','bits','bpw','ppl','kl','floor','skill')
    parts = ['# Chains', '> Techniques in a row, each rung measured: what every link adds at the stored bits it takes.']
    for k,rows in recorded.items():
        table = plain_table(k.replace(' ','-'), [{c:r.get(c,'') for c in keep} for r in rows])
        parts += [f'## {k.removeprefix("chain ")}', raw(table)]
    return '\n\n'.join([*parts, 'They are written in [a notebook](../nbs/recipes/06_chains.ipynb).'])+'\n'

# from text

def text_pages(found):
    readme = (ROOT/'README.md').read_text('utf8')
    parts = dict(re.findall(r'^## (.+?)\n(.*?)(?=^## |\Z)', readme, re.M|re.S))
    use = [f'## {h}\n{parts[h]}' for h in ('Two commands','What the demo prints','Use') if h in parts]
    for name,text in dict(use='# Use\n\n'+'\n'.join(use), contribute=(ROOT/'CONTRIBUTING.md').read_text('utf8'),
                          read=(DOCS/'read.md').read_text('utf8')).items(): write(SRC/f'{name}.md', prose(text,found))

def prose(text, found): # of the top of the checkout, for the top of the site
    def picture(m):
        name = Path(m[2]).name; write(SRC/'pictures'/name, (ROOT/m[2]).read_bytes())
        return f'![{m[1]}](pictures/{name})'
    def book(m): return f'[`{m[1]}`]({m[1]})' if (ROOT/m[1]).is_file() else m[0]
    known = [f'{d}.md' for d in ('index','read','use','contribute','evidence','league/index')]
    known += [str(p.relative_to(ROOT)) for p in books()]
    text = outgoing(text, dict(zip(known,known))|{'CONTRIBUTING.md':'contribute.md','README.md':'index.md'})
    text = re.sub(r'!\[([^\]]*)\]\((data/[^)]+)\)', picture, text)
    return linked(alone(re.sub(r'`(nbs/[\w/]+\.ipynb)`', book, text)), urls(found))

# from modules

def api_pages(found):
    by = {}
    for m in found.values():
        by.setdefault(m.name.split('.')[0], []).append(m); write(SRC/f'{m.page}.md', module_page(m))
    known = [r for r in rooms() if r in by]
    for r in known:
        ms = {m.name.split('.')[-1]:m for m in sorted(by[r], key=lambda m: (m.book,m.name))}
        says = '\n'.join(f'- [quantlab.{m.name}]({n}.md): {m.doc.partition(chr(10))[0]}' for n,m in ms.items())
        write(SRC/f'api/{r}/modules.md', f'# Modules of {r}\n\n{says}\n\n{toctree([f"{n} <{n}>" for n in ms])}\n')
    def url(n): return f'../{found[n].page}.html' if n in found else ''
    says = linked('\n'.join(f'- [{r}]({r}/modules.md): {", ".join(f"`{m.name}`" for m in by[r])}' for r in known), url)
    head = '# Modules\n\n> What can be imported, with the meaning of every argument and the lines behind it.'
    write(SRC/'api/index.md', f'{head}\n\n{says}\n\n{toctree([f"{r} <{r}/modules>" for r in known])}\n')

def sources(): # all of them
    rows, found = catalogue(), modules()
    book_pages(found, rows); league_pages(rows); text_pages(found); api_pages(found)
    write(SRC/'evidence.md', evidence_page(rows))
    write(SRC/'index.md', front_page(rows, sum(b.name!='00_index.ipynb' for b in books())))
