"What is wrong with built pages: links that lead nowhere, and anything that a browser would load from elsewhere."
import re, sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

NAVIGATION = {'canonical','next','prev','search','index','help'} # relations that load nothing
LOADS = dict(img='src', script='src', iframe='src', source='src', video='src', audio='src', embed='src', object='data')

class Page(HTMLParser):
    "Anchors, links and loaded files of a page"
    def __init__(self): super().__init__(); self.ids, self.links, self.loads = set(), [], []
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {v for k in ('id','name') if (v:=a.get(k))}
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        if tag in LOADS and a.get(LOADS[tag]): self.loads.append(a[LOADS[tag]])
        if tag=='link' and a.get('href') and a.get('rel') not in NAVIGATION: self.loads.append(a['href'])

@cache
def page(path):
    p = Page(); p.feed(path.read_text('utf8')); return p

def _outside(u): return u.startswith('//') or urlsplit(u).scheme not in ('','data')

def _lost(f, u, files): # what is wrong with one link of a page
    s = urlsplit(u)
    if s.scheme or s.netloc: return ''
    to = (f.parent/unquote(s.path)).resolve() if s.path else f
    if to not in files: return 'leads nowhere'
    anchor = unquote(s.fragment) if to.suffix=='.html' and '=' not in s.fragment else '' # a=b sets a filter
    return 'has no such anchor' if anchor and anchor not in page(to).ids else ''

def problems(root): # of all pages below a folder, as lines
    root = Path(root).resolve(); files, out = {f for f in root.rglob('*') if f.is_file()}, []
    for f in sorted(f for f in files if f.suffix=='.html' and '_static' not in f.parts):
        p, name = page(f), f.relative_to(root)
        out += [f'{name}: loads {u} from elsewhere' for u in p.loads if _outside(u)]
        out += [f'{name}: {u} {why}' for u in dict.fromkeys(p.links+p.loads) if (why:=_lost(f,u,files))]
    for f in sorted(f for f in files if f.suffix=='.css'):
        if re.search(r'(url\(|@import )["\']?(https?:)?//', f.read_text('utf8','replace')):
            out.append(f'{f.relative_to(root)}: loads from elsewhere')
    return out

if __name__=='__main__': bad = problems(sys.argv[1]); print(*bad, sep='\n'); sys.exit(bool(bad))
