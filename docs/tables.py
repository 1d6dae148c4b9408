"What is registered and what was measured, as tables that a browser sorts and filters."
import html, json, re, sys
from collections import Counter
from modules import ROOT, modules

VERDICTS = ('reproduced','ordering only','not reproduced','not testable here')

def lines(name): # of a file of the data folder
    path = ROOT/'data'/name
    return [json.loads(l) for l in path.read_text('utf8').splitlines() if l.strip()] if path.is_file() else []

def opening(book): # title and first sentence of a notebook
    cells = [''.join(c['source']) for c in json.loads((ROOT/f'nbs/{book}.ipynb').read_text('utf8'))['cells']]
    title = next((m[1] for c in cells if (m:=re.search(r'^# (.+)', c, re.M))), book)
    says = next((re.sub(r'\n> ?',' ',m[1]) for c in cells if (m:=re.search(r'^> (.+(?:\n>.+)*)', c, re.M))), '')
    return title, says

def catalogue(): # one row for every registered method
    from quantlab.core import methods
    known, found = methods(), modules()
    home = {m.name:found[n.removeprefix('quantlab.')] for n,mod in list(sys.modules.items())
            if n.startswith('quantlab.') and not n.startswith('quantlab.kernels')
            for m in getattr(mod,'__methods__',()) if n.removeprefix('quantlab.') in found}
    stands = {}
    for r in lines('evidence.jsonl'): stands.setdefault(r['method'], Counter())[r['verdict']] += 1
    return [dict(name=m.name, kind=m.kind, paper=m.paper, module=home[m.name], book=home[m.name].book,
                 title=opening(home[m.name].book)[0], says=opening(home[m.name].book)[1],
                 room=home[m.name].name.split('.')[0], verdicts=stands.get(m.name,Counter())) for m in known.values()]

# HTML

def esc(t): return html.escape(str(t))
def ticks(t): return re.sub(r'`([^`]+)`', r'<code>\1</code>', esc(t)) # of a sentence
def number(v): return f'{v:.3g}' if isinstance(v,float) else str(v)

def paper(t): # numbers of arXiv become links
    def one(m): return f'<a href="https://arxiv.org/abs/{m[0]}">{m[0]}</a>'
    return re.sub(r'\b\d{4}\.\d{4,5}\b', one, esc(t)) if 'arXiv' in t else esc(t)

def link(to, text, kind=''): # `text` is HTML
    return f'<a{f" class={chr(34)}{kind}{chr(34)}" if kind else ""} href="{to}">{text}</a>'

def chip(verdict, n=''): # a verdict as a coloured word
    return f'<span class="ql-chip ql-{verdict.replace(" ","-")}">{n}{" " if n!="" else ""}{esc(verdict)}</span>'

def table(name, head, rows, note=''): # head: key -> (label, how to filter); rows: key -> (html, value to sort by)
    hide = {k:' hidden' if f=='hidden select' else '' for k,(_,f) in head.items()}
    th = ''.join(f'<th{hide[k]} scope="col" data-key="{k}" data-filter="{f}">{esc(l)}</th>' for k,(l,f) in head.items())
    def td(r, k, label):
        shown, value = r[k] if isinstance(r[k],tuple) else (r[k],'')
        at = f' data-v="{esc(value)}"' if value!='' else ''
        return f'<td{hide[k]} data-label="{esc(label)}"{at}>{shown}</td>'
    body = '\n'.join('<tr>'+''.join(td(r,k,l) for k,(l,_) in head.items())+'</tr>' for r in rows)
    return (f'<div class="ql-wide"><table class="ql" id="{name}" data-note="{esc(note)}"><thead><tr>{th}</tr></thead>'
            f'<tbody>\n{body}\n</tbody></table></div>')

def _order(c): # most reproduced first
    return ' '.join(f'{999-c.get(v,0):03}' for v in VERDICTS)

def catalogue_table(rows, up=''): # `up` leads to the top of the site
    head = dict(name=('technique','text'), room=('room','select'), kind=('kind','select'), paper=('paper',''),
                verdict=('verdicts','select'), read=('read',''))
    def row(r):
        name, n, book = r['name'], r['verdicts'], f'{up}nbs/{r["book"]}.html'
        chips = ' '.join(link(f'{up}evidence.html#q=method:{name}', chip(v,n[v])) for v in VERDICTS if n[v])
        at = f'<span hidden class="ql-order">{_order(n)}</span>'
        return dict(name=(f'{link(book,esc(name),"ql-name")} <span>{ticks(r["says"])}</span>',name),
                    room=(link(f'{up}nbs/{r["room"]}/00_index.html',r['room']),r['room']), kind=r['kind'],
                    paper=(paper(r['paper']),r['paper']),
                    verdict=((chips or '<span class="ql-none">none</span>')+at,'|'.join(n) or 'none'),
                    read=f'{link(book,"notebook")} {link(up+r["module"].page+".html","module")}')
    return table('catalogue', head, map(row,rows), 'techniques')

def _here(v): # what was measured: few numbers at once, many behind a fold
    if not isinstance(v,dict): return f'<b>{esc(number(v))}</b>'
    def flat(d, p=''):
        for k,x in d.items():
            if isinstance(x,dict): yield from flat(x, f'{p}{k} ')
            else: yield f'<span class="ql-value">{esc(p+str(k))} <b>{esc(number(x))}</b></span>'
    items = list(flat(v))
    if len(items)<7: return ' '.join(items)
    return f'{" ".join(items[:4])} <details><summary>{len(items)-4} more</summary>{" ".join(items[4:])}</details>'

def evidence_table(rows, home): # home: method -> page of its notebook
    head = dict(method=('method','text'), room=('room','hidden select'), verdict=('verdict','select'),
                claim=('claim, as tested here',''), paper=('what the paper reports',''), here=('measured here',''))
    def row(r):
        page = home.get(r['method'],''); room = page.split('/')[0]
        name = link(f'nbs/{page}.html', esc(r['method']), 'ql-name') if page else esc(r['method'])
        with_ = f'{ticks(r["protocol"])}; seed {r["seed"]}, Python {r["python"]}, torch {r["torch"]}'
        rank = VERDICTS.index(r['verdict'])
        return dict(method=(name,r['method']), room=(room,room), claim=ticks(r['text']), paper=ticks(r['paper']),
                    here=f'{_here(r["here"])} <span class="ql-small">{with_}</span>',
                    verdict=(chip(r['verdict'])+f'<span hidden class="ql-order">{rank}</span>',r['verdict']))
    return table('claims', head, map(row,rows), 'claims')

def plain_table(name, rows, home=None, up=''): # rows: dicts of numbers and words
    head = {k:(k,'text' if k=='method' else '') for k in rows[0]}
    def show(k, v):
        if k=='method' and (to:=(home or {}).get(v.split(':')[0])):
            return link(f'{up}nbs/{to}.html', esc(v), 'ql-name'), v
        return esc(number(v)), repr(v) if isinstance(v,(int,float)) else v
    return table(name, head, [{k:show(k,v) for k,v in r.items()} for r in rows], 'rows')
